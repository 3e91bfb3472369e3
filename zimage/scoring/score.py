"""Score LoRA files and folders of pictures against real photos of a person, and compare them."""

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from zimage.captions.subject import Subject
from zimage.captions.template import ClassNoun
from zimage.consent import read_consent
from zimage.core.errors import InputError
from zimage.core.folder import check_out, made_aside
from zimage.core.jsonl import write_metrics
from zimage.core.section import read_section
from zimage.evaluation.compare import LIKENESS, Difference, differences, same_person, sentence
from zimage.evaluation.figures import Evidence, Figures, PairValues, figures
from zimage.evaluation.gate import GateParams, Judgement, judge
from zimage.evaluation.generate.gallery import Gallery
from zimage.evaluation.generate.image_cache import ImageCache, Sampling, delete_others, machine_precision
from zimage.evaluation.generate.suite import Half, Prompt, read_suite, with_subject, without_trigger
from zimage.evaluation.hidden import changes_for_the_worse
from zimage.evaluation.intervals import Estimate
from zimage.evaluation.protocol import PROTOCOL_VERSION
from zimage.evaluation.report.results import hidden_metrics, sha256_of
from zimage.evaluation.report.review_page import REFERENCES, Shown, questions_of, spread_out, write_questions
from zimage.evaluation.review import Answers, Item, read_answers, review_of, summary_line
from zimage.evaluation.rows import PictureRow, write_csv
from zimage.evaluation.score.picture import Search
from zimage.evaluation.score.reals import Reals
from zimage.evaluation.select.scorer import Scorer, asked_of_base, asked_of_lora
from zimage.faces.looks import Looks
from zimage.model.base import Base, public_name, resolve, shift_of
from zimage.permission import require_for, today
from zimage.photos.cache import cache_of
from zimage.scoring.blind import write_blind_page
from zimage.scoring.loras import GivenLora, given_loras
from zimage.scoring.page import write_page
from zimage.scoring.pictures import GivenPicture, numbered, pictures_in, prompt_of, rows_of, same_words
from zimage.scoring.power import WORST_SHARE, Plan, plan
from zimage.scoring.references import References, references
from zimage.scoring.usage import Use, open_used, uses
from zimage.stages.evaluate import (
    EvaluateParams,
    absent,
    engines_of,
    out_of_memory_explained,
    picture_scorer_of,
    prompt_texts,
    require_pinned_models,
    varieties,
)
from zimage.stages.ingest import IngestParams

logger = logging.getLogger(__name__)

OF_THE_TRAINING = ("copy_rate_max", "nearest_share_max", "shared_session_max")  # limits that need the training photos
BASE = "base"
NOT_IN_A_PATH = re.compile(r"[^\w.=-]+")


@dataclass(frozen=True)
class Request:
    """What is scored, and how.

    Args:
        photos: Real photos of the person: a folder or an archive.
        consent: The person's consent.yaml.
        loras: LoRA files, as `FILE` or `FILE:STRENGTH`.
        pictures: Folders or archives of pictures, however they were made.
        class_noun: What the base model calls the person.
        trigger: The word that calls the person; "" for what each file's metadata says.
        seeds: Pictures of each prompt; 0 for `evaluate.seeds.test`.
        params_file: A params.yaml: its base, its face engines, its sampling and its limits.
        bases: Other base models than params.yaml's: folders or hub ids. They are scored even where nothing else is.
        used_as: Further ways to use everything, such as `merged,fp8`; see `zimage.scoring.usage.sampling_of`.
        strength: What LoRAs are multiplied with that say no strength of their own.
        blind: Write a page that shows the pictures side by side without names.
        precision: Half of the width that the interval of the share of the same person shall have; it chooses the seeds.
            0 leaves them to `seeds`.
        review: What a person saved in the review.html of an earlier run of the same pictures; None for none.
    """

    photos: Path
    consent: Path
    loras: list[str]
    pictures: list[Path]
    class_noun: ClassNoun
    trigger: str
    seeds: int
    params_file: Path
    bases: list[str] = field(default_factory=list)
    used_as: list[str] = field(default_factory=list)
    strength: float = 1.0
    blind: bool = False
    precision: float = 0.0
    review: Path | None = None


@dataclass(frozen=True)
class Result:
    """What was found of one LoRA, of the base alone, or of one folder of pictures.

    Args:
        name: Its name in tables.
        source: The LoRA's name, the folder's, or `base`.
        use: In which way it was used; "" for the usual one.
        about: Facts that identify it.
        rows: Its scored pictures.
        figures: What they amount to; None where there is no base to compare with.
        judgement: The verdict; None where nothing was judged.
    """

    name: str
    source: str
    use: str
    about: dict[str, Any]
    rows: list[PictureRow]
    figures: Figures | None
    judgement: Judgement | None


def score(asked: Request, out: Path) -> list[str]:
    """Write metrics.json, scores.csv, differences.csv, score.html and pictures/, and return what a person should read.

    And review.html, in which a person says who the pictures show; its answers are given to the next run as `review`.
    With `blind` also blind.html, which names nothing, and blind_key.json, which says what is what.

    The photos are all held out: nothing is trained here. Pictures and the base's own are kept beside `out`, so that a
    further LoRA costs its own pictures only.

    Raises:
        InputError: nothing to score was named, the consent does not cover it, or see `references`, `given_loras` and
            `pictures_in`.
    """
    from zimage.model.device import use_one_thread_on_a_cpu

    if not asked.loras and not asked.pictures and not asked.bases:
        raise InputError(
            "There is nothing to score; name a LoRA with --lora, a folder of pictures with --pictures, or a base model "
            "alone with --base."
        )
    answers = read_answers(asked.review) if asked.review else None
    check_out(out, (asked.photos, asked.consent, *asked.pictures), holds="scores.csv")
    require_for(["ingest", "evaluate"], read_consent(asked.consent), today())
    params = read_section(asked.params_file, "evaluate", EvaluateParams)
    planned = _plan(asked, read_suite(params.suite))
    pinned = read_section(asked.params_file, "base", Base)
    ways = uses(asked.bases, asked.used_as, pinned, Sampling(**params.sampling.model_dump()))
    require_pinned_models(params)
    cache = cache_of(out)
    loras = given_loras(asked.loras, cache / "loras", trigger=asked.trigger, strength=asked.strength)
    sets = _sets(asked, loras, cache / "given")
    found = references(asked.photos, asked.consent, cache, asked.params_file)
    use_one_thread_on_a_cpu()
    with made_aside(out) as folder, Search(engines_of(params)) as search:
        scoring = _Scoring(asked, params, ways, found.reals, folder, search, cache, planned)
        results = scoring.reviewed(scoring.results(loras, sets), answers)
        compared = differences(
            {one.name: one.rows for one in results if one.source != BASE},
            pairs=_pairs(results),
            resamples=params.resampling.resamples,
            generator=params.resampling.generator(),
        )
        lines = _lines(results, compared, found)
        write_metrics(folder / "metrics.json", scoring.summary(results, compared, lines))
        write_csv(folder / "scores.csv", [row for one in results for row in one.rows])
        write_csv(folder / "differences.csv", compared)
        write_page(folder, results, compared, lines, found.reals, uses=ways, seeds=scoring.seeds)
        if asked.blind:
            write_blind_page(folder, results, found.reals, generator=params.resampling.generator())
    return lines


def _plan(asked: Request, prompts: Sequence[Prompt]) -> Plan | None:
    """Return how many seeds the wanted precision takes, after saying it; None where none is wanted."""
    if not asked.precision:
        return None
    if asked.seeds or not 0 < asked.precision < WORST_SHARE:
        raise InputError(
            f"The precision {asked.precision:g} cannot be used: give one above 0 and below {WORST_SHARE:g}, such as "
            "0.05, and leave out --seeds, which it chooses."
        )
    found = plan(asked.precision, sum(prompt.kind == "likeness" for prompt in prompts))
    logger.info("%s", found)
    return found


def _pairs(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return which results are compared: one LoRA in two uses, or two LoRAs in one, so that one thing differs."""
    scored = [one for one in results if one.source != BASE]
    return [
        (first.name, second.name)
        for first, second in combinations(scored, 2)
        if first.source == second.source or first.use == second.use
    ]


def _sets(asked: Request, loras: Sequence[GivenLora], folder: Path) -> dict[str, list[GivenPicture]]:
    """Return the finished pictures by the name of what holds them; `folder` gets their clean copies."""
    take = read_section(asked.params_file, "ingest", IngestParams)
    shutil.rmtree(folder, ignore_errors=True)
    sets: dict[str, list[GivenPicture]] = {}
    for source in asked.pictures:
        name = source.resolve().name if source.is_dir() else source.name.partition(".")[0]
        if name in {BASE, *sets, *(lora.name for lora in loras)}:
            raise InputError(f"{source} has the name of something else that is scored; rename it.")
        sets[name] = pictures_in(source, folder / name, take)
    return sets


class _Scoring:
    def __init__(  # noqa: PLR0917
        self,
        asked: Request,
        params: EvaluateParams,
        ways: Sequence[Use],
        reals: Reals,
        folder: Path,
        search: Search,
        cache: Path,
        planned: Plan | None,
    ) -> None:
        self.asked, self.params, self.uses, self.folder, self.search = asked, params, ways, folder, search
        self.prompts = read_suite(params.suite)
        self.plan = planned
        self.seeds = planned.seeds if planned else asked.seeds or params.seeds.test
        self.picture_scorer, self._strangers = picture_scorer_of(params, reals, search)
        self._reals = reals
        self._photos: dict[int, list[Looks]] = {}
        self._images = cache / "pictures"

    def results(self, loras: Sequence[GivenLora], sets: Mapping[str, Sequence[GivenPicture]]) -> list[Result]:
        found = self._generated(loras) if loras or self.asked.bases else []
        base_rows = next((one.rows for one in found if one.source == BASE), [])
        triggers = {lora.trigger for lora in loras} | ({self.asked.trigger} if self.asked.trigger else set())
        prompts = {
            same_words(text): prompt
            for prompt in self.prompts
            for text in (
                *(with_subject(prompt, self._subject(trigger)) for trigger in sorted(triggers)),
                without_trigger(prompt, self.asked.class_noun),
            )
        }
        numbers = numbered(sets, prompts)
        for name, pictures in sets.items():
            rows = rows_of(
                pictures,
                name,
                self.picture_scorer,
                self.search,
                prompts=prompts,
                class_noun=self.asked.class_noun,
                numbers=numbers,
            )
            (self.folder / "pictures" / name).mkdir(parents=True)
            for one in pictures:
                shutil.copyfile(one.file, self.folder / "pictures" / name / one.file.name)
            about = {
                "pictures": len(pictures),
                "with_prompt": sum(bool(one.metadata.text) for one in pictures),
                "with_seed": sum(one.metadata.seed is not None for one in pictures),
                "of_the_suite": sum(prompt_of(one, prompts)[1] is not None for one in pictures),
            }
            found.append(Result(name, name, "", about, rows, self._figures(rows, base_rows), None))
        return found

    def reviewed(self, results: Sequence[Result], answers: Answers | None) -> list[Result]:
        """Write review.html, and return the results with what a person answered in that of an earlier run.

        Raises:
            InputError: the answers are of other pictures, not complete, or wrong on the controls.
        """
        shown = [one for one in results if one.source != BASE]
        questions = questions_of(
            self.folder,
            Shown(
                rows=[row for one in shown for row in one.rows if row.kind == "likeness"],
                strangers=self._strangers,
                targets=self.picture_scorer.targets,
                reals=self._reals,
                side_px=self.uses[0].sampling.side_px,
            ),
            self.params.resampling.seed,
        )
        items = [question.item for question in questions]
        controls = {item.name for item in items if item.kind == "real"}
        others = [real for real in self._reals.holdout if real.photo not in controls] or self._reals.holdout
        subject = self._subject(next((one.about["trigger"] for one in shown if "trigger" in one.about), "the person"))
        if shown:
            write_questions(
                self.folder,
                questions,
                spread_out(others, REFERENCES),
                picture_px=self.params.report.picture_px,
                subject=subject,
            )
        return [self._with_review(one, items, answers) if one in shown and answers else one for one in results]

    def _with_review(self, result: Result, items: Sequence[Item], answers: Answers) -> Result:
        """Return a result with the share of its pictures that are the person to a reviewer, and the verdict with it."""
        review = review_of(items, answers, frozenset(row.file for row in result.rows))
        if review.unusable:
            raise InputError(review.unusable)
        about = {**result.about, "review": summary_line({**asdict(review)})}
        if result.figures is None:
            return replace(result, about=about)
        found = replace(result.figures, reviewed=review.same)
        embedded = self.picture_scorer.targets.info.embedded
        judgement = judge(found, self._limits(), embedded=embedded) if result.judgement else None
        return replace(result, about=about, figures=found, judgement=judgement)

    def summary(self, results: Sequence[Result], found: Sequence[Difference], lines: Sequence[str]) -> dict[str, Any]:
        """Return metrics.json: everything that is needed to read a number, and to make it again."""
        targets = self.picture_scorer.targets
        return {
            "protocol": PROTOCOL_VERSION,
            "says": lines,
            "results": {
                one.name: {
                    "use": one.use,
                    **one.about,
                    "verdict": one.judgement.verdict if one.judgement else None,
                    "why": one.judgement.why if one.judgement else None,
                    "estimates": _estimates(one.figures),
                    "leaks": {kind: asdict(value) for kind, value in one.figures.leaks.items()} if one.figures else {},
                    **(hidden_metrics(one.figures) if one.figures else {}),
                }
                for one in results
            },
            "differences": [one.model_dump() for one in found],
            "photos": len(targets.holdout),
            "engine": targets.info.engine_id,
            "threshold": targets.info.threshold,
            "second_engine": self.picture_scorer.second.info.engine_id if self.picture_scorer.second else None,
            "absent": absent(self.params, self.picture_scorer),
            "suite": self.params.suite,
            "seeds": self.seeds,
            "plan": asdict(self.plan) if self.plan else None,
            "base": self.uses[0].base.identity,
            "sampled": _sampled(self.uses[0]),
            "uses": {
                use.name: {
                    "base": use.base.identity,
                    "model": public_name(use.base.model),
                    "shift": shift_of(resolve(use.base)),
                    **_sampled(use),
                }
                for use in self.uses
            },
        }

    def _generated(self, loras: Sequence[GivenLora]) -> list[Result]:
        found: list[Result] = []
        of_bases: dict[Use, _OfBase] = {}
        shown: set[Path] = set()
        for use in self.uses:
            results, files = self._used(use, loras, of_bases)
            found += results
            shown |= files
        delete_others(self._images, shown)
        return found

    def _used(
        self, use: Use, loras: Sequence[GivenLora], of_bases: dict[Use, "_OfBase"]
    ) -> tuple[list[Result], set[Path]]:
        """Return the results of one use, and the cached pictures that they show; `of_bases` gets those of its base."""
        loras_gb = max((lora.loaded.stat().st_size for lora in loras), default=0) / 1e9
        subjects = {lora.trigger: self._subject(lora.trigger) for lora in loras} or {"": self._subject("")}
        texts = prompt_texts(self.prompts, list(subjects.values()))
        gallery = Gallery(
            ImageCache(self._images, use.base.identity, use.sampling),
            lambda: open_used(use, texts, adapters_gb=loras_gb),
        )
        found: list[Result] = []
        with out_of_memory_explained(use.base, use.sampling, loras_gb):
            if use.of_base not in of_bases:
                of_bases[use.of_base] = self._of_base(
                    self._scorer(gallery, use.of_base), use.of_base, next(iter(subjects.values()))
                )
                found.append(of_bases[use.of_base].result)
            scorer = self._scorer(gallery, use)
            found += [self._of_lora(lora, use, scorer, of_bases[use.of_base], subjects[lora.trigger]) for lora in loras]
        return found, gallery.used

    def _scorer(self, gallery: Gallery, use: Use) -> Scorer:
        return Scorer(gallery, self.picture_scorer, self.search, self.folder, NOT_IN_A_PATH.sub("-", use.name))

    def _of_base(self, scorer: Scorer, use: Use, subject: Subject) -> "_OfBase":
        sides: dict[str, Half] = {prompt.id: half for prompts, half in self._halves() for prompt in prompts}
        likeness, leaks = (
            scorer.rows(
                asked_of_base(prompts, sides, self.seeds, subject=subject), f"{use.called('base model')}, {half}"
            )
            for prompts, half in self._halves()
        )
        rows = [*likeness, *leaks]
        about = {"base": use.base.identity, "sampled": _sampled(use)}
        result = Result(use.called(BASE), BASE, use.name, about, rows, self._figures(rows, rows), None)
        return _OfBase(result, likeness, leaks, varieties(scorer, likeness))

    def _of_lora(self, lora: GivenLora, use: Use, scorer: Scorer, base: "_OfBase", subject: Subject) -> Result:
        likeness, leaks = (
            scorer.rows(
                asked_of_lora(prompts, half, self.seeds, subject=subject, lora=lora.loaded, strength=lora.strength),
                f"{use.called(lora.name)}, {half}",
            )
            for prompts, half in self._halves()
        )
        evidence = Evidence(
            lora=likeness,
            base=base.likeness,
            leaks=leaks,
            base_leaks=base.leaks,
            variety=varieties(scorer, likeness),
            base_variety=base.variety,
            ceiling=self.picture_scorer.targets.genuine(),
            sessions=[],
            photos=self._looks(use),
        )
        found = self._computed(evidence)
        judgement = judge(found, self._limits(), embedded=self.picture_scorer.targets.info.embedded)
        about = {
            "file": lora.file.name,
            "sha256": sha256_of(lora.file),
            "strength": lora.strength,
            "trigger": lora.trigger,
            "converted": lora.is_converted,
            "base": use.base.identity,
            "sampled": _sampled(use),
            "merging": self._merging(lora, use),
        }
        return Result(use.called(lora.name), lora.name, use.name, about, [*likeness, *leaks], found, judgement)

    def _merging(self, lora: GivenLora, use: Use) -> dict[str, float] | None:
        """Return what is left of a LoRA that is merged; None where it stays apart, and at strength 0."""
        from zimage.scoring.merging import survival

        if not use.sampling.merged:
            return None
        left = survival(resolve(use.base), lora.loaded, lora.strength, use.sampling.precision)
        return asdict(left) if left else None

    def _halves(self) -> list[tuple[list[Prompt], Half]]:
        """Return the prompts that ask for the person, and those that ask for others."""
        likeness = [prompt for prompt in self.prompts if prompt.kind == "likeness"]
        return [(likeness, "test"), ([prompt for prompt in self.prompts if prompt.kind != "likeness"], "leak")]

    def _figures(self, rows: Sequence[PictureRow], base: Sequence[PictureRow]) -> Figures:
        """Return the figures of pictures on likeness and leak prompts, without variety, beside the base's."""
        likeness, leaks, base_likeness, base_leaks = (
            [row for row in each if (row.kind == "likeness") == wanted]
            for each in (rows, base)
            for wanted in (True, False)
        )
        ceiling = self.picture_scorer.targets.genuine()
        photos = self._looks(self.uses[0])
        return self._computed(Evidence(likeness, base_likeness, leaks, base_leaks, {}, {}, ceiling, [], photos))

    def _looks(self, use: Use) -> list[Looks]:
        """Return how the real photos look at the size of a use's pictures."""
        side_px = use.sampling.side_px
        if side_px not in self._photos:
            self._photos[side_px] = self._reals.looks(self.search, side_px)
        return self._photos[side_px]

    def _computed(self, evidence: Evidence) -> Figures:
        resampling = self.params.resampling
        return figures(
            evidence,
            copy_correlation=self.params.copy_correlation,
            resamples=resampling.resamples,
            generator=resampling.generator(),
        )

    def _limits(self) -> GateParams:
        """Return the limits without those that need the training photos, which nobody knows here."""
        return self.params.gate.model_copy(update=dict.fromkeys(OF_THE_TRAINING))

    def _subject(self, trigger: str) -> Subject:
        return Subject(trigger=trigger, class_noun=self.asked.class_noun)


@dataclass(frozen=True)
class _OfBase:
    """The pictures of a base in one use, without a LoRA."""

    result: Result
    likeness: list[PictureRow]
    leaks: list[PictureRow]
    variety: dict[str, PairValues]


def _sampled(use: Use) -> dict[str, Any]:
    return use.sampling.recorded() | {
        "precision": use.sampling.precision or machine_precision(),
        "merged_weights": use.sampling.merged_weights,
    }


def _estimates(found: Figures | None) -> dict[str, Any]:
    """Return the figures that were measured, by name."""
    values = {} if found is None else {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: asdict(one) for name, one in values.items() if isinstance(one, Estimate) and one.value is not None}


def _lines(results: Sequence[Result], found: Sequence[Difference], photos: References) -> list[str]:
    """Return the comparisons of likeness, then a line for each result, as a person reads them."""
    same = {one.name: same_person(one.rows) for one in results}
    lines = [sentence(one, (same[one.first], same[one.second])) for one in found if one.measure == LIKENESS.name]
    for one in results:
        if one.figures is not None and one.figures.same_of_all.value is not None:
            share = one.figures.same_of_all
            verdict = f"{one.judgement.verdict}: " if one.judgement else ""
            interval = "" if share.low is None or share.high is None else f" [{share.low:.0%}, {share.high:.0%}]"
            lines.append(f"{one.name}: {verdict}same person in {share.value:.0%}{interval} of {share.n} pictures.")
        if one.figures is not None and one.source != BASE:
            lines += [f"{one.name}: {each}" for each in changes_for_the_worse(one.figures)]
    if photos.refused:
        lines.append(f"{photos.refused} of the {photos.files} files of the photos could not be used.")
    return lines

"""Score LoRA files and folders of pictures against real photos of a person, and compare them."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from zimage.captions.subject import Subject
from zimage.captions.template import ClassNoun
from zimage.consent import read_consent
from zimage.core.errors import InputError
from zimage.core.folder import check_out, made_aside
from zimage.core.jsonl import write_metrics
from zimage.core.section import read_section
from zimage.evaluation.compare import LIKENESS, Difference, differences, sentence
from zimage.evaluation.figures import Evidence, Figures, PairValues, figures
from zimage.evaluation.gate import GateParams, Judgement, judge
from zimage.evaluation.generate.gallery import Gallery
from zimage.evaluation.generate.image_cache import ImageCache, Sampling
from zimage.evaluation.generate.suite import Half, Prompt, read_suite, with_subject, without_trigger
from zimage.evaluation.intervals import Estimate
from zimage.evaluation.protocol import PROTOCOL_VERSION
from zimage.evaluation.report.results import sha256_of
from zimage.evaluation.rows import PictureRow, write_csv
from zimage.evaluation.score.picture import Search
from zimage.evaluation.score.reals import Reals
from zimage.evaluation.select.scorer import Scorer, asked_of_base, asked_of_lora
from zimage.model.base import Base, identify
from zimage.permission import require_for, today
from zimage.photos.cache import cache_of
from zimage.scoring.blind import write_blind_page
from zimage.scoring.loras import GivenLora, given_loras
from zimage.scoring.page import write_page
from zimage.scoring.pictures import GivenPicture, numbered, pictures_in, prompt_of, rows_of, same_words
from zimage.scoring.power import WORST_SHARE, Plan, plan
from zimage.scoring.references import References, references
from zimage.stages.evaluate import (
    EvaluateParams,
    absent,
    engines_of,
    generator_of,
    out_of_memory_explained,
    picture_scorer_of,
    precision,
    require_pinned_models,
    varieties,
)
from zimage.stages.ingest import IngestParams

logger = logging.getLogger(__name__)

OF_THE_TRAINING = ("copy_rate_max", "nearest_share_max", "shared_session_max")  # limits that need the training photos
BASE = "base"


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
        base: Another base model: a folder or a hub id; it is scored even where nothing else is. "" for params.yaml's.
        strength: What LoRAs are multiplied with that say no strength of their own.
        blind: Write a page that shows the pictures side by side without names.
        precision: Half of the width that the interval of the share of the same person shall have; it chooses the seeds.
            0 leaves them to `seeds`.
    """

    photos: Path
    consent: Path
    loras: list[str]
    pictures: list[Path]
    class_noun: ClassNoun
    trigger: str
    seeds: int
    params_file: Path
    base: str = ""
    strength: float = 1.0
    blind: bool = False
    precision: float = 0.0


@dataclass(frozen=True)
class Result:
    """What was found of one LoRA, of the base alone, or of one folder of pictures.

    Args:
        name: Its name in tables.
        about: Facts that identify it.
        rows: Its scored pictures.
        figures: What they amount to; None where there is no base to compare with.
        judgement: The verdict; None where nothing was judged.
    """

    name: str
    about: dict[str, Any]
    rows: list[PictureRow]
    figures: Figures | None
    judgement: Judgement | None


def score(asked: Request, out: Path) -> list[str]:
    """Write metrics.json, scores.csv, differences.csv, score.html and pictures/, and return what a person should read.

    With `blind` also blind.html, which names nothing, and blind_key.json, which says what is what.

    The photos are all held out: nothing is trained here. Pictures and the base's own are kept beside `out`, so that a
    further LoRA costs its own pictures only.

    Raises:
        InputError: nothing to score was named, the consent does not cover it, or see `references`, `given_loras` and
            `pictures_in`.
    """
    from zimage.model.device import use_one_thread_on_a_cpu

    if not asked.loras and not asked.pictures and not asked.base:
        raise InputError(
            "There is nothing to score; name a LoRA with --lora, a folder of pictures with --pictures, or a base model "
            "alone with --base."
        )
    check_out(out, (asked.photos, asked.consent, *asked.pictures), holds="scores.csv")
    require_for(["ingest", "evaluate"], read_consent(asked.consent), today())
    params = read_section(asked.params_file, "evaluate", EvaluateParams)
    planned = _plan(asked, read_suite(params.suite))
    base = _base(asked)
    require_pinned_models(params)
    cache = cache_of(out)
    loras = given_loras(asked.loras, cache / "loras", trigger=asked.trigger, strength=asked.strength)
    sets = _sets(asked, loras, cache / "given")
    found = references(asked.photos, asked.consent, cache, asked.params_file)
    use_one_thread_on_a_cpu()
    with made_aside(out) as folder, Search(engines_of(params)) as search:
        scoring = _Scoring(asked, params, base, found.reals, folder, search, cache, planned)
        results = scoring.results(loras, sets)
        compared = differences(
            {one.name: one.rows for one in results if one.name != BASE},
            resamples=params.resampling.resamples,
            generator=params.resampling.generator(),
        )
        lines = _lines(results, compared, found)
        write_metrics(folder / "metrics.json", scoring.summary(results, compared, lines))
        write_csv(folder / "scores.csv", [row for one in results for row in one.rows])
        write_csv(folder / "differences.csv", compared)
        write_page(folder, results, compared, lines, found.reals, sampling=scoring.sampling, seeds=scoring.seeds)
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


def _base(asked: Request) -> Base:
    """Return the base that was asked for; where params.yaml names the same one, what it pins holds."""
    pinned = read_section(asked.params_file, "base", Base)
    if asked.base in {"", pinned.model}:
        return pinned
    return Base(model=asked.base, identity=identify(asked.base))


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
        base: Base,
        reals: Reals,
        folder: Path,
        search: Search,
        cache: Path,
        planned: Plan | None,
    ) -> None:
        self.asked, self.params, self.base, self.folder, self.search = asked, params, base, folder, search
        self.sampling = Sampling(**params.sampling.model_dump())
        self.prompts = read_suite(params.suite)
        self.plan = planned
        self.seeds = planned.seeds if planned else asked.seeds or params.seeds.test
        self.picture_scorer = picture_scorer_of(params, reals, search)
        self._images = ImageCache(cache / "pictures", base.identity, self.sampling)

    def results(self, loras: Sequence[GivenLora], sets: Mapping[str, Sequence[GivenPicture]]) -> list[Result]:
        found = self._generated(loras) if loras or self.asked.base else []
        base_rows = [row for one in found if one.name == BASE for row in one.rows]
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
            found.append(Result(name, about, rows, self._figures(rows, base_rows), None))
        return found

    def summary(self, results: Sequence[Result], found: Sequence[Difference], lines: Sequence[str]) -> dict[str, Any]:
        """Return metrics.json: everything that is needed to read a number, and to make it again."""
        targets = self.picture_scorer.targets
        return {
            "protocol": PROTOCOL_VERSION,
            "says": lines,
            "results": {
                one.name: {
                    **one.about,
                    "verdict": one.judgement.verdict if one.judgement else None,
                    "why": one.judgement.why if one.judgement else None,
                    "estimates": _estimates(one.figures),
                    "leaks": {kind: asdict(value) for kind, value in one.figures.leaks.items()} if one.figures else {},
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
            "base": self.base.identity,
            "sampled": asdict(self.sampling) | {"precision": precision()},
        }

    def _generated(self, loras: Sequence[GivenLora]) -> list[Result]:
        loras_gb = max((lora.loaded.stat().st_size for lora in loras), default=0) / 1e9
        texts = {lora.trigger: self._subject(lora.trigger) for lora in loras} or {"": self._subject("")}
        subject = next(iter(texts.values()))
        gallery = Gallery(
            self._images,
            lambda: generator_of(self.base, self.sampling, self.prompts, list(texts.values()), loras_gb),
        )
        scorer = Scorer(gallery, self.picture_scorer, self.search, self.folder)
        sides: dict[str, Half] = {prompt.id: "test" if prompt.kind == "likeness" else "leak" for prompt in self.prompts}
        likeness = [prompt for prompt in self.prompts if prompt.kind == "likeness"]
        leaks = [prompt for prompt in self.prompts if prompt.kind != "likeness"]
        with out_of_memory_explained(self.base, self.sampling, loras_gb):
            of_base = [
                scorer.rows(asked_of_base(prompts, sides, self.seeds, subject=subject), f"base model, {what}")
                for prompts, what in ((likeness, "likeness"), (leaks, "leaks"))
            ]
            rows = [*of_base[0], *of_base[1]]
            found = [Result(BASE, {"base": self.base.identity}, rows, self._figures(rows, rows), None)]
            base_variety = varieties(scorer, of_base[0])
            for lora in loras:
                found.append(self._of_lora(lora, scorer, likeness, leaks, of_base, base_variety, texts[lora.trigger]))
        gallery.close()
        return found

    def _of_lora(  # noqa: PLR0917
        self,
        lora: GivenLora,
        scorer: Scorer,
        likeness: Sequence[Prompt],
        leaks: Sequence[Prompt],
        of_base: Sequence[list[PictureRow]],
        base_variety: Mapping[str, PairValues],
        subject: Subject,
    ) -> Result:
        halves: list[tuple[Sequence[Prompt], Half, str]] = [(likeness, "test", "likeness"), (leaks, "leak", "leaks")]
        rows = [
            scorer.rows(
                asked_of_lora(prompts, half, self.seeds, subject=subject, lora=lora.loaded, strength=lora.strength),
                f"{lora.name}, {what}",
            )
            for prompts, half, what in halves
        ]
        evidence = Evidence(
            lora=rows[0],
            base=of_base[0],
            leaks=rows[1],
            base_leaks=of_base[1],
            variety=varieties(scorer, rows[0]),
            base_variety=base_variety,
            ceiling=self.picture_scorer.targets.genuine(),
            sessions=[],
        )
        found = self._computed(evidence)
        embedded = self.picture_scorer.targets.info.embedded
        about = {
            "file": lora.file.name,
            "sha256": sha256_of(lora.file),
            "strength": lora.strength,
            "trigger": lora.trigger,
            "converted": lora.is_converted,
        }
        return Result(lora.name, about, [*rows[0], *rows[1]], found, judge(found, self._limits(), embedded=embedded))

    def _figures(self, rows: Sequence[PictureRow], base: Sequence[PictureRow]) -> Figures:
        """Return the figures of pictures on likeness and leak prompts, without variety, beside the base's."""
        likeness, leaks, base_likeness, base_leaks = (
            [row for row in each if (row.kind == "likeness") == wanted]
            for each in (rows, base)
            for wanted in (True, False)
        )
        ceiling = self.picture_scorer.targets.genuine()
        return self._computed(Evidence(likeness, base_likeness, leaks, base_leaks, {}, {}, ceiling, []))

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


def _estimates(found: Figures | None) -> dict[str, Any]:
    """Return the figures that were measured, by name."""
    values = {} if found is None else {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: asdict(one) for name, one in values.items() if isinstance(one, Estimate) and one.value is not None}


def _lines(results: Sequence[Result], found: Sequence[Difference], photos: References) -> list[str]:
    """Return the comparisons of likeness, then a line for each result, as a person reads them."""
    lines = [sentence(one) for one in found if one.measure == LIKENESS.name]
    for one in results:
        if one.figures is not None and one.figures.same_of_all.value is not None:
            same = one.figures.same_of_all
            verdict = f"{one.judgement.verdict}: " if one.judgement else ""
            interval = "" if same.low is None or same.high is None else f" [{same.low:.0%}, {same.high:.0%}]"
            lines.append(f"{one.name}: {verdict}same person in {same.value:.0%}{interval} of {same.n} pictures.")
    if photos.refused:
        lines.append(f"{photos.refused} of the {photos.files} files of the photos could not be used.")
    return lines

"""Stage `evaluate`: generate pictures with the LoRA, score them against held-out photos, and judge."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from zimage.captions.rows import CaptionRow
from zimage.captions.subject import Subject
from zimage.core.errors import InputError
from zimage.core.folder import check_out, made_aside
from zimage.core.jsonl import read_rows
from zimage.core.losses import read_losses
from zimage.core.section import Section
from zimage.evaluation.figures import Evidence, PairValues, by_prompt, figures
from zimage.evaluation.gate import GateParams, judge
from zimage.evaluation.generate.gallery import Gallery
from zimage.evaluation.generate.image_cache import ImageCache, Sampling, machine_precision
from zimage.evaluation.generate.suite import Prompt, halves, read_suite, with_subject, without_trigger
from zimage.evaluation.report.advice import Trained, advice, spread_of
from zimage.evaluation.report.coaching import Measurements, coaching
from zimage.evaluation.report.report import ReportParams, write_report
from zimage.evaluation.report.results import Findings, Sampled, write_results
from zimage.evaluation.report.review_page import write_review
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.score.clip import ClipParams, open_clip
from zimage.evaluation.score.copies import variety
from zimage.evaluation.score.impostors import Impostors, impostors, packaged_photos
from zimage.evaluation.score.likeness import Targets
from zimage.evaluation.score.picture import PictureScorer, Search
from zimage.evaluation.score.reals import Reals, largest_faces, reals_of
from zimage.evaluation.select.checkpoint_selection import (
    CheckpointSelection,
    ResamplingParams,
    SeedParams,
    Selection,
    SweepParams,
    candidates_of,
)
from zimage.evaluation.select.scorer import Scorer, asked_of_base
from zimage.faces.engine import EngineParams, is_present, require_pinned_pack
from zimage.model.base import Base, is_packaged, resolve, shift_of
from zimage.model.pinned import require_pinned
from zimage.photos.cache import cache_of
from zimage.photos.pictures import read_rgb
from zimage.photos.rows import CropRow

if TYPE_CHECKING:
    from zimage.evaluation.generate.generator import Generator

logger = logging.getLogger(__name__)


class SamplingParams(Section):
    """Size, steps and guidance of every picture."""

    side_px: int = Field(multiple_of=16, description="height and width of the pictures")
    steps: int = Field(ge=1, description="Euler steps")
    guidance_scale: float = Field(ge=0, description="as diffusers' ZImagePipeline counts: 0 none, 4 is 5 elsewhere")


class EvaluateParams(Section):
    """Prompts, engines, sampling, seeds and limits of an evaluation."""

    suite: str = Field(description="demo, full, or a YAML file of prompts")
    engine: EngineParams = Field(description="the face engine that decides")
    second_engine: EngineParams | None = Field(description="an independent engine that has to agree; or null")
    impostors: Literal["packaged"] | None = Field(description="photos of other people that are scored too; or null")
    clip: ClipParams | None = Field(description="a CLIP model for prompt following; or null")
    sampling: SamplingParams
    seeds: SeedParams
    sweep: SweepParams
    resampling: ResamplingParams
    copy_correlation: float = Field(description="a picture is a training crop come back from this likeness on, 0 to 1")
    gate: GateParams
    report: ReportParams


def evaluate(
    detect: Path, caption: Path, train: Path, out: Path, *, params: EvaluateParams, base: Base, subject: Subject
) -> None:
    """Write pictures, scores, the verdict and a report: does the LoRA draw this person, and not the photos themselves?

    A poor score is a result. The checkpoint and the strength are chosen on one half of the prompts, and every figure of
    the chosen LoRA is taken on the other half.

    Args:
        detect: The folder of the detect stage; its held-out crops are the targets.
        caption: The folder of the caption stage; what it says of every photo is advised on.
        train: The folder of the train stage; only lora.safetensors, checkpoints/ and loss.csv are read, and dvc.yaml
            names these three: what else is there tells of times, and may not make a LoRA be evaluated again.
        out: Gets pictures/, scores.csv, sweep.csv, distances.csv, gate.csv, metrics.json, report.html and
            review.html with review.jsonl. Pictures are also kept beside it (see zimage.photos.cache), so that none is
            made twice.
        params: See `EvaluateParams`.
        base: The model the LoRA was trained on.
        subject: Trigger and class noun.

    Raises:
        InputError: see `check_out`; there is no LoRA or no held-out face, or the LoRA does not fit the base model.
    """
    from zimage.model.device import use_one_thread_on_a_cpu

    check_out(out, (detect, caption, train), holds="gate.csv")
    require_pinned_models(params)
    if params.impostors is not None:
        packaged_photos()
    use_one_thread_on_a_cpu()
    prompts = read_suite(params.suite)
    candidates = candidates_of(train, params.sweep.checkpoints)
    crops, captions = read_rows(detect / "crops.jsonl", CropRow), read_rows(caption / "captions.jsonl", CaptionRow)
    reals = reals_of(detect, crops)
    sampling = Sampling(**params.sampling.model_dump())
    loras_gb = max(path.stat().st_size for path in candidates) / 1e9
    gallery = Gallery(
        ImageCache(cache_of(out), base.identity, sampling),
        lambda: generator_of(base, sampling, prompts, subject, loras_gb),
    )
    with (
        out_of_memory_explained(base, sampling, loras_gb),
        made_aside(out) as folder,
        Search(engines_of(params)) as search,
    ):
        first = asked_of_base(prompts, halves(prompts), params.seeds.base, subject=subject)
        gallery.expect([one.request for one in first])
        picture_scorer, strangers = picture_scorer_of(params, reals, search)
        scorer = Scorer(gallery, picture_scorer, search, folder)
        selection = CheckpointSelection(scorer, prompts, subject, params.seeds, params.sweep, params.resampling)
        outcome = selection.run(candidates)
        material = Material(train, reals, crops, captions)
        findings = _findings(outcome, scorer, strangers, material, params=params, base=base, subject=subject)
        write_results(folder, findings)
        write_report(folder, findings, reals, train / "loss.csv", params=params.report, subject=subject)
        write_review(
            folder,
            findings,
            reals,
            seed=params.resampling.seed,
            picture_px=params.report.picture_px,
            subject=subject,
        )
    gallery.close()
    logger.info("%s: %s", findings.judgement.verdict, findings.judgement.why)


def require_pinned_models(params: EvaluateParams) -> None:
    """Pass if every model that scores is the one that was pinned, as far as it is on this machine.

    Raises:
        InputError: one is not, or the second face engine is the first again.
    """
    first, second = params.engine, params.second_engine
    if second is not None and (first.name, first.pack) == (second.name, second.pack):
        name = f"{second.name} {second.pack or ''}".rstrip()
        raise InputError(
            f"evaluate.second_engine is {name}, as evaluate.engine is, so its agreement would show nothing; "
            "name another engine there, or set it to null."
        )
    require_pinned_pack(params.engine, "evaluate.engine")
    if params.second_engine is not None:
        require_pinned_pack(params.second_engine, "evaluate.second_engine")
    if params.clip is not None:
        require_pinned(params.clip.model, params.clip.identity, "evaluate.clip")


def engines_of(params: EvaluateParams) -> list[EngineParams]:
    """Return the engines that look for faces: the first, and the second where it is present."""
    second = params.second_engine
    return [params.engine] if second is None or not is_present(second) else [params.engine, second]


def absent(params: EvaluateParams, judge: PictureScorer) -> list[str]:
    """Return what was asked for and is not on this machine, to be said wherever its numbers are missing."""
    missing = []
    if params.second_engine is not None and judge.second is None:
        missing.append(f"second face engine {params.second_engine.name} {params.second_engine.pack}")
    if params.clip is not None and judge.clip is None:
        missing.append(f"CLIP {params.clip.model}")
    return missing


def picture_scorer_of(params: EvaluateParams, reals: Reals, search: Search) -> tuple[PictureScorer, Impostors | None]:
    """Return what pictures are scored with, and the faces of other people by the same engines; None for none asked for.

    They are the real photos by each engine, the others' faces as a gallery, and CLIP where it is present.
    """
    targets = reals.targets(search, params.sampling.side_px)
    strangers = impostors(search, targets, params.sampling.side_px) if params.impostors else None
    clip = None if params.clip is None else open_clip(params.clip)
    second = targets[1] if len(targets) > 1 else None
    gallery = strangers.gallery if strangers else None
    return PictureScorer(targets[0], second, reals.originals(), clip, gallery), strangers


def generator_of(
    base: Base, sampling: Sampling, prompts: Sequence[Prompt], subject: Subject, loras_gb: float
) -> "Generator":
    """Return a generator with all prompts read, for the subject and for the class alone."""
    from zimage.evaluation.generate.generator import open_studio

    return open_studio(base, sampling, prompt_texts(prompts, [subject]), adapters_gb=loras_gb)


def prompt_texts(prompts: Sequence[Prompt], subjects: Sequence[Subject]) -> list[str]:
    """Return every text that pictures are asked for with, for each subject and for the class alone."""
    texts = [with_subject(prompt, subject) for subject in subjects for prompt in prompts]
    return texts + [without_trigger(prompt, subjects[0].class_noun) for prompt in prompts]


@contextmanager
def out_of_memory_explained(base: Base, sampling: Sampling, loras_gb: float) -> Iterator[None]:
    """Name the largest pictures that the GPU could make, if its memory is too small."""
    import torch

    from zimage.model.device import available_gb, device_and_dtype
    from zimage.model.memory import footprint_of, too_small_to_sample

    try:
        yield
    except torch.OutOfMemoryError:
        raise too_small_to_sample(
            footprint_of(resolve(base)),
            sampling.side_px,
            guided=sampling.guidance_scale > 0,
            adapters_gb=loras_gb,
            available_gb=available_gb(device_and_dtype()[0]),
        ) from None


@dataclass(frozen=True)
class Material:
    """What the LoRA was made of.

    Args:
        train: The folder of the train stage.
        reals: The real photos.
        crops: All crops.
        captions: Of the training crops.
    """

    train: Path
    reals: Reals
    crops: list[CropRow]
    captions: list[CaptionRow]


def _findings(
    outcome: Selection,
    scorer: Scorer,
    strangers: Impostors | None,
    material: Material,
    *,
    params: EvaluateParams,
    base: Base,
    subject: Subject,
) -> Findings:
    evidence = Evidence(
        lora=outcome.test,
        base=outcome.base,
        leaks=outcome.leaks,
        base_leaks=outcome.base_leaks,
        variety=varieties(scorer, outcome.test),
        base_variety=varieties(scorer, outcome.base),
        ceiling=scorer.picture_scorer.targets.ceiling(),
        sessions=material.reals.sessions,
        photos=material.reals.looks(scorer.search, params.sampling.side_px),
    )
    found = figures(
        evidence,
        copy_correlation=params.copy_correlation,
        resamples=params.resampling.resamples,
        generator=params.resampling.generator(),
    )
    targets = scorer.picture_scorer.targets
    verdict = judge(found, params.gate, embedded=targets.info.embedded)
    measured = Measurements(
        crops=largest_faces(crop for crop in material.crops if crop.split == "train"),
        captions=material.captions,
        subject=subject,
        rows=outcome.test,
        figures=found,
        copy_correlation=params.copy_correlation,
        spread=spread_of(targets),
    )
    return Findings(
        outcome=outcome,
        figures=found,
        judgement=verdict,
        picture_scorer=scorer.picture_scorer,
        impostors=strangers,
        absent=absent(params, scorer.picture_scorer),
        suite=params.suite,
        base=base.identity,
        copy_correlation=params.copy_correlation,
        sampled=Sampled(
            **params.sampling.model_dump(),
            shift=shift_of(resolve(base)),
            packaged=is_packaged(base.model),
            precision=machine_precision(),
        ),
        advice=advice(
            {rule.name for rule in verdict.rules if rule.verdict == "fail"},
            found,
            _trained(material.train, outcome, targets),
        ),
        coaching=coaching(measured),
    )


def _trained(train: Path, outcome: Selection, targets: Targets) -> Trained:
    sweep = outcome.checkpoints
    return Trained(
        steps=len(read_losses(train / "loss.csv")) or None,
        photos=len(targets.training_photos),
        spread=spread_of(targets),
        last_is_best=sweep is not None and sweep.chosen == len(sweep.candidates) - 1,
    )


def varieties(scorer: Scorer, rows: Sequence[PictureRow]) -> dict[str, PairValues]:
    """Return how unlike each other the pictures of each prompt are: to CLIP where it is present, else by their pixels.

    A face engine could not tell: it is made not to see expression, light and framing, which are what should vary.
    """
    clip = scorer.picture_scorer.clip
    unlike = variety if clip is None else clip.variety
    return {
        group[0].prompt: dict(
            zip(
                combinations([row.seed for row in group], 2),
                unlike([read_rgb(scorer.folder / row.file) for row in group]),
                strict=True,
            )
        )
        for group in by_prompt(rows)
    }

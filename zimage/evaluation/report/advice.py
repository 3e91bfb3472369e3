"""Give the most likely cause of a failed verdict and the next step."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from zimage.evaluation.figures import Figures
from zimage.evaluation.score.likeness import Targets
from zimage.evaluation.wording import counted
from zimage.faces.engine import between

FEW_STEPS = 500  # the presets train 1,200 and more
FEW_PHOTOS = 12
ONE_PICTURE = 0.4  # of the engine's threshold: faces of one photograph in 24 views differ by 0.2 of it (dlib)
SELDOM = 0.5  # a base model that draws a face less often hides what a LoRA could do

LIKENESS = {"same_person_rate_min", "same_person_rate_low_min", "gain_low_min", "second_engine_rate_min"}
COPIES = {"copy_rate_max", "nearest_share_max"}
FLEXIBILITY = {"clip_drop_max", "variety_ratio_min"}


@dataclass(frozen=True)
class Trained:
    """What a LoRA was made of.

    Args:
        steps: Optimiser steps of the training; None where it left no number.
        photos: Photos that were trained on.
        spread: Median distance of their faces from each other, over the engine's threshold; None for a single photo.
        last_is_best: Whether the latest checkpoint came out best of several.
    """

    steps: int | None
    photos: int
    spread: float | None
    last_is_best: bool


def spread_of(targets: Targets) -> float | None:
    """Return the median distance of the training photos' faces from each other, over the engine's threshold."""
    distances = between(targets.training, targets.training, targets.info.metric)
    pairs = distances[np.triu_indices(len(distances), k=1)]
    return float(np.median(pairs)) / targets.info.threshold if len(pairs) else None


def advice(broken: Collection[str], figures: Figures, trained: Trained) -> list[str]:
    """Return a sentence for each likely cause, with the next step; nothing where no rule is broken.

    Args:
        broken: Names of the broken rules (see `GateParams`).
        figures: What was measured.
        trained: What the LoRA was made of.
    """
    said = [*_of_photos(broken, trained), *_of_steps(broken, trained), *_of_pictures(broken, figures)]
    if "shared_session_max" in broken:
        said.append("Held-out photos are from a session that was trained on; add photos taken on other days.")
    if broken and not said:
        said = ["No usual cause was found; look at the worst pictures in the report and at detect's contact sheet."]
    return said


def few_photos(photos: int) -> str:
    """Return what is said where few photos were trained on."""
    return f"Only {photos} photos were trained on; add photos, 15 to 50 are usual."


def one_picture(photos: int) -> str:
    """Return what is said where all photos are alike."""
    alike = f"The {photos} training photos are nearly one and the same picture"
    return f"{alike}; add photos of other days, places and lights."


def _of_photos(broken: Collection[str], trained: Trained) -> Iterator[str]:
    if not (LIKENESS | COPIES | FLEXIBILITY).isdisjoint(broken):
        if trained.spread is not None and trained.spread < ONE_PICTURE:
            yield one_picture(trained.photos)
        elif trained.photos < FEW_PHOTOS:
            yield few_photos(trained.photos)


def _of_steps(broken: Collection[str], trained: Trained) -> Iterator[str]:
    if not LIKENESS.isdisjoint(broken):
        if trained.steps is not None and trained.steps < FEW_STEPS:
            yield f"Only {trained.steps} steps were trained; train with `--steps 1200` or more."
        elif trained.last_is_best:
            yield f"The last checkpoint, of step {trained.steps}, is the best: train longer, with more `--steps`."
    elif not (COPIES | FLEXIBILITY).isdisjoint(broken):
        fewer = "" if trained.steps is None else f" than {trained.steps}"
        yield f"The LoRA repeats its photos instead of the face; train fewer `--steps`{fewer}, or a lower `--rank`."


def _of_pictures(broken: Collection[str], figures: Figures) -> Iterator[str]:
    base = figures.base_face_found
    if "face_found_rate_min" in broken:
        if base.value is not None and base.value < SELDOM:
            yield (
                f"The base model itself draws a face in {counted(base.value, base.n)} pictures only; check "
                "evaluate.sampling (size, steps, guidance) against its model card."
            )
        else:
            yield (
                "The LoRA spoils faces that the base model draws; train with a lower learning rate "
                "(train.optimiser.learning_rate), or fewer `--steps`."
            )
    if "leak_rise_max" in broken:
        yield (
            "The LoRA has taken over the class noun; train with prior preservation (train.prior_preservation), or "
            "fewer `--steps`."
        )
    if broken == {"second_engine_rate_min"}:
        yield "The two face engines disagree; look at the pictures before you trust either."

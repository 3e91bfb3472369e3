"""Compute all figures of an evaluation from the rows of its pictures."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zimage.evaluation.generate.suite import Kind
from zimage.evaluation.hidden import (
    DEGRADATIONS,
    LOOKS,
    Look,
    by_condition,
    by_property,
    drift,
    drift_from_photos,
    nearer_to_training,
    properties_found,
    second_person,
    spread_ratio,
)
from zimage.evaluation.intervals import Estimate, bootstrap, mean, rate, rate_difference
from zimage.evaluation.rows import PictureRow
from zimage.faces.looks import Looks
from zimage.photos.rows import Session

UNMEASURED = Estimate(None, None, None, 0)

PairValues = Mapping[tuple[int, int], float]  # by the seeds of two pictures of one prompt: 0 where they are the same


@dataclass(frozen=True)
class Figures:
    """All figures of an evaluation: of the chosen LoRA's pictures, and of the base model's.

    Args:
        face_found: Share of pictures in which a face was found.
        same_of_found: Of those, the share that is the same person as the held-out photos.
        same_of_all: The same share of all pictures; no face is a failure.
        gain: 0 as far from the person as the base model's faces, 1 as near as real photos; no face counts as 0.
        distance: Mean distance of the faces found.
        second_same: Same person by the second engine, of all pictures.
        following: Phrases of the prompt found again in the picture.
        clip: Agreement of picture and prompt in CLIP.
        clip_drop: By how much that is below the base model's, over the same prompts and seeds.
        copied: Share of pictures that are a training crop come back.
        nearest_share: Largest share of faces that are nearest to one and the same training photo.
        variety: How unlike each other pictures of one prompt are, 0 to 2.
        variety_ratio: That, over the base model's, over the same prompts and seeds.
        yaw_spread_deg: Standard deviation of the turn of the head.
        leaks: For each kind of leak prompt, the share of pictures in which the subject appeared uncalled.
        leak_rise: The largest rise of one of those over the base model's, over the same prompts and seeds.
        base_face_found: As face_found, for the base model.
        base_same_of_found: As same_of_found, for the base model; 0 where it drew no face at all.
        base_same_of_all: As same_of_all, for the base model.
        base_yaw_spread_deg: As yaw_spread_deg, for the base model.
        ceiling: Mean distance of real training photos, at the pictures' size, to the held-out centroid.
        floor: Mean distance of the base model's faces.
        shared_session: Share of the held-out photos that are from a session that was also trained on.
        reviewed: Share of all pictures that a person calls the same; unmeasured until somebody answers review.html.
        ranked_first: Share of all pictures to whose face no other person is nearer; no face is a failure.
        base_ranked_first: As ranked_first, for the base model.
        memorised: By how much faces are nearer to the training photos than to the held-out ones, in thresholds.
        pose_variety_ratio: Spread of the turn of the head, over the base model's, over the same prompts and seeds.
        light_variety_ratio: The same of the light on the face.
        second_person: Share of the pictures of two people with two faces, of which at most one is the subject's.
        base_second_person: As second_person, for the base model.
        drifts: For each look, the mean ln(LoRA / base model) over the same prompts and seeds.
        drifts_from_photos: For each look, mean ln of the pictures less that of the held-out photos.
        conditions: Of faces that are hard to draw, the share that is the person.
        degradations: As drifts, of blur, noise and blocking.
        degradations_from_photos: As drifts_from_photos, of blur, noise and blocking.
        properties_found: Of what prompts in free words name and can be measured, the share that pictures have.
        base_properties_found: As properties_found, for the base model.
        properties: The same share for each kind of property.
    """

    face_found: Estimate
    same_of_found: Estimate
    same_of_all: Estimate
    gain: Estimate
    distance: Estimate
    second_same: Estimate
    following: Estimate
    clip: Estimate
    clip_drop: Estimate
    copied: Estimate
    nearest_share: Estimate
    variety: Estimate
    variety_ratio: Estimate
    yaw_spread_deg: Estimate
    leaks: dict[str, Estimate]
    leak_rise: Estimate
    base_face_found: Estimate
    base_same_of_found: Estimate
    base_same_of_all: Estimate
    base_yaw_spread_deg: Estimate
    ceiling: Estimate
    floor: Estimate
    shared_session: Estimate
    reviewed: Estimate = UNMEASURED
    ranked_first: Estimate = UNMEASURED
    base_ranked_first: Estimate = UNMEASURED
    memorised: Estimate = UNMEASURED
    pose_variety_ratio: Estimate = UNMEASURED
    light_variety_ratio: Estimate = UNMEASURED
    second_person: Estimate = UNMEASURED
    base_second_person: Estimate = UNMEASURED
    drifts: dict[Look, Estimate] = field(default_factory=dict)
    drifts_from_photos: dict[Look, Estimate] = field(default_factory=dict)
    conditions: dict[str, Estimate] = field(default_factory=dict)
    degradations: dict[Look, Estimate] = field(default_factory=dict)
    degradations_from_photos: dict[Look, Estimate] = field(default_factory=dict)
    properties_found: Estimate = UNMEASURED
    base_properties_found: Estimate = UNMEASURED
    properties: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """The scored pictures that figures are computed from.

    Args:
        lora: Pictures of the chosen LoRA on the test half.
        base: Pictures of the base model on all likeness prompts.
        leaks: Pictures of the chosen LoRA on the leak prompts.
        base_leaks: Pictures of the base model on the leak prompts.
        variety: How unlike each other the pictures of each prompt are, by prompt.
        base_variety: The same for the base model.
        ceiling: Distances of real training photos to the held-out centroid.
        sessions: Of each held-out photo, whether its session was also trained on; see zimage.photos.rows.ManifestRow.
        photos: How the held-out photos look at the pictures' size.
    """

    lora: Sequence[PictureRow]
    base: Sequence[PictureRow]
    leaks: Sequence[PictureRow]
    base_leaks: Sequence[PictureRow]
    variety: Mapping[str, PairValues]
    base_variety: Mapping[str, PairValues]
    ceiling: NDArray[np.float32]
    sessions: Sequence[Session | None]
    photos: Sequence[Looks] = ()


def figures(evidence: Evidence, *, copy_correlation: float, resamples: int, generator: np.random.Generator) -> Figures:
    """Return all figures; those of pictures carry 95 % intervals by prompt."""

    def averaged(values: Sequence[Sequence[float]]) -> Estimate:
        return mean(values, resamples=resamples, generator=generator)

    lora, base = by_prompt(evidence.lora), by_prompt(evidence.base)
    pairs = paired(evidence.lora, evidence.base)
    leaks: dict[str, Estimate] = {kind: rate(_leaked(by_prompt(evidence.leaks), kind)) for kind in LEAKS}
    return Figures(
        face_found=rate([[row.faces > 0 for row in rows] for rows in lora]),
        same_of_found=rate([[row.same for row in rows if row.faces] for rows in lora]),
        same_of_all=rate([[row.same for row in rows] for rows in lora]),
        gain=gain(lora, base, evidence.ceiling, resamples=resamples, generator=generator),
        distance=averaged(_present(lora, lambda row: row.distance)),
        second_same=rate([[row.second_same for row in rows if row.second_same is not None] for rows in lora]),
        following=averaged(_present(lora, lambda row: row.following)),
        clip=averaged(_present(lora, lambda row: row.clip)),
        clip_drop=averaged(clip_drops(evidence.lora, evidence.base)),
        copied=rate([[row.likeness_to_copy >= copy_correlation for row in rows if row.copy_of] for rows in lora]),
        nearest_share=_nearest_share(evidence.lora),
        variety=averaged([list(pairs.values()) for pairs in evidence.variety.values()]),
        variety_ratio=variety_ratio(evidence.variety, evidence.base_variety, resamples=resamples, generator=generator),
        yaw_spread_deg=_spread(evidence.lora),
        leaks=leaks,
        leak_rise=leak_rise(evidence.leaks, evidence.base_leaks),
        base_face_found=rate([[row.faces > 0 for row in rows] for rows in base]),
        base_same_of_found=rate([[row.same for row in rows if row.faces] for rows in base]),
        base_same_of_all=rate([[row.same for row in rows] for rows in base]),
        base_yaw_spread_deg=_spread(evidence.base),
        ceiling=Estimate(float(evidence.ceiling.mean()), None, None, len(evidence.ceiling)),
        floor=averaged(_present(base, lambda row: row.distance)),
        shared_session=_shared_session(evidence.sessions),
        ranked_first=rate(_ranked_first(lora)),
        base_ranked_first=rate(_ranked_first(base)),
        memorised=averaged(_present(lora, nearer_to_training)),
        pose_variety_ratio=spread_ratio(pairs, lambda row: row.yaw_deg, resamples=resamples, generator=generator),
        light_variety_ratio=spread_ratio(pairs, lambda row: row.face_luma, resamples=resamples, generator=generator),
        second_person=second_person(_of_two(evidence.leaks)),
        base_second_person=second_person(_of_two(evidence.base_leaks)),
        drifts={look: drift(pairs, look, resamples=resamples, generator=generator) for look in LOOKS},
        drifts_from_photos={
            look: drift_from_photos(lora, evidence.photos, look, resamples=resamples, generator=generator)
            for look in LOOKS
        },
        conditions=by_condition(lora),
        degradations={look: drift(pairs, look, resamples=resamples, generator=generator) for look in DEGRADATIONS},
        degradations_from_photos={
            look: drift_from_photos(lora, evidence.photos, look, resamples=resamples, generator=generator)
            for look in DEGRADATIONS
        },
        properties_found=properties_found(lora),
        base_properties_found=properties_found(base),
        properties=by_property(lora),
    )


def _shared_session(sessions: Sequence[Session | None]) -> Estimate:
    shared = sum(session == "shared" for session in sessions)
    return Estimate(shared / len(sessions), None, None, len(sessions)) if sessions else UNMEASURED


LEAKS: tuple[Kind, ...] = ("leak_class", "leak_other", "leak_two")


def gain(
    lora: Sequence[Sequence[PictureRow]],
    base: Sequence[Sequence[PictureRow]],
    ceiling: NDArray[np.float32],
    *,
    resamples: int,
    generator: np.random.Generator,
) -> Estimate:
    """Return the mean of (floor - distance) / (floor - ceiling) over all pictures, those without a face counting 0.

    Prompts of the LoRA and of the base model are drawn independently, so the interval holds the floor's doubt as well.
    Unmeasured where the base model drew no face, or where its faces are as near as real photos.
    """
    nearest = float(ceiling.mean())
    drawn = [np.array([[*_found(rows), len(rows)] for rows in group], float).reshape(-1, 3) for group in (lora, base)]
    n = int(drawn[0][:, 2].sum())
    if n == 0 or drawn[1][:, 0].sum() == 0 or drawn[1][:, 1].sum() / drawn[1][:, 0].sum() <= nearest:
        return Estimate(None, None, None, n)

    def statistic(sums: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        faces, distances, pictures = sums[0].T
        with np.errstate(divide="ignore", invalid="ignore"):
            floor = sums[1][:, 1] / sums[1][:, 0]  # NaN where none of the prompts drawn has a face
            floor = np.where(floor > nearest, floor, np.nan)
            return np.asarray((floor * faces - distances) / pictures / (floor - nearest))

    value = float(statistic([group.sum(axis=0, keepdims=True) for group in drawn])[0])
    low, high = bootstrap(drawn, statistic, resamples, generator)
    return Estimate(value, low, high, n)


def paired(
    lora: Sequence[PictureRow], base: Sequence[PictureRow]
) -> tuple[list[list[PictureRow]], list[list[PictureRow]]]:
    """Return the pictures of the prompts and seeds (so of the noise) that both have, by prompt, in one order."""
    of_base = {(row.prompt, row.seed): row for row in base}
    of_both = by_prompt([row for row in lora if (row.prompt, row.seed) in of_base])
    return of_both, [[of_base[row.prompt, row.seed] for row in rows] for rows in of_both]


def clip_drops(lora: Sequence[PictureRow], base: Sequence[PictureRow]) -> list[list[float]]:
    """Return by how much each picture agrees less with its prompt, in CLIP, than the base model's, by prompt."""
    return [
        [
            there.clip - here.clip
            for here, there in zip(*pair, strict=True)
            if here.clip is not None and there.clip is not None
        ]
        for pair in zip(*paired(lora, base), strict=True)
    ]


def variety_ratio(
    lora: Mapping[str, PairValues], base: Mapping[str, PairValues], *, resamples: int, generator: np.random.Generator
) -> Estimate:
    """Return the variety of the LoRA's pictures over the base model's, over the prompts and pairs of seeds of both.

    Unmeasured where there is no such pair, or where the base model's pictures do not vary at all.
    """
    pairs = {prompt: values.keys() & base.get(prompt, {}).keys() for prompt, values in lora.items()}
    sums = np.array(
        [
            (sum(lora[prompt][pair] for pair in both), sum(base[prompt][pair] for pair in both))
            for prompt, both in pairs.items()
            if both
        ],
        float,
    ).reshape(-1, 2)  # (prompts, LoRA and base model)
    n = sum(len(both) for both in pairs.values())
    if sums[:, 1].sum() <= 0:
        return Estimate(None, None, None, n)

    def statistic(drawn: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        of_lora, of_base = drawn[0].T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(of_base > 0, of_lora / of_base, np.nan)

    low, high = bootstrap([sums], statistic, resamples, generator)
    return Estimate(float(sums[:, 0].sum() / sums[:, 1].sum()), low, high, n)


def leak_rise(lora: Sequence[PictureRow], base: Sequence[PictureRow]) -> Estimate:
    """Return how much more often the subject appears uncalled than by the base model, for the worst kind of prompt."""
    pictures = paired(lora, base)
    rises = [rate_difference(*(_leaked(rows, kind) for rows in pictures)) for kind in LEAKS]
    measured = [rise for rise in rises if rise.value is not None]
    return max(measured, key=lambda rise: rise.value or 0.0, default=UNMEASURED)


def by_prompt(rows: Sequence[PictureRow]) -> list[list[PictureRow]]:
    """Return the rows of each prompt together, in the order of their first appearance."""
    groups: dict[str, list[PictureRow]] = {}
    for row in rows:
        groups.setdefault(row.prompt, []).append(row)
    return list(groups.values())


def closeness_by_prompt(rows: Sequence[PictureRow]) -> dict[str, list[float]]:
    """Return the closeness of each picture by prompt, in order of seeds."""
    return {group[0].prompt: [row.closeness for row in group] for group in by_prompt(rows)}


def _found(rows: Sequence[PictureRow]) -> tuple[int, float]:
    distances = [row.distance for row in rows if row.distance is not None]
    return len(distances), sum(distances)


def _present(groups: Sequence[Sequence[PictureRow]], number: Callable[[PictureRow], float | None]) -> list[list[float]]:
    return [[value for row in rows if (value := number(row)) is not None] for rows in groups]


def _leaked(groups: Sequence[Sequence[PictureRow]], kind: Kind) -> list[list[bool]]:
    """Return whether the subject appeared where it was not wanted: at all, or twice where it was wanted once."""
    wanted = 1 if kind == "leak_two" else 0
    return [[row.matching_faces > wanted for row in rows] for rows in groups if rows[0].kind == kind]


def _ranked_first(groups: Sequence[Sequence[PictureRow]]) -> list[list[bool]]:
    return [[row.rank == 1 for row in rows if row.rank is not None] for rows in groups]


def _of_two(rows: Sequence[PictureRow]) -> list[list[PictureRow]]:
    return by_prompt([row for row in rows if row.kind == "leak_two"])


def _nearest_share(rows: Sequence[PictureRow]) -> Estimate:
    photos = Counter(row.nearest_photo for row in rows if row.nearest_photo is not None)
    n = sum(photos.values())
    return Estimate(max(photos.values()) / n, None, None, n) if n else UNMEASURED


def _spread(rows: Sequence[PictureRow]) -> Estimate:
    yaws = [row.yaw_deg for row in rows if row.yaw_deg is not None]
    return Estimate(float(np.std(yaws, ddof=1)), None, None, len(yaws)) if len(yaws) > 1 else UNMEASURED

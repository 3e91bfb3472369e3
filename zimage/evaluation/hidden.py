"""What likeness hides: over-cooking, blur, noise, look-alikes, faces that are hard to draw, sameness of pose and light.

None of these is a rule of the gate: their limits would be guesses. They are compared with the base model over the same
prompts and noise wherever that is possible.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from zimage.captions.template import LIGHTS
from zimage.evaluation.intervals import Estimate, bootstrap, mean, rate
from zimage.evaluation.rows import PictureRow
from zimage.faces.looks import Looks
from zimage.faces.quality import FRONTAL_DEG

if TYPE_CHECKING:
    from zimage.evaluation.figures import Figures

Look = Literal["contrast", "saturation", "skin", "blur", "noise", "blocking"]
LOOKS: tuple[Look, ...] = ("contrast", "saturation", "skin")  # what training too long changes
DEGRADATIONS: tuple[Look, ...] = ("blur", "noise", "blocking")  # what makes a picture worse the more there is of it
SMALL_FACE = 0.2  # of the picture's height
DIM = LIGHTS[1][0]  # face luma below which captions speak of dim light
Rows = Sequence[PictureRow]
Pairs = tuple[Sequence[Rows], Sequence[Rows]]  # of LoRA and base, by prompt, over the same seeds in one order
CONDITIONS: dict[str, tuple[str, Callable[[PictureRow], bool]]] = {
    "profile": (
        f"turned by {FRONTAL_DEG:g} degrees and more",
        lambda row: row.yaw_deg is not None and abs(row.yaw_deg) >= FRONTAL_DEG,
    ),
    "small_face": (
        f"smaller than {SMALL_FACE:g} of the picture's height",
        lambda row: row.face_share is not None and row.face_share < SMALL_FACE,
    ),
    "low_light": ("in dim light", lambda row: row.face_luma is not None and row.face_luma < DIM),
}


def drift(pairs: Pairs, look: Look, *, resamples: int, generator: np.random.Generator) -> Estimate:
    """Return the mean of ln(LoRA / base) of a look, picture by picture: 0.1 is about a tenth more."""
    values = [
        [
            value
            for one, other in zip(mine, theirs, strict=True)
            if (value := _log_ratio(getattr(one, look), getattr(other, look))) is not None
        ]
        for mine, theirs in zip(*pairs, strict=True)
    ]
    return mean(values, resamples=resamples, generator=generator)


def drift_from_photos(
    rows: Sequence[Rows], photos: Sequence[Looks], look: Look, *, resamples: int, generator: np.random.Generator
) -> Estimate:
    """Return mean ln(look) of the pictures less that of real photos; prompts and photos are both drawn at random.

    Args:
        rows: Pictures by prompt.
        photos: Of the person, brought to the pictures' size.
        look: The measure.
        resamples: Bootstrap resamples.
        generator: Where the draws come from.
    """
    groups = [[[getattr(row, look) for row in group] for group in rows], [[getattr(one, look)] for one in photos]]
    sums = [
        np.array([(sum(logs), len(logs)) for values in group if (logs := _logs(values))], float).reshape(-1, 2)
        for group in groups
    ]
    n = int(sums[0][:, 1].sum())
    if n == 0 or not len(sums[1]):
        return Estimate(None, None, None, n)

    def statistic(drawn: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.asarray(drawn[0][:, 0] / drawn[0][:, 1] - drawn[1][:, 0] / drawn[1][:, 1])

    value = float(statistic([group.sum(axis=0, keepdims=True) for group in sums])[0])
    low, high = bootstrap(sums, statistic, resamples, generator)
    return Estimate(value, low, high, n)


def nearer_to_training(row: PictureRow) -> float | None:
    """Return by how much a face is nearer to the middle of the training photos than to that of the held-out ones, over
    the engine's threshold; None without a face or where no training photo is known.
    """
    if row.distance is None or row.training_distance is None:
        return None
    return (row.distance - row.training_distance) / row.threshold


def spread_ratio(
    pairs: Pairs, number: Callable[[PictureRow], float | None], *, resamples: int, generator: np.random.Generator
) -> Estimate:
    """Return the standard deviation of a number over the LoRA's pictures, over that of the base's of the same noise."""
    sums = []
    for mine, theirs in zip(*pairs, strict=True):
        both = [
            (one, other)
            for one, other in ((number(a), number(b)) for a, b in zip(mine, theirs, strict=True))
            if one is not None and other is not None
        ]
        if both:
            x = np.array(both, float)  # (pictures, LoRA and base)
            sums.append([len(x), *x.sum(axis=0), *(x**2).sum(axis=0)])
    table = np.array(sums, float).reshape(-1, 5)
    n = int(table[:, 0].sum())

    def statistic(drawn: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        count, lora, base, lora2, base2 = drawn[0].T
        with np.errstate(divide="ignore", invalid="ignore"):
            variances = [np.maximum(of2 / count - (of / count) ** 2, 0) for of, of2 in ((lora, lora2), (base, base2))]
            return np.where(variances[1] > 0, np.sqrt(variances[0] / variances[1]), np.nan)

    if n < 2 or not np.isfinite(value := float(statistic([table.sum(axis=0, keepdims=True)])[0])):
        return Estimate(None, None, None, n)
    low, high = bootstrap([table], statistic, resamples, generator)
    return Estimate(value, low, high, n)


def second_person(groups: Sequence[Rows]) -> Estimate:
    """Return the share of pictures of two people that show two faces, of which at most one is the subject's."""
    return rate([[row.faces > 1 and row.matching_faces <= 1 for row in rows] for rows in groups])


def by_condition(groups: Sequence[Rows]) -> dict[str, Estimate]:
    """Return for faces that are hard to draw, by what is measured on each, the share that is the person."""
    return {
        name: rate([[row.same for row in rows if row.faces and holds(row)] for rows in groups])
        for name, (_, holds) in CONDITIONS.items()
    }


def properties_found(groups: Sequence[Rows]) -> Estimate:
    """Return of all properties that prompts in free words name the share that pictures have; n counts properties."""
    return rate(
        [[name in row.properties_found.split() for row in rows for name in row.properties.split()] for rows in groups]
    )


def by_property(groups: Sequence[Rows]) -> dict[str, Estimate]:
    """Return that share for each kind of property that a prompt names; n counts pictures."""
    return {
        name: rate(
            [
                [name in row.properties_found.split() for row in rows if name in row.properties.split()]
                for rows in groups
            ]
        )
        for name in SAYS_PROPERTY
        if any(name in row.properties.split() for rows in groups for row in rows)
    }


def overcooked(from_base: Mapping[Look, Estimate], from_photos: Mapping[Look, Estimate]) -> list[str]:
    """Return a sentence for each look that is beyond the base's pictures and beyond real photos, both shown by an
    interval on the same side of 0.
    """
    return [
        f"{change}, as in a LoRA that was trained too long or is used too strongly."
        for look in LOOKS
        for change in _beyond_both(look, from_base, from_photos, {1: "above", -1: "below"})
    ]


def degraded(from_base: Mapping[Look, Estimate], from_photos: Mapping[Look, Estimate]) -> list[str]:
    """Return a sentence for blur, noise and blocks that are above the base's pictures and above real photos, both shown
    by an interval above 0.
    """
    return [
        f"{change}: see whether the pictures are worse for it."
        for look in DEGRADATIONS
        for change in _beyond_both(look, from_base, from_photos, {1: "above"})
    ]


def changes_for_the_worse(figures: "Figures") -> list[str]:
    """Return the sentences of `overcooked` and `degraded`, against the base's pictures and the held-out photos."""
    return [
        *overcooked(figures.drifts, figures.drifts_from_photos),
        *degraded(figures.degradations, figures.degradations_from_photos),
    ]


def _beyond_both(
    look: Look, from_base: Mapping[Look, Estimate], from_photos: Mapping[Look, Estimate], signs: Mapping[int, str]
) -> list[str]:
    """Return by how much a look is beyond the base's pictures and real photos, if beyond both in one direction."""
    if look not in from_base or look not in from_photos:
        return []
    both = from_base[look], from_photos[look]
    base, photos = (abs(float(np.expm1(one.value or 0.0))) for one in both)
    return [
        f"{SAYS_LOOK[look]} is {base:.0%} {word} the base model's pictures and {photos:.0%} {word} real photos"
        for sign, word in signs.items()
        if all(sign * (end or 0.0) > 0 for one in both for end in (one.low, one.high))
    ]


SAYS_LOOK: dict[Look, str] = {
    "contrast": "Contrast",
    "saturation": "Saturation",
    "skin": "The fine structure of the skin",
    "blur": "Blur",
    "noise": "Noise",
    "blocking": "Blocking on a grid of 8 px",
}


SAYS_PROPERTY = {
    "framing": "framing (close-up to full body)",
    "view": "view (front, three-quarter, profile)",
    "light": "light (dark or bright)",
    "black_and_white": "black and white",
    "background": "colour of the background",
    "two_people": "two people",
}


def _log_ratio(one: float | None, other: float | None) -> float | None:
    return float(np.log(one / other)) if one and other else None


def _logs(values: Sequence[float | None]) -> list[float]:
    return [float(np.log(value)) for value in values if value]


@dataclass(frozen=True)
class Shown:
    """A figure beside likeness as a table shows it.

    Args:
        says: What it is.
        estimate: Its value.
        is_log: Whether it is a logarithm of a ratio, to be shown as a change in percent.
    """

    says: str
    estimate: Estimate
    is_log: bool = False

    @property
    def value(self) -> str:
        """The value, or a dash."""
        return "–" if self.estimate.value is None else self._number(self.estimate.value)

    @property
    def interval(self) -> str:
        """Its interval; empty where there is none."""
        low, high = self.estimate.low, self.estimate.high
        return "" if low is None or high is None else f"{self._number(low)} to {self._number(high)}"

    def _number(self, value: float) -> str:
        return f"{np.expm1(value):+.0%}" if self.is_log else f"{value:.2f}"


def shown(figures: "Figures") -> list[Shown]:
    """Return every figure beside likeness that was measured."""
    found = [
        Shown("the person is ranked first among other people, of all pictures", figures.ranked_first),
        Shown("… in the base model's pictures", figures.base_ranked_first),
        *(
            Shown(f"{SAYS_LOOK[look]} against {what}", each, True)
            for of, what in (
                (figures.drifts, "the base model"),
                (figures.drifts_from_photos, "photos"),
                (figures.degradations, "the base model"),
                (figures.degradations_from_photos, "photos"),
            )
            for look, each in of.items()
        ),
        *(Shown(f"same person, of the faces {CONDITIONS[name][0]}", each) for name, each in figures.conditions.items()),
        Shown("of what prompts name and can be measured, found in the pictures", figures.properties_found),
        Shown("… in the base model's pictures", figures.base_properties_found),
        *(Shown(f"found where asked for: {SAYS_PROPERTY[name]}", each) for name, each in figures.properties.items()),
        Shown("variety of the head's turn, over the base's", figures.pose_variety_ratio),
        Shown("variety of the light on the face, over the base's", figures.light_variety_ratio),
        Shown("a second person is there with a face of their own", figures.second_person),
        Shown("… in the base model's pictures", figures.base_second_person),
    ]
    return [one for one in found if one.estimate.value is not None]

"""Advice on photos, captions and training that follows from measurements, for whoever makes the next LoRA.

Each rule of `RULES` has a number, a limit and a sentence. A rule whose number is not known gives no advice. No rule is
part of the verdict (see zimage.evaluation.gate), and a rule that changes makes no stage stale (see
zimage.core.fingerprint): advice is written again when the evaluation runs again.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from zimage.captions.english import tokenize
from zimage.captions.rows import CaptionRow
from zimage.captions.subject import Subject
from zimage.captions.template import TURNS, Language, lab_of, light_of, opening
from zimage.captions.template import subject as named
from zimage.core.errors import first_of
from zimage.core.jsonl import Row
from zimage.evaluation.figures import Figures
from zimage.evaluation.gate import USUAL
from zimage.evaluation.hidden import nearer_to_training
from zimage.evaluation.report.advice import FEW_PHOTOS, ONE_PICTURE, few_photos, one_picture
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.wording import counted, percent, quantity
from zimage.photos.rows import CropRow

FRONTAL_DEG = TURNS[-2][0]  # from here on a caption says that the head is turned
SAME_COLOUR = 15.0  # CIELAB distance within which two backgrounds are alike, as in zimage.captions.measure
FEWEST = 4  # photos, captions or faces; a share of fewer says nothing
NAMED = 3  # photos or words in a sentence
CHINESE = re.compile("[\u4e00-\u9fff]")
PUNCTUATION = re.compile(r"[,.;，。；、]")
CONTENT = frozenset("NVIE")  # nouns and adjectives, verbs, -ing forms and participles; see zimage.captions.english


class Tip(Row):
    """One piece of advice."""

    rule: str
    """Name of the rule in `RULES`."""
    number: float
    """What was measured."""
    limit: float
    """The limit that the number is beyond."""
    sentence: str
    """What was found and what to do."""


@dataclass(frozen=True)
class Measurements:
    """What advice follows from.

    Args:
        crops: One training crop of each photo.
        captions: Of all training crops.
        subject: Trigger and class noun.
        rows: Pictures of the chosen LoRA on the test half.
        figures: What the pictures amount to.
        copy_correlation: From this likeness on a picture counts as a copy.
        spread: Median distance of the training photos' faces from each other, over the engine's threshold; None for a
            single photo.
    """

    crops: Sequence[CropRow]
    captions: Sequence[CaptionRow]
    subject: Subject
    rows: Sequence[PictureRow]
    figures: Figures
    copy_correlation: float
    spread: float | None

    @cached_property
    def repeated(self) -> list[str]:
        """What every caption says after its opening, in the first language in which there is such: words of free text;
        whole phrases where the template or a Chinese sentence was written, which has no spaces between words.
        """
        found: dict[Language, list[set[str]]] = {"en": [], "zh": []}
        for row in self.captions:
            for caption in row.captions:
                language: Language = "zh" if CHINESE.search(caption) else "en"
                phrases = row.captioner == "template" or language == "zh"
                found[language].append(self._parts(caption, language, phrases=phrases))
        common = [sorted(set.intersection(*parts)) for parts in found.values() if len(parts) >= FEWEST]
        return next(filter(None, common), [])

    def _parts(self, caption: str, language: Language, *, phrases: bool) -> set[str]:
        start = opening(named(self.subject.trigger, self.subject.class_noun, language), language)
        rest = caption.removeprefix(start)
        if phrases:
            return set(filter(None, map(str.strip, PUNCTUATION.split(rest))))
        known = {self.subject.trigger, self.subject.class_noun, "photo"}
        return {token.low for token in tokenize(rest) if token.letter in CONTENT} - known


@dataclass(frozen=True)
class Rule:
    """A rule of coaching.

    Args:
        name: Its key in metrics.json.
        number: Measures; None where it is not known.
        limit: Beyond this there is advice.
        side: On which side of the limit.
        sentence: Says what was found and what to do, from what was measured and the number.
    """

    name: str
    number: Callable[[Measurements], float | None]
    limit: float
    side: Literal["below", "above"]
    sentence: Callable[[Measurements, float], str]

    def tip(self, measured: Measurements) -> Iterator[Tip]:
        """Yield the advice if the number is known and beyond the limit."""
        number = self.number(measured)
        if number is not None and (number < self.limit if self.side == "below" else number > self.limit):
            yield Tip(rule=self.name, number=number, limit=self.limit, sentence=self.sentence(measured, number))


def coaching(measured: Measurements) -> list[Tip]:
    """Return the advice of every rule whose number is beyond its limit, in the order of `RULES`."""
    return [tip for rule in RULES for tip in rule.tip(measured)]


def _usual(name: str) -> float:
    """Return the usual limit of a rule of the gate, whatever limit this subject has."""
    limit: float = getattr(USUAL, name)
    return limit


def _photos(measured: Measurements) -> float | None:
    return float(len(measured.crops)) or None


def _sessions(measured: Measurements) -> float | None:
    """Return the number of sessions; a photo without a capture time counts as one of its own, so it is the most."""
    return float(len({crop.burst for crop in measured.crops})) or None


def _frontal(measured: Measurements) -> float | None:
    yaws = [abs(crop.yaw_deg) for crop in measured.crops if crop.yaw_deg is not None]
    return sum(yaw < FRONTAL_DEG for yaw in yaws) / len(yaws) if len(yaws) >= FEWEST else None


def _light(measured: Measurements) -> float | None:
    """Return the share of the photos in the commonest light: its brightness and its colour as captions name them."""
    lights = Counter(light_of(crop.face_luma, crop.warmth) for crop in measured.crops)
    return _largest_share(lights)


def _background(measured: Measurements) -> float | None:
    """Return the share of the photos whose background has the colour that is usual in them."""
    if len(measured.crops) < FEWEST:
        return None
    lab = np.array([lab_of(crop.background_rgb) for crop in measured.crops])
    return float((np.linalg.norm(lab - np.median(lab, axis=0), axis=1) <= SAME_COLOUR).mean())


def _largest_share(counts: Counter[Any]) -> float | None:
    return max(counts.values()) / counts.total() if counts.total() >= FEWEST else None


def _repeated(measured: Measurements) -> float | None:
    captions = sum(len(row.captions) for row in measured.captions)
    return float(len(measured.repeated)) if captions >= FEWEST else None


def _memorised(measured: Measurements) -> float | None:
    """Return the mean of `nearer_to_training`."""
    drops = [drop for row in measured.rows if (drop := nearer_to_training(row)) is not None]
    return float(np.mean(drops)) if len(drops) >= FEWEST else None


def _copies(measured: Measurements) -> str:
    """Return the training crops that pictures repeat, most often first, with the number of pictures."""
    copied = [row.copy_of for row in measured.rows if row.copy_of and row.likeness_to_copy >= measured.copy_correlation]
    return first_of(_ordered(Counter(copied)), NAMED)


def _nearest(measured: Measurements) -> str:
    return ", ".join(_ordered(Counter(row.nearest_photo for row in measured.rows if row.nearest_photo is not None))[:1])


def _ordered(counts: Counter[str]) -> list[str]:
    """Return names with their numbers of pictures, most often first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f"`{name}` ({quantity(count, 'picture')})" for name, count in ordered]


def _quoted(phrases: Sequence[str]) -> str:
    return first_of([f"“{each}”" for each in phrases], NAMED)


RULES = (
    Rule("few_photos", _photos, FEW_PHOTOS, "below", lambda measured, number: few_photos(int(number))),
    Rule(
        "one_picture", lambda measured: measured.spread, ONE_PICTURE, "below",
        lambda measured, number: one_picture(len(measured.crops)),
    ),
    Rule(
        "few_sessions", _sessions, 3, "below",
        lambda measured, number: (
            f"All {quantity(len(measured.crops), 'training photo')} are from {quantity(int(number), 'session')}, each "
            "taken in one go; add photos of other days, so that clothes, hair and light of one day are not learnt as "
            "the person."
        ),
    ),
    Rule(
        "all_frontal", _frontal, 0.8, "above",
        lambda measured, number: (
            f"In {percent(number)} of the training photos the face looks straight at the camera; add photos in "
            "three-quarter view and in profile, or the LoRA has to guess the person's other sides."
        ),
    ),
    Rule(
        "one_light", _light, 0.8, "above",
        lambda measured, number: (
            f"{percent(number)} of the training photos have the same brightness and colour of light; add photos in "
            "other light, such as outdoors, by a window and in the evening."
        ),
    ),
    Rule(
        "one_background", _background, 0.8, "above",
        lambda measured, number: (
            f"{percent(number)} of the training photos have a background of about the same colour; add photos at other "
            "places, or it becomes part of the person."
        ),
    ),
    Rule(
        "repeated_captions", _repeated, 0, "above",
        lambda measured, number: (
            f"Every caption says {_quoted(measured.repeated)}, so that cannot be told from the trigger "
            f"`{measured.subject.trigger}`; add photos in which it is otherwise, or write captions without it "
            "(`--overrides`)."
        ),
    ),
    Rule(
        "copies", lambda measured: measured.figures.copied.value, _usual("copy_rate_max"), "above",
        lambda measured, number: (
            f"{counted(number, measured.figures.copied.n)} pictures repeat a training photo: {_copies(measured)}; "
            "leave near duplicates of these photos out, add different ones, or train fewer `--steps`."
        ),
    ),
    Rule(
        "nearest_photo", lambda measured: measured.figures.nearest_share.value, _usual("nearest_share_max"), "above",
        lambda measured, number: (
            f"{percent(number)} of the faces are nearest to one training photo, {_nearest(measured)}; look at it in "
            "detect's contact sheet, and leave it out if it is unlike the others."
        ),
    ),
    Rule(
        "leak", lambda measured: measured.figures.leak_rise.value, _usual("leak_rise_max"), "above",
        lambda measured, number: (
            f"The person appears uncalled in {percent(number)} more of the pictures than with the base model; give "
            f"pictures of others of the class {measured.subject.class_noun}, or let the base make them "
            "(encode.class_pictures), and train with train.prior_preservation."
        ),
    ),
    Rule(
        "memorised", _memorised, 0.15, "above",
        lambda measured, number: (
            f"The faces are nearer to the training photos than to the held-out ones, by {percent(number)} of the "
            "distance up to which a face counts as the person: the LoRA knows the photos better than the person; train "
            "fewer `--steps`, or add photos of other days."
        ),
    ),
)  # fmt: skip

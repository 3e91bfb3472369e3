"""Check what a prompt in free words names and can be measured without a model: framing, view, light, colours, people.

Clothes, objects, places, expressions and styles are not covered: for them a CLIP model is needed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from zimage.captions.measure import background_of, framing_of
from zimage.captions.template import (
    BLACK_AND_WHITE_BELOW,
    CHEST_BELOW,
    COLOURS,
    FRAMINGS,
    LIGHTS,
    TURNS,
    Language,
    colour_of,
)
from zimage.evaluation.score.following import template_phrases
from zimage.faces.engine import Face
from zimage.faces.quality import chroma

DARK = LIGHTS[1][0]  # mean luma of a picture below which it counts as dark
THREE_QUARTER_DEG, TURNED_DEG = TURNS[1][0], TURNS[2][0]
HUES = {colour.en.split()[-1]: colour.zh.removeprefix("深").removeprefix("浅") for _, colour in COLOURS}


@dataclass(frozen=True)
class Seen:
    """A picture and its faces, largest first."""

    image_rgb: NDArray[np.uint8]
    faces: Sequence[Face]

    @property
    def framing(self) -> int | None:
        """The rung of FRAMINGS, 0 for a close-up; None without a face."""
        if not self.faces:
            return None
        height, width = self.image_rgb.shape[:2]
        framing, below = framing_of(self.faces[0].box_xyxy, width, height)
        rung = next(number for number, (start, _) in enumerate(FRAMINGS) if framing >= start)
        return max(rung, 1) if below >= CHEST_BELOW else rung

    @property
    def yaw_deg(self) -> float | None:
        """The turn of the largest face; None without one."""
        return self.faces[0].yaw_deg if self.faces else None

    @property
    def luma(self) -> float:
        """Mean luma of the picture, 0 to 1."""
        return float(cv2.mean(cv2.cvtColor(self.image_rgb, cv2.COLOR_RGB2GRAY))[0] / 255)

    def has_background(self, hue: str) -> bool | None:
        """Return whether the background has a colour, dark and light alike; None where none is seen."""
        background = background_of(self.image_rgb, self.faces[0].box_xyxy)[0] if self.faces else None
        return None if background is None else colour_of(background).en.split()[-1] == hue


@dataclass(frozen=True)
class Property:
    """What a prompt may ask for.

    Args:
        name: Of the kind; the first of a kind that a prompt names counts.
        en: Pattern of the English words.
        zh: Of the Chinese ones.
        holds: Whether a picture has it; None where that cannot be seen.
    """

    name: str
    en: str
    zh: str
    holds: Callable[[Seen], bool | None]


def _framed(rung: int) -> Callable[[Seen], bool]:
    return lambda seen: seen.framing == rung


def _turned(least_deg: float, side: int) -> Callable[[Seen], bool | None]:
    """Return whether a head is turned at least so far; to a side (1: the picture's right) or to either (0)."""

    def holds(seen: Seen) -> bool | None:
        yaw = seen.yaw_deg
        return None if yaw is None else abs(yaw) >= least_deg and (side == 0 or side * yaw > 0)

    return holds


def _has_background(hue: str) -> Callable[[Seen], bool | None]:
    return lambda seen: seen.has_background(hue)


# Turns by five points are understated (infra/protocol.md), so a view asks for one rung less than a caption would say.
SIDES = ((-1, r"\b.*\bfacing (?:the )?left", ".*朝左"), (1, r"\b.*\bfacing (?:the )?right", ".*朝右"), (0, "", ""))
PROPERTIES = (
    Property("framing", r"\bclose-up\b", "特写", _framed(0)),
    Property("framing", r"\bhead and shoulders\b", "头部和肩膀", _framed(1)),
    Property("framing", r"\bhalf[- ]body\b", "半身像", _framed(2)),
    Property("framing", r"\bfull[- ]body\b", "全身像", _framed(3)),
    *(
        Property("view", r"\bthree-quarter view" + en, "四分之三侧面" + zh, _turned(TURNED_DEG, side))
        for side, en, zh in SIDES
    ),
    *(Property("view", r"\bin profile" + en, "侧面" + zh, _turned(THREE_QUARTER_DEG, side)) for side, en, zh in SIDES),
    Property(
        "view",
        r"\bfacing the camera\b|\bseen from the front\b",
        "正对镜头|正面",
        lambda seen: None if seen.yaw_deg is None else abs(seen.yaw_deg) < THREE_QUARTER_DEG,
    ),
    Property("light", r"\bat night\b|\bdark room\b|\bin the dark\b", "夜|黑暗", lambda seen: seen.luma < DARK),
    Property(
        "light",
        r"\bbright(?: \w+)? (?:light|daylight|sunlight|sunshine)\b|\bbright sun\b",
        "明亮|阳光",
        lambda seen: seen.luma >= DARK,
    ),
    Property(
        "black_and_white",
        r"\bblack[- ]and[- ]white\b|\bmonochrome\b",
        "黑白",
        lambda seen: chroma(seen.image_rgb) < BLACK_AND_WHITE_BELOW,
    ),
    *(Property("background", rf"\b{en} background\b", f"{zh}背景", _has_background(en)) for en, zh in HUES.items()),
    Property(
        "two_people",
        r"\bside by side\b|\bnext to (?:an?|another) (?:man|woman|person)\b|\btwo (?:people|persons|men|women)\b",
        "两人|两个人",
        lambda seen: len(seen.faces) >= 2,
    ),
)
NAMES = tuple(dict.fromkeys(one.name for one in PROPERTIES))


def named_in(text: str, language: Language) -> dict[str, Property]:
    """Return the first property of each kind that a prompt names."""
    found: dict[str, Property] = {}
    for one in PROPERTIES:
        if one.name not in found and re.search(one.en if language == "en" else one.zh, text, re.IGNORECASE):
            found[one.name] = one
    return found


def properties(text: str, image_rgb: NDArray[np.uint8], faces: Sequence[Face], language: Language) -> dict[str, bool]:
    """Return for each property that a prompt in free words names whether the picture (H, W, 3) has it.

    A framing is missed where no face is found. What cannot be seen is left out: views without a face, for a detector
    misses profiles, and a background that the head hides. Prompts in the template's words have `following` instead.

    Args:
        text: The prompt.
        image_rgb: The picture.
        faces: Largest first.
        language: Of the text.
    """
    named = named_in(text, language)
    if not named or template_phrases(text, language):
        return {}
    seen = Seen(image_rgb, faces)
    return {name: holds for name, one in named.items() if (holds := one.holds(seen)) is not None}

"""Captions built from measurements with a closed vocabulary in English and Chinese.

The same function captions the drawn faces of the tiny base model's training and the photos of a LoRA's training, and
the prompt suites use its vocabulary, so that all three describe the same things in the same words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from zimage.captions.measure import Measured

Language = Literal["en", "zh"]
ClassNoun = Literal["person", "man", "woman"]

BLACK_AND_WHITE_BELOW = 0.04  # chroma; JPEG leaves grey pictures below 0.02, and a colour portrait has 0.1 and more


@dataclass(frozen=True)
class Phrase:
    """The same phrase in English and Chinese."""

    en: str
    zh: str


CLASS_NOUNS: dict[str, Phrase] = {
    "person": Phrase("person", "人"),
    "man": Phrase("man", "男人"),
    "woman": Phrase("woman", "女人"),
}

# Each ladder holds (from this value on, phrase), highest first; the last rung takes all the rest.
FRAMINGS = (  # by the root of the face's share of the picture; 0.42: 18 % of it
    (0.42, Phrase("close-up of the face", "面部特写")),
    (0.18, Phrase("head and shoulders", "头部和肩膀")),
    (0.07, Phrase("half body portrait", "半身像")),
    (0.0, Phrase("full body from a distance", "远处的全身像")),
)
CHEST_BELOW = 1.0  # face heights below the chin from which a picture shows the chest, however large the face is
TURNS = (  # by |yaw| in degrees, before the side is named
    (60.0, Phrase("profile facing {}", "侧面朝{}")),
    (28.0, Phrase("three-quarter view facing {}", "四分之三侧面朝{}")),
    (10.0, Phrase("turned slightly to {}", "略微转向{}")),
    (0.0, Phrase("seen from the front", "正面朝向镜头")),
)
TILTS = (  # by |roll| in degrees
    (8.0, Phrase("head tilted to {}", "头部向{}倾斜")),
    (0.0, Phrase("head upright", "头部端正")),
)
LIGHTS = (  # by face luma
    (0.62, Phrase("the face in bright light", "面部光线明亮")),
    (0.32, Phrase("the face in medium light", "面部光线适中")),
    (0.0, Phrase("the face in dim light", "面部光线昏暗")),
)
TINTS = (  # by warmth
    (0.10, Phrase("in warm colours", "暖色调")),
    (-0.02, Phrase("in neutral colours", "中性色调")),
    (-1.0, Phrase("in cool colours", "冷色调")),
)
BLACK_AND_WHITE = Phrase("in black and white", "黑白照片")
NO_BACKGROUND = Phrase("with no background visible", "看不到背景")
BACKGROUND = Phrase("with {} background", "{}背景")
LEFT, RIGHT = Phrase("the left", "左边"), Phrase("the right", "右边")

# Colour words and the sRGB colour that each stands for; a background takes the nearest in CIELAB.
COLOURS: tuple[tuple[tuple[int, int, int], Phrase], ...] = (
    ((12, 12, 12), Phrase("a black", "黑色")),
    ((70, 70, 70), Phrase("a dark grey", "深灰色")),
    ((128, 128, 128), Phrase("a grey", "灰色")),
    ((190, 190, 190), Phrase("a light grey", "浅灰色")),
    ((245, 245, 245), Phrase("a white", "白色")),
    ((100, 20, 25), Phrase("a dark red", "深红色")),
    ((205, 40, 40), Phrase("a red", "红色")),
    ((240, 150, 175), Phrase("a pink", "粉色")),
    ((240, 140, 40), Phrase("an orange", "橙色")),
    ((115, 75, 45), Phrase("a brown", "棕色")),
    ((215, 195, 160), Phrase("a beige", "米色")),
    ((235, 215, 70), Phrase("a yellow", "黄色")),
    ((25, 70, 35), Phrase("a dark green", "深绿色")),
    ((60, 150, 70), Phrase("a green", "绿色")),
    ((165, 215, 165), Phrase("a light green", "浅绿色")),
    ((40, 150, 150), Phrase("a teal", "青色")),
    ((20, 35, 90), Phrase("a dark blue", "深蓝色")),
    ((50, 95, 190), Phrase("a blue", "蓝色")),
    ((155, 195, 235), Phrase("a light blue", "浅蓝色")),
    ((125, 65, 160), Phrase("a purple", "紫色")),
)


def describe(measured: Measured, *, trigger: str, class_noun: ClassNoun, language: Language) -> str:
    """Return the caption of a picture: 16 to 36 words, or as many Chinese characters; trigger and class noun first.

    An empty trigger captions any member of the class: "a photo of a woman, head and shoulders, ...".
    """
    parts = [
        opening(subject(trigger, class_noun, language), language),
        *(_said(phrase, language) for phrase in _phrases(measured)),
    ]
    return (", " if language == "en" else "，").join(parts)


def subject(trigger: str, class_noun: ClassNoun, language: Language) -> str:
    """Return who a picture shows: "ada woman", or "a woman" without a trigger, as prompts fill in `{subject}`."""
    noun = _said(CLASS_NOUNS[class_noun], language)
    if language == "en":
        return f"{trigger} {noun}" if trigger else f"a {noun}"
    return f" {trigger} {noun}" if trigger else noun  # the space keeps the trigger its own word for the tokenizer


def opening(who: str, language: Language) -> str:
    """Return the first part of every caption, which names the subject."""
    return f"a photo of {who}" if language == "en" else f"一张{who}的照片"


def colour_of(rgb: tuple[int, int, int]) -> Phrase:
    """Return the colour word nearest to `rgb` (0 to 255) in CIELAB, with its article in English."""
    wanted = lab_of(rgb)
    return min(COLOURS, key=lambda colour: sum((a - b) ** 2 for a, b in zip(lab_of(colour[0]), wanted, strict=True)))[1]


def light_of(face_luma: float, warmth: float) -> tuple[Phrase, Phrase]:
    """Return how captions name brightness and colour of a picture's light (see `Measured`)."""
    return _rung(LIGHTS, face_luma), _rung(TINTS, warmth)


@cache
def vocabulary(language: Language) -> frozenset[str]:
    """Return every phrase that a caption can hold after its opening."""
    sides = [_filled(phrase, side) for _, phrase in (*TURNS, *TILTS) for side in (LEFT, RIGHT)]
    ladders = [phrase for _, phrase in (*FRAMINGS, *LIGHTS, *TINTS)]
    backgrounds = [_filled(BACKGROUND, colour) for _, colour in COLOURS]
    every = [*sides, *ladders, *backgrounds, BLACK_AND_WHITE, NO_BACKGROUND]
    return frozenset(_said(phrase, language) for phrase in every)


def _phrases(measured: Measured) -> list[Phrase]:
    chest_shows = measured.below >= CHEST_BELOW
    phrases = [_rung(FRAMINGS[1:] if chest_shows else FRAMINGS, measured.framing)]
    if measured.yaw_deg is not None:
        phrases.append(_sided(TURNS, measured.yaw_deg))
    if measured.roll_deg is not None:
        phrases.append(_sided(TILTS, measured.roll_deg))
    grey = measured.chroma < BLACK_AND_WHITE_BELOW
    phrases += [_rung(LIGHTS, measured.face_luma), BLACK_AND_WHITE if grey else _rung(TINTS, measured.warmth)]
    if measured.background_rgb is None:
        return [*phrases, NO_BACKGROUND]
    if not measured.plain:
        return phrases
    return [*phrases, _filled(BACKGROUND, colour_of(measured.background_rgb))]


def _rung(ladder: Sequence[tuple[float, Phrase]], value: float) -> Phrase:
    return next((phrase for start, phrase in ladder if value >= start), ladder[-1][1])


def _sided(ladder: Sequence[tuple[float, Phrase]], degrees: float) -> Phrase:
    return _filled(_rung(ladder, abs(degrees)), RIGHT if degrees > 0 else LEFT)


def _filled(phrase: Phrase, word: Phrase) -> Phrase:
    return Phrase(phrase.en.format(word.en), phrase.zh.format(word.zh))


def _said(phrase: Phrase, language: Language) -> str:
    return phrase.en if language == "en" else phrase.zh


def lab_of(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    """Return CIELAB (D65) of an sRGB colour, 0 to 255: IEC 61966-2-1 for the curve and the matrix, CIE 15 for Lab."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    x, y, z = (
        _lab_curve(sum(m * v for m, v in zip(row, linear, strict=True)) / w) for row, w in zip(rows, white, strict=True)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _lab_curve(ratio: float) -> float:
    return float(ratio ** (1 / 3)) if ratio > (6 / 29) ** 3 else ratio / (3 * (6 / 29) ** 2) + 4 / 29

"""Score prompt following by the template captioner's own measurements."""

import numpy as np
from numpy.typing import NDArray

from zimage.captions.measure import measure
from zimage.captions.template import Language, describe, vocabulary
from zimage.faces.engine import Face

COMMA: dict[Language, str] = {"en": ", ", "zh": "，"}


def template_phrases(text: str, language: Language) -> list[str]:
    """Return the phrases that a prompt in the template's words asks for; none of a prompt in other words."""
    wanted = text.split(COMMA[language])[1:]
    return wanted if vocabulary(language).issuperset(wanted) else []


def template_following(text: str, image_rgb: NDArray[np.uint8], face: Face | None, language: Language) -> float | None:
    """Return the share of the prompt's phrases with which the template would caption the picture it got.

    A picture without a face gets 0: nothing of it can be measured. A prompt in other than the template's words gets
    None.
    """
    wanted = template_phrases(text, language)
    if not wanted:
        return None
    if face is None:
        return 0.0
    measured = measure(image_rgb, face.box_xyxy, yaw_deg=face.yaw_deg, roll_deg=face.roll_deg)
    said = describe(measured, trigger="", class_noun="person", language=language).split(COMMA[language])
    return sum(phrase in said for phrase in wanted) / len(wanted)

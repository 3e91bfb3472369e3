"""The type of a captioner, and the choice between the template and a vision-language model."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zimage.captions.measure import Measured
from zimage.captions.subject import Subject
from zimage.captions.template import Language, describe


@dataclass(frozen=True)
class Shot:
    """One training picture with its measurements: the input of a captioner.

    Args:
        image_rgb: (H, W, 3) uint8.
        measured: Its measurements.
    """

    image_rgb: NDArray[np.uint8]
    measured: Measured


Captioner = Callable[[Shot, Subject, Language], str]


def template(shot: Shot, subject: Subject, language: Language) -> str:
    """Return a caption built from the measurements alone."""
    return describe(shot.measured, trigger=subject.trigger, class_noun=subject.class_noun, language=language)

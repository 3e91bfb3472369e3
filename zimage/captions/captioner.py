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
    """One training picture as a captioner sees it.

    Args:
        image_rgb: (H, W, 3) uint8.
        measured: What detection measured of it.
    """

    image_rgb: NDArray[np.uint8]
    measured: Measured


Captioner = Callable[[Shot, Subject, Language], str]


def template(shot: Shot, subject: Subject, language: Language) -> str:
    """Return a caption of what was measured, and of nothing else."""
    return describe(shot.measured, trigger=subject.trigger, class_noun=subject.class_noun, language=language)

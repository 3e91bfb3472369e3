"""Reject photos by hard quality limits and rank the others by one number."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from zimage.core.section import Section
from zimage.faces.covering import Covering
from zimage.faces.observation import Measured

Share = Annotated[float, Field(ge=0, le=1)]


class QualityParams(Section):
    """Hard limits of a photo, and sizes above which its rank does not rise."""

    min_image_px: Annotated[int, Field(ge=32)]
    """Px; short side of the photo."""
    min_face_px: Annotated[int, Field(ge=16)]
    """Px; side of the subject's face box."""
    good_face_px: Annotated[int, Field(ge=16)]
    """Px; a larger face ranks no higher."""
    min_sharpness: Annotated[float, Field(ge=0)]
    """See zimage.faces.quality.sharpness; faces in focus have 11 and more."""
    max_clipped: Share
    """Share of the face that is black or blown out."""
    min_luma: Share
    """Mean luma of the face; darker is rejected."""
    max_luma: Share
    """Mean luma of the face; brighter is rejected."""
    max_yaw_deg: Annotated[float, Field(gt=0, le=90)]
    """Degrees; a head turned farther is rejected."""
    min_visible: Share = 0.9
    """Share of the face that lies within the photo; one that the border cuts is rejected."""
    max_frame: Share = 0.04
    """Share of the photo that plain bars take, as in screenshots; of more the photo is for a person to crop."""
    refused_coverings: list[Covering] = Field(default=["mask", "sunglasses"])
    """What may not cover the face; [] for a subject who is to be learnt with sunglasses on."""


COVERED: dict[Covering, str] = {
    "mask": "A mask covers mouth and nose, which cannot be learnt from it.",
    "sunglasses": "Sunglasses hide the eyes, which cannot be learnt from it.",
}


@dataclass(frozen=True)
class Fault:
    """One hard limit that a photo breaks: a code for tables, and a sentence for people."""

    reason: str
    detail: str


def faults(size: tuple[int, int], face: Measured, limits: QualityParams) -> list[Fault]:
    """Return every hard limit that a photo of `size` = (width, height) breaks, the gravest first."""
    yaw_deg = abs(face.yaw_deg or 0.0)
    covering = face.covering if is_covered(face, limits) else None
    checks = {
        "image_too_small": (
            min(size) < limits.min_image_px and face.side_px < limits.good_face_px,  # a large face is all it takes
            _least("The photo's short side", min(size), limits.min_image_px),
        ),
        "face_too_small": (face.side_px < limits.min_face_px, _least("The face", face.side_px, limits.min_face_px)),
        "cut_off": (
            face.visible < limits.min_visible,
            f"The photo's border cuts the face: {face.visible:.0%} of it is to be seen; {limits.min_visible:.0%} is "
            "needed.",
        ),
        "mask": (covering == "mask", COVERED["mask"]),
        "sunglasses": (covering == "sunglasses", COVERED["sunglasses"]),
        "blurred": (
            face.sharpness < limits.min_sharpness,
            f"The face is blurred: its sharpness is {face.sharpness:.1f}, and {limits.min_sharpness:g} is needed.",
        ),
        "too_dark": (
            face.luma < limits.min_luma,
            f"The face is too dark: its mean luma is {face.luma:.2f}, and {limits.min_luma:g} is needed.",
        ),
        "too_bright": (
            face.luma > limits.max_luma,
            f"The face is too bright: its mean luma is {face.luma:.2f}, and {limits.max_luma:g} is the most.",
        ),
        "clipped": (
            face.clipped > limits.max_clipped,
            f"{face.clipped:.0%} of the face is black or blown out; {limits.max_clipped:.0%} is the most.",
        ),
        "turned_away": (
            yaw_deg > limits.max_yaw_deg,
            f"The head is turned by {yaw_deg:.0f} degrees; {limits.max_yaw_deg:g} is the most.",
        ),
    }
    return [Fault(reason, detail) for reason, (broken, detail) in checks.items() if broken]


def is_covered(face: Measured, limits: QualityParams) -> bool:
    """Return whether something covers a face that may not."""
    return face.covering in limits.refused_coverings


def _least(what: str, found_px: float, needed_px: int) -> str:
    return f"{what} has {found_px:.0f} px; {needed_px} are needed."

"""Quality of a photo of a face: measures that do not depend on its size, and one rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from zimage.faces.covering import Covering, covering
from zimage.faces.landmarks import Points, PointsKind, aligned, similarity, upright_points
from zimage.photos.pictures import Mask, Picture

SIDE_PX = 128  # of the upright face on which everything is measured
INNER = slice(SIDE_PX // 8, SIDE_PX * 7 // 8)  # without the border, which shows hair and background
BLACK, BLOWN = 8, 247  # levels beyond which skin has lost its texture
# A bar is looked for at this size; levels that its colour may differ by; shares of a line that have the colour, of the
# lines that do, and of the columns that its end cuts.
EDGE_LEVELS = 12
FRAME_PX, FRAME_LEVELS, FRAME_SHARE, FRAME_LINES, FRAME_EDGE = (256, 256), 2, 0.5, 0.7, 0.6
WHOLE = 0.95  # share of a face within the picture from which it can be told what covers it
VISIBLE_GRID = 24  # points along each side of the inner face that are looked for in the picture
ROWS_BYTES = 2**23  # of the rows of all faces that are compared at once
BLOCKS = 6  # the inner face is compared in 6 x 6 blocks of 16 px
ALIKE = 0.4  # correlation of two blocks; those of one face under other light correlate at 0.95 and more
# Values at which a soft score is 0 and 1, linear between. Sharpness: faces in focus measure 11 to 27 (seven faces of
# skimage's and insightface's photos), a blur of 2 px in a face of 88 px brings 23 to 3.
SHARPNESS_RANGE = (4.0, 16.0)
FRONTAL_DEG, PROFILE_DEG = 35.0, 75.0


class HasTexture(Protocol):
    """A face that has a texture."""

    @property
    def texture(self) -> Mask:
        """See Look."""
        ...


@dataclass(frozen=True)
class Look:
    """Measurements of one face, taken from the upright face at a fixed size.

    Args:
        sharpness: See `sharpness`.
        luma: Mean, 0 to 1.
        clipped: Share of the face that is black or blown out, 0 to 1.
        visible: Share of the face that lies within the picture, 0 to 1.
        covering: What covers mouth and nose or the eyes; None where nothing was seen.
        texture: The face in grey, SIDE_PX square, smoothed, for comparing with the subject's other faces.
    """

    sharpness: float
    luma: float
    clipped: float
    visible: float
    covering: Covering | None
    texture: Mask


def look(image_rgb: Picture, points_xy: Points, kind: PointsKind) -> Look:
    """Return the measurements of the face at `points_xy`."""
    upright = aligned(image_rgb, points_xy, kind, SIDE_PX)
    grey = np.asarray(cv2.cvtColor(upright, cv2.COLOR_RGB2GRAY), np.uint8)
    inner = grey[INNER, INNER]
    within = visible(image_rgb.shape[1], image_rgb.shape[0], points_xy, kind)
    return Look(
        sharpness=sharpness(grey),
        luma=float(inner.mean() / 255),
        clipped=float(np.mean((inner < BLACK) | (inner > BLOWN))),
        visible=within,
        covering=covering(upright, kind) if within >= WHOLE else None,
        texture=np.asarray(cv2.GaussianBlur(grey, (0, 0), 2.0), np.uint8),
    )


def visible(width: int, height: int, points_xy: Points, kind: PointsKind) -> float:
    """Return the share of an upright face, without hair and background, that lies within a picture of this size."""
    across, down = np.linspace(INNER.start, INNER.stop, VISIBLE_GRID), np.linspace(INNER.start, SIDE_PX, VISIBLE_GRID)
    grid = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)  # down to the chin
    carry = similarity(upright_points(kind, SIDE_PX), points_xy)
    x, y = (grid @ carry[:, :2].T + carry[:, 2]).T
    return float(np.mean((x >= 0) & (x < width) & (y >= 0) & (y < height)))


def sharpness(grey: Mask) -> float:
    """Return 1000 x the variance of the Laplacian of an upright face over the variance of its luma.

    The variance of the Laplacian is the usual measure of focus (Pech-Pacheco et al., "Diatom autofocusing in
    brightfield microscopy", ICPR 2000), but grows with size, contrast and noise. Here the size is fixed, the division
    takes out contrast and exposure, and a blur of 1 px before it most of the noise.
    """
    laplacian = cv2.Laplacian(cv2.GaussianBlur(grey.astype(np.float64), (0, 0), 1.0), cv2.CV_64F)[INNER, INNER]
    return float(1000 * laplacian.var() / max(float(grey[INNER, INNER].var()), 1.0))


def usual_texture(faces: Sequence[HasTexture]) -> NDArray[np.float64]:
    """Return the median of a subject's faces, each with mean 0 and variance 1.

    Each face is read once and stored as 16 KB of bytes; only some rows at a time are converted to float64.
    """
    textures = np.stack([face.texture for face in faces])
    grey = (texture.astype(np.float64) for texture in textures)
    moments = [(float(each.mean()), max(float(each.std()), 1e-6)) for each in grey]
    mean, std = np.array(moments).T[:, :, None, None]
    rows = max(1, ROWS_BYTES // (len(faces) * SIDE_PX * np.dtype(np.float64).itemsize))
    strips = ((textures[:, top : top + rows] - mean) / std for top in range(0, SIDE_PX, rows))
    return np.concatenate([np.median(strip, axis=0, overwrite_input=True) for strip in strips])


def unlikeness(texture: Mask, usual: NDArray[np.float64]) -> float:
    """Return the share of the face, 0 to 1, that does not look like the subject's usual face in its place.

    Hands, masks, dark glasses and hard shadows raise it, but so does a turned head: it ranks and never rejects.
    """
    ours, theirs = _blocks(_normal(texture.astype(np.float64))), _blocks(usual)
    correlations = (ours * theirs).sum(1) / np.sqrt((ours**2).sum(1) * (theirs**2).sum(1) + 1e-9)
    return float(np.mean(correlations < ALIKE))


def _normal(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((grey - grey.mean()) / max(float(grey.std()), 1e-6))


def _blocks(face: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inner face in blocks, each with mean 0, (BLOCKS ** 2, pixels)."""
    inner = face[INNER, INNER]
    side = inner.shape[0] // BLOCKS
    blocks = inner.reshape(BLOCKS, side, BLOCKS, side).transpose(0, 2, 1, 3).reshape(BLOCKS**2, -1)
    return np.asarray(blocks - blocks.mean(1, keepdims=True))


def score(
    *,
    face_px: float,
    good_px: float,
    sharpness: float,
    luma: float,
    clipped: float,
    yaw_deg: float | None,
    unlike: float,
) -> float:
    """Return a rank of 0 to 1 among photos that passed the hard limits; the worst property counts most.

    Args:
        face_px: Side of the face in the photo.
        good_px: Side from which more pixels bring nothing.
        sharpness: See `Look`.
        luma: See `Look`.
        clipped: See `Look`.
        yaw_deg: Yaw of the head; None counts as frontal.
        unlike: See `unlikeness`.
    """
    parts = [
        min(face_px / good_px, 1.0),
        _ramp(sharpness, *SHARPNESS_RANGE),
        1 - 2 * abs(luma - 0.5),
        1 - clipped,
        1 - _ramp(abs(yaw_deg or 0.0), FRONTAL_DEG, PROFILE_DEG),
        1 - unlike,
    ]
    return float(np.exp(np.mean(np.log(np.maximum(parts, 0.01)))))


def _ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))


def dhash(image_rgb: Picture) -> int:
    """Return 64 bits that say where the picture brightens from left to right in an 8 x 8 grid.

    Krawetz, "Kind of like that" (hackerfactor.com, 2013): equal pictures differ in few bits after resizing, recoding
    and changes of light.
    """
    grey = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int(sum(1 << place for place, bit in enumerate(bits) if bit))


def frame(image_rgb: Picture) -> float:
    """Return the share of the picture that plain bars on its sides take: screenshots have such, photos do not.

    A bar begins at a side, most of each of its lines has one colour (a status bar has signs on it), and it ends in a
    straight edge across the picture.
    """
    small = cv2.resize(image_rgb, FRAME_PX, interpolation=cv2.INTER_NEAREST)  # averaging would smooth a noisy wall
    channels = np.ascontiguousarray(small.transpose(2, 0, 1), np.int16)
    kept = 1.0
    for lines in (channels, np.ascontiguousarray(channels.transpose(0, 2, 1))):
        bars = _bar(lines) + _bar(lines[:, ::-1])
        kept *= max(0.0, 1 - bars / lines.shape[1])
    return 1 - kept


def _bar(lines: NDArray[np.int16]) -> int:
    """Return how many lines, from the first on, are a bar of one colour that ends in a straight edge; 0 for none.

    Args:
        lines: (3, lines, pixels): one channel after another, because NumPy is slow along short last axes.
    """
    colour = np.median(lines[:, 0], axis=1)[:, None, None]
    same = (np.abs(lines - colour).max(0) <= FRAME_LEVELS).mean(1) >= FRAME_SHARE
    edges = (np.abs(np.diff(lines, axis=1)).max(0) > EDGE_LEVELS).mean(1) >= FRAME_EDGE
    for end in np.flatnonzero(edges[: lines.shape[1] // 2]):
        if same[: end + 1].mean() >= FRAME_LINES:
            return int(end) + 1
    return 0


def chroma(image_rgb: Picture) -> float:
    """Return the mean distance of the strongest from the weakest channel, 0 for black and white, 1 at most."""
    red, green, blue = cv2.split(image_rgb)
    spread = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    return float(cv2.sumElems(spread)[0] / spread.size / 255)


def warmth(image_rgb: Picture) -> float:
    """Return mean red minus mean blue, -1 (blue light) to 1 (orange light)."""
    red, _, blue, _ = cv2.sumElems(image_rgb)
    pixels = image_rgb.shape[0] * image_rgb.shape[1]
    return float((red / pixels - blue / pixels) / 255)

"""Find photos that are copies of one shot by registering their faces on each other.

A copy that was mirrored, cropped, made grey, resized, recompressed or photographed from a screen keeps the pixels of
the face, but moves them: the detector's points differ by some px, and the hash of the whole picture changes. So the
upright faces are compared at low resolution first, in all small shifts and mirrored, and the likely pairs are then
registered to fractions of a px (Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation
coefficient maximization", PAMI 30, 2008; affine), which two different shots of one face cannot be.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from zimage.faces.engine import Metric, between
from zimage.faces.quality import HasTexture
from zimage.photos.pictures import Mask

Greys = NDArray[np.float32]  # (N, side, side)

SIDE_PX = 64  # of the upright face that is registered
BORDER_PX = 8  # of it that is not compared: it shows hair and background
COARSE_PX, COARSE_BORDER_PX, SHIFT_PX = 32, 4, 3  # of the first comparison; shifts are up to 3 px of 32 each way
# The least correlation in the first comparison, and the largest distance in units of the engine's threshold. Of 606
# copies of 101 photos (tests/benchmarks/copies.py) 1 % have less than 0.82, and 1 % more than 0.24.
LIKELY, NEAR = 0.8, 0.6
ITERATIONS, PRECISION = 30, 1e-5
LEAST_PX = 1200  # px of SIDE_PX ** 2 that both faces must have, so that the correlation means something
PAIRS_AT_ONCE = 4_000_000  # entries of the matrices of the first comparison


def same_shots(
    faces: Sequence[HasTexture],
    embeddings: NDArray[np.float32],
    *,
    correlation: float,
    threshold: float,
    metric: Metric,
) -> list[tuple[int, int]]:
    """Return the pairs of photos, as places in `faces`, that are copies of one shot.

    Args:
        faces: The subject's face in each photo; each texture is read once.
        embeddings: Of these faces, (N, D).
        correlation: Of two registered faces from which they are one shot, 0 to 1.
        threshold: Of the engine: the largest distance of two faces of one person.
        metric: Of the engine.
    """
    if len(faces) < 2:
        return []
    greys = [
        np.asarray(cv2.resize(face.texture, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), np.uint8)
        for face in faces
    ]
    near = NEAR * threshold
    return [
        (i, j)
        for i, j, flipped in _likely(greys)
        if between(embeddings[i : i + 1], embeddings[j : j + 1], metric)[0, 0] <= near
        and registered(greys[i], np.ascontiguousarray(greys[j][:, ::-1]) if flipped else greys[j]) >= correlation
    ]


def registered(one: Mask, other: Mask) -> float:
    """Return the correlation of two upright faces (SIDE_PX, SIDE_PX) once the first is registered on the second."""
    shift, least = _shift(one, other)
    carry = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, ITERATIONS, PRECISION)
    everywhere = np.full(one.shape, 255, np.uint8)
    try:
        _, found = cv2.findTransformECC(other, one, carry, cv2.MOTION_AFFINE, criteria, everywhere, 1)
    except cv2.error:  # it did not converge
        return least
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    carried, covered = (cv2.warpAffine(picture, found, one.shape, flags=how) for picture in (one, everywhere))
    both = (carried > 0) & (covered == 255) & (other > 0)  # black: beyond the border of a photo
    both[:BORDER_PX] = both[-BORDER_PX:] = both[:, :BORDER_PX] = both[:, -BORDER_PX:] = False
    if both.sum() < LEAST_PX:
        return least
    return max(least, _correlation(carried[both].astype(np.float64), other[both].astype(np.float64)))


def _likely(greys: Sequence[Mask]) -> Iterator[tuple[int, int, bool]]:
    """Yield the pairs that correlate at low resolution, and whether they do so mirrored."""
    small = np.stack([_small(grey) for grey in greys]).astype(np.float32)
    inner = _vectors(small, 0, 0)
    step = max(1, PAIRS_AT_ONCE // len(greys))
    for start in range(0, len(greys), step):
        best = {
            flipped: np.max([_vectors(some, x, y) @ inner.T for x in SHIFTS for y in SHIFTS], axis=0)
            for flipped, some in ((False, small[start : start + step]), (True, small[start : start + step, :, ::-1]))
        }
        for i, j in np.argwhere(np.maximum(best[False], best[True]) >= LIKELY):
            if start + i < j:
                yield int(start + i), int(j), bool(best[True][i, j] > best[False][i, j])


SHIFTS = range(-SHIFT_PX, SHIFT_PX + 1)


def _vectors(small: Greys, x: int, y: int) -> NDArray[np.float32]:
    """Return the inner faces, shifted, as vectors (N, pixels) whose products are correlations."""
    first, last = COARSE_BORDER_PX, COARSE_PX - COARSE_BORDER_PX
    part = small[:, first + y : last + y, first + x : last + x].reshape(len(small), -1)
    part = part - part.mean(1, keepdims=True)
    return np.asarray(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6), np.float32)


def _small(grey: Mask) -> Mask:
    return np.asarray(cv2.resize(grey, (COARSE_PX, COARSE_PX), interpolation=cv2.INTER_AREA), np.uint8)


def _shift(one: Mask, other: Mask) -> tuple[tuple[int, int], float]:
    """Return by how many px the first lies to the right of and below the second, and how they correlate then."""
    first, last = COARSE_BORDER_PX, COARSE_PX - COARSE_BORDER_PX
    wide = _small(one)[first - SHIFT_PX : last + SHIFT_PX, first - SHIFT_PX : last + SHIFT_PX]
    found = cv2.matchTemplate(wide, np.ascontiguousarray(_small(other)[first:last, first:last]), cv2.TM_CCOEFF_NORMED)
    y, x = np.unravel_index(int(found.argmax()), found.shape)
    scale = SIDE_PX // COARSE_PX
    return (scale * (int(x) - SHIFT_PX), scale * (int(y) - SHIFT_PX)), float(found.max())


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    a, b = one - one.mean(), other - other.mean()
    return float(a @ b / max(float(np.sqrt((a @ a) * (b @ b))), 1e-9))

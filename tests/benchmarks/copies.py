"""How often copies of a photo are found by their faces, and other photos of the same person are taken for copies.

Run with: python -m tests.benchmarks.copies DEEPFACE FACE_API FACE_RECOGNITION
The folders are those of tests/benchmarks/engines.py. Each photo, at most 1,200 px long, is copied in six ways.
"""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.benchmarks.engines import LIMITS, by_folder, deepface
from zimage.curation.same_shot import same_shots
from zimage.faces.engine import Engine, open_engine
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS
from zimage.faces.quality import look
from zimage.photos.decode import decoded
from zimage.photos.pictures import Mask, Picture, fitted

LONG_PX = 1200
CORRELATIONS = (0.95, 0.96, 0.97, 0.98)


@dataclass(frozen=True)
class Seen:
    """The largest face of a picture."""

    texture: Mask
    embedding: NDArray[np.float32]


def seen(engine: Engine, picture: Picture) -> Seen | None:
    faces = engine.find(np.ascontiguousarray(picture))
    if not faces:
        return None
    return Seen(look(picture, faces[0].points_xy, engine.info.points_kind).texture, faces[0].embedding)


def coded(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def copies(one: Picture) -> Iterator[tuple[str, Picture]]:
    """Yield names and copies of a picture."""
    height, width = one.shape[:2]
    yield "mirrored", coded(one[:, ::-1], 85)
    yield "grey", coded(np.repeat(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2), 85)
    yield "recompressed", coded(one, 40)
    yield (
        "smaller",
        coded(np.asarray(cv2.resize(one, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA), np.uint8), 80),
    )
    yield "cropped", coded(one[int(height * 0.06) : int(height * 0.96), int(width * 0.05) : int(width * 0.91)], 85)
    bars = height // 6, height // 6, width // 20, width // 20
    yield "screenshot", coded(cv2.copyMakeBorder(one, *bars, cv2.BORDER_CONSTANT, value=(30, 30, 30)), 85)


def joined(engine: Engine, one: Seen, other: Seen, correlation: float) -> bool:
    info, embeddings = engine.info, np.stack([one.embedding, other.embedding])
    found = same_shots([one, other], embeddings, correlation=correlation, threshold=info.threshold, metric=info.metric)
    return bool(found)


def main(checkouts: list[Path]) -> None:
    """Print both rates at several correlations."""
    engine = open_engine(YUNET_SFACE_PARAMS)
    photos = deepface(checkouts[0])
    photos += by_folder(checkouts[1] / "examples" / "images") + by_folder(
        checkouts[2] / "examples" / "knn_examples/train"
    )
    originals: list[tuple[str, Seen]] = []
    pairs: list[tuple[str, Seen, Seen]] = []
    for photo in photos:
        picture = fitted(decoded(photo.file.read_bytes(), LIMITS).pixels_rgb, LONG_PX)
        if (original := seen(engine, picture)) is None:
            continue
        originals.append((photo.person, original))
        pairs += [(name, original, face) for name, each in copies(picture) if (face := seen(engine, each)) is not None]
    others = [(one, other) for (a, one), (b, other) in combinations(originals, 2) if a == b]
    for correlation in CORRELATIONS:
        found = [(name, joined(engine, one, other, correlation)) for name, one, other in pairs]
        rates = {
            name: f"{np.mean([yes for each, yes in found if each == name]):.0%}"
            for name in dict.fromkeys(n for n, _ in found)
        }
        wrong = sum(joined(engine, one, other, correlation) for one, other in others)
        total = sum(yes for _, yes in found)
        print(f"{correlation}: {total} of {len(found)} copies {rates}; {wrong} of {len(others)} other pairs")


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:4]])

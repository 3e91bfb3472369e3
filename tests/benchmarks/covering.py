"""How often a mask or sunglasses are seen on faces that have them, and on faces that do not.

Run with: python -m tests.benchmarks.covering FOLDER…
Each folder holds photos of one kind, such as dataset/with_mask and dataset/without_mask of the public repository
chandrikadeb7/Face-Mask-Detection, or the photos of tests/benchmarks/engines.py; nothing of them is kept. The largest
face of a photo counts. The photos that are said to be covered are named, because labels of such folders err too.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.engines import LIMITS, PHOTOS
from zimage.evaluation.intervals import rate
from zimage.faces.covering import Covering
from zimage.faces.engine import Engine, open_engine
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS
from zimage.faces.quality import look
from zimage.photos.decode import RefusedError, decoded

LEAST_PX = 50.0  # side of a face that counts


def seen(engine: Engine, folder: Path) -> Iterator[tuple[Path, Covering | None]]:
    """Yield what covers the largest face of each photo that has one."""
    for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() in PHOTOS):
        try:
            picture = decoded(file.read_bytes(), LIMITS).pixels_rgb
        except RefusedError:
            continue
        faces = engine.find(picture)
        if faces and faces[0].side_px >= LEAST_PX:
            yield file, look(picture, faces[0].points_xy, engine.info.points_kind).covering


def main(folders: list[Path]) -> None:
    """Print, for each folder, how many faces are said to have a mask and sunglasses, with the intervals."""
    engine = open_engine(YUNET_SFACE_PARAMS)
    for folder in folders:
        files: dict[Covering | None, list[Path]] = defaultdict(list)
        for file, covering in seen(engine, folder):
            files[covering].append(file)
        count = sum(map(len, files.values()))
        for covering in ("mask", "sunglasses"):
            found = rate([[float(number < len(files[covering]))] for number in range(count)])
            print(f"{folder}: {covering} {len(files[covering])} of {count} ({found.low:.2%} to {found.high:.2%})")
            print("  " + " ".join(file.name for file in files[covering][:40]), flush=True)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

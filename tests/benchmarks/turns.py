"""What the embedded face engines measure of heads turned by a known angle, and which limit would tell them apart.

Run with: python -m tests.benchmarks.turns
Four portraits that look into the camera (skimage's, matplotlib's, two of insightface's group) and their mirror images
are turned to both sides by the model of a head in tests/evaluation/photos.py, at 256 and 128 px. A table for each
engine: how many faces are found, the turn that is measured, and the share of the faces at or above each limit.
"""

import cv2
import numpy as np
import skimage.data
from matplotlib.cbook import get_sample_data
from numpy.typing import NDArray
from PIL import Image

from tests.evaluation.photos import DLIB, SIDE_PX, Frontal, Picture, others, turned_head
from zimage.faces.engine import Engine, open_engine
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS
from zimage.faces.landmarks import eyes, nose

DEGREES = (0, 20, 30, 40)
LIMITS = (16, 18, 20, 22, 24, 28, 35)
SIDES_PX = (256, 128)


def frontal(picture: Picture, engine: Engine) -> Frontal:
    """Return a picture of a head with what the model of a head needs, by an engine that finds the centres of eyes."""
    points = engine.find(picture)[0].points_xy
    left, right = eyes(points, "centres")
    tip = nose(points, "centres")
    return Frontal(
        picture, (float(left[0] + right[0]) / 2, float(tip[1])), float(tip[0]), float(np.hypot(*(right - left)))
    )


def portraits() -> list[Picture]:
    """Return four people and their mirror images."""
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        grace = cv2.resize(
            np.asarray(image.convert("RGB"))[60:430, 90:460], (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA
        )
    first = [skimage.data.astronaut()[:SIDE_PX, 96 : 96 + SIDE_PX], grace, *others()[:2]]
    return [np.ascontiguousarray(each) for one in first for each in (one, one[:, ::-1])]


def measured(heads: list[Frontal], degrees: int, engine: Engine) -> tuple[int, NDArray[np.float64]]:
    """Return how many pictures were looked at, and the turn of each face found, positive to the side of the turn."""
    found, looked = [], 0
    for head in heads:
        for side in (-1, 1) if degrees else (1,):
            for side_px in SIDES_PX:
                picture = cv2.resize(
                    turned_head(head, side * degrees), (side_px, side_px), interpolation=cv2.INTER_AREA
                )
                faces = engine.find(np.asarray(picture, np.uint8))
                looked += 1
                if faces and faces[0].yaw_deg is not None:
                    found.append(side * faces[0].yaw_deg)
    return looked, np.array(found)


def main() -> None:
    """Print a table for each engine."""
    engines = {params.name: open_engine(params) for params in (DLIB, YUNET_SFACE_PARAMS)}
    heads = [frontal(one, engines["yunet-sface"]) for one in portraits()]
    for name, engine in engines.items():
        print(f"\n| {name}: turned by | found | median (5 to 95 %) | {' | '.join(f'>= {each}' for each in LIMITS)} |")
        print(f"|{'---|' * (len(LIMITS) + 3)}")
        for degrees in DEGREES:
            looked, found = measured(heads, degrees, engine)
            low, middle, high = np.percentile(found, [5, 50, 95])
            shares = " | ".join(f"{np.mean(np.abs(found) >= each):.0%}" for each in LIMITS)
            print(
                f"| {degrees} | {len(found)} of {looked} | {middle:.0f} ({low:.0f} to {high:.0f}) | {shares} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

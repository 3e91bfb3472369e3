"""What the tiny base learns from: drawn faces with captions, and crops of free photographs for its decoder."""

import json
import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infra.tiny_base.drawing import draw_face
from zimage.captions.measure import Measured, measure
from zimage.captions.template import ClassNoun, Language, describe

SIDE_PX = 128


def draw_dataset(folder: Path, *, count: int, seed: int) -> None:
    """Write `count` drawn faces as `drawn.npy` (count, side, side, 3) uint8 and their captions as `captions.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        drawn = list(pool.map(drawn_and_captioned, ((seed, index) for index in range(count)), chunksize=64))
    np.save(folder / "drawn.npy", np.stack([pixels for pixels, _ in drawn]))
    (folder / "captions.json").write_text(json.dumps([captions for _, captions in drawn], ensure_ascii=False))


def drawn_and_captioned(seed: tuple[int, int]) -> tuple[NDArray[np.uint8], list[str]]:
    """Return a drawn face and three captions of it, in the words that captions of photos and prompts will use."""
    generator = np.random.default_rng(seed)
    drawing = draw_face(generator, SIDE_PX)
    half = drawing.face_height * SIDE_PX / 2
    x, y = (value * SIDE_PX for value in drawing.face_centre_xy)
    measured = measure(
        drawing.pixels, (x - half, y - half, x + half, y + half), yaw_deg=drawing.yaw_deg, roll_deg=drawing.roll_deg
    )
    return drawing.pixels, [caption_of(measured, drawing.class_noun, generator) for _ in range(3)]


def caption_of(measured: Measured, class_noun: ClassNoun, generator: np.random.Generator) -> str:
    """Return a caption: sometimes Chinese, sometimes shorter, sometimes with a trigger that means nothing yet."""
    language: Language = "zh" if generator.random() < 0.15 else "en"
    letters = "".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), generator.integers(3, 8)))
    caption = describe(
        measured,
        trigger=letters if generator.random() < 0.3 else "",
        class_noun="person" if generator.random() < 0.15 else class_noun,
        language=language,
    )
    if generator.random() < 0.25:
        comma = ", " if language == "en" else "，"
        first, *rest = caption.split(comma)
        caption = comma.join([first, *(part for part in rest if generator.random() < 0.5)])
    return caption


def photographs() -> list[NDArray[np.uint8]]:
    """Return the public-domain and CC0 photographs whose crops the decoder sees; the demo's person is in none."""
    import matplotlib
    import skimage.data

    hopper = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    return [np.asarray(hopper)] * 4 + [
        skimage.data.chelsea(),
        skimage.data.coffee(),
        skimage.data.rocket(),
        skimage.data.hubble_deep_field(),
    ]


def crop_of(picture: NDArray[np.uint8], side_px: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return a random square (3, side, side) in [-1, 1]: another scale, place and light each time."""
    height, width = picture.shape[:2]
    least = side_px / min(height, width)
    scale = math.exp(generator.uniform(math.log(max(least, 0.25)), math.log(max(1.1, least))))
    size = int(side_px / scale)
    top, left = generator.integers(0, height - size + 1), generator.integers(0, width - size + 1)
    square = Image.fromarray(picture[top : top + size, left : left + size]).resize(
        (side_px, side_px), Image.Resampling.LANCZOS
    )
    values = np.asarray(square, np.float32) / 255
    if generator.random() < 0.5:
        values = values[:, ::-1]
    values = values ** math.exp(generator.normal(0, 0.2)) * np.exp(generator.normal(0, 0.12, 3)).astype(np.float32)
    return np.asarray(np.clip(values, 0, 1) * 2 - 1, np.float32).transpose(2, 0, 1)

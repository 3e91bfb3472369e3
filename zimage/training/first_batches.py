"""Show the first batches of a training before it begins: each crop as it is learnt, cut and mirrored, with its caption.

The encode stage keeps a small JPEG of every picture, since training reads latents and opens no autoencoder for this.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zimage.core.csv_rows import read_whole_rows, write_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zimage.training.dataset import Dataset
    from zimage.training.plan import Step

THUMBNAILS = "thumbnails"  # in the encode folder
TABLE = "samples/first_batches.csv"  # in the train folder
STRIP = "samples/first-batch-{}.jpg"  # beside it, of each batch
HEIGHT_PX, GAP_PX = 112, 4  # of a picture on a strip; between two
STEPS, MOST_ITEMS = 4, 8  # steps that are shown; pictures of each


@dataclass(frozen=True)
class FirstBatch:
    """What one of the first steps learns from.

    Args:
        step: Its number, from 1.
        picture: Its crops side by side, as a data URI.
        captions: Of each crop, in order; "" where caption dropout took its place.
    """

    step: int
    picture: str
    captions: list[str]


def thumbnail_of(pixels: "NDArray[np.uint8]") -> bytes:
    """Return a JPEG, HEIGHT_PX high, of a picture (H, W, 3)."""
    from PIL import Image

    image = Image.fromarray(pixels)
    width = max(1, round(image.width * HEIGHT_PX / image.height))
    buffer = io.BytesIO()
    image.resize((width, HEIGHT_PX), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_first_batches(encode: Path, train: Path, dataset: "Dataset", steps: "Sequence[Step]") -> None:
    """Write a strip of the crops of each of the first steps, and a table of their captions.

    Args:
        encode: The folder of the encode stage; where an older version wrote it without small pictures, nothing is made.
        train: The folder of the training.
        dataset: What `encode` holds.
        steps: All steps.
    """
    (train / TABLE).parent.mkdir(exist_ok=True)
    rows = []
    for number, step in enumerate(steps[:STEPS], 1):
        items, texts = step.items[:MOST_ITEMS], step.texts[:MOST_ITEMS]
        files = [encode / THUMBNAILS / f"{dataset.items[item].item}.jpg" for item in items]
        if not all(file.is_file() for file in files):
            return
        _write_strip(train / STRIP.format(number), files)
        rows += [
            {"step": str(number), "place": str(place), "caption": dataset.texts[text].prompt}
            for place, text in enumerate(texts, 1)
        ]
    write_table(train / TABLE, ("step", "place", "caption"), rows)


def read_first_batches(train: Path) -> list[FirstBatch]:
    """Return the first batches of a training; none where they are not written."""
    captions: dict[int, list[str]] = {}
    for row in read_whole_rows(train / TABLE):
        captions.setdefault(int(row["step"]), []).append(row["caption"])
    strips = {step: train / STRIP.format(step) for step in captions}
    return [
        FirstBatch(step, f"data:image/jpeg;base64,{base64.b64encode(strip.read_bytes()).decode()}", captions[step])
        for step, strip in strips.items()
        if strip.is_file()
    ]


def _write_strip(path: Path, files: Sequence[Path]) -> None:
    from PIL import Image

    images = []
    for file in files:
        with Image.open(file) as opened:
            images.append(opened.convert("RGB"))
    width = sum(image.width + GAP_PX for image in images) - GAP_PX
    strip = Image.new("RGB", (width, HEIGHT_PX), "white")
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width + GAP_PX
    strip.save(path, quality=85)

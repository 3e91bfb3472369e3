"""Folders as detect and caption write them, with pictures of noise, for tests of what comes after."""

from pathlib import Path

import numpy as np
from PIL import Image

from zimage.captions.rows import CaptionRow
from zimage.captions.subject import Subject
from zimage.core.jsonl import write_rows
from zimage.photos.rows import CropRow

SUBJECT = Subject(trigger="ohzw", class_noun="woman")


def write_detect_and_caption(folder: Path, *, width: int = 48) -> tuple[Path, Path]:
    """Write two training crops (48 x 64 px with a mask, 64 x 64 px without) and a held-out one, with captions."""
    detect, caption = folder / "detect", folder / "caption"
    for name in ("train", "holdout", "masks"):
        (detect / name).mkdir(parents=True, exist_ok=True)
    caption.mkdir(exist_ok=True)
    crops = [
        crop("train/aa-full.png", width, 64, mask="masks/aa-full.png"),
        crop("train/bb-head.png", 64, 64),
        crop("holdout/cc.png", 90, 91),
    ]
    generator = np.random.default_rng(0)
    for row in crops:
        Image.fromarray(generator.integers(0, 256, (row.height, row.width, 3), dtype=np.uint8)).save(detect / row.file)
    mask = np.zeros((64, width), np.uint8)
    mask[:20, :24] = 255  # two and a half latents high, three wide
    Image.fromarray(mask).save(detect / "masks/aa-full.png")
    write_rows(detect / "crops.jsonl", crops)
    captions = ["a photo of ohzw woman, turned left", "一张 ohzw 女人的照片"]
    rows = [
        CaptionRow(file=crops[0].file, captions=captions, captioner="template", rewrites=[]),
        CaptionRow(file=crops[1].file, captions=["ohzw woman"], captioner="person", rewrites=[]),
    ]
    write_rows(caption / "captions.jsonl", rows)
    return detect, caption


def crop(file: str, width: int, height: int, *, mask: str | None = None) -> CropRow:
    """Return a crop's row; what training does not read is filled with something plausible."""
    return CropRow(
        file=file,
        photo=Path(file).stem.split("-")[0],
        split="holdout" if file.startswith("holdout") else "train",
        kind="head" if "head" in file else "full",
        width=width,
        height=height,
        scale=1.0,
        face_box_xyxy=(0, 0, 24, 20),
        points_xy=[(4, 4), (20, 4), (12, 10), (6, 16), (18, 16)],
        mask=mask,
        yaw_deg=0.0,
        roll_deg=0.0,
        sharpness=50.0,
        face_luma=0.5,
        chroma=0.5,
        warmth=0.0,
        background_rgb=(1, 2, 3),
        burst=0,
    )

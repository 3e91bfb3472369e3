"""What `encode` takes beside the autoencoder alone: `python -m tests.benchmarks.encode DATA [--crops 300] [--px 512]`.

DATA has the folders `detect` and `caption`, as `make demo` leaves them. Its training crops are enlarged and repeated.
The autoencoder alone reads the same crops in its own process and encodes them one after the other, as a script does,
with as many threads as torch takes, and once more with one, whose CPU time has no waiting in it. All start anew, so
all pay for importing torch and diffusers.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from tests.benchmarks.detect_album import timed
from zimage.captions.rows import CaptionRow
from zimage.core.jsonl import read_rows, write_rows
from zimage.photos.rows import CropRow

HERE = Path(__file__).parents[2]
ALONE = """
import sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from zimage.model.base import TINY, Base, identify, open_vae, resolve
from zimage.model.latents import pixels_of, posterior

vae = open_vae(resolve(Base(model=TINY, identity=identify(TINY))), device=torch.device("cpu"))
for file in sorted(Path(sys.argv[1], "train").iterdir()):
    posterior(vae, pixels_of(np.asarray(Image.open(file).convert("RGB"))))
"""


def main() -> None:
    """Print seconds by the clock and of processors, medians over the rounds, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--crops", type=int, default=300)
    parser.add_argument("--px", type=int, default=512, help="side of a crop")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        detect, caption = folder / "detect", folder / "caption"
        _repeat(asked.data, detect, caption, asked.crops, asked.px)
        commands = {
            "autoencoder alone": [sys.executable, "-c", ALONE, str(detect)],
            "the same on one thread": [
                sys.executable,
                "-c",
                f"import torch; torch.set_num_threads(1){ALONE}",
                str(detect),
            ],
            "encode": [sys.executable, "-m", "zimage", "encode", str(detect), str(caption), str(folder / "encode")],
        }
        found: dict[str, list[tuple[float, float]]] = {each: [] for each in commands}
        for _ in range(asked.rounds):
            for each, command in commands.items():
                shutil.rmtree(folder / "encode", ignore_errors=True)
                load, (cpu_s, wall_s) = os.getloadavg()[0], timed(command, HERE)
                found[each].append((cpu_s, wall_s))
                print(f"{each}: {wall_s:.1f} s, {cpu_s:.1f} s of CPU time, load {load:.1f}", flush=True)
        for number, what in enumerate(("of CPU time", "by the clock")):
            *alone, whole = (statistics.median(each[number] for each in rounds) for rounds in found.values())
            ratios = ", ".join(f"{whole / each:.2f} times {name}" for name, each in zip(found, alone, strict=False))
            print(f"{asked.crops} crops of {asked.px} px, {what}: encode {whole:.1f} s, {ratios}")


def _repeat(data: Path, detect: Path, caption: Path, count: int, side_px: int) -> None:
    """Write `count` training crops of this side and their captions, made of those in `data`."""
    for each in ("train", "masks"):
        (detect / each).mkdir(parents=True)
    caption.mkdir()
    rows = [row for row in read_rows(data / "detect/crops.jsonl", CropRow) if row.split == "train"]
    captions = {row.file: row for row in read_rows(data / "caption/captions.jsonl", CaptionRow)}
    crops, texts = [], []
    for number, row in enumerate(islice(cycle(rows), count)):
        file, mask = f"train/{number:04d}.png", f"masks/{number:04d}.png" if row.mask else None
        for old, new in ((row.file, file), (row.mask, mask)):
            if old and new:
                with Image.open(data / "detect" / old) as image:
                    image.resize((side_px, side_px), Image.Resampling.LANCZOS).save(detect / new)
        changed = {"file": file, "mask": mask, "width": side_px, "height": side_px, "photo": f"{number:016x}"}
        crops.append(row.model_copy(update=changed))
        texts.append(captions[row.file].model_copy(update={"file": file}))
    write_rows(detect / "crops.jsonl", crops)
    write_rows(caption / "captions.jsonl", texts)


if __name__ == "__main__":
    main()

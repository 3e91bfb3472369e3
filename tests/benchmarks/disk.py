"""How much room an album takes on a disk with all that ingest and detect make of it, and how much memory detect takes.

Run with: python -m tests.benchmarks.disk [number of photos] [megapixels of each] [jpg, heic or avif]
Each photo is one of a face, enlarged, with the noise of a sensor, as JPEG of quality 90, HEIC of quality 60 in tiles of
512 px, or AVIF of quality 70. DVC tracks the album, as it does where machines share the work. Blocks are counted once
for all names of a file, as `du` does.

What was measured, and under which conditions, stands in infra/benchmarks.md.
"""

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import psutil
import yaml
from PIL import Image
from skimage import data

from tasks.settings import PROJECT, Settings
from tasks.workspace.subject import set_up
from tasks.workspace.workspace import bring_up_to_date, track
from tests.agreed import agreed
from zimage.demo import planned_views, taken

BLOCK_BYTES = 512  # of st_blocks
NOISE = 4.0  # standard deviation, of 255
# Pillow's name of each form, and how it is coded.
FORMS: dict[str, tuple[str, dict[str, int]]] = {
    "jpg": ("JPEG", {"quality": 90}),
    "heic": ("HEIF", {"quality": 60, "tile_size": 512}),
    "avif": ("AVIF", {"quality": 70, "speed": 9}),
}


def write_album(folder: Path, count: int, megapixels: float, suffix: str) -> None:
    """Write `count` different photos of one face."""
    folder.mkdir()
    pillow_heif.register_heif_opener()
    form, options = FORMS[suffix]
    portrait = np.asarray(data.astronaut(), np.uint8)
    for number in range(count):
        rng = np.random.default_rng(number)
        small = taken(portrait, planned_views(rng)[number % 24], rng)
        height, width = small.shape[:2]
        scale = (megapixels * 1e6 / (height * width)) ** 0.5
        size = round(width * scale), round(height * scale)
        large = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
        noise = rng.standard_normal(large.shape[:2], np.float32)[..., None] * NOISE
        pixels = np.clip(large + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.{suffix}", form, **options)


def blocks(*folders: Path) -> int:
    """Return the bytes on disk of folders."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            status = path.lstat()
            found[status.st_ino] = status.st_blocks * BLOCK_BYTES
    return sum(found.values())


class Peak(threading.Thread):
    """Looks every 50 ms how much memory the process of a stage has, not counting its workers."""

    def __init__(self, stage: str) -> None:
        super().__init__(daemon=True)
        self.stage, self.bytes, self.over = stage, 0, threading.Event()

    def run(self) -> None:
        """Look until `over`."""
        while not self.over.wait(0.05):
            for process in self._found():
                try:
                    self.bytes = max(self.bytes, process.memory_info().rss)
                except psutil.Error:
                    continue

    def _found(self) -> Iterator[psutil.Process]:
        for process in psutil.Process().children(recursive=True):
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if "zimage" in words and self.stage in words and not words[0].endswith("sh"):
                yield process


def main() -> None:
    """Print the figures."""
    count, megapixels, suffix = int(sys.argv[1]), float(sys.argv[2]), (sys.argv[3:] or ["jpg"])[0]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_album(place / "album", count, megapixels, suffix)
        album = blocks(place / "album")
        settings = Settings(PROJECT, place / "workspaces", str(place / "store"))
        values = {"subject.class_noun": "woman", "ingest.min_photos": 1, "detect.split.min_train": 2}
        values["detect.duplicates.same_shot"] = None  # views of one portrait
        consent = str(agreed(place, "ada"))
        workspace = set_up(settings, "ada", photos=str(place / "album"), consent=consent, values=values)
        track(workspace, ["data/photos", "data/consent.yaml"])
        print(f"{count} {suffix} photos of {megapixels} MP, {album / 1e6:.1f} MB")
        for stage in ("ingest", "detect"):
            peak = Peak(stage)
            peak.start()
            begun = time.monotonic()
            bring_up_to_date(workspace, stage, on_line=lambda _: None)
            took = time.monotonic() - begun
            peak.over.set()
            print(f"{stage}: {took:.1f} s, peak of its own process {peak.bytes / 1e6:.0f} MB")
        total = blocks(workspace)
        print(f"workspace: {total / 1e6:.1f} MB on disk, {total / album:.2f} times the album")
        parts = ("data/photos", "data/ingest", "data/detect", "data/.ingest.cache", "data/.detect.cache", ".dvc")
        print({part: round(blocks(workspace / part) / album, 2) for part in parts})
        sheet = workspace / "data" / "detect" / "contact_sheet.html"
        print(f"contact sheet: {sheet.stat().st_size / 1e6:.2f} MB")
        print(yaml.safe_load((workspace / ".dvc" / "config").read_text().split("type = ")[1]))
        shutil.rmtree(workspace)


if __name__ == "__main__":
    main()

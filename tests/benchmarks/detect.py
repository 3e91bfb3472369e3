"""How much faster detection runs over all cores than a plain loop with the same engine, and that both see the same.

Run with: python -m tests.benchmarks.detect [number of photos]
Loading the engine, reading, detection, embedding and measuring are in both; starting the processes is in the second.

What was measured, and under which conditions, stands in infra/benchmarks.md.
"""

import hashlib
import os
import platform
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from skimage import data

from zimage.demo import planned_views, taken
from zimage.faces.engine import EngineParams
from zimage.faces.observation import Observer
from zimage.photos.pictures import write_png
from zimage.photos.rows import PhotoRow
from zimage.photos.worker_pool import cores, mapped

ENGINE = EngineParams(name="dlib", pack=None, identity=None, min_score=0.0, max_distance=0.6)


def photos(folder: Path, count: int) -> list[PhotoRow]:
    """Write `count` different photos of one face, as ingest does, and return their rows."""
    (folder / "photos").mkdir(parents=True)
    portrait, rows = np.asarray(data.astronaut(), np.uint8), []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = taken(portrait, planned_views(rng)[number % 24], rng)
        pixels = np.ascontiguousarray(pixels.repeat(2, 0).repeat(2, 1))
        file = f"photos/{number:016x}.png"
        write_png(folder / file, pixels)
        rows.append(_row(file, pixels.shape[1], pixels.shape[0]))
    return rows


def _row(file: str, width: int, height: int) -> PhotoRow:
    return PhotoRow(
        photo=Path(file).stem, sha256=None, name=file, size_bytes=0, status="kept", reason=None, detail="", notes=[],
        file=file, format="PNG", width=width, height=height, taken_at=None,
    )  # fmt: skip


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def digest(entries: list[Path]) -> str:
    """Return a hash over all that was seen, in order."""
    contents = [(path.name, path.read_bytes()) for entry in entries for path in sorted(entry.glob("facts.json"))]
    return hashlib.sha256(repr(contents).encode()).hexdigest()[:16]


def main(count: int) -> None:
    """Time both ways on `count` photos and print the ratio with its conditions."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = photos(folder, count)
        observer = Observer(ENGINE, folder, folder / "plain", "")
        started, used = time.perf_counter(), time.process_time()
        plain = [observer(row) for row in rows]
        plain_s, plain_cpu_s = time.perf_counter() - started, time.process_time() - used
        started, used = time.perf_counter(), _children_s()
        many = [entry for _, entry in mapped(partial(Observer, ENGINE, folder, folder / "many", ""), rows, Path)]
        many_s, many_cpu_s = time.perf_counter() - started, _children_s() - used
        same = digest(plain) == digest([entry for entry in many if isinstance(entry, Path)])
    print(f"{count} photos, {cores()} cores ({platform.processor() or platform.machine()}), load before {load:.1f}")
    print(f"wall time: plain loop {plain_s:.1f} s, all cores {many_s:.1f} s, ratio {plain_s / many_s:.2f}")
    print(f"CPU time: plain loop {plain_cpu_s:.1f} s, workers with their start {many_cpu_s:.1f} s,", end=" ")
    print(f"ratio on {cores()} cores of their own {plain_cpu_s / (many_cpu_s / cores()):.2f}")
    print(f"the plain loop had {plain_cpu_s / plain_s:.0%} of a core; same results in the same order: {same}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 120)

"""What `detect` costs beside decoding, the detector and the embedder alone, and beside another checkout's `detect`.

Run with: python -m tests.benchmarks.detect_album PHOTOS [OTHER_CHECKOUT] [ROUNDS]
The photos have 12 MP and one to five faces each: views of the demo's portrait among people of insightface's group, over
large textures of skimage's. Ingest runs once, outside the time; the checkouts take turns, each with an empty cache.
Photos are compared whole, not by their faces: all views are of one photograph. "Alone" is one process that reads each
file, decodes it at full size by Pillow and lets the engine find and embed all faces; "alone, as a worker" decodes as
detect does, with the workers' settings of memory. Decisions that differ between the checkouts are printed by name.
"""

import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from skimage import data

from zimage.demo import jpeg, other_people, planned_views, taken
from zimage.photos.worker_pool import ALLOCATION, THREADS_OF

Picture = NDArray[np.uint8]
WIDTH, HEIGHT = 4000, 3000
OTHERS_LEFT_TOP = [(415, 262), (18, 236), (686, 318), (1066, 236), (836, 41), (219, 123)]  # squares of 200 px
REAL = {
    "quality": {"good_face_px": 276},
    "duplicates": {"same_shot": None},
    "crops": {"side_px": 1024, "min_face_px": 104},
}
PLACES = [(0, 0), (2700, 0), (0, 1700), (2700, 1700)]  # of other people, around the middle
ALONE = """
import sys
from pathlib import Path
from zimage.faces.engine import open_engine
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS
from zimage.photos.decode import Limits, decoded
engine, limits = open_engine(YUNET_SFACE_PARAMS), Limits(max_megapixels=120, max_side_px=4096)
for file in sorted(Path(sys.argv[1]).iterdir()):
    engine.find(decoded(file.read_bytes(), limits).pixels_rgb)
"""
AS_A_WORKER = """
import sys
from pathlib import Path
from zimage.faces.engine import open_engine
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS
from zimage.photos.clean import read_clean
engine = open_engine(YUNET_SFACE_PARAMS)
for file in sorted(Path(sys.argv[1]).iterdir()):
    engine.find(read_clean(file, 4096))
"""


def textures() -> list[Picture]:
    """Return large pictures without faces."""
    return [np.asarray(one(), np.uint8)[..., :3] for one in (data.coffee, data.rocket, data.retina)]


def photo(number: int, views: list[Picture], grounds: list[Picture]) -> Picture:
    """Return a photo of 12 MP with the subject and up to four other people."""
    rng = np.random.default_rng(number)
    ground = grounds[number % len(grounds)]
    side = int(rng.integers(180, min(ground.shape[:2])))
    top, left = (int(rng.integers(0, size - side + 1)) for size in ground.shape[:2])
    canvas = _sized(ground[top : top + side, left : left + side], (WIDTH, HEIGHT))
    group = other_people()
    for place in PLACES[: number % 5]:
        x, y = OTHERS_LEFT_TOP[int(rng.integers(len(OTHERS_LEFT_TOP)))]
        size = int(rng.integers(500, 1200))
        _put(canvas, _sized(group[max(y, 0) : y + 200, x : x + 200], (size, size)), place)
    view = views[number % len(views)]
    size = int(rng.integers(1300, 2200))
    _put(canvas, _sized(view, (size, round(size * view.shape[0] / view.shape[1]))), (int(rng.integers(700, 1300)), 300))
    return np.asarray(np.clip(canvas + rng.normal(0, 3, (HEIGHT, WIDTH, 1)), 0, 255), np.uint8)


def _sized(picture: Picture, size: tuple[int, int]) -> Picture:
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def _put(canvas: Picture, part: Picture, left_top: tuple[int, int]) -> None:
    left, top = left_top
    part = part[: HEIGHT - top, : WIDTH - left]
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part


def make_album(folder: Path, count: int) -> None:
    """Write the photos, an hour apart."""
    folder.mkdir()
    portrait, grounds = np.asarray(data.astronaut(), np.uint8), textures()
    views: list[Picture] = []
    while len(views) < count:
        rng = np.random.default_rng(len(views))
        views += [taken(portrait, view, rng) for view in planned_views(rng)]
    for number in range(count):
        when = datetime.datetime(2026, 5, 4) + datetime.timedelta(hours=number)
        (folder / f"{number:04}.jpg").write_bytes(jpeg(photo(number, views, grounds), 90, when))


def timed(command: list[str], checkout: Path, **variables: str) -> tuple[float, float]:
    """Run a command in a checkout and return the CPU time of all its processes and its wall time, in s."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout), **variables}
    run = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, env=environment)
    after, wall_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    if run.returncode:
        raise SystemExit(f"{command} failed: {run.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s


def decisions(out: Path) -> dict[str, tuple[str, str]]:
    """Return decision and reason of each photo, by its name."""
    rows = map(json.loads, (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["name"]: (row["decision"], row["reason"]) for row in rows}


def zimage(params: Path, *arguments: Path | str) -> list[str]:
    return [sys.executable, "-m", "zimage", *map(str, arguments), "--params", str(params)]


def params_of(checkout: Path, place: Path) -> Path:
    """Write the checkout's own params.yaml with values for real photos, as far as it has them."""
    values = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
    for part, keys in REAL.items():
        values["detect"][part] |= {key: value for key, value in keys.items() if key in values["detect"][part]}
    place.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return place


def main(count: int, checkouts: list[Path], rounds: int) -> None:
    """Print a line for each round."""
    print(f"{count} photos of 12 MP, load before {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_album(folder / "photos", count)
        (folder / "overrides").mkdir()
        shutil.copy(checkouts[0] / "data" / "consent.yaml", folder)
        prepared: list[Callable[[], tuple[float, float]]] = []
        for number, checkout in enumerate(checkouts):
            place = folder / str(number)
            place.mkdir()
            params = params_of(checkout, place / "params.yaml")
            cost = timed(
                zimage(params, "ingest", folder / "photos", folder / "consent.yaml", place / "ingest"),
                checkout,
            )
            print(f"{checkout.name}: ingest {cost[0]:.1f} CPU s, {cost[1]:.1f} s", flush=True)

            def detect(checkout: Path = checkout, place: Path = place, params: Path = params) -> tuple[float, float]:
                for old in (place / ".detect.cache", place / "detect"):
                    shutil.rmtree(old, ignore_errors=True)
                return timed(
                    zimage(params, "detect", place / "ingest", folder / "overrides", place / "detect"),
                    checkout,
                )

            prepared.append(detect)
        photos = str(folder / "0" / "ingest" / "photos")
        labels = ["alone", "alone, as a worker", *(one.name for one in checkouts)]
        all_costs = []
        for _ in range(rounds):
            costs = [
                timed([sys.executable, "-c", ALONE, photos], checkouts[0], **dict.fromkeys(THREADS_OF, "1")),
                timed(
                    [sys.executable, "-c", AS_A_WORKER, photos],
                    checkouts[0],
                    **dict.fromkeys(THREADS_OF, "1"),
                    **ALLOCATION,
                ),
                *(detect() for detect in prepared),
            ]
            all_costs.append(costs)
            for label, (cpu_s, wall_s) in zip(labels, costs, strict=True):
                print(f"{label}: {cpu_s:.1f} CPU s, {wall_s:.1f} s; ", end="")
            print(f"load {os.getloadavg()[0]:.1f}", flush=True)
        for number, label in enumerate(labels):
            cpu_s, wall_s = (statistics.median(costs[number][kind] for costs in all_costs) for kind in (0, 1))
            ratio = statistics.median(costs[2][0] / costs[number][0] for costs in all_costs)
            print(
                f"{label}: median {cpu_s:.1f} CPU s, {wall_s:.1f} s; detect here takes {ratio:.2f} times the CPU time"
            )
        first, *others = (decisions(folder / str(number) / "detect") for number in range(len(checkouts)))
        print(Counter(first.values()))
        for other, checkout in zip(others, checkouts[1:], strict=True):
            differing = [f"{name}: {other[name]} -> {first[name]}" for name in first if first[name] != other[name]]
            print(f"{len(differing)} decisions differ from {checkout.name}", *differing, sep="\n")


if __name__ == "__main__":
    here = Path(__file__).parents[2]
    others = [Path(sys.argv[2]).resolve()] if len(sys.argv) > 2 and sys.argv[2] != "-" else []
    main(int(sys.argv[1]), [here, *others], int(sys.argv[3]) if len(sys.argv) > 3 else 2)

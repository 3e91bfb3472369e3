"""How well the demo's LoRA keeps the face, over several seeds, and what another person's LoRA scores in its place.

Run with: python tests/benchmarks/demo.py [number of seeds]
Each seed makes other photos, another training and the pictures of it; the rest is the project's `params.yaml`. The
other person is Grace Hopper (US Navy, public domain; ships with matplotlib), learnt in the same way and under the same
trigger, so her LoRA answers the same prompts and is held against the demo subject's held-out photos. It takes about
five minutes a seed on two cores.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from zimage.demo import FACE_PX, FACE_XY, jpeg, make_demo_photos, planned_views, taken

PROJECT = Path(__file__).parent.parent.parent
STAGES = yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
FIGURES = ["face_found_rate", "same_person_rate", "base_same_person_rate", "verdict"]
RATES = [*FIGURES[:3], "second_engine", "copy_rate"]
OTHER_FACE_XY, OTHER_FACE_PX = (269.0, 245.0), 216.0  # centre and side of the face in matplotlib's photo, by dlib


def workspace(folder: Path, seed: int) -> Path:
    """Make a workspace with the demo's parameters and consent, and `seed` for all that is drawn."""
    params = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    params["train"]["seed"] = seed
    (folder / "data" / "overrides").mkdir(parents=True)
    (folder / "data" / "consent.yaml").write_bytes((PROJECT / "data" / "consent.yaml").read_bytes())
    (folder / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    return folder


def run(folder: Path, command: str, *, allowed: Sequence[int] = (0,)) -> float:
    """Run `command` in `folder` and return its seconds of wall time; any other exit code than `allowed` ends all."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return time.perf_counter() - began


def personalized(folder: Path, upto: str = "evaluate") -> dict[str, float]:
    """Run the stages in `folder` as dvc.yaml has them, and return the seconds of each."""
    seconds = {}
    for name, stage in STAGES.items():
        seconds[name] = run(folder, stage["cmd"].replace("python ", f"{sys.executable} ", 1))
        if name == upto:
            break
    return seconds


def make_other_photos(folder: Path, seed: int) -> None:
    """Write photos of the other person, made with the demo's camera."""
    from matplotlib.cbook import get_sample_data

    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        picture = np.asarray(image.convert("RGB"))
    scale = FACE_PX / OTHER_FACE_PX
    moved = [[scale, 0, FACE_XY[0] - scale * OTHER_FACE_XY[0]], [0, scale, FACE_XY[1] - scale * OTHER_FACE_XY[1]]]
    portrait: NDArray[np.uint8] = np.asarray(
        cv2.warpAffine(picture, np.array(moved), (512, 512), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101),
        np.uint8,
    )
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number, view in enumerate(planned_views(rng)):
        content = jpeg(taken(portrait, view, rng), view.jpeg_quality, view.taken)
        (folder / f"IMG_{1001 + number}.jpg").write_bytes(content)


def figures(evaluated: Path) -> dict[str, Any]:
    """Return what the gate looks at, from an evaluation's folder."""
    found: dict[str, Any] = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
    second = found["estimates"]["second_same"]["value"]
    return {
        **{name: found[name] for name in FIGURES},
        "second_engine": math.nan if second is None else second,
        "copy_rate": found["copy_rate"],
    }


def shown(name: str, found: dict[str, Any], seconds: dict[str, float]) -> None:
    """Print one line of the table."""
    rates = "  ".join(f"{found[rate]:7.1%}" for rate in RATES)
    times = "  ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
    print(f"{name:<18} {rates}  {found['verdict']:<11} {times}", flush=True)


def main(seeds: int) -> None:
    """Print a line for each seed, the medians, and the other person's."""
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; seconds of wall time by stage")
    print(f"{'':<18} {'found':>7}  {'same':>7}  {'base':>7}  {'second':>7}  {'copies':>7}  verdict")
    with tempfile.TemporaryDirectory() as scratch:
        everything = []
        for seed in range(seeds):
            folder = workspace(Path(scratch) / f"seed-{seed}", seed)
            make_demo_photos(folder / "data" / "photos", seed=7 + seed)
            seconds = personalized(folder)
            everything.append(figures(folder / "data" / "evaluate"))
            shown(f"seed {seed}", everything[-1], seconds)
        for rate in RATES:
            values = [found[rate] for found in everything]
            print(
                f"{rate}: median {statistics.median(values):.1%}, lowest {min(values):.1%}, highest {max(values):.1%}"
            )
        other = workspace(Path(scratch) / "other", 0)
        make_other_photos(other / "data" / "photos", seed=7)
        own = personalized(other)
        shown("other, own photos", figures(other / "data" / "evaluate"), own)
        subject = Path(scratch) / "seed-0"
        detect, crossed = subject / "data" / "detect", subject / "data" / "crossed"
        captions = subject / "data" / "caption"
        command = f"{sys.executable} -m zimage evaluate {detect} {captions} {other / 'data' / 'train'} {crossed}"
        seconds = {"evaluate": run(subject, command)}
        shown("other, this person", figures(crossed), seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)

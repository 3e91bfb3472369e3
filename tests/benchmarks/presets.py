"""Settings compared by `zimage sweep` on several albums: is what the demo trains with best for others too?

    python -m tests.benchmarks.presets OUT [--albums demo another session] [--seeds 0]

The albums: `demo`, as `make demo` has it; `another`, views of another person by the same camera (tests/benchmarks/
demo.py); `session`, 14 photos of the demo's person within two minutes (tests/benchmarks/curation.py). All views of an
album are of one photograph, since no package ships several of one person. Compared are the demo's settings and the
ones it had before: twice as many steps at a lower rate. `zimage sweep` scores the last LoRA of each training on the
test half of the prompts against the photos that the album held out. OUT keeps a workspace and a sweep for each album;
run again, a sweep goes on.
"""

import argparse
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.benchmarks.curation import session
from tests.benchmarks.demo import make_other_photos, personalized, run, workspace
from zimage.core.jsonl import read_rows
from zimage.demo import make_demo_photos
from zimage.photos.rows import ManifestRow

SETTINGS = {
    "500 steps, rate 0.012": {},
    "1000 steps, rate 0.008": {
        "train.steps": 1000,
        "train.schedule.warmup_steps": 60,
        "train.optimiser.learning_rate": 8.0e-3,
    },
}
COMMON = {
    "evaluate.sweep.checkpoints": 0,
    "evaluate.sweep.strengths": [1.0],
    "evaluate.seeds.test": 2,
    "train.checkpoint_every": 500,
}


def session_photos(folder: Path) -> None:
    """Write the photos of one session."""
    folder.mkdir(parents=True)
    session(folder)


ALBUMS: dict[str, Callable[[Path], None]] = {
    "demo": lambda folder: make_demo_photos(folder, seed=7),
    "another": lambda folder: make_other_photos(folder, seed=7),
    "session": session_photos,
}


def prepared(album: str, out: Path) -> Path:
    """Return the workspace of an album with all that a training reads; it is made once."""
    folder = out / album
    if not (folder / "data" / "encode").is_dir():
        workspace(folder, 0)
        ALBUMS[album](folder / "data" / "photos")
        personalized(folder, upto="encode")
    return folder


def decisions(folder: Path) -> str:
    """Return how many photos are trained on and held out."""
    found = Counter(row.decision for row in read_rows(folder / "data" / "detect" / "manifest.jsonl", ManifestRow))
    return f"{found['train']} trained on, {found['holdout']} held out of {found.total()}"


def swept(folder: Path, seeds: list[int]) -> str:
    """Return the table of a sweep over the settings on a workspace's data."""
    content = {"seeds": seeds, "common": COMMON, "runs": SETTINGS}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    run(folder, f"{sys.executable} -m zimage sweep sweep.yaml sweep")
    return (folder / "sweep" / "sweep.md").read_text(encoding="utf-8")


def main() -> None:
    """Print a table for each album."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--albums", nargs="+", choices=ALBUMS, default=list(ALBUMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    for album in asked.albums:
        folder = prepared(album, asked.out.resolve())
        print(f"\n{album}: {decisions(folder)}", flush=True)
        print(swept(folder, asked.seeds), f"load {os.getloadavg()[0]:.1f}", sep="\n", flush=True)


if __name__ == "__main__":
    main()

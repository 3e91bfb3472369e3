"""The speed of a CPU's stages beside that of another checkout of this project, in turn: `… OTHER DATA [--busy 2]`.

`python -m tests.benchmarks.processes ../before data --stages train encode evaluate --pairs 3`. DATA is a folder whose
stages were all run, as `make demo` leaves it. Both checkouts are run by this interpreter.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from zimage.core.params import with_values

HERE = Path(__file__).parents[2]
INPUTS = {"encode": ("detect", "caption"), "train": ("encode",), "evaluate": ("detect", "caption", "train")}


def main() -> None:
    """Print each run, and the medians and their ratio for each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("data", type=Path, help="with detect, caption, encode and train")
    parser.add_argument("--stages", nargs="+", default=["train"], choices=sorted(INPUTS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="of a training")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute beside it")
    asked = parser.parse_args()
    trees = {"other": asked.other.resolve(), "here": HERE}
    with _busy(asked.busy):
        for stage in asked.stages:
            found: dict[str, list[float]] = {name: [] for name in trees}
            for pair in range(asked.pairs):
                for name, tree in list(trees.items())[:: -1 if pair % 2 else 1]:
                    load, speed = os.getloadavg()[0], _speed(stage, tree, asked.data.resolve(), asked.steps)
                    found[name].append(speed)
                    print(f"{stage} {name}: {speed:.3f} at load {load:.1f}", flush=True)
            before, now = (statistics.median(found[name]) for name in trees)
            ratios = [b / a for a, b in zip(found["other"], found["here"], strict=True)]
            print(f"{stage}: {before:.3f} -> {now:.3f}, {statistics.median(ratios):.2f} times (pairs: {ratios})")


def _speed(stage: str, tree: Path, data: Path, steps: int) -> float:
    """Return steps a second of a training, or how often a stage could be run in a minute."""
    text = (tree / "params.yaml").read_text(encoding="utf-8")
    seeds = "reporting" if "\n    reporting:" in text else "test"  # its name in 0.1, and since
    changes = {f"evaluate.seeds.{seeds}": 1, "evaluate.sweep.strengths": [1.0]}
    changes |= {"train.steps": steps, "train.checkpoint_every": steps}
    with tempfile.TemporaryDirectory() as folder:
        params, out = Path(folder) / "params.yaml", Path(folder) / stage
        params.write_text(with_values(text, changes, "a benchmark"))
        reads = (tree / "dvc.yaml").read_text(encoding="utf-8")  # before 0.2 evaluate did not read caption
        inputs = [name for name in INPUTS[stage] if stage != "evaluate" or f"data/{name}" in _command(reads, stage)]
        command = [sys.executable, "-m", "zimage", stage, *(str(data / name) for name in inputs), str(out)]
        began = time.monotonic()
        subprocess.run(
            [*command, "--params", str(params)],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            check=True,
            stderr=subprocess.DEVNULL,
        )
        taken = time.monotonic() - began
        if stage == "train":
            return float(json.loads((out / "metrics.json").read_text())["steps_per_s"])
        return 60 / taken


def _command(pipeline: str, stage: str) -> str:
    return str(yaml.safe_load(pipeline)["stages"][stage]["cmd"])


@contextmanager
def _busy(count: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.wait()


if __name__ == "__main__":
    main()

"""LoRAs whose order is known beforehand, scored in one comparison: does `zimage score` find that order?

    python -m tests.benchmarks.compared WORKSPACE

WORKSPACE holds `params.yaml` and `data` as `make demo` leaves them. Compared are its LoRA; one trained for half as many
steps, with warm-up and schedule scaled; one of another person (see tests/benchmarks/demo.py), trained in the same way
under the same trigger; and the first one at strength 0. Each is also merged into bfloat16 weights, as ComfyUI applies
it. The real photos are those that the workspace held out, so none of the LoRAs has seen them. The tables have all that
`score` compares, and blur, noise, blocks and faces that are hard to draw; how far a LoRA knows its training photos by
heart is not among them, since `score` is not given these. Two trainings and 900 pictures take about 15 minutes on two
cores that do nothing else.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.demo import make_other_photos, personalized, run, workspace
from zimage.core.jsonl import read_rows
from zimage.core.params import with_values
from zimage.evaluation.compare import MEASURES as MEASURES_OF_SCORE
from zimage.evaluation.hidden import CONDITIONS, DEGRADATIONS
from zimage.photos.rows import ManifestRow

ZIMAGE = f"{sys.executable} -m zimage"
ESTIMATES = (
    *("face_found", "same_of_all", "second_same", "ranked_first", "distance", "following", "properties_found"),
    *("leak_rise", "pose_variety_ratio", "light_variety_ratio"),
)
FURTHER = (  # of what metrics.json has by look or by condition
    *(("degradations", look) for look in DEGRADATIONS),
    *(("conditions", name) for name in CONDITIONS),
)
MEASURES = tuple(measure.name for measure in MEASURES_OF_SCORE)


def half_as_long(given: Path, folder: Path) -> Path:
    """Train on a workspace's photos for half of its steps; warm-up and checkpoints are halved with them."""
    text = (given / "params.yaml").read_text(encoding="utf-8")
    train = yaml.safe_load(text)["train"]
    steps, warm_up = train["steps"] // 2, train["schedule"]["warmup_steps"] // 2
    changes = {"train.steps": steps, "train.schedule.warmup_steps": warm_up, "train.checkpoint_every": steps}
    folder.mkdir()
    params = folder / "params.yaml"
    params.write_text(with_values(text, changes, "a benchmark"), encoding="utf-8")
    run(folder, f"{ZIMAGE} train {given / 'data' / 'encode'} {folder / 'train'} --params {params}")
    return folder / "train" / "lora.safetensors"


def of_another_person(folder: Path) -> Path:
    """Train on photos of another person with the demo's parameters."""
    folder.mkdir()
    make_other_photos(workspace(folder, 0) / "data" / "photos", seed=7)
    personalized(folder, upto="train")
    return folder / "data" / "train" / "lora.safetensors"


def held_out_photos(given: Path, folder: Path) -> Path:
    """Copy the photos that a workspace held out."""
    folder.mkdir()
    for row in read_rows(given / "data" / "detect" / "manifest.jsonl", ManifestRow):
        if row.decision == "holdout":
            shutil.copy(given / "data" / "photos" / row.name, folder)
    return folder


def compared(given: Path, loras: Mapping[str, Path], folder: Path, seeds: int) -> dict[str, Any]:
    """Return the metrics of one comparison of all LoRAs, used apart and merged; `strength-0` is used at that."""
    (folder / "loras").mkdir()
    options = []
    for name, file in loras.items():
        link = folder / "loras" / f"{name}.safetensors"
        link.symlink_to(file.resolve())
        options.append(f"--lora {link}" + (":0" if name == "strength-0" else ""))
    photos = held_out_photos(given, folder / "photos")
    subject = yaml.safe_load((given / "params.yaml").read_text(encoding="utf-8"))["subject"]
    run(
        folder,
        f"{ZIMAGE} score {photos} {folder / 'out'} --consent {given / 'data' / 'consent.yaml'} {' '.join(options)} "
        f"--as merged --trigger {subject['trigger']} --class-noun {subject['class_noun']} "
        f"--params {given / 'params.yaml'} --seeds {seeds}",
        allowed=(0, 3),
    )
    found: dict[str, Any] = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))
    return found


def interval(found: Mapping[str, Any] | None, form: str) -> str:
    """Return a value with its interval, for a table."""
    if found is None or found["value"] is None:
        return ""
    ends = "" if found["low"] is None else f" [{found['low']:{form}}, {found['high']:{form}}]"
    return f"{found['value']:{form}}{ends}"


def show(found: Mapping[str, Any]) -> None:
    """Print the figures of each, what rounding left of those that were merged, and the paired differences."""
    further = [f"{kind}: {name}" for kind, name in FURTHER]
    titles = " | ".join(["", "verdict", "left after merging", *ESTIMATES, *further])
    print(f"|{titles} |\n|{'---|' * (len(ESTIMATES) + len(FURTHER) + 3)}")
    for name, one in found["results"].items():
        left = f"{one['merging']['share']:.3f}" if one.get("merging") else ""
        cells = [interval(one["estimates"].get(key), ".2f") for key in ESTIMATES]
        cells += [interval(one.get(kind, {}).get(name), ".2f") for kind, name in FURTHER]
        print(f"| {name} | {one['verdict'] or ''} | {left} | {' | '.join(cells)} |")
    print(f"\n| first less second | {' | '.join(MEASURES)} |\n|{'---|' * (len(MEASURES) + 1)}")
    by_pair: dict[str, dict[str, Any]] = {}
    for one in found["differences"]:
        by_pair.setdefault(f"{one['first']} - {one['second']}", {})[one["measure"]] = one
    for pair, measured in by_pair.items():
        print(f"| {pair} | {' | '.join(interval(measured.get(name), '+.2f') for name in MEASURES)} |")
    print(f"\nEach interval at {found['differences'][0]['confidence']:.1%}, so that all of one measure hold with 95 %.")
    print(*found["says"], sep="\n")


def main() -> None:
    """Train what is missing, compare all of it and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--half", type=Path, help="a LoRA that was trained for half as long before")
    parser.add_argument("--another", type=Path, help="a LoRA of the other person that was trained before")
    asked = parser.parse_args()
    given = asked.workspace.resolve()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = given / "data" / "train" / "lora.safetensors"
        loras = {
            "demo": whole,
            "half-as-long": asked.half or half_as_long(given, folder / "half"),
            "another-person": asked.another or of_another_person(folder / "another"),
            "strength-0": whole,
        }
        show(compared(given, loras, folder, asked.seeds))


if __name__ == "__main__":
    main()

"""Peers' real trainers and ours on the demo's work: one table of what they learned and what it cost.

python -m tests.benchmarks.peers WORKSPACE CHECKOUT [CHECKOUT] [--steps 1000] [--seeds 1 2 3] [--only NAME]

WORKSPACE holds `params.yaml` and `data` as `make demo` leaves them. A CHECKOUT is one of huggingface/diffusers (its
script train_dreambooth_lora_z_image.py runs) or of kohya-ss/musubi-tuner; nothing of either is changed or kept. Their
scripts want packages that ours does not: `pip install datasets av voluptuous easydict einops toml ftfy`.

All train on the same crops, captions and base with the same rank, batch, rate and number of steps. Each file is scored
by `zimage evaluate` on the held-out photos of the workspace; the base's pictures are made once. Then come differences
by prompt and seed, ours less each other one, with intervals that hold together (Bonferroni). Times are of processors,
of the process that trains alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import load_file, save_file

from tasks.settings import PROJECT
from zimage.captions.rows import CaptionRow
from zimage.core.jsonl import read_rows
from zimage.core.params import with_values
from zimage.evaluation.compare import differences
from zimage.evaluation.rows import PictureRow, read_tested
from zimage.model.base import TINY, find

PARTS = Path(__file__).with_name("peer_parts")
DIFFUSERS, MUSUBI = Path("examples/dreambooth/train_dreambooth_lora_z_image.py"), Path("src/musubi_tuner")
RESAMPLES = 4000


@dataclass(frozen=True)
class Work:
    """What is to be learned.

    Args:
        data: With detect, caption and encode.
        params: The workspace's params.yaml.
        train: Its section `train`.
        steps: Of every training.
        seed: Of every training.
        folder: For what a trainer writes.
    """

    data: Path
    params: str
    train: dict[str, Any]
    steps: int
    seed: int
    folder: Path

    @property
    def rate(self) -> str:
        """The learning rate, as an argument."""
        return str(self.train["optimiser"]["learning_rate"])

    @property
    def warm_up(self) -> str:
        """Steps of warm-up, as an argument."""
        return str(self.train["schedule"]["warmup_steps"])


@dataclass(frozen=True)
class Cost:
    """What a training took.

    Args:
        cpu_s: Processor seconds of its process and of what that waited for.
        peak_mb: Its largest resident memory.
    """

    cpu_s: float
    peak_mb: float


@dataclass(frozen=True)
class Learned:
    """A LoRA and what evaluation said of it."""

    trainer: str
    seed: int
    cost: Cost
    metrics: dict[str, Any]
    pictures: list[PictureRow]


Trainer = Callable[[Work], tuple[Path, Cost]]  # returns the file


def ours(work: Work) -> tuple[Path, Cost]:
    """Train by `zimage train`."""
    changes = {"train.steps": work.steps, "train.checkpoint_every": work.steps, "train.seed": work.seed}
    params, out = work.folder / "params.yaml", work.folder / "train"
    params.write_text(with_values(work.params, {**changes, "train.samples": None}, "a benchmark"), encoding="utf-8")
    command = ["-m", "zimage", "train", str(work.data / "encode"), str(out), "--params", str(params)]
    cost = run(command, work.folder, cwd=PROJECT)
    return out / "lora.safetensors", cost


def by_diffusers(checkout: Path, *, as_ours: bool) -> Trainer:
    """Return a training by diffusers' script: by its defaults, or with our layers and schedule."""

    def train(work: Work) -> tuple[Path, Cost]:
        script, out = work.folder / "script.py", work.folder / "train"
        text = (checkout / DIFFUSERS).read_text(encoding="utf-8")
        text = text.replace("from torchvision import", "from torchvision_stand_in import")
        text = text.replace("from torchvision.transforms import", "from torchvision_stand_in import")
        script.write_text(text, encoding="utf-8")
        command = [
            *(str(script), "--pretrained_model_name_or_path", str(find(TINY)), "--output_dir", str(out)),
            *("--dataset_name", str(images(work)), "--image_column", "image", "--caption_column", "text"),
            *("--instance_prompt", "a photo", "--resolution", "128", "--center_crop", "--cache_latents"),
            *("--train_batch_size", str(work.train["batch_size"]), "--max_train_steps", str(work.steps)),
            *("--rank", str(work.train["rank"]), "--lora_alpha", str(work.train["rank"]), "--seed", str(work.seed)),
            *("--learning_rate", work.rate, "--mixed_precision", "no", "--skip_final_inference"),
            *("--checkpointing_steps", str(work.steps + 1)),
        ]
        if as_ours:
            command += ["--lora_layers", "to_q,to_k,to_v,to_out.0,w1,w2,w3", "--lr_scheduler", "cosine"]
            command += ["--lr_warmup_steps", work.warm_up]
        cost = run(command, work.folder, path=PARTS)
        return out / "pytorch_lora_weights.safetensors", cost

    return train


def by_musubi(checkout: Path, *, cosine: bool) -> Trainer:
    """Return a training by musubi-tuner with the flags of its documentation, or with a falling rate besides."""

    def train(work: Work) -> tuple[Path, Cost]:
        base, dataset = find(TINY), musubi_dataset(work)
        transformer = base / "transformer" / "diffusion_pytorch_model.safetensors"
        vae, encoder = base / "vae" / "diffusion_pytorch_model.safetensors", work.folder / "encoder.safetensors"
        tensors = load_file(base / "text_encoder" / "model.safetensors")  # as the released one, with `model.` in front
        save_file({f"model.{name.removeprefix('model.')}": each for name, each in tensors.items()}, encoder)
        before = [str(PARTS / "musubi_on_tiny.py"), str(checkout.resolve()), str(base)]
        told = ["--dataset_config", str(dataset)]
        run([*before, "zimage_cache_latents.py", *told, "--vae", str(vae)], work.folder)
        reader = ["--text_encoder", str(encoder), "--batch_size", "16"]
        run([*before, "zimage_cache_text_encoder_outputs.py", *told, *reader], work.folder)
        out = work.folder / "train"
        command = [
            *(*before, "zimage_train_network.py", *told, "--dit", str(transformer), "--vae", str(vae)),
            *("--text_encoder", str(encoder), "--sdpa", "--mixed_precision", "no", "--optimizer_type", "adamw"),
            *("--timestep_sampling", "shift", "--weighting_scheme", "none", "--discrete_flow_shift", "2.0"),
            *("--learning_rate", work.rate, "--network_module", "networks.lora_zimage"),
            *("--network_dim", str(work.train["rank"]), "--network_alpha", str(work.train["rank"])),
            *("--max_train_steps", str(work.steps), "--seed", str(work.seed)),
            *("--max_data_loader_n_workers", "0", "--output_dir", str(out), "--output_name", "lora"),
        ]
        if cosine:
            command += ["--lr_scheduler", "cosine", "--lr_warmup_steps", work.warm_up]
        cost = run(command, work.folder)
        return out / "lora.safetensors", cost

    return train


def images(work: Work) -> Path:
    """Write the crops as a folder that `datasets` reads, a row for each caption."""
    folder = work.folder / "images" / "train"
    folder.mkdir(parents=True)
    rows = [{"file_name": name, "text": text} for name, text in captioned(work, folder)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    return folder.parent


def musubi_dataset(work: Work) -> Path:
    """Write the crops as musubi-tuner's folder, a text beside each picture, and the file that describes it."""
    folder = work.folder / "images"
    folder.mkdir()
    for name, text in captioned(work, folder):
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    config = work.folder / "dataset.toml"
    config.write_text(
        "[general]\nresolution = [128, 128]\ncaption_extension = '.txt'\n"
        f"batch_size = {work.train['batch_size']}\nenable_bucket = false\n"
        f"[[datasets]]\nimage_directory = '{folder}'\ncache_directory = '{work.folder / 'cache'}'\nnum_repeats = 1\n",
        encoding="utf-8",
    )
    return config


def captioned(work: Work, folder: Path) -> list[tuple[str, str]]:
    """Copy each crop once for each of its captions, and return the names with the captions."""
    found = []
    for row in read_rows(work.data / "caption" / "captions.jsonl", CaptionRow):
        crop = work.data / "detect" / row.file
        for number, text in enumerate(row.captions):
            name = f"{crop.stem}-{number}{crop.suffix}"
            shutil.copyfile(crop, folder / name)
            found.append((name, text))
    return found


def run(command: list[str], folder: Path, *, cwd: Path | None = None, path: Path = PROJECT) -> Cost:
    """Run a program of Python; what it prints goes to log.txt."""
    paths = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    told = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen([sys.executable, *command], cwd=cwd or folder, env=told, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = "\n".join((folder / "log.txt").read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{last}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


def evaluated(work: Work, name: str, file: Path, cost: Cost, cache: Path) -> Learned:
    """Score a file as `train` would hand it over; `cache` holds the base's pictures of all scores."""
    train, out = work.folder / "scored" / "train", work.folder / "scored" / "evaluate"
    train.mkdir(parents=True)
    (out.parent / ".evaluate.cache").symlink_to(cache)
    convert = ["-m", "zimage", "convert", str(file), "--out", str(train / "lora.safetensors"), "--to", "diffusers"]
    run(convert, work.folder, cwd=PROJECT)
    losses = work.data / "train" / "loss.csv"
    (train / "loss.csv").write_text(losses.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    params = work.folder / "scored" / "params.yaml"
    params.write_text(work.params, encoding="utf-8")
    command = ["-m", "zimage", "evaluate", *(str(work.data / name) for name in ("detect", "caption"))]
    command += [str(train), str(out), "--params", str(params)]
    run(command, work.folder, cwd=PROJECT)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return Learned(name, work.seed, cost, metrics, read_tested(out / "scores.csv"))


def trainers(checkouts: list[Path]) -> dict[str, Trainer]:
    """Return ours and those of the checkouts, by their names in the table."""
    found: dict[str, Trainer] = {"ours": ours}
    for checkout in checkouts:
        if (checkout / DIFFUSERS).is_file():
            found["diffusers, its defaults"] = by_diffusers(checkout, as_ours=False)
            found["diffusers, our layers and cosine"] = by_diffusers(checkout, as_ours=True)
        elif (checkout / MUSUBI).is_dir():
            found["musubi-tuner, as documented"] = by_musubi(checkout, cosine=False)
            found["musubi-tuner, cosine"] = by_musubi(checkout, cosine=True)
        else:
            raise SystemExit(f"{checkout} is no checkout of diffusers (with its examples) or of musubi-tuner.")
    return found


def shown(learned: Learned, steps: int) -> str:
    """Return a row of the table."""
    found = learned.metrics["estimates"]
    rates = " | ".join(
        f"{found[name]['value']:.1%} [{found[name]['low']:.1%}, {found[name]['high']:.1%}]"
        for name in ("face_found", "same_of_all", "copied")
    )
    cost = f"{learned.cost.cpu_s / steps:.3f} | {learned.cost.peak_mb:.0f}"
    return f"| {learned.trainer} | {learned.seed} | {rates} | {found['following']['value']:.2f} | {cost} |"


def main() -> None:
    """Print the table, then the paired differences of each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("checkouts", type=Path, nargs="*")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", help="trainers by their names in the table")
    asked = parser.parse_args()
    params = (asked.workspace / "params.yaml").read_text(encoding="utf-8")
    chosen = {name: each for name, each in trainers(asked.checkouts).items() if not asked.only or name in asked.only}
    print(f"{asked.steps} steps, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| trainer | seed | found | same person, of all | copies | prompts followed | CPU s a step | peak MB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    found: list[Learned] = []
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name) / "cache"
        cache.mkdir()
        for seed in asked.seeds:
            for number, (trainer, train) in enumerate(chosen.items()):
                folder = Path(name) / f"{seed}-{number}"
                folder.mkdir()
                data, section = (asked.workspace / "data").resolve(), yaml.safe_load(params)["train"]
                work = Work(data, params, section, asked.steps, seed, folder)
                file, cost = train(work)
                found.append(evaluated(work, trainer, file, cost, cache))
                print(shown(found[-1], asked.steps), flush=True)
            _compare([each for each in found if each.seed == seed])


def _compare(learned: list[Learned]) -> None:
    sets = {each.trainer: each.pictures for each in learned}
    for each in differences(sets, resamples=RESAMPLES, generator=np.random.default_rng(0)):
        if each.first == learned[0].trainer and each.measure in {"likeness", "same_person", "following"}:
            interval = f"{each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}] at {each.confidence:.1%}"
            print(f"{each.measure}: {each.first} less {each.second} {interval}, better: {each.better}", flush=True)


if __name__ == "__main__":
    main()

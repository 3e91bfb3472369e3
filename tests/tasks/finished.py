"""A workspace in which everything was run: real files of every kind, as small as they can be."""

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save

from zimage.evaluation.rows import PictureRow, write_csv

CONSENT = {
    "pseudonym": "ada",
    "adult": True,
    "scope": ["training", "evaluation", "publication"],
    "may_publish": True,
    "expires": datetime.date(2999, 12, 31),
    "document": "signed release",
    "document_sha256": "0" * 64,
}
DLIB = {
    "engine_id": "dlib-resnet-v1/55533b28",
    "embedded": True,
    "holdout_photos": 3,
    "licence": "CC0-1.0 (weights), BSL-1.0 (dlib)",
    "metric": "l2",
}
INSIGHTFACE = DLIB | {
    "engine_id": "insightface-buffalo_l/0badf00d",
    "embedded": False,
    "licence": "released insightface packs: non-commercial research only; other packs: see their own licence",
}
PARAMS = {  # what publishing reads of it
    "base": {"model": "Tongyi-MAI/Z-Image", "identity": "hub:0123"},
    "subject": {"trigger": "ohzw", "class_noun": "woman"},
    "caption": {"vlm": None},
    "train": {"steps": 800, "rank": 4},
    "evaluate": {
        "engine": {"name": "dlib", "pack": None},
        "second_engine": None,
        "clip": None,
        "copy_correlation": 0.95,
    },
}
SAMPLED = {
    **{"side_px": 512, "steps": 28, "guidance_scale": 3.0, "shift": 6.0},
    **{"packaged": False, "sampler": "euler", "precision": "bfloat16"},
}
CHECKPOINT = "step-000400.safetensors"
STRENGTH = 0.8
PLANTED = "camera of ada's mother"


def finished(workspace: Path, verdict: str = "pass", *, seed: int = 0, engine: Any = DLIB, **consent: Any) -> Path:
    """Write a finished workspace whose chosen LoRA is a checkpoint; another seed makes other content."""
    loras = {"lora.safetensors": seed + 1000, f"checkpoints/{CHECKPOINT}": seed}
    for name, each in loras.items():
        write(workspace / "data/train" / name, lora(each))
    write(workspace / "data/consent.yaml", yaml.safe_dump(CONSENT | {"pseudonym": workspace.name} | consent).encode())
    write(workspace / "data/photos/IMG_1.jpg", b"a real photo")
    write(workspace / "params.yaml", yaml.safe_dump(PARAMS).encode())
    write(workspace / "code.yaml", b"train: sha256:00\n")
    write(workspace / "dvc.lock", b"schema: '2.0'\n")
    evaluate = workspace / "data/evaluate"
    write(evaluate / "report.html", b"<html>with real photos")
    write(evaluate / "release.html", f"<html>without, {seed}".encode())
    write(evaluate / "metrics.json", json.dumps(metrics(lora(seed), verdict, engine)).encode())
    write_pictures(evaluate)
    return workspace


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def lora(seed: int) -> bytes:
    """A LoRA of one layer in the portable dialect."""
    generator = np.random.default_rng(seed)
    stem = "diffusion_model.layers.0.attention.to_q"
    shapes = {f"{stem}.lora_A.weight": (4, 512), f"{stem}.lora_B.weight": (512, 4)}
    content: bytes = save({name: generator.random(shape, dtype=np.float32) for name, shape in shapes.items()})
    return content


def metrics(weights: bytes, verdict: str, engine: Any) -> dict[str, Any]:
    def estimate(value: float, low: float, high: float, n: int = 48) -> dict[str, Any]:
        return {"value": value, "low": low, "high": high, "n": n}

    return {
        "verdict": verdict,
        "why": "only 12 % are the person.",
        "chosen": {"file": CHECKPOINT, "sha256": hashlib.sha256(weights).hexdigest(), "strength": STRENGTH},
        "engine": engine,
        "second_engine": None,
        "pictures": 114,
        "protocol": 7,
        "suite": "/home/somebody/suites/mine.yaml",
        "sampled": SAMPLED,
        "estimates": {
            "face_found": estimate(1.0, 0.926, 1.0),
            "same_of_found": estimate(47 / 48, 0.872, 0.997),
            "same_of_all": estimate(47 / 48, 0.872, 0.997),
            "base_same_of_found": estimate(1 / 3, 0.061, 0.792, 3),
            "copied": estimate(23 / 48, 0.345, 0.617),
            "following": estimate(0.4729, 0.4, 0.55),
            "gain": estimate(0.8, 0.7, 0.9),
            "clip": {"value": None, "low": None, "high": None, "n": 0},
        },
        "leaks": {
            "leak_class": estimate(1.0, 0.438, 1.0, 3),
            "leak_other": estimate(0.0, 0.0, 0.561, 3),
            "leak_two": {"value": None, "low": None, "high": None, "n": 0},
        },
        "gate": gate(),
    }


def gate() -> dict[str, Any]:
    """Two rules as metrics.json holds them: one is off, the other is broken."""
    return {
        "copy_rate_max": {"verdict": "off", "unit": "count", "limit": None, "usual": 0.02},
        "leak_rise_max": {"verdict": "fail", "unit": "count", "limit": 0.1, "usual": 0.1},
    }


def write_pictures(evaluate: Path) -> None:
    """Write pictures with something said in them, and what is known of each."""
    said = PngInfo()
    said.add_text("Comment", PLANTED)
    rows = []
    for number in range(8):
        file = f"pictures/{number}.png"
        (evaluate / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (8 * number, 0, 0)).save(evaluate / file, pnginfo=said)
        rows.append(row(number, file))
    write_csv(evaluate / "scores.csv", rows)


def row(number: int, file: str) -> PictureRow:
    """A scored picture: 0 is a photo come back, 1 chose, 2 is of the base model, 3 shows nobody."""
    return PictureRow(
        faces=0 if number == 3 else 1, distance=0.3, median_distance=0.3, same=True, closeness=1 - number / 10,
        matching_faces=1, nearest_photo=None, nearest_distance=None, copy_of=None,
        likeness_to_copy=0.99 if number == 0 else 0.1, yaw_deg=0.0, second_distance=None, second_same=None,
        following=None, clip=None, file=file, prompt=f"p-{number}", kind="likeness", aspect="frontal", language="en",
        half="selection" if number == 1 else "test", seed=0, weights="base" if number == 2 else "lora",
        checkpoint=None if number == 2 else CHECKPOINT, strength=STRENGTH, text="a photo", engine="dlib", threshold=0.6,
        second_engine=None,
    )  # fmt: skip

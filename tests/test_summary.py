import hashlib
import json
import shutil
from pathlib import Path

import pytest

from zimage.errors import InputError
from zimage.summary import summary


def evaluated(workspace: Path, file: str) -> Path:
    """Write a result about a LoRA, and the LoRA; return that."""
    lora = workspace / "data" / "train" / file
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"weights")
    metrics = workspace / "data" / "evaluate" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    rates = {"face_found_rate": 0.98, "same_person_rate": 0.9, "base_same_person_rate": 0.0}
    chosen = {"file": lora.name, "strength": 0.8, "sha256": hashlib.sha256(b"weights").hexdigest()}
    metrics.write_text(json.dumps({"verdict": "pass", "why": "all rules hold", "chosen": chosen, **rates}))
    return lora


def test_it_says_the_verdict_the_rates_and_where_things_are(tmp_path: Path) -> None:
    evaluated(tmp_path, "checkpoints/step-000400.safetensors")

    lines = summary(tmp_path)

    assert lines[0] == "verdict  pass: all rules hold"
    assert [line.split()[0] for line in lines[1:4]] == ["98.0%", "90.0%", "0.0%"]
    assert lines[4].endswith("/data/evaluate/report.html")
    assert lines[5].endswith("/data/train/checkpoints/step-000400.safetensors at strength 0.8")


def test_a_lora_that_is_not_there_is_not_named_as_if_it_were(tmp_path: Path) -> None:
    lora = evaluated(tmp_path, "lora.safetensors")
    assert summary(tmp_path)[5] == f"LoRA     {lora} at strength 0.8"

    shutil.rmtree(lora.parent)  # as a retraining that was stopped leaves it

    said = summary(tmp_path)[5]
    assert said.startswith(f"LoRA     is not there ({lora}): this result is out of date, or was made elsewhere; run")
    assert said.endswith(f"; run `dvc repro` in {tmp_path}")


def test_a_lora_that_was_trained_after_the_evaluation_is_told(tmp_path: Path) -> None:
    evaluated(tmp_path, "lora.safetensors").write_bytes(b"other weights")

    assert "is another one than was evaluated: this result is out of date; run `dvc repro`" in summary(tmp_path)[5]


def test_without_an_evaluation_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Nothing has been evaluated .*; run `dvc repro`"):
        summary(tmp_path)

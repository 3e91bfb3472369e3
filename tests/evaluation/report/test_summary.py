import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.tasks.finished import SAMPLED, gate, metrics
from zimage.core.errors import InputError
from zimage.evaluation.report.summary import summary


def evaluated(workspace: Path, file: str) -> Path:
    """Write a result about a LoRA, and the LoRA; return that."""
    lora = workspace / "data" / "train" / file
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"weights")
    path = workspace / "data" / "evaluate" / "metrics.json"
    path.parent.mkdir(parents=True)
    chosen = {"file": lora.name, "strength": 0.8, "sha256": hashlib.sha256(b"weights").hexdigest()}
    path.write_text(json.dumps(metrics(b"", "pass", {}) | {"why": "All rules hold.", "chosen": chosen}))
    subject = {"trigger": "zmkl", "class_noun": "man"}
    (workspace / "params.yaml").write_text(json.dumps({"subject": subject}))
    return lora


def test_it_says_the_verdict_and_where_things_are(tmp_path: Path) -> None:
    evaluated(tmp_path, "checkpoints/step-000400.safetensors")

    lines = summary(tmp_path)

    assert lines[0] == "verdict  pass: All rules hold."
    assert lines[-3].endswith("/data/evaluate/report.html")
    assert lines[-2].endswith("/data/train/checkpoints/step-000400.safetensors at strength 0.8")
    assert lines[-1] == "prompt   a photo of zmkl man"


def test_it_says_what_speaks_against_the_lora_too_with_the_pictures_that_each_figure_rests_on(tmp_path: Path) -> None:
    evaluated(tmp_path, "lora.safetensors")

    said = [line.strip() for line in summary(tmp_path)]

    assert "97.9 %  of those are the same person as the held-out photos (47 of 48)" in said
    assert "47.9 %  of the pictures are copies of a training photo (23 of 48; not a rule here)" in said
    leak = "3 of 3  pictures asked for the class noun alone show the person"
    assert f"{leak} (limit at most 10 % above the base model; broken)" in said
    assert "47.3 %  of what a prompt asks for is found again in its picture (48 pictures)" in said
    assert any(line.startswith("1 of 3  of the base model's own faces are that person") for line in said)


def test_a_changed_limit_stands_at_its_figure(tmp_path: Path) -> None:
    evaluated(tmp_path, "lora.safetensors")
    path = tmp_path / "data/evaluate/metrics.json"
    rules = gate() | {"copy_rate_max": gate()["copy_rate_max"] | {"limit": 0.6, "verdict": "pass"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gate": rules}))

    assert any("(23 of 48; limit at most 60 %, changed from 2 %)" in line for line in summary(tmp_path))


def test_a_failed_verdict_is_followed_by_what_to_do_next(tmp_path: Path) -> None:
    evaluated(tmp_path, "lora.safetensors")
    path = tmp_path / "data/evaluate/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verdict": "fail", "advice": ["Train more.", "Look."]}))

    assert summary(tmp_path)[1:3] == ["next     Train more.", "next     Look."]


def test_the_first_thing_to_change_stands_in_one_line_that_says_how_many_more_there_are(tmp_path: Path) -> None:
    evaluated(tmp_path, "lora.safetensors")
    path = tmp_path / "data/evaluate/metrics.json"
    tips = [{"rule": each, "number": 1, "limit": 2, "sentence": f"{each}."} for each in ("Train more", "A", "B")]
    found = json.loads(path.read_text()) | {"verdict": "fail", "advice": ["Train more."]}
    path.write_text(json.dumps(found | {"coaching": tips}))
    assert [line for line in summary(tmp_path) if line.startswith("change")] == ["change   A. (1 more in the report)"]

    path.write_text(json.dumps(found | {"coaching": tips[:1]}))
    assert not any(line.startswith("change") for line in summary(tmp_path))


def test_the_packaged_model_is_named_where_the_lora_is(tmp_path: Path) -> None:
    evaluated(tmp_path, "lora.safetensors")
    assert not any(line.startswith("note") for line in summary(tmp_path))
    path = tmp_path / "data/evaluate/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sampled": SAMPLED | {"packaged": True}}))

    assert summary(tmp_path)[-1].startswith("note     The base is the packaged toy model, a tiny Z-Image: a LoRA")


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    evaluated(tmp_path, "lora.safetensors")
    path = tmp_path / "data/evaluate/metrics.json"
    found = json.loads(path.read_text())
    found["estimates"]["following"] = {"value": None, "low": None, "high": None, "n": 0}
    path.write_text(json.dumps(found))

    assert any("not measured  of what a prompt asks for" in line for line in summary(tmp_path))


def test_a_lora_that_is_not_there_is_not_named_as_if_it_were(tmp_path: Path) -> None:
    lora = evaluated(tmp_path, "lora.safetensors")
    assert summary(tmp_path)[-2] == f"LoRA     {lora} at strength 0.8"

    shutil.rmtree(lora.parent)  # as a retraining that was stopped leaves it

    said = summary(tmp_path)[-2]
    assert said.startswith(f"LoRA     is not there ({lora}): this result is out of date, or was made elsewhere; run")
    assert said.endswith(f"; run `dvc repro` in {tmp_path}")


def test_a_lora_that_was_trained_after_the_evaluation_is_told(tmp_path: Path) -> None:
    evaluated(tmp_path, "lora.safetensors").write_bytes(b"other weights")

    assert "is another one than was evaluated: this result is out of date; run `dvc repro`" in summary(tmp_path)[-2]


def test_without_an_evaluation_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Nothing has been evaluated .*; run `dvc repro`"):
        summary(tmp_path)

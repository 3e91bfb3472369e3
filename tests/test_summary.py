import json
from pathlib import Path

import pytest

from zimage.errors import InputError
from zimage.summary import summary


def test_it_says_the_verdict_the_rates_and_where_things_are(tmp_path: Path) -> None:
    metrics = tmp_path / "data" / "evaluate" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    rates = {"face_found_rate": 0.98, "same_person_rate": 0.9, "base_same_person_rate": 0.0}
    chosen = {"file": "step-000400.safetensors", "strength": 0.8}
    metrics.write_text(json.dumps({"verdict": "pass", "why": "all rules hold", "chosen": chosen, **rates}))

    lines = summary(tmp_path)

    assert lines[0] == "verdict  pass: all rules hold"
    assert [line.split()[0] for line in lines[1:4]] == ["98.0%", "90.0%", "0.0%"]
    assert lines[4].endswith("/data/evaluate/report.html")
    assert lines[5].endswith("/data/train/checkpoints/step-000400.safetensors at strength 0.8")


def test_without_an_evaluation_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Nothing has been evaluated .*; run `dvc repro`"):
        summary(tmp_path)

"""The script for a GPU that is lent for minutes works, here on a CPU: every part is written, and a failing one too."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.settings import PROJECT
from tests.benchmarks.gpu import Record


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def test_every_part_is_done_and_forms_that_compute_the_same_have_the_same_losses(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", str(tmp_path), "--turns", "1"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    found = {str(line["part"]): line for line in lines(tmp_path)}
    assert {str(line["state"]) for line in found.values()} == {"done"}
    expected = found["the same step on the CPU, float32"]["losses"]
    assert found["a step: bfloat16"]["losses"] == found["a step: full checkpointing"]["losses"] == expected
    assert found["a step: int8"]["losses"] == pytest.approx(expected, rel=1e-2)
    assert {"tiny, 64 px: plain loop over diffusers", "encode a caption", "tiny, 64 px: kernels"} < set(found)


def test_a_part_that_fails_is_written_with_its_traceback_and_what_is_too_late_is_skipped(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.jsonl", time.monotonic() + 600)

    def breaks() -> dict[str, object]:
        raise RuntimeError("no kernel image")

    record.run("first", breaks)
    record.run("second", lambda: {"ms": 1})
    record.ends_at = time.monotonic() - 1
    record.run("third", lambda: {"ms": 1})

    first, second, third = lines(tmp_path)
    assert (first["state"], second["state"], third["state"]) == ("failed", "done", "skipped")
    assert "in breaks" in str(first["traceback"])
    assert record.failed == ["first"]

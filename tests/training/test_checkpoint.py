"""States that a stopped run goes on from."""

from pathlib import Path

import pytest
import torch

from zimage.training.checkpoint import State, read_states, run_identity, write_state

RUN = run_identity("params", "data")
HERE = ("CPU of this test",)


def read_last_state(folder: Path, run: str) -> State | None:
    return next(read_states(folder, run=run), None)


def _write(folder: Path, *steps: int, run: str = RUN) -> None:
    for step in steps:
        tensors = {"values": torch.full((1000,), float(step)), "step": torch.tensor(1.0)}
        write_state(folder, State(step, tensors, devices=HERE), run=run)


def test_the_last_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    values = torch.randn(1000)
    write_state(tmp_path, State(7, {"values": values}, devices=("a CPU", "a GPU"), pictures_due=True), run=RUN)
    found = read_last_state(tmp_path, run=RUN)
    assert found is not None and found.step == 7
    assert found.devices == ("a CPU", "a GPU") and found.pictures_due
    assert torch.equal(found.tensors["values"], values)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "header"])
def test_a_torn_state_is_skipped_with_a_warning(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, 10, 20)
    last = tmp_path / "step-000020.safetensors"
    content = bytearray(last.read_bytes())
    match damage:
        case "cut":
            del content[-100:]
        case "flipped":
            content[-5] ^= 1
        case "emptied":
            content.clear()
        case "header":
            content[20] ^= 255
    last.write_bytes(content)
    found = read_last_state(tmp_path, run=RUN)
    assert found is not None and found.step == 10
    assert "is torn" in caplog.text


def test_another_runs_state_is_not_gone_on_from(tmp_path: Path) -> None:
    _write(tmp_path, 10, run=run_identity("other params", "data"))
    assert read_last_state(tmp_path, run=RUN) is None


def test_only_the_last_two_states_are_kept(tmp_path: Path) -> None:
    _write(tmp_path, 10, 20, 30)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000020.safetensors", "step-000030.safetensors"]


def test_no_state_at_all_is_a_beginning(tmp_path: Path) -> None:
    assert read_last_state(tmp_path / "absent", run=RUN) is None

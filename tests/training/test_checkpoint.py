"""States that a stopped run goes on from."""

from pathlib import Path

import pytest
import torch

from zimage.core.errors import InputError
from zimage.core.folder import fetched_beside
from zimage.training.checkpoint import TrainingState, read_states, run_identity, take_over, write_state
from zimage.training.params import Resume

RUN = run_identity("params", "data")
DEVICES = ("CPU of this test",)


def read_last_state(folder: Path, run: str) -> TrainingState | None:
    return next(read_states(folder, run=run), None)


def _write(folder: Path, *steps: int, run: str = RUN) -> None:
    for step in steps:
        tensors = {"values": torch.full((1000,), float(step)), "step": torch.tensor(1.0)}
        write_state(folder, TrainingState(step, tensors, devices=DEVICES), run=run)


def test_the_last_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    values = torch.randn(1000)
    write_state(tmp_path, TrainingState(7, {"values": values}, devices=("a CPU", "a GPU"), pictures_due=True), run=RUN)
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


OTHER_RUN = run_identity("other params")
HERE, ELSEWHERE = "CPU x86_64 AVX512", "CPU x86_64 AVX2"


def left(folder: Path, step: int, *, run: str = RUN, device: str = HERE) -> None:
    """What a run leaves after a step: its state, and a LoRA."""
    write_state(
        folder / "resume", TrainingState(step, {"values": torch.full((3,), float(step))}, devices=(device,)), run=run
    )
    (folder / f"lora-{step}-{run[:4]}").touch()


def loras(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("lora-*"))


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    (tmp_path / ".train.part").mkdir()
    return tmp_path / ".train.part"


def taken(aside: Path, resume: Resume = "exact") -> int | None:
    state = take_over(aside, run=RUN, device=HERE, resume=resume)
    return state.step if state else None


@pytest.mark.parametrize(("here", "fetched"), [(100, 400), (400, 100)])
def test_the_further_of_two_machines_states_is_gone_on_from(aside: Path, here: int, fetched: int) -> None:
    left(aside, here)
    left(fetched_beside(aside), fetched)

    assert taken(aside) == 400
    assert loras(aside) == [f"lora-400-{RUN[:4]}"]
    assert not fetched_beside(aside).exists()


@pytest.mark.parametrize("old_is_here", [True, False])
def test_a_later_step_of_an_old_run_hides_no_step_of_this_one(aside: Path, old_is_here: bool) -> None:
    old, current = (aside, fetched_beside(aside)) if old_is_here else (fetched_beside(aside), aside)
    left(old, 800, run=OTHER_RUN)
    left(current, 400)

    assert taken(aside) == 400
    assert loras(aside) == [f"lora-400-{RUN[:4]}"]


def test_without_a_state_of_this_run_it_begins_anew_and_nothing_fetched_is_left(aside: Path) -> None:
    left(fetched_beside(aside), 800, run=OTHER_RUN)

    assert taken(aside) is None
    assert list(aside.parent.iterdir()) == [aside]


def test_a_run_of_another_kind_of_device_is_refused_with_the_remedy(aside: Path) -> None:
    left(aside, 400, device=ELSEWHERE)

    with pytest.raises(InputError) as refused:
        taken(aside)
    assert str(refused.value) == (
        f"This training was stopped after step 400 on {ELSEWHERE}; on {HERE} it would not end with the LoRA it would "
        "have ended with there: run it on such a device, or set train.resume to `any` to go on here all the same, or "
        "to `restart` to begin anew."
    )
    assert taken(aside, "any") == 400
    assert taken(aside, "restart") is None


def test_an_earlier_state_of_this_kind_of_device_wins_over_a_later_one_of_another(aside: Path) -> None:
    left(aside, 200)
    left(fetched_beside(aside), 400, device=ELSEWHERE)

    assert taken(aside) == 200

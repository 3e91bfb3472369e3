"""Which state a stopped run goes on from, and that files of two runs never lie in one folder."""

from pathlib import Path

import pytest
import torch

from zimage.errors import InputError
from zimage.folder import fetched_beside
from zimage.training.checkpoint import State, run_identity, write_state
from zimage.training.params import Resume
from zimage.training.resume import take_over

RUN, OTHER_RUN = run_identity("params"), run_identity("other params")
HERE, ELSEWHERE = "CPU x86_64 AVX512", "CPU x86_64 AVX2"


def left(folder: Path, step: int, *, run: str = RUN, device: str = HERE) -> None:
    """What a run leaves after a step: its state, and a LoRA."""
    write_state(folder / "resume", State(step, {"values": torch.full((3,), float(step))}, devices=(device,)), run=run)
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

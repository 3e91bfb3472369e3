"""The loop: steps are the same whenever and wherever they are made."""

import sys
from pathlib import Path
from types import FrameType

import pytest
import torch

from tests.training.recipe import MACHINE, recipe
from zimage.model.base import Base
from zimage.training.distributed import World
from zimage.training.setup import Run, build_run


def _prepared(base: Base, encoded: Path, dropout: float) -> Run:
    return build_run(encoded, Path(base.model), recipe(dropout=dropout, micro_batch_size=1), MACHINE, World())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_steps_made_later_by_another_process_are_the_same_to_the_last_bit(
    dropout: float, tiny_base: Base, tiny_encoded: Path
) -> None:
    whole = _prepared(tiny_base, tiny_encoded, dropout)
    for number in range(2):
        whole.loop.step(number)
    state = {name: tensor.clone() for name, tensor in whole.loop.optimiser.tensors().items()}
    for number in range(2, 5):
        whole.loop.step(number)
    torch.rand(7)  # whatever else draws chance meanwhile
    resumed = _prepared(tiny_base, tiny_encoded, dropout)
    resumed.loop.optimiser.restore(state)
    for number in range(2, 5):
        resumed.loop.step(number)
    assert torch.equal(resumed.adapters.values, whole.adapters.values)


def test_dropout_is_drawn_anew_in_every_step_and_piece(tiny_base: Base, tiny_encoded: Path) -> None:
    prepared = _prepared(tiny_base, tiny_encoded, 0.5)
    with torch.no_grad():
        prepared.adapters.values.add_(0.1)
    gradients = []
    for seed in range(2):
        prepared.adapters.gradient.zero_()
        prepared.loop.backward(0)
        gradients.append(prepared.adapters.gradient.clone())
        torch.manual_seed(seed)
    assert torch.equal(*gradients)
    states = []
    for number in range(2):
        prepared.loop.backward(number)
        states.append(torch.get_rng_state())
    assert not torch.equal(*states)


def test_a_step_runs_code_of_at_most_16_modules_so_that_it_can_be_read(tiny_base: Base, tiny_encoded: Path) -> None:
    loop = _prepared(tiny_base, tiny_encoded, 0.0).loop
    loop.step(0)  # what is made once is made now
    modules: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            modules.add(str(frame.f_globals.get("__name__")))

    sys.setprofile(note)
    try:
        loop.step(1)
    finally:
        sys.setprofile(None)
    ours = {name for name in modules if name.startswith("zimage.")}
    assert "zimage.training.objective" in ours
    assert len(ours) <= 16, sorted(ours)

"""CUDA graphs as far as a CPU can have them: what is recorded is called again with the tensors it was recorded with."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.recipe import MACHINE, recipe
from zimage.core.errors import InputError
from zimage.model.base import Base
from zimage.training.distributed import World
from zimage.training.graphed_step import GraphedStep, Record
from zimage.training.loop import Loop
from zimage.training.memory import Sizes, check
from zimage.training.setup import build_run


def repeated(passes: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """As a graph: nothing but tensors in their places decides what a repetition does."""
    passes()
    return passes


def frozen(passes: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """As a graph of passes that made a number of a tensor: it stays what it was when it was recorded."""
    before = passes()
    return lambda: before


def unrecordable(_: Callable[[], Tensor]) -> Callable[[], Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing")


def losses(loop: Loop) -> tuple[list[float], Tensor]:
    """The losses of all steps, and the adapters at their end."""
    return [float(loop.step(number)[0]) for number in range(len(loop.steps))], loop.adapters.values


@pytest.fixture
def loop_of(tiny_base: Base, tiny_encoded: Path) -> Callable[[], Loop]:
    params = recipe(batch_size=3, micro_batch_size=2)  # pieces of two and of one: two shapes a bucket
    return lambda: build_run(tiny_encoded, Path(tiny_base.model), params, MACHINE, World()).loop


def test_repeated_passes_give_the_run_of_plain_ones(loop_of: Callable[[], Loop]) -> None:
    plain, recorded = loop_of(), loop_of()
    passes = GraphedStep(recorded.objective.forward_backward, recorded.adapters.gradient, repeated)

    expected, found = losses(plain), losses(replace(recorded, passes=passes))
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    assert len(passes._made) == len({step.bucket for step in plain.steps}) * 2


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (frozen, "a CUDA graph gave another loss or other gradients than the plain way"),
        (unrecordable, "could not be recorded, and none is used: operation not permitted"),
    ],
)
def test_what_repeats_the_numbers_of_its_recording_or_cannot_be_recorded_is_not_used(
    loop_of: Callable[[], Loop], record: Record, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain, recorded = loop_of(), loop_of()
    passes = GraphedStep(recorded.objective.forward_backward, recorded.adapters.gradient, record)

    with caplog.at_level(logging.WARNING):
        expected, found = losses(plain), losses(replace(recorded, passes=passes))
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    assert said in caplog.text


def test_what_could_not_be_recorded_once_is_not_tried_again_for_other_shapes(loop_of: Callable[[], Loop]) -> None:
    tried = []

    def failing(passes: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tried.append(passes)
        return unrecordable(passes)

    loop = loop_of()
    passes = GraphedStep(loop.objective.forward_backward, loop.adapters.gradient, failing)
    losses(replace(loop, passes=passes))
    assert len(passes._made) > 1
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("changes", "hindrance"),
    [
        ({"dropout": 0.1}, "the random numbers of train.dropout"),
        ({"targets": ["attention", "caption_embedder"]}, r"captions that train.targets \(caption_embedder\) change"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_the_remedy(changes: dict[str, object], hindrance: str) -> None:
    with pytest.raises(InputError, match=f"cannot record {hindrance}; set that otherwise, or machine.cuda_graphs to"):
        check(
            recipe(**changes), MACHINE.model_copy(update={"cuda_graphs": True}), Sizes(3840, 30, 2), torch.device("cpu")
        )

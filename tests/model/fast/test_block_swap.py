"""Blocks whose weights travel: the same results, and on their way before they are wanted."""

import pytest
import torch
from torch import Tensor

from tests.tiny_base import TEXT_WIDTH, tiny_transformer
from zimage.model.denoiser import Denoiser, _spread
from zimage.model.fast.weight_formats import WeightFormat
from zimage.training.adapters import Adapters, inject, module_names


def _step(kind: WeightFormat, offloaded: int, *, layers: int = 6) -> tuple[Tensor, Tensor, Denoiser]:
    torch.manual_seed(0)
    transformer = tiny_transformer(layers=layers)
    inject(transformer, ["attention", "feed_forward"], rank=4, dropout=0.0, generator=torch.Generator().manual_seed(1))
    denoiser = Denoiser(
        transformer, dtype=torch.float32, stream=torch.float32, weight_format=kind, offloaded_blocks=offloaded
    )
    adapters = Adapters(denoiser, module_names(transformer))
    adapters.values.add_(0.1)
    for _ in range(2):
        adapters.gradient.zero_()
        velocity = denoiser.velocity(torch.ones(2, 16, 8, 8), torch.tensor([0.2, 0.7]), _context(denoiser))
        velocity.square().sum().backward()
    return velocity.detach(), adapters.gradient.clone(), denoiser


def _context(denoiser: Denoiser) -> Tensor:
    return denoiser.refine(torch.ones(2, 32, TEXT_WIDTH), torch.tensor([9, 32]))


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("offloaded", [1, 3, 6])
def test_travelling_weights_give_the_same_velocity_and_gradients(kind: WeightFormat, offloaded: int) -> None:
    velocity, gradient, _ = _step(kind, 0)
    found, found_gradient, _ = _step(kind, offloaded)
    assert torch.equal(found, velocity)
    assert torch.equal(found_gradient, gradient)


def test_after_the_first_block_every_block_is_on_its_way_before_it_is_wanted() -> None:
    # A small plain weight is added to its adapter on the way forward, and is not asked for on the way back.
    _, _, denoiser = _step("int8", 6)
    assert denoiser.swapper.waits == 1


def test_offloaded_blocks_lie_at_even_distances() -> None:
    assert _spread(0, 30) == set()
    assert sorted(_spread(3, 30)) == [5, 15, 25]
    assert _spread(30, 30) == set(range(30)) == _spread(99, 30)

"""Weights in fewer bits: products forward and back against the exact ones."""

import pytest
import torch
from torch import Tensor

from zimage.model.fast.weight_formats import FrozenWeight, WeightFormat, quantizer_of

CPU = torch.device("cpu")
# Measured on normal weights; a tenth of it would be as good as exact, twice as much a defect.
ERRORS: dict[WeightFormat, float] = {"none": 1e-6, "int8": 0.015, "fp8": 0.05, "nf4": 0.12}
BYTES: dict[WeightFormat, float] = {"none": 4.0, "int8": 1.05, "fp8": 1.05, "nf4": 0.57}


def _weight() -> Tensor:
    """Rows of very different size, as trained weights have."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((96, 128), generator=generator) * torch.logspace(-3, 0, 96)[:, None]


def _kept(kind: WeightFormat) -> FrozenWeight:
    return quantizer_of(kind, dtype=torch.float32, device=CPU)(_weight())


@pytest.mark.parametrize("kind", ERRORS)
def test_products_forward_and_back_stay_near_the_exact_ones(kind: WeightFormat) -> None:
    generator = torch.Generator().manual_seed(1)
    x, dy = torch.randn((40, 128), generator=generator), torch.randn((40, 96), generator=generator)
    frozen = _kept(kind)
    assert _error(frozen.matmul(x), x @ _weight().t()) < ERRORS[kind]
    assert _error(frozen.matmul_grad_input(dy), dy @ _weight()) < ERRORS[kind]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_row_of_a_weight_keeps_its_own_precision(kind: WeightFormat) -> None:
    x = torch.randn((40, 128), generator=torch.Generator().manual_seed(1))
    found, expected = _kept(kind).matmul(x), x @ _weight().t()
    assert max(_error(a, b) for a, b in zip(found.t(), expected.t(), strict=True)) < 2 * ERRORS[kind]


@pytest.mark.parametrize("kind", ERRORS)
def test_autograd_gives_the_same_gradient_at_the_input(kind: WeightFormat) -> None:
    x = torch.randn((40, 128), generator=torch.Generator().manual_seed(1)).requires_grad_()
    frozen = _kept(kind)
    dy = torch.randn(40, 96)
    (dx,) = torch.autograd.grad(frozen.matmul(x), x, dy)
    torch.testing.assert_close(dx, frozen.matmul_grad_input(dy))


@pytest.mark.parametrize("kind", BYTES)
def test_it_takes_the_memory_its_name_says(kind: WeightFormat) -> None:
    taken = sum(tensor.nbytes for tensor in _kept(kind).tensors())
    assert taken / _weight().numel() < BYTES[kind] + 0.1


@pytest.mark.parametrize("kind", ERRORS)
def test_it_can_move_into_other_tensors(kind: WeightFormat) -> None:
    frozen, x = _kept(kind), torch.randn(40, 128)
    moved = frozen.with_tensors([tensor.clone() for tensor in frozen.tensors()])
    assert torch.equal(moved.matmul(x), frozen.matmul(x))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_kept_both_ways_it_gives_the_same_to_the_last_bit(kind: WeightFormat) -> None:
    one, both = (quantizer_of(kind, dtype=torch.float32, device=CPU, both_ways=b)(_weight()) for b in (False, True))
    x, dy = torch.randn(40, 128).requires_grad_(), torch.randn(40, 96)
    assert len(both.tensors()) == len(one.tensors()) + 1
    for weight in (both, both.with_tensors(both.tensors())):
        (dx,) = torch.autograd.grad(weight.matmul(x), x, dy)
        assert torch.equal(dx, one.matmul_grad_input(dy)) and torch.equal(weight.matmul_grad_input(dy), dx)


def test_a_row_of_zeros_stays_zero_and_makes_no_nan() -> None:
    kinds: list[WeightFormat] = ["int8", "fp8", "nf4"]
    for kind in kinds:
        frozen = quantizer_of(kind, dtype=torch.float32, device=CPU)(torch.zeros(64, 64))
        assert torch.equal(frozen.matmul(torch.zeros(32, 64)), torch.zeros(32, 64))


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())

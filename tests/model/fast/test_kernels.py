"""Hand-written gradients against the plain formulas."""

import pytest
import torch
from torch import Tensor

from zimage.model.fast import kernels

B, T, H, E = 2, 5, 3, 4
D = H * E
EPS = 1e-5


def _random(*shape: int, seed: int = 0, grad: bool = True, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_(grad)


def _table(dtype: torch.dtype = torch.float64) -> Tensor:
    angles = _random(T, E // 2, grad=False)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(dtype)


@pytest.mark.parametrize("scale_shape", [(D,), (B, 1, D)])
def test_a_scaled_norm_and_its_gradients_are_those_of_the_formula(scale_shape: tuple[int, ...]) -> None:
    x, scale = _random(B, T, D), _random(*scale_shape, seed=1)
    expected = kernels.rms_scale_formula(x, scale, EPS, torch.float64)
    torch.testing.assert_close(kernels.rms_scale(x, scale, EPS, torch.float64), expected)
    assert torch.autograd.gradcheck(lambda x, s: kernels.rms_scale(x, s, EPS, torch.float64), (x, scale))


@pytest.mark.parametrize("scale_shape", [(D,), (B, 1, D)])
def test_a_gated_residual_and_its_gradients_are_those_of_the_formula(scale_shape: tuple[int, ...]) -> None:
    x, y, scale = _random(B, T, D), _random(B, T, D, seed=1), _random(*scale_shape, seed=2)
    expected = kernels.gated_add_formula(x, y, scale, EPS)
    torch.testing.assert_close(kernels.gated_add(x, y, scale, EPS), expected)
    assert torch.autograd.gradcheck(lambda x, y, s: kernels.gated_add(x, y, s, EPS), (x, y, scale))


def test_heads_turned_as_complex_numbers_equal_heads_turned_in_real_arithmetic() -> None:
    qkv, weights, table = _random(B, T, 3 * D), _random(2, E, seed=1, grad=False), _table()
    found, expected = (f(qkv, weights, table, EPS) for f in (kernels.heads, kernels.heads_formula))
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda x: kernels.heads(x, weights, table, EPS), (qkv,))


@pytest.mark.parametrize("queries", [T, T - 2])
def test_attention_by_plain_products_equals_torchs_own(queries: int) -> None:
    q, k, v = (_random(B, H, T, E, seed=seed) for seed in range(3))
    q = q[:, :, :queries]
    torch.testing.assert_close(kernels.attention(q, k, v), kernels.attention_formula(q, k, v))
    assert torch.autograd.gradcheck(kernels.attention, (q, k, v))


def test_swiglu_and_its_gradient_are_those_of_the_formula() -> None:
    hidden = _random(B, T, 2 * D)
    torch.testing.assert_close(kernels.swiglu(hidden), kernels.swiglu_formula(hidden))
    assert torch.autograd.gradcheck(kernels.swiglu, (hidden,))


def test_in_bfloat16_norms_and_rotations_still_compute_in_float32() -> None:
    qkv, weights = _random(B, T, 3 * D, dtype=torch.bfloat16), _random(2, E, seed=1, grad=False)
    table = _table(torch.float32)
    found = kernels.heads(qkv, weights.float(), table, EPS)
    expected = kernels.heads_formula(qkv.double(), weights, table, EPS)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-6)

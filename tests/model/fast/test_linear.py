"""Products with adapters, as the compiler gets them, against peft's own layers."""

from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from tests.dynamo import OWN_WARNINGS
from zimage.model.fast.kernels import sum_of_products
from zimage.model.fast.linear import Projection, projection_of
from zimage.model.fast.weight_formats import WeightFormat, quantizer_of

CPU = torch.device("cpu")
WIDTH, ROWS = 64, 40
# Layers side by side, which of them are adapted, and the LoRA's alpha: its rank is 4.
FORMS = [("abc", "abc", 4.0), ("abc", "b", 4.0), ("abc", "ac", 2.0), ("a", "a", 4.0), ("ab", "b", 8.0)]

pytestmark = OWN_WARNINGS


def layers_of(names: str, adapted: str, alpha: float, dropout: float = 0.0) -> nn.ModuleDict:
    """Linear layers of different widths, some of them with adapters of random numbers, by peft."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({name: nn.Linear(WIDTH, 48 + 16 * i, bias=False) for i, name in enumerate(names)})
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=list(adapted), init_lora_weights=False)
    config.lora_dropout = dropout
    inject_adapter_in_model(config, layers)
    return layers.requires_grad_(False)


def outcome(projection: Projection, x: Tensor, dy: Tensor, *, compiled: bool) -> list[Tensor]:
    """What comes out, and the gradients at the input and at both factors."""
    lora = projection.lora
    assert lora is not None
    run = torch.compile(projection.__call__, backend="aot_eager", dynamic=False) if compiled else projection
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y, [x, lora.down, lora.up], dy)]


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _given(layers: nn.ModuleDict) -> tuple[Tensor, Tensor]:
    outputs = sum(layer.out_features for layer in layers.values())
    return torch.randn(2, ROWS // 2, WIDTH).requires_grad_(), torch.randn(2, ROWS // 2, outputs)


@pytest.mark.parametrize(("names", "adapted", "alpha"), FORMS)
def test_compiled_it_is_pefts_product_and_has_its_gradients(names: str, adapted: str, alpha: float) -> None:
    layers = layers_of(names, adapted, alpha)
    x, dy = _given(layers)
    trained = [layers[name].lora_A["default"].weight.requires_grad_() for name in adapted]
    trained += [layers[name].lora_B["default"].weight.requires_grad_() for name in adapted]
    y = torch.cat([layer(x) for layer in layers.values()], dim=-1)
    dx, *gradients = torch.autograd.grad(y, [x, *trained], dy)
    expected = [y.detach(), dx, torch.cat(gradients[: len(adapted)]), torch.cat(gradients[len(adapted) :])]

    projection = projection_of(list(layers.values()), quantizer_of("none", dtype=torch.float32, device=CPU))
    for found, wanted in zip(outcome(projection, x, dy, compiled=True), expected, strict=True):
        assert _error(found, wanted) < 1e-6


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_in_few_bits_it_is_compiled_to_what_it_is_without(kind: WeightFormat, both_ways: bool) -> None:
    layers = layers_of("abc", "ac", 4.0)
    x, dy = _given(layers)
    keep = quantizer_of(kind, dtype=torch.float32, device=CPU, both_ways=both_ways)
    projection = projection_of(list(layers.values()), keep)
    expected = outcome(projection, x, dy, compiled=False)
    for found, wanted in zip(outcome(projection, x, dy, compiled=True), expected, strict=True):
        assert _error(found, wanted) < 0.005  # 8-bit floats come out in bfloat16


def test_what_dropout_lets_through_is_the_same_for_a_seed_compiled_or_not() -> None:
    layers = layers_of("abc", "ac", 4.0, dropout=0.5)
    x, dy = _given(layers)
    projection = projection_of(list(layers.values()), quantizer_of("none", dtype=torch.float32, device=CPU))
    torch.manual_seed(7)
    expected = outcome(projection, x, dy, compiled=False)
    torch.manual_seed(7)
    for found, wanted in zip(outcome(projection, x, dy, compiled=True), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_sum_of_products_is_one_and_rounds_once() -> None:
    """In bfloat16 the first product is added to the second one before it is rounded, not after."""
    sizes = [(ROWS, WIDTH, 96), (ROWS, 4, 96)]
    a, b, c, d = (
        torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.bfloat16)
        for i, shape in enumerate(pair for size in sizes for pair in pairwise(size))
    )
    exact = a.double() @ b.double() + c.double() @ d.double()
    apart = (a @ b) + (c @ d)
    found = sum_of_products(a, b, c, d)
    assert float((found - exact).norm()) < float((apart - exact).norm())

"""The protocol of frozen weights, and their formats.

# M rows, K inputs, N outputs
A frozen weight has no gradient of its own, so two products are all there is: forward, and back to the input.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from zimage.model.fast.quantized import fp8_of, int8_of, nf4_of

WeightFormat = Literal["none", "fp8", "int8", "nf4"]


class FrozenWeight(Protocol):
    """A weight (N, K) without a gradient, in one of the formats."""

    shape: tuple[int, int]

    def matmul(self, x: Tensor) -> Tensor:
        """Return x (M, K) @ weight^T; autograd knows the gradient at x."""
        ...

    def matmul_grad_input(self, dy: Tensor) -> Tensor:
        """Return dy (M, N) @ weight: the gradient at the input."""
        ...

    def exact(self) -> Tensor | None:
        """Return the weight (N, K) as the model has it, or None where only a rounded one is kept."""
        ...

    def tensors(self) -> list[Tensor]:
        """Return its storage, to be counted, moved and passed to `with_tensors`."""
        ...

    def with_tensors(self, tensors: list[Tensor]) -> "FrozenWeight":
        """Return the same weight with this storage, of the same shapes, on any device."""
        ...


class Dense:
    """An unquantised weight, with a copy in the precision of the product where that differs."""

    def __init__(self, weight: Tensor, product: Tensor) -> None:
        self.shape = (weight.shape[0], weight.shape[1])
        self.weight, self.product = weight, product

    def matmul(self, x: Tensor) -> Tensor:
        """Return x @ weight^T."""
        return functional.linear(x, self.product)

    def matmul_grad_input(self, dy: Tensor) -> Tensor:
        """Return dy @ weight."""
        return dy @ self.product

    def exact(self) -> Tensor:
        """Return the weight as the model has it."""
        return self.weight

    def tensors(self) -> list[Tensor]:
        """Return the copy that is multiplied, and the weight where that is another one."""
        return [self.product] if self.product is self.weight else [self.product, self.weight]

    def with_tensors(self, tensors: list[Tensor]) -> "Dense":
        """Return the same weight elsewhere."""
        return Dense(tensors[-1], tensors[0])


Quantizer = Callable[[Tensor], FrozenWeight]


def quantizer_of(
    weight_format: WeightFormat, *, dtype: torch.dtype, device: torch.device, both_ways: bool = False
) -> Quantizer:
    """Return a function that turns a weight (N, K) on any device into a frozen weight on `device`.

    Args:
        weight_format: none, fp8, int8 or nf4.
        dtype: Of the products where they are not in 8 bits.
        device: Where the frozen weight is stored.
        both_ways: Also store the 8-bit transpose, which the backward pass reads: twice the memory.
    """

    def quantize(weight: Tensor) -> FrozenWeight:
        there = weight.detach().to(device)
        match weight_format:
            case "none":
                return Dense(there, there.to(dtype))
            case "int8":
                return int8_of(there, both_ways=both_ways)
            case "fp8":
                return fp8_of(there, both_ways=both_ways)
            case "nf4":
                return nf4_of(there)

    return quantize

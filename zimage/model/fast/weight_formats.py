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

Kind = Literal["none", "fp8", "int8", "nf4"]


class Frozen(Protocol):
    """A weight (N, K) in whatever form it is kept."""

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
        """Return what it is kept in, to be counted, sent elsewhere and given to `with_tensors`."""
        ...

    def with_tensors(self, tensors: list[Tensor]) -> "Frozen":
        """Return the same weight kept in other tensors of the same shapes, on whatever device."""
        ...


class Dense:
    """A weight kept as it is, with a copy in the product's precision where that is another one."""

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


Keep = Callable[[Tensor], Frozen]


def keeper_of(kind: Kind, *, dtype: torch.dtype, device: torch.device, both_ways: bool = False) -> Keep:
    """Return what turns a weight (N, K), wherever it lies, into a frozen one of this kind on the device.

    Args:
        kind: How it is kept.
        dtype: Of products that are not in 8 bits.
        device: Where it stays.
        both_ways: Keep 8 bits the other way round as well, for the way back: as much memory again.
    """

    def keep(weight: Tensor) -> Frozen:
        there = weight.detach().to(device)
        match kind:
            case "none":
                return Dense(there, there.to(dtype))
            case "int8":
                return int8_of(there, both_ways=both_ways)
            case "fp8":
                return fp8_of(there, both_ways=both_ways)
            case "nf4":
                return nf4_of(there)

    return keep

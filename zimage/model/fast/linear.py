"""Frozen linear layers with the same input as one matrix product, together with their LoRA, DoRA or LoKr.

# M rows (samples times tokens), K inputs, N outputs of all layers together, R ranks of all adapters together
peft makes and names the adapters (`lora_A`, `lora_B`); what runs here reads and trains the very same numbers, in fewer
and larger products than one peft layer after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from zimage.model.fast.dora import Dora, dora_of
from zimage.model.fast.kernels import sum_of_products, vjp
from zimage.model.fast.lokr import Lokr, lokr_of
from zimage.model.fast.quantized import Fp8, Int8
from zimage.model.fast.weight_formats import Dense, FrozenWeight, Quantizer

ADAPTER = "default"  # the name peft gives the only adapter
# Above this a merged copy of the weight costs more memory than it saves time; the tiny model's weights are all below.
MERGED_ELEMENTS = 2**20


class Matrices(NamedTuple):
    """Numbers of one projection's adapters, or of their gradients, as plain tensors without autograd."""

    down: Tensor  # (R, K)
    ups: tuple[Tensor, ...]  # (rows, rank) of each adapted layer


@dataclass
class LoraFactors:
    """The adapters of one projection: down-products side by side, up-products below each other."""

    down: Tensor  # (R, K) float32
    up: Tensor  # (rows of the adapted layers, rank) float32
    rows: tuple[slice, ...]  # of the projection's outputs, one slice an adapted layer
    scale: float  # alpha / rank
    dropout: float
    members: tuple[LoraLayer, ...]
    low: tuple[Tensor, Tensor] | None = None  # both in fewer bits, for compiled code (`Adapters.cast_for_compile`)
    rounded: Matrices | None = None  # both in fewer bits, for the functions below (`Adapters.cast`)
    gradients: Matrices | None = None  # what their backward passes add to; without it autograd does so

    def __post_init__(self) -> None:
        """Take the views of what it was made with."""
        self.exact = self.matrices_of(self.down, self.up)

    @property
    def rank(self) -> int:
        """Return the rank of each adapter."""
        return self.up.shape[1]

    def bind(self, down: Tensor, up: Tensor) -> None:
        """Keep the numbers in these tensors from now on, which peft's own parameters then are views of."""
        with torch.no_grad():
            down.copy_(self.down)
            up.copy_(self.up)
        self.down, self.up = down.requires_grad_(), up.requires_grad_()
        self.exact = self.matrices_of(down, up)
        for member, A, B in zip(self.members, self.exact.down.split(self.rank), self.exact.ups, strict=True):
            member.lora_A[ADAPTER].weight.data = A
            member.lora_B[ADAPTER].weight.data = B

    def matrices_of(self, down: Tensor, up: Tensor) -> Matrices:
        """Return views of numbers that are laid out as the adapters'."""
        return Matrices(down.detach(), up.detach().split([rows.stop - rows.start for rows in self.rows]))

    def matrices(self, dtype: torch.dtype) -> Matrices:
        """Return the adapters' numbers in this precision, without autograd."""
        for each in (self.exact, self.rounded):
            if each is not None and each.down.dtype == dtype:
                return each
        return Matrices(self.exact.down.to(dtype), tuple(B.to(dtype) for B in self.exact.ups))

    def parts(self, dtype: torch.dtype | None = None) -> list[tuple[Tensor, Tensor, slice]]:
        """Return (A, B, rows of the projection's output) for each adapted layer, in this precision."""
        sizes = [rows.stop - rows.start for rows in self.rows]
        down, up = self.cast(dtype or self.down.dtype)
        return list(zip(down.split(self.rank), up.split(sizes), self.rows, strict=True))

    def cast(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the down- and the up-products in this precision."""
        if self.low is not None and self.low[0].dtype == dtype and torch.compiler.is_compiling():
            return self.low
        return self.down.to(dtype), self.up.to(dtype)


AdapterFactors = LoraFactors | Lokr | Dora  # the kinds of adapters of one projection


class Addend(NamedTuple):
    """A product of two thin matrices that is added to a layer's weight for a while; nothing learns it."""

    down: Tensor  # (R, K)
    up: Tensor  # (rows, R)
    rows: slice  # of the projection's outputs


class Projection:
    """One product for all the layers it was made of; calling it returns their outputs side by side.

    Args:
        layers: What it was made of: nn.Linear, or peft's lora.Linear or lokr.Linear around it.
        frozen: Their weights.
        bias: Their biases, (N,).
        lora: Their adapters.
    """

    def __init__(
        self, layers: Sequence[Any], frozen: FrozenWeight, bias: Tensor | None, lora: AdapterFactors | None
    ) -> None:
        self.layers, self.frozen, self.bias, self.lora = layers, frozen, bias, lora
        self.adapted = True
        self.addends: tuple[Addend, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., N) for x (..., K) in the product's precision."""
        y: Tensor = self._product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        for down, up, rows in self.addends:
            y[..., rows] += functional.linear(functional.linear(x, down), up)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _product(self, x: Tensor) -> Tensor:
        lora = self.lora
        if lora is None or not self.adapted:
            return self.frozen.matmul(x)
        if isinstance(lora, Lokr):
            return lora.added(self.frozen.matmul(x), x)
        if isinstance(lora, Dora):
            return lora.applied(self.frozen, x)
        if torch.compiler.is_compiling() or lora.dropout > 0:
            return self._for_the_compiler(x, lora)
        function, weight = self._way(x.shape[0])
        return function.apply(x, lora.down, lora.up, weight, lora)  # type: ignore[no-any-return]

    @property
    def adds_gradients(self) -> bool:
        """Return whether `vjp` can be used: the only gradients are the input's and those that are added in place."""
        lora = self.lora
        in_place = lora is None or (isinstance(lora, LoraFactors) and lora.dropout == 0 and lora.gradients is not None)
        return in_place and self.bias is None and not self.addends

    def vjp(self, x: Tensor, *, input_gradient: bool = True) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the product without autograd, and what takes the gradient there to that at the input.

        The adapters' gradients are added in place meanwhile.

        Args:
            x: (..., K).
            input_gradient: Whether the gradient at x is wanted; else None is returned for it.
        """
        shape, x = x.shape[:-1], x.flatten(0, -2)
        lora = self.lora
        if lora is None or not self.adapted:
            return self.frozen.matmul(x).unflatten(0, shape), self._frozen_input_gradient
        function, weight = self._way(x.shape[0])
        y, back = vjp(function, x, lora.down, lora.up, weight, lora, needs=(input_gradient,))

        def pull(dy: Tensor) -> Any:
            dx = back(dy.flatten(0, -2))[0]
            return None if dx is None else dx.unflatten(0, shape)

        return y.unflatten(0, shape), pull

    def _frozen_input_gradient(self, dy: Tensor) -> Tensor:
        dx: Tensor = self.frozen.matmul_grad_input(dy.flatten(0, -2)).unflatten(0, dy.shape[:-1])
        return dx

    def _way(self, rows: int) -> tuple[type[Function], Any]:
        """Return how a plain LoRA is added to the product for so many rows, and the weight that way reads."""
        exact = self.frozen.exact()
        if exact is not None and _merges(exact, rows):
            return _Merged, exact
        return _MatmulPlusLora, self.frozen

    def _for_the_compiler(self, x: Tensor, lora: LoraFactors) -> Tensor:
        """Return the product with all adapters at once, differentiated by autograd; for torch.compile and dropout."""
        up = _spread(lora, self.frozen.shape[0], x.dtype)
        if isinstance(self.frozen, Dense) and lora.dropout == 0:
            return _Summed.apply(x, self.frozen.product, lora.cast(x.dtype)[0], up)  # type: ignore[no-any-return,no-untyped-call]
        inner = self._inner(x, lora)
        if isinstance(self.frozen, Int8 | Fp8) and torch.compiler.is_compiling():
            return self.frozen.matmul_plus_lora(x, inner, up)
        return self.frozen.matmul(x) + functional.linear(inner, up)

    def _inner(self, x: Tensor, lora: LoraFactors) -> Tensor:
        """Return the adapters' inner states side by side, (M, R); without dropout they are one product."""
        if lora.dropout == 0:
            return functional.linear(x, lora.cast(x.dtype)[0])
        drop = partial(functional.dropout, p=lora.dropout, training=torch.is_grad_enabled())
        return torch.cat([functional.linear(drop(x), A) for A, _, _ in lora.parts(x.dtype)], dim=-1)


def projection_of(layers: Sequence[nn.Module], quantize: Quantizer) -> Projection:
    """Return one projection for linear layers that share an input, each with or without a peft adapter.

    Where the weights stay as they are, the layers' become views of the joined one: nothing is kept twice, and the
    layers still work.

    Args:
        layers: nn.Linear, or peft's lora.Linear or lokr.Linear around it.
        quantize: Gives the joined weight its format.

    Raises:
        ValueError: an adapter is not a plain LoRA, DoRA or LoKr, or the adapters' ranks, scales or dropouts differ.
    """
    plain = [plain_layer(layer) for layer in layers]
    frozen = quantize(_joined(plain))
    device = frozen.tensors()[0].device
    bias = None if plain[0].bias is None else torch.cat([layer.bias.detach() for layer in plain]).to(device)
    return Projection(tuple(layers), frozen, bias, _lora_of(layers, device))


def plain_layer(layer: Any) -> Any:
    """Return the nn.Linear that an adapter of peft is around, or the layer itself."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _joined(layers: Sequence[Any]) -> Tensor:
    if len(layers) == 1:
        return layers[0].weight.detach()  # type: ignore[no-any-return]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    for layer, part in zip(layers, weight.split([layer.weight.shape[0] for layer in layers]), strict=True):
        layer.weight.data = part
    return weight


def _lora_of(layers: Sequence[Any], device: torch.device) -> AdapterFactors | None:
    rows, start = [], 0
    members: list[Any] = []
    for layer in layers:
        stop = start + plain_layer(layer).out_features
        if isinstance(layer, LoraLayer | LoKrLayer):
            rows.append(slice(start, stop))
            members.append(layer)
        start = stop
    if not members:
        return None
    lora: AdapterFactors
    if all(isinstance(member, LoKrLayer) for member in members):
        lora = lokr_of(tuple(members), tuple(rows), ADAPTER, _scale(members))
    elif any(getattr(member, "lora_magnitude_vector", None) for member in members):
        lora = dora_of(tuple(members), tuple(rows), ADAPTER, _scale(members))
    else:
        lora = _low_rank(members, tuple(rows))
    lora.bind(torch.empty_like(lora.down, device=device), torch.empty_like(lora.up, device=device))
    return lora


def _scale(members: Sequence[Any]) -> float:
    return _only({member.scaling[ADAPTER] for member in members}, "scales")


def _low_rank(members: Sequence[LoraLayer], rows: tuple[slice, ...]) -> LoraFactors:
    _only({member.r[ADAPTER] for member in members}, "ranks")
    return LoraFactors(
        down=torch.cat([member.lora_A[ADAPTER].weight.detach() for member in members]),
        up=torch.cat([member.lora_B[ADAPTER].weight.detach() for member in members]),
        rows=rows,
        scale=_scale(members),
        dropout=_only({_dropout(member) for member in members}, "dropouts"),
        members=tuple(members),
    )


def _dropout(member: LoraLayer) -> float:
    if list(member.lora_A) != [ADAPTER] or member.lora_variant or member.lora_bias.get(ADAPTER):
        raise ValueError("Only one plain LoRA a layer can be trained here: no variant, no bias, no second adapter.")
    return float(getattr(member.lora_dropout[ADAPTER], "p", 0.0))


def _only(values: set[float], what: str) -> float:
    if len(values) != 1:
        raise ValueError(f"Layers that share an input need equal LoRA {what}, not {sorted(values)}.")
    return values.pop()


def _spread(lora: LoraFactors, outputs: int, dtype: torch.dtype) -> Tensor:
    """Return all up-products as one, (N, R): what each adapter's inner states do to every output, times the scale."""
    parts, done, ranks = [], 0, lora.down.shape[0]
    for number, (_, B, rows) in enumerate(lora.parts(dtype)):
        before = number * lora.rank
        scaled = B if lora.scale == 1 else B * lora.scale
        parts += [B.new_zeros((rows.start - done, ranks))] if rows.start > done else []
        parts.append(functional.pad(scaled, (before, ranks - before - lora.rank)) if ranks > lora.rank else scaled)
        done = rows.stop
    parts += [parts[-1].new_zeros((outputs - done, ranks))] if outputs > done else []
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _merges(weight: Tensor, rows: int) -> bool:
    """Return whether adding a LoRA to the weight costs less than applying it to this many rows."""
    N, K = weight.shape
    return weight.numel() <= MERGED_ELEMENTS and weight.dtype != torch.bfloat16 and rows * (N + K) >= N * K


class _Merged(Function):
    """The LoRA added to the weight in float32, so that forward and back are one product each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, weight: Tensor, lora: LoraFactors) -> Tensor:  # noqa: PLR0917
        merged = weight.clone()
        for A, B, rows in zip(lora.exact.down.split(lora.rank), lora.exact.ups, lora.rows, strict=True):
            merged[rows].addmm_(B, A, alpha=lora.scale)
        merged = merged.to(x.dtype)
        ctx.lora = lora
        ctx.save_for_backward(x, merged)
        return functional.linear(x, merged)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, merged = ctx.saved_tensors
        inner = functional.linear(x, ctx.lora.matrices(x.dtype).down)
        dx = dy @ merged if ctx.needs_input_grad[0] else None
        return dx, *_factor_gradients(ctx.lora, x, inner, dy)[:2], None, None


class _MatmulPlusLora(Function):
    """The LoRA applied beside the weight: one down-product for all layers, one up-product for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, frozen: FrozenWeight, lora: LoraFactors) -> Tensor:  # noqa: PLR0917
        y = frozen.matmul(x)
        low = lora.matrices(x.dtype)
        inner = functional.linear(x, low.down)  # (M, R)
        for B, rows, part in zip(low.ups, lora.rows, inner.split(lora.rank, dim=1), strict=True):
            y[:, rows].addmm_(part, B.t(), alpha=lora.scale)
        ctx.lora, ctx.frozen = lora, frozen
        ctx.save_for_backward(x, inner)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, inner = ctx.saved_tensors
        ddown, dup, dinner = _factor_gradients(ctx.lora, x, inner, dy)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = ctx.frozen.matmul_grad_input(dy).addmm_(dinner, ctx.lora.matrices(dy.dtype).down)
        return dx, ddown, dup, None, None


class _Summed(Function):
    """The same for compiled code, in which the sum of both products is no pass of its own, forward or back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        inner = functional.linear(x, down)
        ctx.save_for_backward(x, weight, down, up, inner)
        y: Tensor = sum_of_products(x, weight.t(), inner, up.t())
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, inner = ctx.saved_tensors
        dinner = dy @ up
        dx = sum_of_products(dy, weight, dinner, down)
        return dx, None, dinner.t() @ x, dy.t() @ inner


def _factor_gradients(
    lora: LoraFactors, x: Tensor, inner: Tensor, dy: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Return the gradients at `down` (R, K), at `up`, and at the inner states (M, R).

    The first two are None where `lora.gradients` is there: they are added to it, which saves autograd's own pass.
    """
    dinner = torch.empty_like(inner)
    dups = []
    parts = (inner.split(lora.rank, dim=1), dinner.split(lora.rank, dim=1))
    for B, rows, part, dpart in zip(lora.matrices(dy.dtype).ups, lora.rows, *parts, strict=True):
        torch.mm(dy[:, rows], B, out=dpart)
        dups.append(dy[:, rows].t() @ part)
    if lora.scale != 1:
        dinner, dups = dinner * lora.scale, [dup.to(lora.up.dtype) * lora.scale for dup in dups]
    ddown = dinner.t() @ x
    if lora.gradients is None:
        return ddown.to(lora.down.dtype), torch.cat(dups).to(lora.up.dtype), dinner
    lora.gradients.down.add_(ddown)
    for gradient, dup in zip(lora.gradients.ups, dups, strict=True):
        gradient.add_(dup)
    return None, None, dinner

"""LoKr on frozen linear layers: the weight change is the Kronecker product of a small and a large matrix.

# M rows (samples times tokens), K = b d inputs, O = a c outputs of one layer, R rank
# w1 (a, b); w2 (c, d), whole or as w2_a (c, R) w2_b (R, d); kron(w1, w2) is (O, K)
peft makes and names the matrices (0.21:tuners/lokr/layer.py; arXiv 2309.14859). What runs here reads and trains the
very same numbers, without writing a large product out: with x as (M, b, d), x kron(w1, w2)^T is w1 (x w2^T), (M, a, c).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# peft's names, in the order in which they stand in the two vectors.
RANDOM, ZERO = ("lokr_w1", "lokr_w2_a"), ("lokr_w2_b", "lokr_w2")
# Up to this many elements one product with the whole change takes less time than two with its small matrices.
WRITTEN_OUT_ELEMENTS = 2**16


@dataclass
class Lokr:
    """The Kronecker products of one projection, drawn as LyCORIS does: `down` at random, `up` zeros.

    Args:
        down: All w1 and w2_a, layer by layer, in one vector, float32.
        up: All w2_b, or w2 where it is whole, the same way.
        rows: Of the projection's outputs, one slice an adapted layer.
        scale: By what the products are multiplied.
        members: peft's layers.
        adapter: The name that peft gives the adapter.
        low: Both vectors in fewer bits, for compiled code (`Adapters.cast`).
    """

    down: Tensor
    up: Tensor
    rows: tuple[slice, ...]
    scale: float
    members: tuple[Any, ...]
    adapter: str
    low: tuple[Tensor, Tensor] | None = None
    dropout: float = 0.0
    random = RANDOM

    def bind(self, down: Tensor, up: Tensor) -> None:
        """Keep the numbers in these tensors from now on, which peft's own parameters then are views of."""
        with torch.no_grad():
            down.copy_(self.down)
            up.copy_(self.up)
        self.down, self.up = down.requires_grad_(), up.requires_grad_()
        for member, parts in zip(self.members, self.parts(down, up), strict=True):
            for name, part in parts.items():
                getattr(member, name)[self.adapter].data = part.detach()

    def parts(self, down: Tensor, up: Tensor) -> list[dict[str, Tensor]]:
        """Return each layer's matrices by peft's names, of vectors laid out as `down` and `up`."""
        found: list[dict[str, Tensor]] = []
        for member in self.members:
            shapes = shapes_of(member, self.adapter)
            mine: dict[str, Tensor] = {}
            for name in (*RANDOM, *ZERO):
                if name not in shapes:
                    continue
                size = shapes[name].numel()
                if name in RANDOM:
                    mine[name], down = down[:size].view(shapes[name]), down[size:]
                else:
                    mine[name], up = up[:size].view(shapes[name]), up[size:]
            found.append(mine)
        return found

    def added(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y (M, N) with what the layers' products make of x (M, K) in x's precision."""
        cast = self.low if self.low is not None and torch.compiler.is_compiling() else None
        down, up = cast if cast is not None else (self.down.to(x.dtype), self.up.to(x.dtype))
        pieces, done = [], 0
        for parts, rows in zip(self.parts(down, up), self.rows, strict=True):
            pieces += [y.new_zeros((len(y), rows.start - done))] if rows.start > done else []
            pieces.append(_applied(parts, x))
            done = rows.stop
        pieces += [y.new_zeros((len(y), y.shape[1] - done))] if y.shape[1] > done else []
        change = torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]
        return torch.add(y, change, alpha=self.scale)


def _applied(parts: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return x (M, K) times the Kronecker product's transpose, (M, O)."""
    w1, w2 = parts["lokr_w1"], parts.get("lokr_w2")
    out = w1.shape[0] * len(w2 if w2 is not None else parts["lokr_w2_a"])
    if out * x.shape[1] <= WRITTEN_OUT_ELEMENTS:
        return functional.linear(x, torch.kron(w1, parts["lokr_w2_a"] @ parts["lokr_w2_b"] if w2 is None else w2))
    inner = x.unflatten(1, (w1.shape[1], -1))  # (M, b, d)
    if w2 is None:
        inner = functional.linear(functional.linear(inner, parts["lokr_w2_b"]), parts["lokr_w2_a"])  # (M, b, c)
    else:
        inner = functional.linear(inner, w2)
    return functional.linear(inner.mT, w1).mT.flatten(1)


def shapes_of(member: Any, adapter: str) -> dict[str, torch.Size]:
    """Return the shapes of a layer's matrices, by peft's names."""
    return {name: getattr(member, name)[adapter].shape for name in (*RANDOM, *ZERO) if adapter in getattr(member, name)}


def lokr_of(members: tuple[Any, ...], rows: tuple[slice, ...], adapter: str, scale: float) -> Lokr:
    """Return the Kronecker products of peft's layers as one.

    Args:
        members: peft's layers of one projection.
        rows: Of its outputs, one slice a member.
        adapter: The only adapter in them.
        scale: By what the products are multiplied.

    Raises:
        ValueError: w1 is kept as two factors, or something is dropped at random.
    """
    for member in members:
        random = member.rank_dropout[adapter] or member.module_dropout[adapter]
        if set(member.r) != {adapter} or adapter in member.lokr_w1_a or random:
            raise ValueError(
                "Only one plain LoKr a layer can be trained here: w1 whole, no dropout, no second adapter."
            )

    def joined(names: tuple[str, ...]) -> Tensor:
        return torch.cat(
            [
                getattr(member, name)[adapter].detach().flatten()
                for member in members
                for name in names
                if name in shapes_of(member, adapter)
            ]
        )

    return Lokr(joined(RANDOM), joined(ZERO), rows, scale, members, adapter)

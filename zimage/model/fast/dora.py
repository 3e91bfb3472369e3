"""DoRA on frozen linear layers: a LoRA changes the direction of each row of the weight, a trained vector its length.

# M rows (samples times tokens), K inputs, N outputs of all layers together, O outputs of one layer, R rank
peft makes and names the parameters (0.21:tuners/lora/dora.py; arXiv 2402.09353): y = m / |W + s B A| (W + s B A) x,
the length |.| of each row without a gradient (section 4.3 of the paper). peft writes W + s B A out in every forward
pass to measure its rows. Here |W + s B A|^2 is |W|^2 + 2 s <W, B A> + s^2 |B A|^2, of which the first is constant and
the others need no matrix larger than a LoRA's: <W, B A> is the row sum of (W A^T) B, |B A|^2 that of (B A A^T) B.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

DOWN, UP, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"  # peft's names


class Multiplied(Protocol):
    """The part of `FrozenWeight` that is read here."""

    def matmul(self, x: Tensor) -> Tensor:
        """Return x (M, K) @ weight^T."""
        ...


@dataclass
class Dora:
    """The DoRAs of one projection: `down` is drawn at random; `up` begins as zeros and the lengths of the rows.

    Args:
        down: All A below each other, (R of all layers, K), float32.
        up: B and then the magnitudes, layer by layer, in one vector, float32.
        rows: Of the projection's outputs, one slice an adapted layer.
        scale: By what the products B A are multiplied.
        members: peft's layers.
        adapter: The name that peft gives the adapter.
        squares: The squared lengths of the rows of each layer's frozen weight, (O,) float32.
        low: Both in fewer bits, for compiled code (`Adapters.cast_for_compile`).
    """

    down: Tensor
    up: Tensor
    rows: tuple[slice, ...]
    scale: float
    members: tuple[Any, ...]
    adapter: str
    squares: tuple[Tensor, ...]
    low: tuple[Tensor, Tensor] | None = None
    dropout: float = 0.0
    random = (DOWN,)

    def bind(self, down: Tensor, up: Tensor) -> None:
        """Keep the numbers in these tensors from now on, which peft's own parameters then are views of."""
        with torch.no_grad():
            down.copy_(self.down)
            up.copy_(self.up)
        self.down, self.up = down.requires_grad_(), up.requires_grad_()
        self.squares = tuple(each.to(down.device) for each in self.squares)
        for member, parts in zip(self.members, self.parts(down, up), strict=True):
            for name, part in parts.items():
                weight = getattr(member, name)[self.adapter].weight
                weight.data = part.detach().view_as(weight)

    def parts(self, down: Tensor, up: Tensor) -> list[dict[str, Tensor]]:
        """Return each layer's A, B and magnitudes (O, 1) by peft's names, of tensors laid out as `down` and `up`."""
        found: list[dict[str, Tensor]] = []
        rank = down.shape[0] // len(self.rows)
        for number, rows in enumerate(self.rows):
            out = rows.stop - rows.start
            B, magnitude, up = up[: out * rank], up[out * rank : out * (rank + 1)], up[out * (rank + 1) :]
            A = down[number * rank : (number + 1) * rank]
            found.append({DOWN: A, UP: B.view(out, rank), MAGNITUDE: magnitude.view(out, 1)})
        return found

    def applied(self, frozen: Multiplied, x: Tensor) -> Tensor:
        """Return the projection's outputs (M, N) for x (M, K) in the product's precision."""
        cast = self.low if self.low is not None and torch.compiler.is_compiling() else None
        down, up = cast if cast is not None else (self.down.to(x.dtype), self.up.to(x.dtype))
        y = frozen.matmul(x)
        exact, low = self.parts(self.down, self.up), self.parts(down, up)
        lengths = self.lengths(frozen, down, up)
        pieces, done = [], 0
        for rows, whole, parts, length in zip(self.rows, exact, low, lengths, strict=True):
            pieces += [y[:, done : rows.start]] if rows.start > done else []
            # In float32: a magnitude in bfloat16 would change its row by up to 0.4 %, which is much of what is learnt.
            share = (whole[MAGNITUDE][:, 0] / length).to(x.dtype)
            change = functional.linear(functional.linear(x, parts[DOWN]), parts[UP])
            pieces.append(torch.add(y[:, rows], change, alpha=self.scale) * share)
            done = rows.stop
        pieces += [y[:, done:]] if y.shape[1] > done else []
        return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]

    @torch.no_grad()
    def lengths(self, frozen: Multiplied, down: Tensor, up: Tensor) -> list[Tensor]:
        """Return the lengths of the rows of W + s B A for each layer, (O,) float32.

        Args:
            frozen: W, of all layers.
            down: All A, laid out as `down`, in the precision of the product.
            up: All B, laid out as `up`.
        """
        projected = frozen.matmul(down.detach()).float()  # (R of all layers, N)
        rank, found = down.shape[0] // len(self.rows), []
        for number, (rows, parts, square) in enumerate(zip(self.rows, self.parts(down, up), self.squares, strict=True)):
            A, B = parts[DOWN].float(), parts[UP].float()
            of_both = (projected[number * rank : (number + 1) * rank, rows].t() * B).sum(dim=1)
            of_change = ((B @ (A @ A.t())) * B).sum(dim=1)
            found.append((square + 2 * self.scale * of_both + self.scale**2 * of_change).clamp_min(1e-20).sqrt())
        return found


def dora_of(members: tuple[Any, ...], rows: tuple[slice, ...], adapter: str, scale: float) -> Dora:
    """Return the DoRAs of peft's layers as one.

    Args:
        members: peft's layers of one projection, each with its base layer's weight as it was loaded.
        rows: Of the projection's outputs, one slice a member.
        adapter: The only adapter in them.
        scale: By what the products B A are multiplied.

    Raises:
        ValueError: a layer has another form of LoRA, or the ranks differ.
    """
    for member in members:
        dropout = getattr(member.lora_dropout[adapter], "p", 0.0)
        if list(member.lora_A) != [adapter] or member.lora_bias.get(adapter) or dropout:
            raise ValueError("Only one plain DoRA a layer can be trained here: no dropout, no bias, no second adapter.")
        if not member.use_dora[adapter] or member.r[adapter] != members[0].r[adapter]:
            raise ValueError("Layers that share an input need DoRAs of equal ranks, and no plain LoRA among them.")
    weights = [member.get_base_layer().weight.detach().float() for member in members]
    squares = tuple(weight.square().sum(dim=1) for weight in weights)
    ups = [
        part.detach().float().flatten()
        for member, square in zip(members, squares, strict=True)
        for part in (member.lora_B[adapter].weight, square.sqrt())
    ]
    down = torch.cat([member.lora_A[adapter].weight.detach().float() for member in members])
    return Dora(down, torch.cat(ups), rows, scale, members, adapter, squares)

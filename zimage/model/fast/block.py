"""One transformer block, computed from the weights of diffusers' module.

# B batch, T tokens, D width, E width of a head
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from zimage.model.fast import kernels
from zimage.model.fast.linear import Projection, projection_of
from zimage.model.fast.weight_formats import Quantizer

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock


class Scales(NamedTuple):
    """What the four norms of a block multiply with: their weights and, where the block has one, its modulation."""

    attention_in: Tensor  # (B, 1, D) or (D,)
    attention_out: Tensor
    feed_forward_in: Tensor
    feed_forward_out: Tensor


# What takes the gradient at a block's result to that at its input.
Pullback = Callable[[Tensor], Tensor | None]


class Block:
    """A transformer block; calling it returns the residual stream after it.

    Source: diffusers@0.42.1:src/diffusers/models/transformers/transformer_z_image.py, ZImageTransformerBlock and
    ZSingleStreamAttnProcessor.

    Args:
        module: Diffusers' block, on whatever device.
        dtype: Of the matrix products.
        quantize: Gives the large weights their format.
        unquantized: Gives the modulation its format, which is small and sensitive.
    """

    def __init__(
        self, module: "ZImageTransformerBlock", *, dtype: torch.dtype, quantize: Quantizer, unquantized: Quantizer
    ) -> None:
        attention, feed_forward = module.attention, module.feed_forward
        self.dtype = dtype
        self.qkv = projection_of([attention.to_q, attention.to_k, attention.to_v], quantize)
        self.out = projection_of([attention.to_out[0]], quantize)
        self.w13 = projection_of([feed_forward.w1, feed_forward.w3], quantize)
        self.w2 = projection_of([feed_forward.w2], quantize)
        self.modulation = projection_of([module.adaLN_modulation[0]], unquantized) if module.modulation else None
        norms = (module.attention_norm1, module.attention_norm2, module.ffn_norm1, module.ffn_norm2)
        self.eps = module.attention_norm1.eps
        device = self.qkv.frozen.tensors()[0].device
        self.norms = Scales(*(norm.weight.detach().float().to(device) for norm in norms))
        q, k = (norm.weight.detach().float().to(device) for norm in (attention.norm_q, attention.norm_k))
        self.head_eps = attention.norm_q.eps
        self.head_norms = torch.stack([q * q.shape[-1] ** -0.5, k])

    def __call__(self, x: Tensor, condition: Tensor | None, table: Tensor, keep: int | None = None) -> Tensor:
        """Return the stream after this block.

        Args:
            x: The residual stream (B, T, D).
            condition: The embedded time (B, width), or None for a block without modulation.
            table: Rotations of the T positions, (T, E / 2, 2).
            keep: How many of the first tokens are wanted; the others are read, then dropped.
        """
        return self._after(x, self.scales(condition), table, keep)

    def _after(self, x: Tensor, scales: Scales, table: Tensor, keep: int | None) -> Tensor:
        q, k, v = kernels.heads(self.qkv(self._into(x, scales.attention_in)), self.head_norms, table, self.head_eps)
        if keep is not None:
            x, q = x[:, :keep], q[:, :, :keep]
        x = kernels.gated_add(x, self.out(kernels.attention(q, k, v)), scales.attention_out, self.eps)
        hidden = kernels.swiglu(self.w13(self._into(x, scales.feed_forward_in)))
        return kernels.gated_add(x, self.w2(hidden), scales.feed_forward_out, self.eps)

    def scales(self, condition: Tensor | None) -> Scales:
        """Return the norms' factors: weight * (1 + scale) before a branch, weight * tanh(gate) after it."""
        if self.modulation is None:
            return self.norms
        assert condition is not None
        scale_1, gate_1, scale_2, gate_2 = self.modulation(condition).float().unsqueeze(1).chunk(4, dim=-1)
        factors = (1 + scale_1, gate_1.tanh(), 1 + scale_2, gate_2.tanh())
        return Scales(*(weight * factor for weight, factor in zip(self.norms, factors, strict=True)))

    def as_one_node(self, x: Tensor, condition: Tensor | None, table: Tensor, keep: int | None = None) -> Tensor:
        """Return the same as a call, as one node of autograd where that can be.

        A block is some 25 nodes otherwise, and for a small model on a CPU running one costs as much as a small
        product. All its activations stay until the backward pass.
        """
        scales = self.scales(condition)
        learning = [projection.lora.down for projection in self._large() if projection.lora is not None]
        possible = x.device.type == "cpu" and x.shape[1] <= kernels.MATERIALISED_TOKENS and torch.is_grad_enabled()
        in_place = all(projection.adds_gradients for projection in self._large())
        if not (possible and in_place and (learning or x.requires_grad)) or any(
            scale.requires_grad for scale in scales
        ):
            return self._after(x, scales, table, keep)
        # Autograd wants a gradient of the result if one of the inputs does, which may be the adapters alone.
        learns = learning[0] if learning else None
        return _OneNode.apply(x, learns, self, scales, table, keep)  # type: ignore[no-any-return,no-untyped-call]

    def vjp(
        self, x: Tensor, scales: Scales, table: Tensor, keep: int | None, *, input_gradient: bool
    ) -> tuple[Tensor, Pullback]:
        """Return the stream after this block without autograd, and what takes the gradient there back.

        Gradients of the adapters are added in place meanwhile; those of `scales` are not computed.

        Args:
            x: The residual stream (B, T, D).
            scales: What the four norms multiply with.
            table: Rotations of the T positions, (T, E / 2, 2).
            keep: How many of the first tokens are wanted.
            input_gradient: Whether the gradient at x is wanted; else None is returned for it.
        """
        into = (self.eps, self.dtype)
        a, a_back = kernels.vjp(kernels.rms_scale, x, scales.attention_in, *into, needs=(True, False))
        qkv, qkv_back = self.qkv.vjp(a, input_gradient=input_gradient)
        (q, k, v), heads_back = kernels.vjp(kernels.heads, qkv, self.head_norms, table, self.head_eps)
        rest = x if keep is None else x[:, :keep]
        q = q if keep is None else q[:, :, :keep]
        attended, attention_back = kernels.vjp(kernels.attention, q, k, v)
        out, out_back = self.out.vjp(attended)
        unchanged = (False, True, False)  # the stream's gradient is the result's own
        middle, middle_back = kernels.vjp(kernels.gated_add, rest, out, scales.attention_out, self.eps, needs=unchanged)
        f, f_back = kernels.vjp(kernels.rms_scale, middle, scales.feed_forward_in, *into, needs=(True, False))
        w13, w13_back = self.w13.vjp(f)
        hidden, hidden_back = kernels.vjp(kernels.swiglu, w13)
        w2, w2_back = self.w2.vjp(hidden)
        y, y_back = kernels.vjp(kernels.gated_add, middle, w2, scales.feed_forward_out, self.eps, needs=unchanged)

        def pull(dy: Tensor) -> Tensor | None:
            dmiddle: Tensor = f_back(w13_back(hidden_back(w2_back(y_back(dy)[1]))))[0].add_(dy)
            dq, dk, dv = attention_back(out_back(middle_back(dmiddle)[1]))
            if keep is not None:
                dq = functional.pad(dq, (0, 0, 0, dk.shape[2] - keep))
            da = qkv_back(heads_back(dq, dk, dv)[0])
            if not input_gradient:
                return None
            dx: Tensor = a_back(da)[0]
            dx[:, : dmiddle.shape[1]].add_(dmiddle)
            return dx

        return y, pull

    @property
    def is_adapted(self) -> bool:
        """Return whether an adapter sits in this block."""
        return any(projection.lora is not None for projection in self.projections())

    def projections(self) -> list[Projection]:
        """Return all products of this block."""
        return [*self._large(), *([] if self.modulation is None else [self.modulation])]

    def _large(self) -> tuple[Projection, ...]:
        return self.qkv, self.out, self.w13, self.w2

    def _into(self, x: Tensor, scale: Tensor) -> Tensor:
        return kernels.rms_scale(x, scale, self.eps, self.dtype)


class _OneNode(Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, x: Tensor, learns: Tensor | None, block: Block, scales: Scales, table: Tensor, keep: int | None
    ) -> Tensor:
        y, ctx.pull = block.vjp(x, scales, table, keep, input_gradient=ctx.needs_input_grad[0])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        pull, ctx.pull = ctx.pull, None
        return pull(dy), None, None, None, None, None

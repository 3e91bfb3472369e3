"""One transformer block, computed from the weights of diffusers' module.

# B batch, T tokens, D width, E width of a head
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

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
        scales = self.scales(condition)
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

    @property
    def is_adapted(self) -> bool:
        """Return whether an adapter sits in this block."""
        return any(projection.lora is not None for projection in self.projections())

    def projections(self) -> list[Projection]:
        """Return all products of this block."""
        return [p for p in (self.qkv, self.out, self.w13, self.w2, self.modulation) if p is not None]

    def _into(self, x: Tensor, scale: Tensor) -> Tensor:
        return kernels.rms_scale(x, scale, self.eps, self.dtype)

"""Z-Image's transformer on padded batches for training, with diffusers' weights and without its per-sample lists.

# B batch, C channels, H W latent size, N image tokens, L caption tokens, T = N + L, D width, W text width
All samples of a batch have one (height, width, padded caption length). Source of every formula:
diffusers@0.42.1:src/diffusers/models/transformers/transformer_z_image.py, ZImageTransformer2DModel.forward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from zimage.model import sequence
from zimage.model.fast.block import Block
from zimage.model.fast.block_swap import BlockSwapper
from zimage.model.fast.linear import AdapterFactors, Projection, projection_of
from zimage.model.fast.weight_formats import WeightFormat, quantizer_of
from zimage.model.sequence import SequenceBucket

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

SIZE = "2-1"  # the only patch size released: 2 by 2 pixels of one frame
FINAL_EPS = 1e-6


# (block, stream, condition, rotations, how many first tokens are wanted) -> stream
RunBlock = Callable[[Block, Tensor, Tensor | None, Tensor, int | None], Tensor]


def run_block(block: Block, x: Tensor, condition: Tensor | None, table: Tensor, keep: int | None) -> Tensor:
    """Run a block as it is."""
    return block(x, condition, table, keep)


def _as_it_is() -> None:
    """Make nothing ready."""


class Denoiser:
    """The transformer with whatever adapters peft has put into it.

    Args:
        transformer: Diffusers' model. Its weights are read, never written; some become views of joined ones.
        dtype: Of the matrix products.
        stream: Of the residual stream. On a GPU that of the products saves memory; on a CPU float32 is faster.
        device: Where all of it computes; the transformer's own unless given.
        weight_format: Of the blocks' large weights.
        offloaded_blocks: Main blocks whose large weights wait in the machine's memory, spread evenly over all.
        both_ways: Keep 8-bit weights transposed as well, for the backward pass.
    """

    def __init__(
        self,
        transformer: "ZImageTransformer2DModel",
        *,
        dtype: torch.dtype,
        stream: torch.dtype,
        device: torch.device | None = None,
        weight_format: WeightFormat = "none",
        offloaded_blocks: int = 0,
        both_ways: bool = False,
    ) -> None:
        self.dtype, self.stream = dtype, stream
        self.run: RunBlock = run_block
        self.ready: Callable[[], None] = _as_it_is  # called before adapters are read
        self.t_scale = float(transformer.t_scale)
        self.device = device or transformer.x_pad_token.device
        unquantized = quantizer_of("none", dtype=dtype, device=self.device)
        quantize = quantizer_of(weight_format, dtype=dtype, device=self.device, both_ways=both_ways)
        self._rope = transformer.rope_embedder
        self._tables: dict[SequenceBucket, tuple[Tensor, Tensor, Tensor]] = {}
        self.time = transformer.t_embedder
        self.time_in = projection_of([transformer.t_embedder.mlp[0]], unquantized)
        self.time_out = projection_of([transformer.t_embedder.mlp[2]], unquantized)
        self.image_in = projection_of([transformer.all_x_embedder[SIZE]], unquantized)
        self.image_pad = transformer.x_pad_token.detach().to(self.device, stream)
        self.caption_norm = transformer.cap_embedder[0].to(self.device)
        self.caption_in = projection_of([transformer.cap_embedder[1]], unquantized)
        self.caption_pad = transformer.cap_pad_token.detach().to(self.device, stream)
        block_of = partial(Block, dtype=dtype, quantize=quantize, unquantized=unquantized)
        self.noise_refiner = [block_of(block) for block in transformer.noise_refiner]
        self.context_refiner = [block_of(block) for block in transformer.context_refiner]
        self.swapper = BlockSwapper(self.device)
        self.layers: list[Block] = []
        away = _spread(offloaded_blocks, len(transformer.layers))
        for number, block in enumerate(transformer.layers):
            self.layers.append(block_of(block))
            if number in away:
                self.swapper.take(self.layers[-1])
        final = transformer.all_final_layer[SIZE]
        self.final_modulation = projection_of([final.adaLN_modulation[1]], unquantized)
        self.final_out = projection_of([final.linear], unquantized)

    def velocity(self, latents: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Return the velocity `noise - latent` as the model sees it: (B, C, H, W), float32.

        The model is asked at time 1 - sigma and answers with the negative velocity (pipeline_z_image.py, __call__).

        Args:
            latents: Noisy latents (B, C, H, W).
            sigma: (B,) float32 in [0, 1]: the share of noise.
            context: The refined caption (B, L, D), see `refine`.
        """
        self.ready()
        bucket = SequenceBucket(latents.shape[2], latents.shape[3], context.shape[1])
        image_table, _, table = self.tables(bucket)
        condition = self.condition(1 - sigma.double())
        x = self.embedded(latents)
        for block in self.noise_refiner:
            x = self.run(block, x, condition, image_table, None)
        x = torch.cat([x, context.to(x.dtype)], dim=1)
        for block in self.layers[:-1]:
            x = self.run(block, x, condition, table, None)
        # After the last block only the picture's own tokens are read: its captions need no feed-forward.
        x = self.run(self.layers[-1], x, condition, table, sequence.image_length(bucket))
        return -sequence.unpatchify(self.projected(x, condition), bucket.height, bucket.width)

    def refine(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return what the main layers read of captions: (B, L, D).

        It depends on nothing but the caption, so it is computed once for all steps unless an adapter sits before it.

        Args:
            features: Text embeddings (B, L, W), L a multiple of 32; what stands in the pads does not matter.
            lengths: (B,), how many tokens of each are no pads.
        """
        self.ready()
        L = features.shape[1]
        _, table, _ = self.tables(SequenceBucket(sequence.PATCH, sequence.PATCH, L))
        normed = self.caption_norm(features.to(self.device))
        x = self.caption_in(normed.to(self.dtype)).to(self.stream)
        pads = torch.arange(L, device=x.device) >= lengths.to(x.device)[:, None]
        x = torch.where(pads[:, :, None], self.caption_pad, x)
        for block in self.context_refiner:
            x = block(x, None, table)
        return x

    def condition(self, t: Tensor) -> Tensor:
        """Return the embedded time (B, width) of t in [0, 1], 0 for pure noise.

        Given in float64, it is rounded once: at 1000 t float32 has steps of 6e-5, which the waves show.
        """
        waves = self.time.timestep_embedding(t * self.t_scale, self.time.frequency_embedding_size)
        return self.time_out(functional.silu(self.time_in(waves.to(self.dtype))))

    def embedded(self, latents: Tensor) -> Tensor:
        """Return the image tokens (B, padded N, D), before any refiner."""
        x = self.image_in(sequence.patchify(latents).to(self.dtype)).to(self.stream)
        missing = sequence.padded(x.shape[1]) - x.shape[1]
        if missing == 0:
            return x
        return torch.cat([x, self.image_pad.expand(x.shape[0], missing, -1)], dim=1)

    def projected(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the final layer's patches (B, N, P), float32."""
        scale = 1 + self.final_modulation(functional.silu(condition)).float().unsqueeze(1)
        normed = functional.layer_norm(x.float(), x.shape[-1:], eps=FINAL_EPS)
        return self.final_out((normed * scale).to(self.dtype)).float()

    def tables(self, bucket: SequenceBucket) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rotations of the image, of the caption, and of both in sequence, each (T, E / 2, 2)."""
        if bucket not in self._tables:
            image, caption = (
                torch.view_as_real(self._rope(positions)).to(self.device)
                for positions in (sequence.image_positions(bucket), sequence.caption_positions(bucket.caption))
            )
            self._tables[bucket] = (image, caption, torch.cat([image, caption]))
        return self._tables[bucket]

    def projections(self) -> list[Projection]:
        """Return all products, in the order data takes through them."""
        return [*self.context_projections(), *self.image_projections()]

    def context_projections(self) -> list[Projection]:
        """Return the products a refined caption depends on."""
        return [self.caption_in, *(p for block in self.context_refiner for p in block.projections())]

    def image_projections(self) -> list[Projection]:
        """Return the products every step runs."""
        blocks = [p for block in (*self.noise_refiner, *self.layers) for p in block.projections()]
        return [self.time_in, self.time_out, self.image_in, *blocks, self.final_modulation, self.final_out]

    def loras(self) -> list[AdapterFactors]:
        """Return all adapters, one a projection that has any."""
        return [projection.lora for projection in self.projections() if projection.lora is not None]

    @property
    def context_is_fixed(self) -> bool:
        """Return whether a refined caption stays the same through training: no adapter sits before it."""
        return all(projection.lora is None for projection in self.context_projections())

    def forget_context(self) -> None:
        """Let go of what only captions need, once they are refined."""
        self.context_refiner.clear()

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Be the base model while the context lasts."""
        for projection in self.projections():
            projection.adapted = False
        try:
            yield
        finally:
            for projection in self.projections():
                projection.adapted = True


def _spread(count: int, of: int) -> set[int]:
    """Return `count` numbers below `of` at even distances, so that each crossing has several blocks' time."""
    count = min(count, of)
    return {int((place + 0.5) * of / count) for place in range(count)}

"""Estimate the GPU memory of a base that is only read: text encoding, autoencoding, sampling.

All of it is computed: weights from the models' configurations, the rest from what they hold at once for a token or a
pixel, which tests count on tensors without contents. What training needs is in zimage/training/memory.py.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from zimage.core.errors import InputError
from zimage.model.sequence import SequenceBucket, sequence_length

logger = logging.getLogger(__name__)

# Of what there is, the share that is planned with: the rest is workspace of products and what the allocator wastes.
USED_SHARE = 0.85
# What the released autoencoder holds at once for a pixel, in float32.
ENCODING_BYTES, DECODING_BYTES = 2580, 3090
# What diffusers' transformer holds at once for a token, in streams of bfloat16, under a LoRA in float32 everywhere.
SAMPLING_STREAMS = 24
CAPTION_TOKENS = 96  # of the longest prompts of the suites, padded
# While blocks travel one computes and the next one crosses.
PLACES = 2
# Image tokens in flight: on a CPU (eight pictures of 128 px) more does not pay, and leaves processes idle; 16 k fill a
# GPU (four of 1024 px).
TOKENS_AT_ONCE = {"cpu": 512, "cuda": 16384}
LATENT_PX = 8
STEP_PX = 16


@dataclass(frozen=True)
class Footprint:
    """Of a base's weights, in GB: the autoencoder's in float32, all others in bfloat16."""

    width: int  # of the transformer, in values
    transformer_gb: float
    block_gb: float  # the largest of the transformer's
    blocks_gb: float  # all of the transformer's
    text_layer_gb: float
    vae_gb: float


@dataclass(frozen=True)
class Fit:
    """Batch size and offloading for sampling on a device.

    Args:
        travelling: Whether the transformer's blocks wait in the machine's memory.
        batch_size: Pictures in a batch.
        need_gb: About what it takes of the device; 0 where nothing is planned.
    """

    travelling: bool
    batch_size: int
    need_gb: float


def footprint_of(base: Path) -> Footprint:
    """Return what the weights of a base model's folder take; its configurations are read, its weights are not."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        transformer = ZImageTransformer2DModel.from_config(ZImageTransformer2DModel.load_config(base / "transformer"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(base / "vae"))
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(base / "text_encoder", local_files_only=True))
    blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]
    return Footprint(
        width=transformer.config.dim,
        transformer_gb=_gb(transformer, torch.bfloat16),
        block_gb=max(_gb(block, torch.bfloat16) for block in blocks),
        blocks_gb=sum(_gb(block, torch.bfloat16) for block in blocks),
        text_layer_gb=_gb(encoder.layers[0], torch.bfloat16),
        vae_gb=_gb(vae, torch.float32),
    )


def encoding_gb(footprint: Footprint, sizes_px: Iterable[tuple[int, int]]) -> float:
    """Return about what encoding takes: two layers of the text encoder, or the autoencoder with the largest picture."""
    largest = max(width * height for width, height in sizes_px)
    return max(PLACES * footprint.text_layer_gb, footprint.vae_gb + largest * ENCODING_BYTES / 1e9)


def sampling_gb(
    footprint: Footprint, side_px: int, batch_size: int, *, guided: bool, travelling: bool, adapters_gb: float
) -> float:
    """Return about what making pictures takes: weights, and either the stream's way or a picture that is decoded.

    Args:
        footprint: Of the base.
        side_px: Of the pictures.
        batch_size: Pictures in a batch; they are decoded one by one.
        guided: Whether each is drawn with and without its prompt.
        travelling: Whether the transformer's blocks wait in the machine's memory.
        adapters_gb: What a LoRA takes; its matrices stay and travel with their blocks.
    """
    latent = side_px // LATENT_PX
    tokens = batch_size * (2 if guided else 1) * sequence_length(SequenceBucket(latent, latent, CAPTION_TOKENS))
    stream = tokens * SAMPLING_STREAMS * footprint.width * 2 / 1e9
    picture = side_px**2 * DECODING_BYTES / 1e9
    outside = footprint.transformer_gb - footprint.blocks_gb
    if travelling:  # none of the blocks is there while a picture is decoded
        here = PLACES * (footprint.block_gb + adapters_gb * footprint.block_gb / footprint.blocks_gb)
        return footprint.vae_gb + outside + max(here + stream, picture)
    return footprint.vae_gb + footprint.transformer_gb + adapters_gb + max(stream, picture)


def fit(footprint: Footprint, side_px: int, *, guided: bool, adapters_gb: float, planned_gb: float) -> Fit:
    """Return how pictures are made in so much memory: with blocks that travel only where no picture fits else.

    Either way as many pictures are made at once as fit and are of use; one where not even that fits.
    """
    most = usual_batch(side_px, guided=guided, device="cuda")

    def needed(batch_size: int, *, travelling: bool) -> float:
        return sampling_gb(
            footprint, side_px, batch_size, guided=guided, travelling=travelling, adapters_gb=adapters_gb
        )

    travelling = needed(1, travelling=False) > planned_gb
    fitting = [count for count in range(1, most + 1) if needed(count, travelling=travelling) <= planned_gb]
    batch_size = max(fitting, default=1)
    return Fit(travelling, batch_size, needed(batch_size, travelling=travelling))


def usual_batch(side_px: int, *, guided: bool, device: str) -> int:
    """Return how many pictures are of use at once on a kind of device, were there memory for them."""
    tokens = (side_px // STEP_PX) ** 2 * (2 if guided else 1)
    return max(1, TOKENS_AT_ONCE.get(device, TOKENS_AT_ONCE["cpu"]) // tokens)


def too_small_to_sample(
    footprint: Footprint, side_px: int, *, guided: bool, adapters_gb: float, available_gb: float
) -> InputError:
    """Return the error for pictures that do not fit into the GPU."""

    def needed(side: int) -> float:
        return sampling_gb(footprint, side, 1, guided=guided, travelling=True, adapters_gb=adapters_gb)

    smaller = range(side_px - STEP_PX, 0, -STEP_PX)
    side = next((side for side in smaller if needed(side) < available_gb * USED_SHARE), None)
    return _too_small(
        f"make pictures of {side_px} x {side_px} px, which take about {needed(side_px):.1f} GB",
        None if side is None else f"set evaluate.sampling.side_px to {side} (about {needed(side):.1f} GB)",
        available_gb,
    )


def too_small_to_encode(footprint: Footprint, size_px: tuple[int, int], available_gb: float) -> InputError:
    """Return the error for a picture of this size that does not fit into the GPU."""
    room = available_gb * USED_SHARE - footprint.vae_gb
    side = int((max(room, 0) * 1e9 / ENCODING_BYTES) ** 0.5) // STEP_PX * STEP_PX
    smaller = side > 0 and side * side < size_px[0] * size_px[1]
    return _too_small(
        f"encode {size_px[0]} x {size_px[1]} px, which take about {encoding_gb(footprint, [size_px]):.1f} GB",
        f"set detect.crops.side_px to {side}" if smaller else None,
        available_gb,
    )


def _too_small(what: str, remedy: str | None, available_gb: float) -> InputError:
    choice = f"{remedy}, or " if remedy else ""
    return InputError(f"{available_gb:.1f} GB of memory are too small to {what}; {choice}end what else runs on it.")


def _gb(module: torch.nn.Module, dtype: torch.dtype) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize / 1e9

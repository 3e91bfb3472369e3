"""Generate the pictures of all prompts, seeds and strengths in batches, on one loaded pipeline."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zimage.core.errors import InputError
from zimage.core.process_group import spread
from zimage.evaluation.generate.denoiser_forward import DenoiserLoader
from zimage.evaluation.generate.image_cache import Request, Sampling
from zimage.model import sequence
from zimage.model.base import Base, open_pipeline, open_text_encoder, resolve
from zimage.model.device import device_and_dtype, free_gb, has_bfloat16_units, processes_on, release, sampling_dtype
from zimage.model.fast.linear import ADAPTER
from zimage.model.memory import USED_SHARE, Fit, fit, footprint_of, usual_batch
from zimage.model.text import embed

logger = logging.getLogger(__name__)

LATENT_PX = 8
FUSED_GB = 0.5  # a transformer (in bfloat16) up to which LoRAs are added to its weights, of which copies are kept


class LoraLoader(Protocol):
    """How a LoRA reaches the weights of a pipeline; it has at most one LoRA at a time."""

    def apply(self, pipeline: Any, lora: Path, strength: float) -> None:
        """Give the pipeline this LoRA at this strength, instead of the one that it has.

        Raises:
            InputError: it does not fit the base model.
        """
        ...

    def remove(self, pipeline: Any) -> None:
        """Give the pipeline the base's own weights back."""
        ...


class UnmergedLoader:
    """Keeps the LoRA apart from the weights, as diffusers' `load_lora_weights` and `set_adapters` do."""

    def __init__(self) -> None:
        self._loaded: Path | None = None

    def apply(self, pipeline: Any, lora: Path, strength: float) -> None:
        """Load the file unless it is loaded, and set its strength."""
        if lora != self._loaded:
            self.remove(pipeline)
            wear(pipeline, lora)
            self._loaded = lora
        pipeline.set_adapters(ADAPTER, strength)

    def remove(self, pipeline: Any) -> None:
        """Unload what is loaded."""
        if self._loaded is not None:
            pipeline.unload_lora_weights()
        self._loaded = None


class FusingLoader:
    """Adds the LoRA to float32 weights, as diffusers' `fuse_lora` does, and unloads its matrices.

    The pictures are those of `UnmergedLoader` but for rounding (one level in 1 of 40,000 values), and a demo's is
    made in 0.8 of the time: thin products are slow. In bfloat16 the sum would be rounded, which is another way of use
    (`zimage.scoring.merging`). The weights that are changed are kept, since subtracting would not give them back.
    """

    def __init__(self) -> None:
        self._fused: tuple[Path, float] | None = None
        self._before: list[tuple[torch.nn.Linear, torch.Tensor]] = []

    def apply(self, pipeline: Any, lora: Path, strength: float) -> None:
        """Add the LoRA at this strength, unless that is there."""
        if self._fused == (lora, strength):
            return
        self.remove(pipeline)
        wear(pipeline, lora)
        pipeline.set_adapters(ADAPTER, strength)
        worn = [module.get_base_layer() for module in pipeline.transformer.modules() if _wears(module)]
        self._before = [(layer, layer.weight.detach().clone()) for layer in worn]
        pipeline.fuse_lora(components=["transformer"], adapter_names=[ADAPTER])
        pipeline.unload_lora_weights()
        self._fused = (lora, strength)

    @torch.no_grad()
    def remove(self, pipeline: Any) -> None:
        """Give the changed layers the weights that they had."""
        for layer, weight in self._before:
            layer.weight.copy_(weight)
        self._before, self._fused = [], None


class Generator:
    """A pipeline that generates pictures with one LoRA after another.

    Args:
        pipeline: diffusers' ZImagePipeline, which needs no text encoder.
        texts: What it reads of each prompt, on its device; of the empty one too where guidance is wanted.
        sampling: Size, steps and guidance of every picture.
        batch_size: Pictures in a batch.
        processes: That share the batches; each picture is the same however many these are.
        loader: How LoRAs reach the weights.
    """

    def __init__(
        self,
        pipeline: Any,
        texts: Mapping[str, torch.Tensor],
        sampling: Sampling,
        batch_size: int,
        *,
        processes: int = 1,
        loader: LoraLoader | None = None,
    ) -> None:
        self._pipeline, self._embeddings, self._sampling, self._at_once = pipeline, texts, sampling, batch_size
        self._processes = processes
        self._loader: LoraLoader = loader or UnmergedLoader()
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()

    def sampling_as(self, sampling: Sampling) -> "Generator":
        """Return a generator of the same weights and texts with another sampling, of pictures that are no larger."""
        return Generator(
            self._pipeline,
            self._embeddings,
            sampling,
            self._at_once,
            processes=self._processes,
            loader=self._loader,
        )

    def pictures(self, requests: Sequence[Request]) -> Iterator[tuple[Request, NDArray[np.uint8]]]:
        """Yield each request with its picture (H, W, 3), batch by batch, one LoRA after the other.

        Raises:
            InputError: a LoRA does not fit the base model.
        """
        batches = list(self._batches(requests))
        for batch, pictures in zip(batches, spread(self._sample, batches, self._processes), strict=True):
            yield from zip(batch, pictures, strict=True)
        self._loader.remove(self._pipeline)

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Yield requests for the same weights whose captions pad to the same length, at most `batch_size` together.

        Such pictures make a batch without an attention mask.
        """
        alike: dict[tuple[str, float, int], list[Request]] = defaultdict(list)
        for request in requests:
            length = sequence.padded(len(self._embeddings[request.text]))
            alike[str(request.lora or ""), request.strength, length].append(request)
        for _, group in sorted(alike.items()):
            for start in range(0, len(group), self._at_once):
                yield group[start : start + self._at_once]

    def _sample(self, batch: Sequence[Request]) -> NDArray[np.uint8]:
        first = batch[0]
        if first.lora is None:
            self._loader.remove(self._pipeline)
        else:
            self._loader.apply(self._pipeline, first.lora, first.strength)
        guided = self._sampling.guidance_scale > 0
        pictures = self._pipeline(
            prompt_embeds=[self._embeddings[request.text] for request in batch],
            negative_prompt_embeds=[self._embeddings[""]] * len(batch) if guided else None,
            latents=torch.stack([self._noise(request) for request in batch]),
            height=self._sampling.side_px,
            width=self._sampling.width_px,
            num_inference_steps=self._sampling.steps,
            guidance_scale=self._sampling.guidance_scale,
            output_type="np",
        ).images  # (B, H, W, 3) in [0, 1]
        return np.asarray((pictures * 255).round().astype(np.uint8))

    def _noise(self, request: Request) -> torch.Tensor:
        """Return the request's noise, made on the CPU so that every device begins with the same."""
        height, width = self._sampling.side_px // LATENT_PX, self._sampling.width_px // LATENT_PX
        generator = torch.Generator("cpu").manual_seed(request.noise_seed)
        return torch.randn((self._pipeline.transformer.in_channels, height, width), generator=generator)


def open_studio(
    base: Base,
    sampling: Sampling,
    texts: Sequence[str],
    *,
    adapters_gb: float,
    dtype: torch.dtype | None = None,
    loader: LoraLoader | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Generator:
    """Return a generator with all prompts read: in bfloat16 where there are units for it, whatever a GPU's size.

    The text encoder is gone before the transformer comes, whose blocks stay on the GPU where they fit beside a picture,
    and travel to it one by one where they do not. That changes no picture.

    Args:
        base: The model.
        sampling: Size, steps and guidance of every picture.
        texts: Of all pictures that will be asked for.
        adapters_gb: What the largest LoRA takes.
        dtype: Of weights and products; None for the machine's.
        loader: How LoRAs reach the weights; None leaves them apart, or adds them to small float32 weights on a CPU,
            which comes to the same (`FusingLoader`). In bfloat16 a CPU computes by `DenoiserForward`.
        prepare: Called with the pipeline before its first picture.
    """
    folder = resolve(base)
    device = device_and_dtype()[0]
    dtype = dtype or sampling_dtype()
    side_px = math.isqrt(sampling.side_px * sampling.width_px - 1) + 1  # of a square as large
    guided = sampling.guidance_scale > 0
    wanted = list(dict.fromkeys([*texts, ""] if guided else texts))
    tokenizer, encoder = open_text_encoder(folder, dtype=torch.float32 if device.type == "cpu" else dtype)
    embeddings = dict(zip(wanted, embed(tokenizer, encoder, wanted, device), strict=True))  # (T, D) each
    del encoder
    release(device)
    if device.type == "cuda":
        found = footprint_of(folder)
        at_first_gb = free_gb(device)
        planned_gb = at_first_gb * USED_SHARE
        chosen = fit(found, side_px, guided=guided, adapters_gb=adapters_gb, planned_gb=planned_gb)
        blocks = "travel" if chosen.travelling else "stay"
        logger.info(
            "%.1f GB free: blocks %s, %d at once, %.1f GB", at_first_gb, blocks, chosen.batch_size, chosen.need_gb
        )
    else:
        chosen = Fit(False, usual_batch(side_px, guided=guided, device=device.type), 0.0)
    pipeline = open_pipeline(folder, device=device, dtype=dtype, travelling=chosen.travelling)
    if device.type == "cpu":
        pipeline.vae.to(memory_format=torch.channels_last)  # its convolutions take 0.8 of the time so
    if prepare is not None:
        prepare(pipeline)
    if loader is None and device.type == "cpu" and dtype == torch.float32 and _is_small(folder):
        loader = FusingLoader()
    if device.type == "cpu" and dtype == torch.bfloat16 and has_bfloat16_units(device):
        loader = DenoiserLoader(loader or UnmergedLoader(), pipeline.transformer)
    return Generator(pipeline, embeddings, sampling, chosen.batch_size, processes=processes_on(device), loader=loader)


def _is_small(folder: Path) -> bool:
    """Return whether a machine's memory has room for the transformer's weights twice."""
    return footprint_of(folder).transformer_gb <= FUSED_GB


def wear(pipeline: Any, lora: Path) -> None:
    """Load a LoRA through diffusers' own loader, and check that every layer of the file is applied.

    Raises:
        InputError: nothing or only a part of the file fits this base model.
    """
    from safetensors import safe_open

    try:
        pipeline.load_lora_weights(str(lora), adapter_name=ADAPTER)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{lora} cannot be loaded on this base model ({_first_line(error)}); train it again."
        ) from error
    with safe_open(str(lora), "pt") as file:
        in_file = {name.rpartition(".lokr_")[0] or name for name in file.keys() if name.endswith(_OF_ONE_LAYER)}  # noqa: SIM118
    placed = sum(_wears(module) for module in pipeline.transformer.modules())
    if placed != len(in_file) or placed == 0:
        raise InputError(
            f"Only {placed} of the {len(in_file)} layers in {lora} fit this base model; train it again on it."
        )


# Keys of which each layer of a file has exactly one.
_OF_ONE_LAYER = (".lora_A.weight", ".lora_down.weight", ".lokr_w1", ".lokr_w1_a")


def _wears(module: Any) -> bool:
    """Return whether a module of the transformer is one of peft's layers that has the LoRA's matrices."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer) and ADAPTER in module.r


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

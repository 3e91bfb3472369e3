"""Generates the pictures of all prompts, seeds and strengths on one loaded pipeline, in batches."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zimage.errors import InputError
from zimage.identity.album import Request, Sampling
from zimage.model.text import embed

logger = logging.getLogger(__name__)

# Captions are padded to multiples of this (huggingface/diffusers@v0.42.1: transformer_z_image.py, SEQ_MULTI_OF);
# pictures whose captions pad to the same length make a batch without an attention mask.
CAPTION_MULTIPLE = 32
# Image tokens in flight: on a CPU more does not pay, and 16 k fill a GPU (four pictures of 1024 px).
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 16384}
PX_PER_TOKEN = 16  # eight by the autoencoder, two by the transformer's patches


class Studio:
    """A pipeline that wears one LoRA after another.

    Args:
        pipeline: diffusers' ZImagePipeline, on its device.
        sampling: Size, steps and guidance of every picture.
    """

    def __init__(self, pipeline: Any, sampling: Sampling) -> None:
        self._pipeline, self._sampling = pipeline, sampling
        self._embeddings: dict[str, torch.Tensor] = {}
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()

    def read(self, texts: Sequence[str]) -> None:
        """Encode all prompts, each once; the text encoder is not needed after that and leaves the GPU."""
        wanted = list(dict.fromkeys([*texts, ""] if self._sampling.guidance_scale > 0 else texts))
        embeddings = embed(self._pipeline.tokenizer, self._pipeline.text_encoder, wanted)
        self._embeddings |= dict(zip(wanted, embeddings, strict=True))  # (T, D) each
        if self._pipeline.device.type == "cuda":
            self._pipeline.text_encoder.to("cpu")
            torch.cuda.empty_cache()

    def pictures(self, requests: Sequence[Request]) -> Iterator[tuple[Request, NDArray[np.uint8]]]:
        """Yield each request with its picture (H, W, 3), batch by batch, one LoRA after the other.

        The prompts must have been read.

        Raises:
            InputError: a LoRA does not fit the base model.
        """
        worn: dict[tuple[Path | None, float], list[Request]] = defaultdict(list)
        for request in requests:
            worn[request.lora, request.strength].append(request)
        loaded: Path | None = None
        for (lora, strength), wanted in sorted(worn.items(), key=lambda item: (str(item[0][0] or ""), item[0][1])):
            if loaded is not None and lora != loaded:
                self._pipeline.unload_lora_weights()
            if lora is not None:
                if lora != loaded:
                    wear(self._pipeline, lora)
                self._pipeline.set_adapters(ADAPTER, strength)
            loaded = lora
            yield from self._batches(wanted)
        if loaded is not None:
            self._pipeline.unload_lora_weights()

    def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[Request, NDArray[np.uint8]]]:
        by_length: dict[int, list[Request]] = defaultdict(list)
        for request in requests:
            by_length[-(-len(self._embeddings[request.text]) // CAPTION_MULTIPLE)].append(request)
        size = self._batch_size()
        for _, alike in sorted(by_length.items()):
            for start in range(0, len(alike), size):
                batch = alike[start : start + size]
                yield from zip(batch, self._sample(batch), strict=True)

    def _sample(self, batch: Sequence[Request]) -> NDArray[np.uint8]:
        guided = self._sampling.guidance_scale > 0
        pictures = self._pipeline(
            prompt_embeds=[self._embeddings[request.text] for request in batch],
            negative_prompt_embeds=[self._embeddings[""]] * len(batch) if guided else None,
            latents=torch.stack([self._noise(request) for request in batch]),
            height=self._sampling.side_px,
            width=self._sampling.side_px,
            num_inference_steps=self._sampling.steps,
            guidance_scale=self._sampling.guidance_scale,
            output_type="np",
        ).images  # (B, H, W, 3) in [0, 1]
        return np.asarray((pictures * 255).round().astype(np.uint8))

    def _noise(self, request: Request) -> torch.Tensor:
        """Return the request's noise, made on the CPU so that every device begins with the same."""
        side = 2 * self._sampling.side_px // PX_PER_TOKEN
        generator = torch.Generator("cpu").manual_seed(request.noise_seed)
        return torch.randn((self._pipeline.transformer.in_channels, side, side), generator=generator)

    def _batch_size(self) -> int:
        tokens = (self._sampling.side_px // PX_PER_TOKEN) ** 2 * (2 if self._sampling.guidance_scale > 0 else 1)
        return max(1, TOKENS_AT_ONCE.get(self._pipeline.device.type, 1024) // tokens)


ADAPTER = "judged"


def wear(pipeline: Any, lora: Path) -> None:
    """Load a LoRA as a user would, and make sure that all of it found a place.

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
        in_file = sum(name.endswith((".lora_A.weight", ".lora_down.weight")) for name in file.keys())  # noqa: SIM118
    placed = sum(name.endswith(f".lora_A.{ADAPTER}.weight") for name, _ in pipeline.transformer.named_parameters())
    if placed != in_file or placed == 0:
        raise InputError(f"Only {placed} of the {in_file} layers in {lora} fit this base model; train it again on it.")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""Measuring what loaders do with a file: diffusers by loading, ComfyUI by its tables."""

import contextlib
from pathlib import Path

import torch
from diffusers.utils import logging
from peft.tuners.lora import Linear
from safetensors.torch import load_file

from tests.lora.dialect_files import Weights, factors_for_every_linear, pipeline_of, tiny_transformer
from zimage.lora.comfyui.names import used_keys


def weights_for(keep: str) -> Weights:
    """Factors for the layers of a tiny Z-Image with `keep` in their name; all layers for an empty text."""
    return factors_for_every_linear(tiny_transformer(), keep=keep)


def layers_applied_by_diffusers(path: Path, weights: Weights, scale: float) -> int:
    """How many layers diffusers changes by exactly `scale` times the weights; 0 where it refuses the file."""
    model = tiny_transformer()
    logging.set_verbosity(logging.CRITICAL)
    # What it raises differs by dialect (KeyError, ValueError, peft's kind of it); each means that nothing loads.
    with contextlib.suppress(ValueError, KeyError):
        pipeline_of(model).load_lora_weights(str(path))
    logging.set_verbosity_warning()
    applied = 0
    for name, layer in model.named_modules():
        if isinstance(layer, Linear) and layer.lora_A:
            (adapter,) = layer.lora_A
            change = layer.get_delta_weight(adapter).double()
            applied += torch.allclose(change, scale * weights[name].change(), rtol=1e-4, atol=1e-5)
    return applied


def keys_used_by_comfyui(path: Path) -> tuple[int, int]:
    """How many of a file's keys ComfyUI applies, and how many there are."""
    keys = load_file(path).keys()
    return len(used_keys(keys)), len(keys)

"""Dialects of LoRA keys: which program writes them, and which loaders read them for Z-Image."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from zimage.lora.files.layers import Layer
from zimage.lora.files.modules import place_of


@dataclass(frozen=True)
class Dialect:
    """A naming scheme of keys."""

    name: str
    writers: str
    example: str


# In the order of the matrix in infra/guide.md; names of the tools' writers as of August 2026.
DIALECTS = (
    Dialect("diffusers", "diffusers, OneTrainer, SimpleTuner", "transformer.X.lora_A.weight"),
    Dialect("portable", "ai-toolkit and this project", "diffusion_model.X.lora_A.weight"),
    Dialect("bare", "scripts without a prefix", "X.lora_A.weight"),
    Dialect("diffsynth", "DiffSynth-Studio", "X.lora_A.default.weight"),
    Dialect("peft", "raw PEFT", "base_model.model.X.lora_A.weight"),
    Dialect("kohya-split", "musubi-tuner", "lora_unet_X.lora_down.weight"),
    Dialect("dotted-kohya", "kohya-like tools with dots", "diffusion_model.X.lora_down.weight"),
    Dialect("lycoris", "LyCORIS, SimpleTuner", "lycoris_X.lora_down.weight"),
    Dialect("onetrainer-legacy", "OneTrainer, older versions", "transformer.X.lora_down.weight"),
    Dialect("lora-transformer", "OneTrainer for other models", "lora_transformer_X.lora_down.weight"),
    Dialect("native", "diffusion-pipe, musubi-tuner's converter", "diffusion_model.…attention.qkv.lora_A.weight"),
    Dialect("kohya-native", "kohya-like tools on the original model", "lora_unet_…_attention_qkv.lora_down.weight"),
    Dialect("kohya-double", "alibaba's Fun-Distill", "lora_unet__X.lora_down.weight"),
)
MIXED = "mixed"
UNNAMED = "unnamed"
_BY_PREFIX = {
    "": "bare",
    "transformer.": "diffusers",
    "diffusion_model.": "portable",
    "model.diffusion_model.": "portable",
    "base_model.model.": "peft",
    "base_model.model.transformer.": "peft",
    "base_model.model.unet.": "peft",
    "lora_unet_": "kohya-split",
    "lora_unet__": "kohya-double",
    "lycoris_": "lycoris",
    "lora_transformer_": "lora-transformer",
    "unet.": "diffusers",
    "pipe.dit.": "diffsynth",
    "dit.": "diffsynth",
}
_IN_NATIVE_NAMES = {"portable": "native", "kohya-split": "kohya-native"}
_WITH_LORA_DOWN = {"portable": "dotted-kohya", "diffusers": "onetrainer-legacy"}
_WITH_DEFAULT = {"bare": "diffsynth"}


def dialect_of(layers: Sequence[Layer]) -> str:
    """Return the dialect of a file's picture-model layers: a name of `DIALECTS`, `mixed`, or `unnamed`."""
    trunk = [layer for layer in layers if not layer.is_text_encoder]
    prefixed = Counter(_BY_PREFIX.get(_bare(layer.prefix), UNNAMED) for layer in trunk)
    if not prefixed:
        return UNNAMED
    if len(prefixed) > 1:
        return MIXED
    name = next(iter(prefixed))
    if any(_is_native(layer) for layer in trunk):
        return _IN_NATIVE_NAMES.get(name, name)
    styles = {layer.style for layer in trunk}
    if "lora_down" in styles:
        name = _WITH_LORA_DOWN.get(name, name)
    if {"lora_A.default", "lora_A.other"} & styles:
        name = _WITH_DEFAULT.get(name, name)
    return name


def foreign_dialect_of(layers: Sequence[Layer]) -> str:
    """Return the dialect of another model's LoRA, by its prefix alone: its tools' details do not matter here."""
    prefixes = {layer.prefix for layer in layers}
    if any(prefix.startswith(("lora_unet_", "lora_te", "lora_prior")) for prefix in prefixes):
        return "kohya"
    named = {_BY_PREFIX.get(prefix, UNNAMED) for prefix in prefixes if not prefix.startswith("text_encoder")}
    return next(iter(named)) if len(named) == 1 else MIXED if named else "diffusers"


def writers_of(dialect: str) -> str:
    """Return the programs that write a dialect, in words."""
    return next((known.writers for known in DIALECTS if known.name == dialect), "nobody known")


def _bare(prefix: str) -> str:
    """Return a prefix without what wrappers of PyTorch put behind it."""
    return re.sub(r"(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|…", "", prefix)


def _is_native(layer: Layer) -> bool:
    place = place_of(layer.module)
    return place is not None and place.naming == "native"

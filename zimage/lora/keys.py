"""Splitting a LoRA file's keys: who wrote it (prefix), which layer it changes (path), which factor it holds (part)."""

import re
from dataclasses import dataclass
from typing import Literal, cast

Part = Literal[
    "down",
    "up",
    "mid",
    "alpha",
    "bias",
    "dora_scale",
    "diff",
    "diff_b",
    "weight",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "unknown",
]
Style = Literal["lora_A", "lora_A.default", "lora_down", "lora.down", "lora_linear_layer", "other"]

# Longest first: what the trainers write and ComfyUI reads (a125cd84:comfy/weight_adapter/{lora,loha,lokr}.py).
_PREFIX = re.compile(
    r"(?:base_model\.model\.(?:transformer\.|unet\.)?|model\.diffusion_model\.|diffusion_model\."
    r"|transformer\.|unet\.|text_encoder(?:_\d)?\.(?:text_model\.)?|text_encoders\."
    r"|lora_transformer_|lora_prior_unet_|lora_unet__|lora_unet_|lora_te\d?_|lycoris_)"
)
TEXT_ENCODER_PREFIX = re.compile(r"lora_te\d?_|text_encoders?(?:_\d)?\.")
_SUFFIXES: tuple[tuple[re.Pattern[str], Style], ...] = (
    (re.compile(r"\.lora_(?P<factor>[AB])(?:\.weight)?$"), "lora_A"),
    (re.compile(r"\.lora_(?P<factor>[AB])\.(?!weight$|bias$)[^.]+(?:\.weight)?$"), "lora_A.default"),
    (re.compile(r"\.lora_(?P<factor>up|down|mid)\.weight$"), "lora_down"),
    (re.compile(r"[._]lora\.(?P<factor>up|down)\.weight$"), "lora.down"),
    (re.compile(r"\.lora_linear_layer\.(?P<factor>up|down)\.weight$"), "lora_linear_layer"),
    (re.compile(r"\.lora_B(?:\.[^.]+)?\.(?P<factor>bias)$"), "lora_A"),
    (re.compile(r"\.(?P<factor>hada_(?:w[12]_[ab]|t[12])|lokr_w[12](?:_[ab])?|lokr_t2)$"), "other"),
    (re.compile(r"\.(?P<factor>alpha|dora_scale|diff|diff_b)$"), "other"),
    (re.compile(r"\.lora_(?P<factor>magnitude_vector)(?:\.[^.]+)?(?:\.weight)?$"), "other"),
    (re.compile(r"\.(?P<factor>weight|bias)$"), "other"),
)
_PARTS = {"A": "down", "B": "up", "magnitude_vector": "dora_scale"}


@dataclass(frozen=True)
class Key:
    """One key of a LoRA file, taken apart."""

    name: str
    prefix: str
    path: str  # the layer's name as written, without prefix
    part: Part
    style: Style

    @property
    def module(self) -> str:
        """The layer's name with every separator an underscore, as all dialects can be compared."""
        return re.sub(r"[.\-/]+", "_", self.path.replace(".processor.", "."))


def split_key(name: str) -> Key:
    """Return the parts of a key; a suffix nobody is known to write makes the part `unknown`."""
    for pattern, style in _SUFFIXES:
        if found := pattern.search(name):
            part = cast(Part, _PARTS.get(found["factor"], found["factor"]))  # the patterns name nothing but parts
            return _with_prefix(name, name[: found.start()], part, style)
    return _with_prefix(name, name, "unknown", "other")


def _with_prefix(name: str, stem: str, part: Part, style: Style) -> Key:
    found = _PREFIX.match(stem)
    prefix = found[0] if found else ""
    return Key(name, prefix, stem[len(prefix) :], part, style)

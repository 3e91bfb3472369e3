"""The strength that diffusers keeps in a LoRA file's metadata, and nowhere else, when alpha is not the rank.

ComfyUI does not read it, so such a file is too strong or too weak there.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zimage.errors import InputError

KEY = (
    "lora_adapter_metadata"  # diffusers 0.42.1:loaders/lora_base.py; peft's LoraConfig, each field after `transformer.`
)


@dataclass(frozen=True)
class Strengths:
    """Alpha as the metadata tells it."""

    alpha: float | None
    patterns: Mapping[str, float]  # by the end of a layer's name
    square_root: bool  # rank-stabilised LoRA: alpha / sqrt(rank), arXiv 2312.03732

    def of(self, path: str, rank: int) -> float:
        """Return the strength of a layer without an alpha of its own; 1 where the metadata says nothing."""
        alpha = next((value for name, value in self.patterns.items() if f".{path}".endswith(f".{name}")), self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.square_root else rank)


def strengths_of(metadata: Mapping[str, str]) -> Strengths:
    """Return what a file's metadata says of strength.

    Raises:
        InputError: the metadata has diffusers' key, but what is under it is not diffusers'.
    """
    if KEY not in metadata:
        return Strengths(None, {}, square_root=False)
    try:
        fields = {name.removeprefix("transformer."): value for name, value in json.loads(metadata[KEY]).items()}
        patterns = {_plain(name): _number(value) for name, value in (fields.get("alpha_pattern") or {}).items()}
        alpha = fields.get("lora_alpha")
        return Strengths(None if alpha is None else _number(alpha), patterns, fields.get("use_rslora") is True)
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise InputError(
            f"The file's {KEY} is not what diffusers writes, so its strength cannot be known; "
            "save it again in the tool that trained it."
        ) from None


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _plain(pattern: str) -> str:
    """A layer's name out of a pattern such as `^layers.0.attention.to_q`; other regular expressions are refused."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.\-]+", name):
        raise ValueError
    return name

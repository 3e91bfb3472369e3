"""Strength (alpha, rsLoRA, patterns) of a LoRA's layers from peft's configuration, in the file or beside it.

peft keeps alpha in its configuration and not among the tensors. diffusers writes that configuration into the file's
metadata (`lora_adapter_metadata`), `save_pretrained` of peft into `adapter_config.json` beside the file. ComfyUI reads
neither, so such a file is too strong or too weak there. The arithmetic is peft 0.21's: tuners/lora/layer.py,
tuners/lokr/layer.py and utils/other.py:get_pattern_key.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import regex  # a match of it can have a time limit

from zimage.core.errors import InputError

METADATA_KEY = "lora_adapter_metadata"  # diffusers 0.42.1:loaders/lora_base.py; each field after `transformer.`
CONFIG_NAME: Final = "adapter_config.json"  # peft:utils/constants.py
MAX_CONFIG_BYTES = 2**20
MAX_PATTERN_LETTERS = 500
MATCH_TIMEOUT_S = 1.0  # a pattern from a stranger's file may need for ever
PEFT_KINDS = {"LoRA": "LORA", "LoHa": "LOHA", "LoKr": "LOKR"}
# Initialisations that also change the base's weights: the file is right only together with that other base.
CHANGES_BASE = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
    "mica": "MiCA",
}

Source = Literal["none", "metadata", "adapter_config.json"]


@dataclass(frozen=True)
class Strengths:
    """What a configuration of peft says of a file's layers.

    Args:
        source: Where it was found.
        config: Its fields, without `transformer.`.
    """

    source: Source = "none"
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changes_base(self) -> str | None:
        """Return the name of an initialisation that changed the base too, or None."""
        how = self.config.get("init_lora_weights")
        if not isinstance(how, str):
            return None
        return next((name for start, name in CHANGES_BASE.items() if how.lower().startswith(start)), None)

    def of(self, path: str, rank: int | None) -> float | None:
        """Return by what the product of a layer's factors is multiplied; None where the configuration says nothing.

        Args:
            path: The layer's name, dotted, without prefix.
            rank: Its factors' rank; None where a form has none (a LoKr of two whole matrices).

        Raises:
            InputError: a pattern cannot be matched, or alpha and rank give no finite strength above zero.
        """
        alpha = self._pattern("alpha_pattern", path, self.config.get("lora_alpha", self.config.get("alpha")))
        if alpha is None:
            return None
        configured = self._pattern("rank_pattern", path, self.config.get("r"))
        divisor = configured if configured is not None else rank
        try:
            number, divisor = float(alpha), float(divisor)  # type: ignore[arg-type]
            strength = number / (math.sqrt(divisor) if self.config.get("use_rslora") is True else divisor)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            strength = math.nan
        if not 0 < strength < math.inf:
            raise _not_peft(self.source)
        return strength

    def _pattern(self, field_name: str, path: str, otherwise: Any) -> Any:
        patterns = self.config.get(field_name) or {}
        if not isinstance(patterns, Mapping):
            raise _not_peft(self.source)
        for pattern, value in patterns.items():
            if _matches(str(pattern), path, self.source):
                return value
        return otherwise


def strengths_of(metadata: Mapping[str, str], path: Path | None = None, *, beside: bool = False) -> Strengths:
    """Return what a file's metadata, or the `adapter_config.json` beside it, says of strength.

    Args:
        metadata: The file's.
        path: The file.
        beside: Whether the file is one of peft's, which an `adapter_config.json` in its folder belongs to.

    Raises:
        InputError: there is a configuration, but it is none of peft's.
    """
    if METADATA_KEY in metadata:
        fields = _object(metadata[METADATA_KEY], "metadata")
        return Strengths("metadata", {name.removeprefix("transformer."): value for name, value in fields.items()})
    config = path.with_name(CONFIG_NAME) if path is not None and beside else None
    if config is None or not config.is_file():
        return Strengths()
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise _not_peft(CONFIG_NAME)
    return Strengths(CONFIG_NAME, _object(config.read_text(encoding="utf-8", errors="replace"), CONFIG_NAME))


def _object(text: str, source: Source) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise _not_peft(source) from None
    if not isinstance(found, dict):
        raise _not_peft(source)
    return found


def _matches(pattern: str, path: str, source: Source) -> bool:
    """Whether peft would apply a pattern to a layer: at its end, after a dot."""
    if len(pattern) > MAX_PATTERN_LETTERS:
        raise _not_peft(source)
    try:
        return regex.match(rf"(.*\.)?({pattern})$", path, timeout=MATCH_TIMEOUT_S) is not None
    except (regex.error, TimeoutError, RecursionError, OverflowError):
        raise _not_peft(source) from None


def _not_peft(source: str) -> InputError:
    where = "The file's lora_adapter_metadata" if source == "metadata" else f"The {CONFIG_NAME} beside the file"
    return InputError(
        f"{where} is not a configuration that peft can have written, so the strength cannot be known; "
        "save the LoRA again in the tool that trained it."
    )

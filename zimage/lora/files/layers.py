"""The layers that a LoRA file changes, read from its header: names, widths and kind of factors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from zimage.lora.files.header import METADATA_KEY, Entry, Header
from zimage.lora.files.keys import TEXT_ENCODER_PREFIX, Key, Part, Style, split_key
from zimage.lora.files.modules import Shape

Kind = Literal[
    "LoRA", "LoCon", "LoHa", "LoKr", "DoRA", "OFT", "GLoRA", "IA3", "T-LoRA", "VeRA", "full weights", "norm", "unknown"
]
_KIND_OF_PART: dict[Part, Kind] = {"oft": "OFT", "glora": "GLoRA", "t_lora": "T-LoRA", "ia3": "IA3", "vera": "VeRA"}
_NORM = re.compile(r"(?:^|_)(?:\w*norm\w*|pad_token)$")
# A layer's strength and magnitude belong to whichever of its adapters there is.
_SHARED: frozenset[Part] = frozenset({"alpha", "dora_scale", "diff_b"})


@dataclass(frozen=True)
class Layer:
    """One layer and the tensors that change it, by one adapter."""

    prefix: str  # as written
    path: str  # as written
    module: str  # with underscores for separators
    style: Style
    adapter: str  # "" where names tell none
    keys: Mapping[Part, str]
    entries: Mapping[Part, Entry]
    kind: Kind
    shape: Shape | None  # (out, in) of the weight it changes; None when the factors do not tell
    rank: int | None  # None where there are no factors

    @property
    def is_text_encoder(self) -> bool:
        """Whether it belongs to a text encoder instead of the picture model."""
        return TEXT_ENCODER_PREFIX.match(self.prefix) is not None

    @property
    def ignores_alpha(self) -> bool:
        """Whether its alpha means nothing: a LoKr of two whole matrices has no rank (lycoris: modules/lokr.py)."""
        return self.kind == "LoKr" and self.rank is None


def layers_of(header: Header) -> list[Layer]:
    """Return the file's layers in the order of its keys; keys of an unknown kind make layers of kind `unknown`.

    A layer that two adapters change (`default` and `ema`, or two ways of writing) is there once for each.
    """
    assert METADATA_KEY not in header.entries
    grouped: dict[tuple[str, str], list[Key]] = {}
    for name in header.entries:
        key = split_key(name)
        grouped.setdefault((key.prefix, key.path), []).append(key)
    return [layer for keys in grouped.values() for layer in _of_one_name(keys, header.entries)]


def _of_one_name(keys: list[Key], entries: Mapping[str, Entry]) -> list[Layer]:
    """Return the layers of keys with the same prefix and path: one for each adapter among them."""
    variants: dict[tuple[Style, str], dict[Part, str]] = {}
    for key in keys:
        if key.style != "other":
            variants.setdefault((key.style, key.adapter), {})[key.part] = key.name
    if not variants:
        variants[("other", "")] = {}
    for key in keys:
        if key.style == "other":
            of_adapter = [parts for (_, adapter), parts in variants.items() if adapter == key.adapter]
            for parts in of_adapter or variants.values():
                # Two keys of one part would hide one another: the second is a layer that nobody can read.
                parts.setdefault(key.part if key.part not in parts else "unknown", key.name)
    first = keys[0]
    return [
        _layer(first, style, adapter, parts, {part: entries[name] for part, name in parts.items()})
        for (style, adapter), parts in variants.items()
    ]


def _layer(key: Key, style: Style, adapter: str, parts: dict[Part, str], entries: dict[Part, Entry]) -> Layer:
    shape, rank = _measures(entries)
    return Layer(
        key.prefix, key.path, key.module, style, adapter, parts, entries, _kind(key.module, entries), shape, rank
    )


def _kind(module: str, entries: Mapping[Part, Entry]) -> Kind:
    for part, kind in _KIND_OF_PART.items():
        if part in entries:
            return kind
    if "dora_scale" in entries or "magnitude" in entries:
        return "DoRA"
    if any(part.startswith("hada_") for part in entries):
        return "LoHa"
    if any(part.startswith("lokr_") for part in entries):
        return "LoKr"
    if "down" in entries or "up" in entries:
        return "LoCon" if "mid" in entries or _has_window(entries.get("down")) else "LoRA"
    if {"w_norm", "b_norm"} & entries.keys() or (_NORM.search(module) and {"diff", "weight"} & entries.keys()):
        return "norm"
    if {"weight", "diff", "set_weight"} & entries.keys() or entries.keys() <= {"bias", "diff_b"}:
        return "full weights"
    return "unknown"


def _has_window(entry: Entry | None) -> bool:
    return entry is not None and len(entry.shape) == 4 and max(entry.shape[2:]) > 1


def _measures(entries: Mapping[Part, Entry]) -> tuple[Shape | None, int | None]:
    shapes = {part: entry.shape for part, entry in entries.items()}
    match shapes:
        case {"down": (rank, width, *_), "up": (out, _, *_)}:
            return (out, width), rank
        case {"hada_w1_a": (out, _), "hada_w1_b": (rank, width)}:
            return (out, width), rank
        case {"weight": (out, width, *_)} | {"diff": (out, width, *_)}:
            return (out, width), None
    if any(part.startswith("lokr_") for part in shapes):
        return _kronecker_measures(shapes)
    return None, None


def _kronecker_measures(shapes: Mapping[Part, tuple[int, ...]]) -> tuple[Shape | None, int | None]:
    sides: list[Shape] = []
    rank = None
    for whole, left, right in (("lokr_w1", "lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b")):
        match [shapes.get(part) for part in (whole, left, right)]:  # type: ignore[call-overload]
            case [(out, width), None, None]:
                sides.append((out, width))
            case [None, (out, inner), (rank_here, width)] if inner == rank_here:
                sides.append((out, width))
                rank = rank_here
            case _:
                return None, None
    return (sides[0][0] * sides[1][0], sides[0][1] * sides[1][1]), rank

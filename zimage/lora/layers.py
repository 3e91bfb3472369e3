"""The layers that a LoRA file changes, as its header alone tells: which, how wide, in which kind of factors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from zimage.lora.header import METADATA_KEY, Entry, Header
from zimage.lora.keys import TEXT_ENCODER_PREFIX, Part, Style, split_key
from zimage.lora.modules import Shape

Kind = Literal["LoRA", "LoCon", "LoHa", "LoKr", "DoRA", "full weights", "unknown"]


@dataclass(frozen=True)
class Layer:
    """One layer and the tensors that change it."""

    prefix: str
    path: str  # as written
    module: str  # with underscores for separators
    style: Style
    keys: Mapping[Part, str]
    kind: Kind
    shape: Shape | None  # (out, in) of the weight it changes; None when the factors do not tell
    rank: int | None  # None where there are no factors

    @property
    def is_text_encoder(self) -> bool:
        """Whether it belongs to a text encoder instead of the picture model."""
        return TEXT_ENCODER_PREFIX.match(self.prefix) is not None


def layers_of(header: Header) -> list[Layer]:
    """Return the file's layers in the order of its keys; keys of an unknown kind make layers of kind `unknown`."""
    assert METADATA_KEY not in header.entries
    grouped: dict[tuple[str, str], dict[Part, str]] = {}
    styles: dict[tuple[str, str], Style] = {}
    modules: dict[tuple[str, str], str] = {}
    for name in header.entries:
        key = split_key(name)
        where = (key.prefix, key.path)
        grouped.setdefault(where, {})[key.part] = name
        modules[where] = key.module
        if styles.get(where, "other") == "other":
            styles[where] = key.style
    layers = []
    for where, keys in grouped.items():
        entries = {part: header.entries[name] for part, name in keys.items()}
        shape, rank = _measures(entries)
        layers.append(Layer(*where, modules[where], styles[where], keys, _kind(entries), shape, rank))
    return layers


def _kind(entries: Mapping[Part, Entry]) -> Kind:
    if "dora_scale" in entries:
        return "DoRA"
    if any(part.startswith("hada_") for part in entries):
        return "LoHa"
    if any(part.startswith("lokr_") for part in entries):
        return "LoKr"
    if "down" in entries or "up" in entries:
        return "LoCon" if "mid" in entries or _has_window(entries.get("down")) else "LoRA"
    if {"weight", "diff"} & entries.keys() or entries.keys() == {"bias"} or entries.keys() == {"diff_b"}:
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

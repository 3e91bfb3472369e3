"""Whether a LoRA file can work on Z-Image: usable, convertible or unusable, why, and what to do instead."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zimage.errors import InputError
from zimage.lora import comfyui_names
from zimage.lora.adapter_metadata import strengths_of
from zimage.lora.dialects import diffusers_reads, writers_of
from zimage.lora.families import Family, FamilyName
from zimage.lora.header import shown
from zimage.lora.layers import Layer
from zimage.lora.modules import NUM_LAYERS, NUM_REFINERS, RELEASED_DIM, place_of, width_of

Word = Literal["usable", "convertible", "unusable"]
Reading = Literal["all", "some", "none"]

RETRAIN = (
    "Train a Z-Image LoRA from the person's photos (`python -m flows personalize`); if only this file is left, "
    "`zimage migrate` lets the old model draw the photos and trains from those."
)
DOWNLOAD_AGAIN = "Download it again or ask its maker; nothing in it can be repaired by renaming."
_ARTICLES: dict[FamilyName, str] = {"SD1.5": "an", "SD2": "an", "SDXL": "an", "SD3": "an", "Ideogram4": "an"}
SAME_NAMES: frozenset[FamilyName] = frozenset({"Lumina2", "Ideogram4"})
_SAYS_Z_IMAGE = re.compile(r"z[-_ ]?image", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """The answer for Z-Image, in words a person can act on."""

    word: Word
    reason: str
    remedy: str
    diffusers: Reading
    comfyui: Reading


def judge(path: Path, layers: Sequence[Layer], family: Family, dialect: str, metadata: Mapping[str, str]) -> Verdict:
    """Return the verdict of a file whose layers, family and dialect are known."""
    if family.name != "Z-Image":
        return _unusable(_foreign_reason(path, layers, family, metadata), RETRAIN)
    if all("weight" in layer.keys or set(layer.keys) == {"bias"} for layer in layers):
        return _unusable(
            "This is a whole Z-Image model (full weights), not a LoRA.",
            "Use it as the base: name its diffusers folder in params.yaml, or load it in ComfyUI's UNETLoader.",
        )
    if fault := _fault(layers):
        return _unusable(fault, DOWNLOAD_AGAIN)
    try:
        hidden = _has_hidden_strength(layers, metadata)
    except InputError as error:
        return _unusable(str(error), "Without its strength it can be neither used nor converted.")
    return _z_image_verdict(layers, dialect, hidden)


def _unusable(reason: str, remedy: str) -> Verdict:
    return Verdict("unusable", reason, remedy, "none", "none")


def _foreign_reason(path: Path, layers: Sequence[Layer], family: Family, metadata: Mapping[str, str]) -> str:
    what = "LoRA of no model known here" if family.name == "unknown" else f"{family.name} LoRA"
    lack = (
        f"its layers carry some of the same names but none is {family.width} wide"
        if family.name in SAME_NAMES
        else "it has no such layers"
    )
    reason = (
        f"This file is {_ARTICLES.get(family.name, 'a')} {what}: it changes {shown(family.needs, 200)}. "
        f"Z-Image is a single-stream transformer of {NUM_LAYERS} layers and width {RELEASED_DIM}; {lack}, "
        f"so none of the file's {len(layers)} layers has a place to go."
    )
    if _SAYS_Z_IMAGE.search(path.stem) or any(_SAYS_Z_IMAGE.search(value[:1000]) for value in metadata.values()):
        reason += " Its name or metadata says Z-Image, but its layers do not."
    return reason


def _fault(layers: Sequence[Layer]) -> str | None:
    """Why these layers cannot be applied to any Z-Image, whatever they are called; None when they can."""
    strangers = [layer for layer in layers if place_of(layer.module) is None or layer.is_text_encoder]
    if strangers:
        return (
            f"{len(strangers)} of its {len(layers)} layers have no place in Z-Image, "
            f"for example {shown(strangers[0].prefix + strangers[0].path)!r}."
        )
    for layer in layers:
        if layer.kind == "unknown" or layer.shape is None:
            keys = ", ".join(shown(name) for name in layer.keys.values())
            return f"The layer {shown(layer.path)!r} is incomplete or of a kind nobody is known to write ({keys})."
    names = [_name(layer) for layer in layers]
    try:
        dim = width_of({name: layer.shape for name, layer in zip(names, layers, strict=True) if layer.shape})
    except InputError as error:
        return str(error)
    if any(name.startswith("siglip") for name in names):
        return "It changes the siglip layers that only Z-Image Omni and Edit have; Base and Turbo have none."
    too_deep = next((name for name in names if dim == RELEASED_DIM and _depth(name) >= _num_blocks(name)), None)
    return f"It changes {too_deep}, but Z-Image ends at layer {_num_blocks(too_deep) - 1} there." if too_deep else None


def _z_image_verdict(layers: Sequence[Layer], dialect: str, hidden_strength: bool) -> Verdict:
    keys = [key for layer in layers for key in layer.keys.values()]
    depth = max((_depth(name) for layer in layers if (name := _name(layer)).startswith("layers.")), default=0)
    used = comfyui_names.used_keys(keys, max(NUM_LAYERS, depth + 1))
    comfyui: Reading = "none" if not used else "all" if len(used) == len(keys) and not hidden_strength else "some"
    diffusers = _diffusers_reading(layers, dialect)
    about = f"This is a Z-Image LoRA with names as written by {writers_of(dialect)}{_size_remark(layers)}"
    kinds = {layer.kind for layer in layers}
    if diffusers == comfyui == "all":
        return Verdict("usable", f"{about}; diffusers and ComfyUI apply every key.", "None needed.", diffusers, comfyui)
    if "DoRA" in kinds:
        return _dora_verdict(about, comfyui)
    lost = [
        f"{loader} applies {'only some of it' if reading == 'some' else 'nothing of it'}"
        for loader, reading in (("diffusers", diffusers), ("ComfyUI", comfyui))
        if reading != "all" and not (hidden_strength and loader == "ComfyUI")
    ]
    if hidden_strength:
        lost.append("ComfyUI does not read the strength (alpha / rank) that is told in its metadata only")
    remedy = "`zimage convert FILE OUT --to portable` makes a file that both apply in full."
    if kinds != {"LoRA"}:
        remedy += " It is exact where the rank allows; otherwise say how much with --rank, and the error is stated."
    return Verdict("convertible", f"{about}; {' and '.join(lost)}.", remedy, diffusers, comfyui)


def _has_hidden_strength(layers: Sequence[Layer], metadata: Mapping[str, str]) -> bool:
    strengths = strengths_of(metadata)
    return any(
        layer.rank is not None and "alpha" not in layer.keys and strengths.of(layer.path, layer.rank) != 1.0
        for layer in layers
    )


def _dora_verdict(about: str, comfyui: Reading) -> Verdict:
    reason = f"{about}, with DoRA magnitudes; diffusers drops those with a warning"
    if comfyui == "all":
        return Verdict("usable", f"{reason}, ComfyUI applies them.", "Use it in ComfyUI only.", "some", comfyui)
    return Verdict(
        "unusable",
        f"{reason}, and ComfyUI does not know these names.",
        "Merge it into the base in the tool that trained it: magnitudes cannot be written as a LoRA.",
        "some",
        comfyui,
    )


def _diffusers_reading(layers: Sequence[Layer], dialect: str) -> Reading:
    if diffusers_reads(layers, dialect):
        return "all"
    return "some" if dialect in {"native", "kohya-native"} else "none"


def _size_remark(layers: Sequence[Layer]) -> str:
    dim = width_of({_name(layer): layer.shape for layer in layers if layer.shape})
    if dim == RELEASED_DIM:
        return ""
    return f", for a small Z-Image of width {dim} (such as the demo's) and not for the released one of {RELEASED_DIM}"


def _name(layer: Layer) -> str:
    place = place_of(layer.module)
    assert place is not None
    return place.name


def _depth(name: str) -> int:
    found = re.match(r"(?:layers|noise_refiner|context_refiner)\.(\d+)\.", name)
    return int(found[1]) if found else 0


def _num_blocks(name: str) -> int:
    return NUM_LAYERS if name.startswith("layers.") else NUM_REFINERS

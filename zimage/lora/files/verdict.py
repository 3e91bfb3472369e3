"""Decide whether a LoRA file can work on Z-Image: usable, convertible or unusable, with reason and remedy."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zimage.core.errors import InputError
from zimage.lora.files.dialects import writers_of
from zimage.lora.files.families import Family, FamilyName
from zimage.lora.files.header import Header, shown
from zimage.lora.files.layers import Layer
from zimage.lora.files.loaders import Loader, LoaderReading, readings
from zimage.lora.files.modules import NUM_LAYERS, RELEASED_DIM, place_of, width_of
from zimage.lora.files.obstacles import Obstacle, is_matrix, obstacles
from zimage.lora.files.strength import strengths_of

Word = Literal["usable", "convertible", "unusable"]

RETRAIN = (
    "Train a Z-Image LoRA from the person's photos (`python -m flows personalize`); if only this file is left, "
    "`zimage migrate` lets the old model draw the photos and trains from those."
)
CONVERT = "`zimage convert FILE --out OUT` makes a file that both apply in full."
NO_LORA = "Put it where the loader of such models looks; a Z-Image LoRA is another, much smaller file."
RANK = "Where no exact form of small rank exists, say how much to keep with `--rank`; the error is stated."
_VOWELS = re.compile(r"SD|[AEIOX]")  # how it is said: an SDXL, an AuraFlow, a Flux
SAME_NAMES: frozenset[FamilyName] = frozenset({"Lumina2", "Ideogram4", "FIBO 2", "OmniGen2"})
_SAYS_Z_IMAGE = re.compile(r"z[-_ ]?image", re.IGNORECASE)
_NOTHING = LoaderReading("none", {})


@dataclass(frozen=True)
class Verdict:
    """The answer for Z-Image, in words a person can act on."""

    word: Word
    reason: str
    remedy: str
    diffusers: LoaderReading = _NOTHING
    comfyui: LoaderReading = _NOTHING
    strengths: tuple[float, ...] = ()  # of layers that only a configuration tells; distinct, ascending


def is_peft(layers: Sequence[Layer]) -> bool:
    """Return whether a file is one that peft saved, with its configuration beside it."""
    return any(layer.prefix.startswith("base_model.model.") for layer in layers)


def judge(path: Path, header: Header, layers: Sequence[Layer], family: Family, dialect: str) -> Verdict:
    """Return the verdict of a file whose layers, family and dialect are known."""
    if family.name != "Z-Image" and is_whole_model(layers):
        return Verdict("unusable", f"This is no LoRA but whole weights: {_whole(layers, family)}.", NO_LORA)
    if family.name != "Z-Image":
        return Verdict("unusable", _foreign_reason(path, layers, family, header.metadata), RETRAIN)
    if is_whole_model(layers):
        return Verdict(
            "unusable",
            "This is a whole Z-Image model (full weights), not a LoRA.",
            "Use it as the base: name its diffusers folder in params.yaml, or load it in ComfyUI's UNETLoader.",
        )
    try:
        strengths = strengths_of(header.metadata, path, beside=is_peft(layers))
        found = obstacles(path, header, layers, strengths)
        if found and found[0].is_damage:
            return Verdict("unusable", found[0].reason, found[0].remedy)
        by = readings(layers, strengths)
        values = sorted({s for layer in layers if (s := strengths.of(layer.path, layer.rank)) is not None})
    except InputError as error:
        return Verdict("unusable", str(error), "Without its strength it can be neither used nor converted.")
    about = f"This is a Z-Image LoRA with names as written by {writers_of(dialect)}{_size_remark(layers)}"
    any_full = any(layer.kind in {"full weights", "LoKr"} and is_matrix(layer) for layer in layers)
    answer = _answer(about, by, found, any_full=any_full, width=_width(layers))
    return replace(answer, strengths=tuple(values))


def not_numbers(names: Sequence[str], num_tensors: int) -> Verdict:
    """Return the verdict of a file in which tensors of these names hold NaN or infinite values."""
    return Verdict(
        "unusable",
        f"{len(names)} of its {num_tensors} tensors hold NaN or infinite values, for example {shown(names[0])!r}; "
        "its training diverged, and any picture made with it is black or noise.",
        "Use an earlier checkpoint, or train again with a lower learning rate.",
    )


def _answer(
    about: str, by: Mapping[Loader, LoaderReading], found: Sequence[Obstacle], *, any_full: bool, width: int | None
) -> Verdict:
    diffusers, comfyui = by["diffusers"], by["comfyui"]
    both = f"{diffusers.sentence('diffusers')} and {comfyui.sentence('comfyui')}"
    if found and found[0].kind == "refused":
        return Verdict("unusable", found[0].reason, found[0].remedy, diffusers, comfyui)
    if diffusers.reading == comfyui.reading == "all" and all(each.kind == "left out" for each in found):
        reason = f"{about}; diffusers and ComfyUI apply every key."
        return Verdict("usable", reason, _remedy_of_width(width), diffusers, comfyui)
    whole = [name for name, reading in (("diffusers", diffusers), ("ComfyUI", comfyui)) if reading.reading == "all"]
    reason = "; ".join([f"{about}; {both}", *(each.reason for each in found)]) + "."
    remedies = [each.remedy for each in found]
    if whole and found and all(each.kind in {"left out", "magnitudes"} for each in found):
        return Verdict("usable", reason, " ".join([f"Use it in {whole[0]} as it is.", *remedies]), diffusers, comfyui)
    if any(each.kind == "magnitudes" for each in found):
        return Verdict("unusable", reason, remedies[0].removeprefix("Otherwise ").capitalize(), diffusers, comfyui)
    if any_full:
        remedies.append(RANK)
    return Verdict("convertible", reason, " ".join([CONVERT, *remedies]), diffusers, comfyui)


def is_whole_model(layers: Sequence[Layer]) -> bool:
    """Whether tensors are weights themselves, as in a checkpoint, and none is a factor or a difference."""
    factors = [layer for layer in layers if layer.kind not in {"full weights", "norm", "unknown"}]
    weights = [layer for layer in layers if {"weight", "bias"} & layer.keys.keys()]
    return not factors and 2 * len(weights) > len(layers)


def _whole(layers: Sequence[Layer], family: Family) -> str:
    """Return what whole weights are of, in words."""
    names = {layer.module for layer in layers}
    if any(re.match(r"(first_stage_model_)?(vae_)?(decoder|encoder)_(mid|up|down|conv_in)", name) for name in names):
        return "an autoencoder (VAE)"
    if any(re.search(r"embed_tokens$|token_embedding$|(^|_)shared$", name) for name in names):
        return "a text encoder"
    return "a model" if family.name in {"unknown", "language model"} else f"a {family.name} model"


def _foreign_reason(path: Path, layers: Sequence[Layer], family: Family, metadata: Mapping[str, str]) -> str:
    what = "LoRA of no model known here" if family.name == "unknown" else f"{family.name} LoRA"
    lack = (
        f"its layers carry some of the same names but none is {family.width} wide"
        if family.name in SAME_NAMES
        else "it has no such layers"
    )
    reason = (
        f"This file is {'an' if _VOWELS.match(what) else 'a'} {what}: it changes {shown(family.needs, 200)}. "
        f"Z-Image is a single-stream transformer of {NUM_LAYERS} layers and width {RELEASED_DIM}; {lack}, "
        f"so none of the file's {len(layers)} layers has a place to go."
    )
    if _SAYS_Z_IMAGE.search(path.stem) or any(_SAYS_Z_IMAGE.search(value[:1000]) for value in metadata.values()):
        reason += " Its name or metadata says Z-Image, but its layers do not."
    return reason


def _width(layers: Sequence[Layer]) -> int | None:
    """Return the width of the model that the layers fit; None where they fit none."""
    try:
        return width_of({_name(layer): layer.shape for layer in layers if is_matrix(layer) and layer.shape})
    except InputError:
        return None


def _remedy_of_width(width: int | None) -> str:
    if width in (None, RELEASED_DIM):
        return "None needed."
    return f"Load it on the model of width {width} that it was trained on; the released Z-Image cannot apply it."


def _size_remark(layers: Sequence[Layer]) -> str:
    dim = _width(layers)
    if dim in (None, RELEASED_DIM):
        return ""
    return f", for a small Z-Image of width {dim} (such as the demo's) and not for the released one of {RELEASED_DIM}"


def _name(layer: Layer) -> str:
    place = place_of(layer.module)
    assert place is not None
    return place.name

"""What prevents the conversion of a LoRA file: a reason to refuse, or a choice for the user.

`inspect` says these sentences and `convert` stops at them, so the two cannot disagree. All of it is decided from the
header; only whether values are NaN shows when they are read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from zimage.core.errors import InputError
from zimage.lora.files.header import Header, read_scalars, shown
from zimage.lora.files.keys import Part
from zimage.lora.files.layers import Layer
from zimage.lora.files.loaders import is_dora_for_both
from zimage.lora.files.modules import NUM_LAYERS, NUM_REFINERS, RELEASED_DIM, place_of, width_of
from zimage.lora.files.strength import CONFIG_NAME, Strengths

Kind = Literal["refused", "magnitudes", "adapter", "alpha", "left out"]
DOWNLOAD_AGAIN = "Download it again or ask its maker; nothing in it can be repaired by renaming."
MERGE_FIRST = "Merge it into the base in the tool that trained it: such a change depends on the base's weights."
# Parts that hold no matrix a portable LoRA has a place for.
EXTRA: frozenset[Part] = frozenset({"bias", "diff_b", "b_norm"})
FOREIGN_KINDS = {
    "OFT": "an orthogonal rotation (OFT or BOFT) of the base's weights",
    "GLoRA": "GLoRA, which multiplies the base's weights",
    "IA3": "IA3, which rescales the base's outputs",
    "T-LoRA": "T-LoRA, whose rank changes with the timestep",
    "VeRA": "VeRA, whose matrices are shared by all layers",
    "LoCon": "a LoRA of convolutions, which Z-Image does not have",
}
# Weights of another model that only metadata tells, with Z-Image's names and widths.
DERIVATIVES = re.compile(r"\b(l2p|zeta[-_ ]?chroma|z[-_ ]?image[-_ ]?(?:omni|edit)|newbie)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Choices:
    """What a person says where a file leaves it open.

    Args:
        adapter: Which adapter of several to take.
        alpha: Which alpha holds: the tensors', the configuration's, or a number for every layer.
        leave_out: Whether what a portable LoRA cannot hold may be left out.
    """

    adapter: str | None = None
    alpha: Literal["tensors", "metadata"] | float | None = None
    leave_out: bool = False


NO_CHOICES = Choices()


@dataclass(frozen=True)
class Obstacle:
    """Why a file is not converted as it is, and what to do."""

    kind: Kind
    reason: str
    remedy: str
    keys: tuple[str, ...] = field(default=())  # what would be left out
    is_damage: bool = False  # the file itself is wrong, so that what loaders make of it says nothing


def obstacles(
    path: Path, header: Header, layers: Sequence[Layer], strengths: Strengths, choices: Choices = NO_CHOICES
) -> list[Obstacle]:
    """Return all that stands between a Z-Image LoRA and a portable file, the gravest first; none where it converts.

    Args:
        path: The file.
        header: Its header.
        layers: Its layers, of a file whose family is Z-Image.
        strengths: What a configuration says of them.
        choices: What has been chosen; a choice that was made is no obstacle any more.
    """
    refusal = _refusal(path, header, layers, strengths)
    if refusal:
        return [refusal]
    found = [
        _magnitudes(layers),
        _several_adapters(layers, choices),
        _two_strengths(path, header, layers, strengths, choices),
        _without_place(layers, choices),
    ]
    return [each for each in found if each is not None]


def adapters_of(layers: Sequence[Layer]) -> list[str]:
    """Return the names of the adapters that change the same layer, in the order of the file; none or several."""
    by_place: dict[str, list[Layer]] = {}
    for layer in layers:
        by_place.setdefault(f"{layer.is_text_encoder}{layer.module}", []).append(layer)
    names = [name_of(layer) for same in by_place.values() if len(same) > 1 for layer in same]
    return list(dict.fromkeys(names))


def name_of(layer: Layer) -> str:
    """Return what an adapter of a file is called: its own name, or that of its suffix."""
    return layer.adapter or f"{layer.prefix}{layer.style}"


def is_matrix(layer: Layer) -> bool:
    """Return whether a layer changes a matrix of the picture model, which a portable LoRA has a place for."""
    place = place_of(layer.module)
    return (
        not layer.is_text_encoder
        and place is not None
        and layer.kind != "norm"
        and not place.name.startswith("siglip")
        and bool(layer.keys.keys() - EXTRA - {"alpha"})
    )


def _refusal(path: Path, header: Header, layers: Sequence[Layer], strengths: Strengths) -> Obstacle | None:
    for check in (_unreadable, _of_another_form, _transposed, _of_other_sizes):
        found = check(layers)
        if found:
            return found
    return _strange_alpha(path, header, layers) or _with_another_base(strengths) or _told_derivative(header.metadata)


def _refused(reason: str, remedy: str = DOWNLOAD_AGAIN, *, is_damage: bool = False) -> Obstacle:
    return Obstacle("refused", reason, remedy, is_damage=is_damage)


def _unreadable(layers: Sequence[Layer]) -> Obstacle | None:
    picture = [layer for layer in layers if not layer.is_text_encoder and layer.kind != "norm"]
    strangers = [layer for layer in picture if place_of(layer.module) is None and not set(layer.keys) <= EXTRA]
    if strangers:
        return _refused(
            f"{len(strangers)} of its {len(layers)} layers have no place in Z-Image, "
            f"for example {shown(strangers[0].prefix + strangers[0].path)!r}."
        )
    for layer in picture:
        if layer.kind == "unknown" or "unknown" in layer.keys or _is_incomplete(layer):
            keys = ", ".join(shown(name) for name in layer.keys.values())
            return _refused(
                f"The layer {shown(layer.path)!r} is incomplete or of a kind nobody is known to write ({keys}).",
                is_damage=True,
            )
    if any(is_matrix(layer) or layer.kind in FOREIGN_KINDS for layer in layers):
        return None
    if any(_is_siglip(layer) for layer in picture):
        return _refused(
            "It changes the siglip layers that only Z-Image Omni and Edit have; Base and Turbo have none.",
            "Use it with the model that it was trained on.",
        )
    return _refused("It changes no matrix of Z-Image, only norms, biases or a text encoder.", "Use it in ComfyUI.")


def _is_incomplete(layer: Layer) -> bool:
    if not is_matrix(layer) or layer.kind in FOREIGN_KINDS:
        return False
    return layer.shape is None


def _of_another_form(layers: Sequence[Layer]) -> Obstacle | None:
    for layer in layers:
        if layer.kind in FOREIGN_KINDS and not layer.is_text_encoder:
            return _refused(f"It is {FOREIGN_KINDS[layer.kind]}; it cannot be written as a LoRA.", MERGE_FIRST)
    windows = [layer for layer in layers if {"mid", "hada_t1", "lokr_t2"} & layer.keys.keys()]
    if windows:
        return _refused(
            f"The layer {shown(windows[0].path)!r} has a factor for convolutions, which Z-Image does not have.",
            is_damage=True,
        )
    return None


def _transposed(layers: Sequence[Layer]) -> Obstacle | None:
    """Factors that do not chain as (rank, in) and (out, rank), but do as MLX keeps them: (in, rank) and (rank, out)."""
    for layer in layers:
        down, up = layer.entries.get("down"), layer.entries.get("up")
        if down is None or up is None or len(down.shape) != 2 or len(up.shape) != 2:
            continue
        chains, chains_transposed = down.shape[0] == up.shape[1], down.shape[1] == up.shape[0]
        if chains_transposed and (not chains or down.shape[1] < down.shape[0]):  # a rank is smaller than a width
            return _refused(
                f"The factors of {shown(layer.path)!r} are transposed: {down.shape} and {up.shape}, as MLX has them, "
                "and neither diffusers nor ComfyUI reads such factors.",
                "Export it as safetensors for PyTorch in the tool that trained it.",
            )
    return None


def _of_other_sizes(layers: Sequence[Layer]) -> Obstacle | None:
    matrices = [layer for layer in layers if is_matrix(layer)]
    names = {_name(layer): layer.shape for layer in matrices if layer.shape}
    try:
        dim = width_of(names)
    except InputError as error:
        return _refused(str(error), is_damage=True)
    too_deep = next((name for name in names if dim == RELEASED_DIM and _depth(name) >= _num_blocks(name)), None)
    if too_deep:
        return _refused(
            f"It changes {too_deep}, but Z-Image ends at layer {_num_blocks(too_deep) - 1} there.",
            "Use it with the model that it was trained on; none of its layers beyond that has a place here.",
        )
    return None


def _strange_alpha(path: Path, header: Header, layers: Sequence[Layer]) -> Obstacle | None:
    # Of a LoKr of two whole matrices alpha means nothing, and ai-toolkit writes infinity.
    with_alpha = [each for each in layers if "alpha" in each.keys and not (each.kind == "LoKr" and each.rank is None)]
    alphas = read_scalars(path, header, [layer.keys["alpha"] for layer in with_alpha])
    for layer in with_alpha:
        alpha = alphas[layer.keys["alpha"]]
        if alpha is None or not 0 < alpha < float("inf"):
            said = "is not one number" if alpha is None else f"is {alpha:g}"
            return _refused(
                f"The alpha of {shown(layer.path)!r} {said}; only a finite number above zero is a strength.",
                is_damage=True,
            )
    return None


def _with_another_base(strengths: Strengths) -> Obstacle | None:
    if strengths.changes_base is None:
        return None
    return _refused(
        f"It was trained with {strengths.changes_base}, which changed the base's weights too: on the released base "
        "this file alone gives another picture.",
        "Convert it with peft first: `model.save_pretrained(OUT, path_initial_model_for_weight_conversion=INITIAL)`, "
        "with the adapter as it was before training in INITIAL, gives a plain LoRA of twice the rank.",
    )


def _told_derivative(metadata: Mapping[str, str]) -> Obstacle | None:
    for name in (
        "modelspec.architecture",
        "ss_base_model_version",
        "base_model",
        "ss_sd_model_name",
        "modelspec.title",
    ):
        found = DERIVATIVES.search(metadata.get(name, "")[:500])
        if found:
            return _refused(
                f"Its metadata says that it was trained for {shown(found[0], 40)} ({name}), a model with Z-Image's "
                "layers and other weights.",
                "Use it with that model; on Z-Image nobody knows what it does.",
            )
    return None


def _magnitudes(layers: Sequence[Layer]) -> Obstacle | None:
    if not any(layer.kind == "DoRA" for layer in layers) or is_dora(layers):
        return None
    return Obstacle(
        "magnitudes",
        "It is DoRA, whose magnitudes depend on the base's weights and cannot be written as a LoRA",
        "Otherwise merge it into a base in the tool that trained it.",
    )


def is_dora(layers: Sequence[Layer]) -> bool:
    """Return whether each layer is a DoRA with the lengths of its rows as peft and as ComfyUI count them.

    Only then can it be written in other dialects without the base's weights.
    """
    return all(layer.kind == "DoRA" and is_dora_for_both(layer) for layer in layers)


def _several_adapters(layers: Sequence[Layer], choices: Choices) -> Obstacle | None:
    names = adapters_of(layers)
    if not names or choices.adapter in names:
        return None
    listed = " and ".join(shown(name, 40) for name in names)
    return Obstacle(
        "adapter",
        f"It holds several adapters of the same layers: {listed}",
        f"Say which one to take with `--adapter`: {', '.join(shown(name, 40) for name in names)}.",
    )


def _two_strengths(
    path: Path, header: Header, layers: Sequence[Layer], strengths: Strengths, choices: Choices
) -> Obstacle | None:
    if choices.alpha is not None:
        return None
    pairs = [layer for layer in layers if is_matrix(layer) and layer.kind != "full weights"]
    both = [layer for layer in pairs if strengths.source != "none" and "alpha" in layer.keys]
    alphas = read_scalars(path, header, [layer.keys["alpha"] for layer in both])
    for layer in both:
        configured = strengths.of(layer.path, layer.rank)
        if configured is None or layer.rank is None:
            continue
        alpha = alphas[layer.keys["alpha"]]
        if alpha is not None and abs(alpha / layer.rank - configured) > 1e-6 * configured:
            return Obstacle(
                "alpha",
                f"Its tensors say a strength of {alpha / layer.rank:g} and its {strengths.source} {configured:g} "
                f"for {shown(layer.path)!r}, and loaders differ in which they follow",
                "Say which holds with `--alpha tensors` or `--alpha metadata`.",
            )
    peft = [layer for layer in pairs if layer.prefix.startswith("base_model.model.") and "alpha" not in layer.keys]
    if peft and strengths.source == "none":
        return Obstacle(
            "alpha",
            f"Its names are peft's, which keeps the strength in {CONFIG_NAME}, and there is none beside the file",
            f"Put {CONFIG_NAME} into its folder, or say the alpha of all layers with `--alpha NUMBER`.",
        )
    return None


def _without_place(layers: Sequence[Layer], choices: Choices) -> Obstacle | None:
    if choices.leave_out:
        return None
    picture = [layer for layer in layers if not layer.is_text_encoder]
    lost: list[str] = []
    words: list[str] = []
    for what, keys in (
        ("of the text encoder", [key for layer in layers if layer.is_text_encoder for key in _keys(layer)]),
        ("of norms", [key for layer in picture if layer.kind == "norm" for key in _keys(layer)]),
        ("of biases", [layer.keys[part] for layer in picture for part in EXTRA & layer.keys.keys()]),
        ("of Omni's and Edit's siglip layers", [key for layer in picture if _is_siglip(layer) for key in _keys(layer)]),
    ):
        if keys:
            words.append(f"{len(keys)} {what}")
            lost += keys
    if not lost:
        return None
    return Obstacle(
        "left out",
        f"A portable LoRA has no place for {len(lost)} of its keys: {', '.join(words)}, such as {shown(lost[0])!r}",
        "`--leave-out` converts it without them.",
        tuple(lost),
    )


def _keys(layer: Layer) -> list[str]:
    return list(layer.keys.values())


def _is_siglip(layer: Layer) -> bool:
    place = place_of(layer.module)
    return place is not None and place.name.startswith("siglip")


def _name(layer: Layer) -> str:
    place = place_of(layer.module)
    assert place is not None
    return place.name


def _depth(name: str) -> int:
    found = re.match(r"(?:layers|noise_refiner|context_refiner)\.(\d+)\.", name)
    return int(found[1]) if found else 0


def _num_blocks(name: str) -> int:
    return NUM_LAYERS if name.startswith("layers.") else NUM_REFINERS

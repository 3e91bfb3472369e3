"""Read a LoRA file of any dialect as changes of Z-Image's layers, without dropping any."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zimage.core.errors import InputError
from zimage.lora.convert.change import Change, Dense, Hadamard, is_finite, thirds, wide, written_out
from zimage.lora.files.dialects import dialect_of
from zimage.lora.files.families import recognise
from zimage.lora.files.header import Header, LoraFileError, read_header, shown
from zimage.lora.files.inspection import inspect_file
from zimage.lora.files.keys import Part
from zimage.lora.files.layers import Layer, layers_of
from zimage.lora.files.modules import QKV, QKV_PARTS, place_of
from zimage.lora.files.obstacles import EXTRA, NO_CHOICES, Choices, adapters_of, is_dora, is_matrix, name_of, obstacles
from zimage.lora.files.portable import Decomposed, Factors, Kronecker
from zimage.lora.files.strength import Strengths, strengths_of
from zimage.lora.files.verdict import is_peft, is_whole_model

_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NO_FACTORS: frozenset[Part] = EXTRA | {"alpha", "dora_scale", "magnitude"}
SAME_CHANGE = 1e-4  # of its size: two ways of writing one change, each rounded by itself


@dataclass(frozen=True)
class LoraFile:
    """A LoRA for Z-Image: diffusers' layer names to what happens to their weights, strength included."""

    changes: Mapping[str, Change]
    metadata: Mapping[str, str]
    dtype: torch.dtype  # of the file's factors, the widest
    dialect: str = ""  # in which the file is written
    is_dora: bool = False  # then each change is a `Decomposed`


def read_lora(path: Path, choices: Choices = NO_CHOICES) -> LoraFile:
    """Return what a LoRA file does to Z-Image, whatever its dialect; layers are read when they are asked for.

    Args:
        path: The file.
        choices: What a person says where the file leaves it open; see `zimage.lora.files.obstacles`.

    Raises:
        LoraFileError: it is no believable safetensors file.
        InputError: it was made for another model, a choice has to be made first (adapter, alpha, what to leave out),
            factors are missing or do not belong together, a form cannot be expressed (DoRA), or values are NaN or
            infinite. The sentences are those of `zimage inspect`.
    """
    header = read_header(path)
    layers = layers_of(header)
    family = recognise(layers)
    if family.name != "Z-Image":
        raise InputError(f"{path}: {inspect_file(path).reason} See `zimage inspect`.")
    if is_whole_model(layers):
        raise InputError(f"{path}: {inspect_file(path).reason} {inspect_file(path).remedy}")
    strengths = strengths_of(header.metadata, path, beside=is_peft(layers))
    if found := obstacles(path, header, layers, strengths, choices):
        raise InputError(f"{path}: {found[0].reason.removesuffix('.')}. {found[0].remedy}")
    several = adapters_of(layers)
    chosen = [layer for layer in layers if is_matrix(layer) and _is_chosen(layer, several, choices)]
    factors = [name for layer in chosen for part, name in layer.keys.items() if part not in NO_FACTORS]
    if not factors:
        raise InputError(f"{path}: {inspect_file(path).reason} {inspect_file(path).remedy}")
    dtypes = {header.entries[name].dtype for name in factors}
    if strange := dtypes - _DTYPES.keys():
        raise InputError(f"{path} stores weights as {', '.join(sorted(strange))}; known are {', '.join(_DTYPES)}.")
    widest = max((_DTYPES[dtype] for dtype in dtypes), key=lambda dtype: dtype.itemsize)
    changes = _Changes(path, header, chosen, _Strength(strengths, choices))
    dtype = widest if widest.itemsize > 1 else torch.bfloat16
    return LoraFile(changes, header.metadata, dtype, dialect_of(layers), is_dora(chosen))


class _Changes(Mapping[str, Change]):
    """The changes of a file by diffusers' layer name, each read when it is asked for: one layer is in memory at a time.

    Asking raises InputError where values are NaN or infinite, or factors do not belong together.
    """

    def __init__(self, path: Path, header: Header, layers: Sequence[Layer], strength: "_Strength") -> None:
        self._path, self._header, self._strength = path, header, strength
        self._layers: dict[str, list[Layer]] = {}
        for layer in layers:
            for name in _names_of(layer):
                self._layers.setdefault(name, []).append(layer)
        self._last: tuple[Layer | None, dict[str, Change]] = (None, {})  # a fused qkv is asked for three times

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, name: str) -> Change:
        first, *others = (self._changes_of(layer)[name] for layer in self._layers[name])
        if not all(_are_equal(first, other) for other in others):
            raise InputError(f"{self._path} changes {name} twice, under different names; keep one of the two.")
        return first

    def _changes_of(self, layer: Layer) -> dict[str, Change]:
        if self._last[0] is not layer:
            self._last = layer, self._read(layer)
        return self._last[1]

    def _read(self, layer: Layer) -> dict[str, Change]:
        kept = {part: name for part, name in layer.keys.items() if part not in EXTRA}
        try:
            with self._path.open("rb") as file:
                tensors = {part: self._tensor(file, layer, part, name) for part, name in kept.items()}
        except OSError as error:
            raise LoraFileError(f"{self._path} cannot be read ({error.strerror}); try again.") from None
        return _changes_of(self._path, layer, tensors, self._strength)

    def _tensor(self, file: BufferedReader, layer: Layer, part: Part, name: str) -> Tensor:
        """Return one tensor; its header was checked against the file's size."""
        if part == "alpha" and layer.ignores_alpha:
            return torch.ones(())  # it may be infinite
        entry = self._header.entries[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise InputError(f"{self._path} stores {shown(name)!r} as {entry.dtype}; known are {', '.join(_DTYPES)}.")
        size = entry.stop - entry.start
        file.seek(self._header.data_start + entry.start)
        content = np.fromfile(file, dtype=np.uint8, count=size)
        if content.size != size:
            raise LoraFileError(f"{self._path} became shorter while it was read; try again when it is complete.")
        return _finite(self._path, name, torch.from_numpy(content).view(dtype).reshape(entry.shape))


def _names_of(layer: Layer) -> list[str]:
    """Return the layers of diffusers whose weights a layer of a file changes."""
    place = place_of(layer.module)
    assert place is not None
    block = place.name.removesuffix(QKV)
    return [block + part for part in QKV_PARTS] if place.name.endswith(QKV) else [place.name]


def _is_chosen(layer: Layer, several: list[str], choices: Choices) -> bool:
    """Whether a layer is of the adapter that was chosen, where several change the same."""
    return name_of(layer) not in several or name_of(layer) == choices.adapter


def _are_equal(one: Change, other: Change) -> bool:
    """Whether two ways of writing say the same: some tools write the fused and the split names side by side."""
    if isinstance(one, Decomposed) or isinstance(other, Decomposed):
        return False
    first, second = written_out(one), written_out(other)
    return first.shape == second.shape and float((first - second).norm()) <= SAME_CHANGE * float(first.norm())


@dataclass(frozen=True)
class _Strength:
    """By what a layer's product is multiplied, from its own alpha, a configuration or a person's word."""

    config: Strengths
    choices: Choices

    def of(self, layer: Layer, alpha: float | None, rank: int | None) -> float:
        if isinstance(self.choices.alpha, float) and rank is not None:
            return self.choices.alpha / rank
        configured = self.config.of(layer.path, rank)
        if configured is not None and (alpha is None or self.choices.alpha == "metadata"):
            return configured
        return alpha / rank if alpha is not None and rank is not None else 1.0


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor as it is, eight bits widened, unless it holds NaN or infinity."""
    values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    if not is_finite(values):
        raise InputError(f"{path}: {shown(name)!r} holds NaN or infinity; use an earlier checkpoint of it.")
    return values


def _changes_of(path: Path, layer: Layer, tensors: Mapping[Part, Tensor], strength: _Strength) -> dict[str, Change]:
    place = place_of(layer.module)
    assert place is not None
    change = _change_of(path, layer, tensors, strength)
    if not place.name.endswith(QKV):
        return {place.name: change}
    block = place.name.removesuffix(QKV)
    parts = thirds(change)
    if len(parts) != 3:
        raise InputError(f"{path}: the rows of {shown(layer.path)!r} do not split into q, k and v.")
    return {block + part: change for part, change in zip(QKV_PARTS, parts, strict=True)}


def _change_of(path: Path, layer: Layer, tensors: Mapping[Part, Tensor], strength: _Strength) -> Change:
    weights = dict(tensors)
    alpha = weights.pop("alpha", None)
    if alpha is not None and alpha.numel() != 1:
        raise InputError(f"{path}: the alpha of {shown(layer.path)!r} is not one number but {tuple(alpha.shape)}.")
    try:
        return _of_form(layer, weights, float(alpha) if alpha is not None else None, strength)
    except (ValueError, RuntimeError, IndexError):
        parts = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in weights.items())
        raise InputError(f"{path}: the factors of {shown(layer.path)!r} do not belong together ({parts}).") from None


def _of_form(layer: Layer, weights: dict[Part, Tensor], alpha: float | None, strength: _Strength) -> Change:
    """The change of one layer; ValueError when the parts are not a whole form or their shapes do not fit."""
    match weights:
        case {"down": down, "up": up, **rest} if not rest:
            pair = _checked(Factors(_flat(down), _flat(up)))
            return _times(strength.of(layer, alpha, len(pair.down)), pair)
        case {"down": down, "up": up, "magnitude": magnitude, "dora_scale": scale, **rest} if not rest:
            pair = _checked(Factors(_flat(down), _flat(up)))
            if magnitude.numel() != len(pair.up) or scale.shape != (len(pair.up), 1):
                raise ValueError
            return Decomposed(_times(strength.of(layer, alpha, len(pair.down)), pair), magnitude.flatten(), scale)
        case {"hada_w1_a": up1, "hada_w1_b": down1, "hada_w2_a": up2, "hada_w2_b": down2, **rest} if not rest:
            first, second = _checked(Factors(down1, up1)), _checked(Factors(down2, up2))
            if first.up.shape[0] != second.up.shape[0] or first.down.shape[1] != second.down.shape[1]:
                raise ValueError
            return Hadamard(_times(strength.of(layer, alpha, len(first.down)), first), second)
        case {"diff": weight, **rest} if not rest and alpha is None and weight.ndim == 2 and weight.numel():
            return Dense(weight)
        case lokr if all(part.startswith("lokr_") for part in lokr):
            return _kronecker(layer, lokr, alpha, strength)
    raise ValueError


def _kronecker(layer: Layer, weights: dict[Part, Tensor], alpha: float | None, strength: _Strength) -> Kronecker:
    sides, rank = [], None
    parts = {str(part): tensor for part, tensor in weights.items()}
    for whole, left, right in (("lokr_w1", "lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b")):
        match [weights.pop(part, None) for part in (whole, left, right)]:  # type: ignore[call-overload]
            case [Tensor() as tensor, None, None]:
                sides.append(tensor)
            case [None, Tensor() as up, Tensor() as down]:
                sides.append(_checked(Factors(down, up)).change())
                rank = len(down)  # the second matrix's, where both have one: lycoris and ComfyUI agree
            case _:
                raise ValueError
    if weights or any(side.ndim != 2 or not side.numel() for side in sides):
        raise ValueError
    # With both matrices whole there is no rank, and alpha means nothing (lycoris: modules/lokr.py).
    scale = strength.of(layer, alpha if rank is not None else None, rank)
    first = "lokr_w1" if "lokr_w1" in parts else "lokr_w1_a"
    if scale != 1.0:
        parts[first] = wide(parts[first]) * scale
    return Kronecker(wide(sides[0]) * scale, sides[1], parts)


def _times(strength: float, factors: Factors) -> Factors:
    """Return factors times a strength: in their own dtype where it is 1, else in float32 or wider."""
    if strength == 1.0:
        return factors
    return Factors(wide(factors.down) * strength, factors.up)


def _flat(tensor: Tensor) -> Tensor:
    """A factor of a convolution with a 1x1 window is a matrix; kohya's tools store linear layers so for some models."""
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor


def _checked(factors: Factors) -> Factors:
    down, up = factors
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise ValueError
    return factors

"""Inspect a LoRA file: family, dialect, strength, NaN or infinite values, and whether it can work on Z-Image."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from zimage.core.process import without_collections
from zimage.lora.files.dialects import dialect_of, foreign_dialect_of, writers_of
from zimage.lora.files.families import FamilyName, recognise
from zimage.lora.files.header import Entry, Header, read_header, read_scalars, shown
from zimage.lora.files.layers import Kind, Layer, layers_of
from zimage.lora.files.loaders import Reading
from zimage.lora.files.verdict import Word, judge, not_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray


CHUNK_BYTES = 16 * 2**20
# Of dtypes that numpy has no numbers for: the unsigned integers to read, and the bits that are all set in NaN and
# infinity (float8_e4m3fn has no infinity, and its only NaN has all of them set).
_BITS = {"BF16": ("<u2", 0x7F80), "F8_E5M2": ("u1", 0x7C), "F8_E4M3": ("u1", 0x7F)}
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def not_finite(path: Path, header: Header) -> list[str]:
    """Return the names of the tensors that hold NaN or infinite values, in the order of the file."""
    with path.open("rb") as file:
        found = []
        for name, entry in header.entries.items():
            file.seek(header.data_start + entry.start)
            if any(_has_other(chunk, entry.dtype) for chunk in _chunks(file, entry)):
                found.append(name)
    return found


def _chunks(file: Any, entry: Entry) -> Iterator[bytes]:
    left = entry.stop - entry.start if entry.dtype in {*_BITS, *_FLOATS} else 0
    while left:
        chunk: bytes = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            return
        left -= len(chunk)
        yield chunk


def _has_other(chunk: bytes, dtype: str) -> bool:
    import numpy as np

    if dtype in _FLOATS:
        return not bool(np.isfinite(np.frombuffer(chunk, _FLOATS[dtype])).all())
    kind, mask = _BITS[dtype]
    bits: NDArray[Any] = np.frombuffer(chunk, kind)
    return bool(((bits & mask) == mask).any())


N = TypeVar("N", int, float)
MOST_BYTES_READ = 4_000_000_000  # of weights, in seconds; a LoRA of rank 128 for all layers has 0.8 GB

# Training metadata worth showing: kohya's ss_*, ModelSpec's, ai-toolkit's and our own, without the long tables.
_METADATA_SHOWN = re.compile(
    r"modelspec\.(?!thumbnail)\w+|zimage\.\w+|name|version|software|format|lora_adapter_metadata|training_info"
    r"|ss_(base_model_version|sd_model_name|network_(module|dim|alpha)|learning_rate|num_train_images|num_epochs|steps"
    r"|max_train_steps|output_name|resolution|seed|optimizer|training_started_at)"
)
_ROLES = (
    (re.compile(r"attn|attention"), "attention"),
    (re.compile(r"feed_forward|_ff_|_mlp|linear[12]$"), "feed-forward"),
    (re.compile(r"adaLN|adaln|norm|mod"), "modulation"),
)


class Target(BaseModel):
    """How many layers of one stack and role the file changes."""

    model_config = ConfigDict(frozen=True)

    block: str
    role: str
    layers: int


class Inspection(BaseModel):
    """The result of `zimage inspect` for a file."""

    model_config = ConfigDict(frozen=True)

    file: str
    num_bytes: int
    family: FamilyName
    dialect: str
    written_by: str
    kind: Kind | Literal["mixed"]
    rank: int | list[int] | None
    alpha: float | list[float] | None
    strength: float | list[float] | None  # alpha / rank as its configuration tells it, where one does
    dtype: list[str]
    num_tensors: int
    finite: bool | None
    """Whether all weights are numbers; None where they were not read."""
    targets: list[Target]
    metadata: dict[str, str]
    diffusers: Reading
    comfyui: Reading
    verdict: Word
    reason: str
    remedy: str


def inspect_file(path: Path) -> Inspection:
    """Return what a safetensors file is and whether it can work on Z-Image.

    Raises:
        LoraFileError: see `zimage.lora.files.header.read_header`.
    """
    with without_collections():
        return _inspected(path)


def _inspected(path: Path) -> Inspection:
    header = read_header(path)
    layers = layers_of(header)
    family = recognise(layers)
    dialect = dialect_of(layers) if family.name == "Z-Image" else foreign_dialect_of(layers)
    kinds = {layer.kind for layer in layers}
    kind = next(iter(kinds)) if len(kinds) == 1 else _mixed_kind(kinds)
    verdict = judge(path, header, layers, family, dialect)
    finite = None
    if verdict.word != "unusable" and header.num_bytes <= MOST_BYTES_READ:
        ignored = {layer.keys["alpha"] for layer in layers if layer.ignores_alpha and "alpha" in layer.keys}
        broken = [name for name in not_finite(path, header) if name not in ignored]
        finite = not broken
        if broken:
            verdict = not_numbers(broken, len(header.entries))
    return Inspection(
        file=str(path),
        num_bytes=header.num_bytes,
        family=family.name,
        dialect=dialect,
        written_by=writers_of(dialect),
        kind=kind,
        rank=_one_or_all([layer.rank for layer in layers if layer.rank is not None]),
        alpha=_one_or_all(_alphas(path, header, layers)),
        strength=_one_or_all(verdict.strengths),
        dtype=sorted({entry.dtype for entry in header.entries.values()}),
        num_tensors=len(header.entries),
        targets=_targets(layers),
        finite=finite,
        metadata={
            shown(name): shown(value, 200) for name, value in header.metadata.items() if _METADATA_SHOWN.fullmatch(name)
        },
        diffusers=verdict.diffusers.reading,
        comfyui=verdict.comfyui.reading,
        verdict=verdict.word,
        reason=verdict.reason,
        remedy=verdict.remedy,
    )


def _mixed_kind(kinds: set[Kind]) -> Kind | Literal["mixed"]:
    # A LoCon is a LoRA that changes convolutions too; a DoRA may leave some layers undecomposed.
    for name, parts in (("LoCon", {"LoRA", "LoCon"}), ("DoRA", {"LoRA", "DoRA"}), ("DoRA", {"LoRA", "LoCon", "DoRA"})):
        if kinds == parts:
            return name  # type: ignore[return-value]
    return "mixed"


def _one_or_all(values: Sequence[N]) -> N | list[N] | None:
    distinct = sorted(set(values))
    return distinct[0] if len(distinct) == 1 else distinct or None


def _alphas(path: Path, header: Header, layers: Sequence[Layer]) -> list[float]:
    alphas = read_scalars(path, header, [layer.keys["alpha"] for layer in layers if "alpha" in layer.keys])
    return [alpha for alpha in alphas.values() if alpha is not None and math.isfinite(alpha)]


def _targets(layers: Sequence[Layer]) -> list[Target]:
    counts = Counter((_block_of(layer), _role_of(layer)) for layer in layers)
    return [Target(block=block, role=role, layers=count) for (block, role), count in counts.items()]


def _block_of(layer: Layer) -> str:
    if layer.is_text_encoder:
        return f"text encoder {layer.prefix[7:8] if layer.prefix[7:8].isdigit() else ''}".strip()
    return shown(re.split(r"_\d", layer.module, maxsplit=1)[0], 40)


def _role_of(layer: Layer) -> str:
    return next((role for pattern, role in _ROLES if pattern.search(layer.module)), "other")

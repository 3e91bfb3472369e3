"""Whether the numbers in a LoRA file are numbers: a training that diverged leaves NaN, which draws black pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zimage.lora.header import Entry, Header

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

"""Parse the header of an untrusted safetensors file without reading the weights.

The format (github.com/huggingface/safetensors@v0.8.0:README.md): eight bytes with the length of a JSON object, the
object (tensor name to dtype, shape and data offsets; `__metadata__` with strings), then the tensors without holes.
"""

import json
import math
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from zimage.core.errors import InputError

# The largest headers of real LoRA files, with a training tool's tag statistics in them, are a few MB.
MAX_HEADER_BYTES = 16 * 2**20
MAX_DIMENSIONS = 8
HEAD_BYTES = 256
METADATA_KEY = "__metadata__"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
# Bits per value, safetensors@v0.8.0:safetensors/src/tensor.rs, enum Dtype.
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_SCALARS = {"F16": "<e", "F32": "<f", "F64": "<d", "I8": "<b", "U8": "<B", "I16": "<h", "I32": "<i", "I64": "<q"}
# Of eight-bit floats: bits of the exponent, its bias, and whether they have infinity.
_SMALL_FLOATS = {"F8_E4M3": (4, 7, False), "F8_E5M2": (5, 15, True)}


class LoraFileError(InputError):
    """The file is no safetensors file that can be believed; nothing of its weights was read."""


@dataclass(frozen=True)
class Entry:
    """What the header says of one tensor; `start` and `stop` are bytes behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A header whose every claim has been checked against the file's size."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int
    num_bytes: int


def shown(text: str, limit: int = 96) -> str:
    """Return a name from a file as it may be printed: no control characters, no broken Unicode, not endless."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[: limit + 1])
    return clean if len(clean) <= limit else f"{clean[:limit]}…"


def read_header(path: Path) -> Header:
    """Return the checked header of a safetensors file; at most `MAX_HEADER_BYTES` are read, whatever its size.

    Raises:
        LoraFileError: no such file, a pickle (never opened), or a header that is truncated, too long, not JSON, lies
            about sizes, has holes, overlaps or a name twice; one sentence with what to do.
    """
    num_bytes = _size_of(path)
    try:
        with path.open("rb") as file:
            content = _json_bytes(path, file, num_bytes)
    except OSError as error:
        raise LoraFileError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    raw = _parsed(path, content)
    metadata = _metadata(path, {} if (given := raw.pop(METADATA_KEY, None)) is None else given)
    entries = {name: _entry(path, name, fields) for name, fields in raw.items()}
    if not entries:
        raise LoraFileError(f"{path} holds no tensors; it is an empty safetensors file: save or download it again.")
    data_start = 8 + len(content)
    _check_layout(path, entries, num_bytes - data_start)
    return Header(entries, metadata, data_start, num_bytes)


def read_scalars(path: Path, header: Header, names: Iterable[str]) -> dict[str, float | None]:
    """Return the values of tensors of one number (alphas); None for one that is not one number of a common dtype."""
    with path.open("rb") as file:
        return {name: _scalar(file, header, header.entries[name]) for name in names}


def _scalar(file: BinaryIO, header: Header, entry: Entry) -> float | None:
    if math.prod(entry.shape) != 1 or entry.dtype not in {*_SCALARS, *_SMALL_FLOATS, "BF16"}:
        return None
    file.seek(header.data_start + entry.start)
    content = file.read(entry.stop - entry.start)
    if entry.dtype == "BF16":
        return float(struct.unpack("<f", b"\0\0" + content)[0])
    if entry.dtype in _SMALL_FLOATS:
        bits, bias, has_infinity = _SMALL_FLOATS[entry.dtype]
        return _small_float(content[0], bits, bias, has_infinity=has_infinity)
    return float(struct.unpack(_SCALARS[entry.dtype], content)[0])


def _small_float(byte: int, exponent_bits: int, bias: int, *, has_infinity: bool) -> float:
    """Return the number that eight bits are (OCP 8-bit floating point 1.0): sign, exponent, fraction."""
    fraction_bits = 7 - exponent_bits
    exponent, fraction = (byte >> fraction_bits) & (2**exponent_bits - 1), byte & (2**fraction_bits - 1)
    sign, top = -1.0 if byte & 128 else 1.0, exponent == 2**exponent_bits - 1
    if top and (has_infinity or fraction == 2**fraction_bits - 1):
        return sign * math.inf if has_infinity and fraction == 0 else math.nan
    if exponent == 0:
        return float(sign * fraction * 2.0 ** (1 - bias - fraction_bits))
    return float(sign * (1 + fraction / 2**fraction_bits) * 2.0 ** (exponent - bias))


def _size_of(path: Path) -> int:
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise LoraFileError(
            f"{path} was not opened: a {path.suffix} file is a pickle, which can run code when it is loaded; "
            "ask for the .safetensors version of it."
        )
    try:
        status = path.stat()
    except OSError as error:
        raise LoraFileError(f"{path} cannot be read ({error.strerror}); check the name.") from None
    if stat.S_ISDIR(status.st_mode):
        raise LoraFileError(f"{path} is a folder; name the .safetensors file inside it.")
    if not stat.S_ISREG(status.st_mode):
        raise LoraFileError(f"{path} is not an ordinary file; expected a .safetensors file.")
    return status.st_size


def _json_bytes(path: Path, file: BinaryIO, num_bytes: int) -> bytes:
    if num_bytes == 0:
        raise LoraFileError(f"{path} is empty; download it again.")
    start = file.read(8)
    _refuse_text(path, start + file.read(HEAD_BYTES))
    file.seek(8)
    length = int.from_bytes(start, "little")
    # A length can begin like a pickle does (66,176 does); what would be a header after it then ends the doubt.
    if not (2 <= length <= num_bytes - 8 and file.read(1) == b"{"):
        if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
            raise LoraFileError(f"{path} is a pickle under another name; it was not loaded: ask for the .safetensors.")
        if start.startswith(b"GGUF"):
            raise LoraFileError(f"{path} is a GGUF file under another name; expected a .safetensors LoRA file.")
    file.seek(8)
    if len(start) < 8 or length < 2 or length > num_bytes - 8:
        raise LoraFileError(
            f"{path} is truncated or no safetensors file: it has {num_bytes} bytes and promises a header of "
            f"{length if len(start) == 8 else 'unknown length'}; download it again."
        )
    if length > MAX_HEADER_BYTES:
        raise LoraFileError(
            f"{path} has a header of {length} bytes; a LoRA's has less than {MAX_HEADER_BYTES}: this is no LoRA file."
        )
    content = file.read(length)
    if len(content) != length:
        raise LoraFileError(f"{path} became shorter while it was read; try again when it is complete.")
    return content


def _refuse_text(path: Path, head: bytes) -> None:
    """Pass unless a file begins like what is often saved in the place of a download."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        raise LoraFileError(
            f"{path} is a web page and no LoRA file: the site answered the download with a page, such as one for "
            "logging in or agreeing to a licence; open the link in a browser and save the file itself."
        )
    if text.startswith(b"version https://git-lfs"):
        raise LoraFileError(f"{path} is a Git LFS pointer, which stands for the file; fetch that with `git lfs pull`.")


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    if not content.startswith(b"{"):
        raise LoraFileError(f"{path} is no safetensors file: its header is not a JSON object; download it again.")
    try:
        raw = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise LoraFileError(f"{path} has a header nested without end; this is no LoRA file.") from None
    except _TwiceError as error:
        raise LoraFileError(f"{path} names {shown(error.name)!r} twice in its header; it cannot be trusted.") from None
    except ValueError as error:  # what JSON, UTF-8 and over-long numbers raise
        reason = shown(str(error), 60)
        raise LoraFileError(f"{path} has a header that is not JSON ({reason}); download it again.") from None
    assert isinstance(raw, dict)
    if not all(map(_is_unicode, raw)):
        raise LoraFileError(f"{path} has names that are not Unicode; it cannot be trusted.")
    return raw


def _is_unicode(text: str) -> bool:
    """Whether a JSON string is text: escapes can spell halves of characters, which no other reader accepts."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


class _TwiceError(ValueError):
    def __init__(self, name: str) -> None:
        self.name = name


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return unique


def _metadata(path: Path, raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(text, str) and _is_unicode(text) for text in _texts(raw)):
        raise LoraFileError(f"{path} has metadata that is not a table of strings; it is not a valid safetensors file.")
    return raw


def _texts(raw: dict[str, Any]) -> list[Any]:
    return [*raw, *raw.values()]


def _entry(path: Path, name: str, fields: Any) -> Entry:
    match fields:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]} if (
            dtype in BITS and len(shape) <= MAX_DIMENSIONS and all(map(_is_size, [*shape, start, stop]))
        ):
            entry = Entry(dtype, tuple(shape), start, stop)
        case _:
            raise LoraFileError(
                f"{path} describes {shown(name)!r} wrongly ({shown(repr(fields), 120)}); "
                "expected a dtype, a shape and two offsets: download it again."
            )
    num_bits = math.prod(entry.shape) * BITS[entry.dtype]
    if num_bits % 8 or stop - start != num_bits // 8:
        raise LoraFileError(
            f"{path} says {shown(name)!r} is {entry.dtype} of shape {entry.shape}, "
            f"but its offsets span {stop - start} bytes; it cannot be trusted."
        )
    return entry


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _check_layout(path: Path, entries: Mapping[str, Entry], num_data_bytes: int) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            fault = "overlaps another tensor" if entry.start < end else "leaves a hole before it"
            raise LoraFileError(f"{path}: the data of {shown(name)!r} {fault}; the file is damaged.")
        end = entry.stop
    if end != num_data_bytes:
        fault = "is truncated" if end > num_data_bytes else "has bytes behind its tensors"
        raise LoraFileError(f"{path} {fault}: the header names {end} bytes of weights, the file has {num_data_bytes}.")

"""Write safetensors files deterministically: equal tensors give equal bytes.

The format: github.com/huggingface/safetensors@v0.8.0:README.md. The library's own writer keeps metadata in a hash map
and so orders it at random; here names and metadata are sorted.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from zimage.core.folder import write_whole

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_ENTRY_BYTES = 128  # of a header's entry, without the tensor's name: dtype, shape and two offsets
HASH_KEY = "modelspec.hash_sha256"


def copy_tensors(source: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the tensors of a safetensors file as another one, with its metadata and, added or in their place, these."""
    with safe_open(str(source), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        write_tensors(path, tensors, {**file.metadata(), **metadata})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the hash of the weights is added to the metadata.

    Args:
        path: The file; an older one is replaced.
        tensors: Any shapes; dtypes of `DTYPE_NAMES`.
        metadata: Strings only, as the format asks. `modelspec.hash_sha256` is set here: `0x` and the SHA-256 of all
            bytes behind the header (github.com/Stability-AI/ModelSpec, version 1.0.1).
    """
    blobs = {name: tensor_bytes(tensors[name]) for name in sorted(tensors)}
    digest = hashlib.sha256()
    for blob in blobs.values():
        digest.update(blob)
    header: dict[str, object] = {
        "__metadata__": dict(sorted({**metadata, HASH_KEY: f"0x{digest.hexdigest()}"}.items()))
    }
    start = 0
    for name, blob in blobs.items():
        tensor = tensors[name]
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + len(blob)],
        }
        start += len(blob)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_whole(path, b"".join([len(text).to_bytes(8, "little"), text, *blobs.values()]))


class TensorWriter:
    """Writes a safetensors file tensor by tensor, in the given order; space for the header is reserved.

    A thread hashes each tensor while it and the next are written: hashing takes as long as writing does.

    Args:
        path: The file; it is complete once `finish` has returned.
        keys: The names of all tensors that will come, which determine the size of the header.
        metadata: As for `write_tensors`.
    """

    def __init__(self, path: Path, keys: Sequence[str], metadata: Mapping[str, str]) -> None:
        self._metadata = dict(metadata)
        names = json.dumps([*keys, *self._metadata.items()], ensure_ascii=False).encode()
        length = len(names) + _ENTRY_BYTES * (len(keys) + len(self._metadata) + 2)
        self._length = length + -length % 8
        self._digest, self._stop = hashlib.sha256(), 0
        self._hasher = ThreadPoolExecutor(1)
        self._hashing: Future[None] | None = None
        self._entries: dict[str, object] = {}
        self._file = path.open("wb")
        self._file.seek(8 + self._length)

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor."""
        blob = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        hashing = self._hasher.submit(self._digest.update, blob)
        self._file.write(blob)
        if self._hashing is not None:
            self._hashing.result()  # no more than two tensors wait in memory
        self._hashing = hashing
        start, self._stop = self._stop, self._stop + len(blob)
        self._entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, self._stop],
        }

    def finish(self) -> None:
        """Write the header."""
        self._hasher.shutdown()
        metadata = {**self._metadata, HASH_KEY: f"0x{self._digest.hexdigest()}"}
        header = {"__metadata__": dict(sorted(metadata.items())), **self._entries}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= self._length, "a header outgrew its place"
        self._file.seek(0)
        self._file.write(self._length.to_bytes(8, "little") + text.ljust(self._length))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Close the file, complete or not."""
        self._hasher.shutdown()
        self._file.close()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the values in row order, little endian, as safetensors stores them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()

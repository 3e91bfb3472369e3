"""Writing safetensors files so that equal tensors give equal bytes.

The format: github.com/huggingface/safetensors@v0.8.0:README.md. The library's own writer keeps metadata in a hash map
and so orders it at random; here names and metadata are sorted.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from zimage.folder import write_whole

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
HASH_KEY = "modelspec.hash_sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all; the hash of the weights joins the metadata.

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


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the values in row order, little endian, as safetensors stores them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()

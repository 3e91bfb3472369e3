"""What a run needs to go on exactly where it stopped, in files that are either whole or known to be torn."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from zimage.lora.tensors import HASH_KEY, write_tensors

logger = logging.getLogger(__name__)

PATTERN = "step-*.safetensors"
KEPT = 2  # the one before the last stands in where the last is torn


@dataclass(frozen=True)
class State:
    """A run after `step` steps.

    Args:
        step: How many steps it has made.
        tensors: All that the next step depends on.
        devices: The kinds of devices that the steps were made on, in order (see `device_kind`).
        pictures_due: The run was stopped before it had made the sample pictures of this step.
    """

    step: int
    tensors: dict[str, Tensor]
    devices: tuple[str, ...]
    pictures_due: bool = False


def write_state(folder: Path, state: State, *, run: str) -> None:
    """Write a state as `step-000200.safetensors`, whole or not at all, and remove all but the last two.

    Args:
        folder: Made if absent.
        state: Its tensors may be on any device.
        run: What the state belongs to; another run's states are never gone on from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "run": run,
        "step": str(state.step),
        "devices": json.dumps(state.devices),
        "pictures_due": json.dumps(state.pictures_due),
    }
    write_tensors(folder / f"step-{state.step:06d}.safetensors", state.tensors, metadata)
    for old in sorted(folder.glob(PATTERN))[:-KEPT]:
        old.unlink()


def read_states(folder: Path, *, run: str) -> Iterator[State]:
    """Yield the whole states of this run, the last one first; torn files are skipped with a warning."""
    for path in sorted(folder.glob(PATTERN), reverse=True):
        content = path.read_bytes()
        metadata = _metadata_if_whole(content)
        if metadata is None:
            logger.warning("%s is torn (its hash does not hold); going back to the state before it", path)
        elif metadata.get("run") != run:
            logger.info("%s belongs to other data, parameters or code; it is not used", path)
        else:
            yield State(
                int(metadata["step"]),
                load(content),
                devices=tuple(json.loads(metadata["devices"])),
                pictures_due=json.loads(metadata["pictures_due"]),
            )


def _metadata_if_whole(content: bytes) -> dict[str, str] | None:
    """Return the metadata of a safetensors file, or None where its tensors are not those that were hashed."""
    length = int.from_bytes(content[:8], "little")
    try:
        metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError):
        return None
    digest = hashlib.sha256(content[8 + length :]).hexdigest()
    return metadata if metadata.get(HASH_KEY) == f"0x{digest}" else None


def run_identity(*parts: str) -> str:
    """Return one hash for all that decides about a run: parameters, data, base and code."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def numbered(tensors: list[Tensor], name: str) -> dict[str, Tensor]:
    """Return `name.0`, `name.1`, … for tensors kept in a row."""
    return {f"{name}.{number}": tensor for number, tensor in enumerate(tensors)}


def restore(into: Tensor, tensors: dict[str, Tensor], name: str) -> None:
    """Copy a state's tensor into one of the same shape, on whatever device."""
    with torch.no_grad():
        into.copy_(tensors[name])

"""The state that a run needs to resume exactly, in files whose damage is detected."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from zimage.core.errors import InputError
from zimage.core.folder import fetched_beside
from zimage.core.tensor_file import HASH_KEY, write_tensors
from zimage.training.params import Resume

logger = logging.getLogger(__name__)

PATTERN = "step-*.safetensors"
KEPT = 2  # the one before the last stands in where the last is torn


@dataclass(frozen=True)
class TrainingState:
    """The state of a run after `step` steps.

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


def write_state(folder: Path, state: TrainingState, *, run: str) -> None:
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


def read_states(folder: Path, *, run: str) -> Iterator[TrainingState]:
    """Yield the whole states of this run, the last one first; torn files are skipped with a warning."""
    for path in sorted(folder.glob(PATTERN), reverse=True):
        content = path.read_bytes()
        metadata = _metadata_if_whole(content)
        if metadata is None:
            logger.warning("%s is torn (its hash does not hold); going back to the state before it", path)
        elif metadata.get("run") != run:
            logger.info("%s belongs to other data, parameters or code; it is not used", path)
        else:
            yield TrainingState(
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


def take_over(aside: Path, *, run: str, device: str, resume: Resume) -> TrainingState | None:
    """Return the state to go on from, or None; its files are in `aside` then, and what was fetched is gone.

    Args:
        aside: The folder in which the output is made.
        run: The run's identity.
        device: What computes here, see `device_kind`.
        resume: What to do with states of another kind of device.

    Raises:
        InputError: there are states of this run, of other kinds of devices only, and `resume` is `exact`.
    """
    fetched = fetched_beside(aside)
    best: TrainingState | None = None
    place, refused = aside, None
    for folder in (aside, fetched):
        for state in read_states(folder / "resume", run=run):
            if resume != "any" and state.devices != (device,):
                refused = refused or state
                continue
            if best is None or state.step > best.step:
                best, place = state, folder
            break
    if best is None and refused is not None and resume == "exact":
        raise InputError(_refusal(refused, device))
    if place == fetched:
        shutil.rmtree(aside)
        fetched.rename(aside)
    shutil.rmtree(fetched, ignore_errors=True)
    return best


def _refusal(state: TrainingState, device: str) -> str:
    return (
        f"This training was stopped after step {state.step} on {' and '.join(state.devices)}; on {device} it would not "
        "end with the LoRA it would have ended with there: run it on such a device, or set train.resume to `any` to go "
        "on here all the same, or to `restart` to begin anew."
    )

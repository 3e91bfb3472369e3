"""A training adapter (for Turbo: ostris' de-distillation LoRA) merged into the frozen weights, once."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zimage.errors import InputError
from zimage.lora.change import written_out
from zimage.lora.reading import read_lora
from zimage.training.params import AdapterParams

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

logger = logging.getLogger(__name__)


@torch.no_grad()
def merge(transformer: "ZImageTransformer2DModel", params: AdapterParams) -> None:
    """Add the adapter to the weights it changes, in float32, before anything rounds or quantises them.

    Raises:
        InputError: the file is absent, another one than was pinned, for another model, or of other widths.
    """
    path = Path(params.file).expanduser()
    if not path.is_file():
        raise InputError(f"train.training_adapter names {path}, which does not exist; correct it or set it to null.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != params.sha256:
        raise InputError(
            f"The training adapter {path} has SHA-256 {found}, but params.yaml pins {params.sha256}; "
            "restore the file, or set train.training_adapter.sha256 if the change is meant."
        )
    changes = read_lora(path).changes
    layers = dict(transformer.named_modules())
    for name, change in changes.items():
        difference = written_out(change)
        weight = layers[name].weight if name in layers else None
        if weight is None or difference.shape != weight.shape:
            raise InputError(
                f"The training adapter {path} changes {name} by a matrix {tuple(difference.shape)}, but the base has "
                f"{'no such layer' if weight is None else tuple(weight.shape)}; choose the adapter made for this base."
            )
        weight.data = (weight.float() + params.strength * difference.to(weight.device).float()).to(weight.dtype)
    logger.info("merged %s into %d layers at strength %g", path, len(changes), params.strength)

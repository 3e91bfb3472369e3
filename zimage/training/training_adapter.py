"""Merge a training adapter (ostris' de-distillation LoRA for Turbo) into the frozen weights, and remove it again.

It is worn while something is learnt and never after: sample pictures are made without it, as the LoRA will be used.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from zimage.core.errors import InputError
from zimage.lora.convert.change import exact_factors, written_out
from zimage.lora.convert.reading import read_lora
from zimage.lora.files.given import require_pinned
from zimage.lora.files.portable import Factors
from zimage.model.denoiser import Denoiser
from zimage.model.fast.linear import Addend, Projection, plain_layer
from zimage.training.params import AdapterParams

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

logger = logging.getLogger(__name__)


@torch.no_grad()
def merge(transformer: "ZImageTransformer2DModel", params: AdapterParams) -> dict[str, Factors]:
    """Add the adapter to the weights it changes, in float32, before anything rounds or quantises them.

    Returns:
        By layer, what takes it off again; without the layers that a file changes in another form than two matrices.

    Raises:
        InputError: the file is absent, another one than was pinned, for another model, or of other widths.
    """
    path = require_pinned(params.file, params.sha256, setting="train.training_adapter", what="training adapter")
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
    exact = {name: each for name, change in changes.items() if (each := exact_factors(change)) is not None}
    if len(exact) < len(changes):
        logger.warning(
            "sample pictures wear what the training adapter changes otherwise than by two matrices, in %d of %d layers",
            len(changes) - len(exact),
            len(changes),
        )
    return {name: Factors(each.down, each.up * -params.strength) for name, each in exact.items()}


def addends_of(
    denoiser: Denoiser, names: Mapping[int, str], factors: Mapping[str, Factors]
) -> list[tuple[Projection, tuple[Addend, ...]]]:
    """Return the addends of `factors` for each projection, in main memory.

    Args:
        denoiser: Of the transformer.
        names: Of the transformer's modules, by their ids.
        factors: By layer.
    """
    found = []
    for projection in denoiser.projections():
        addends, start = [], 0
        for layer in projection.layers:
            rows = slice(start, start := start + plain_layer(layer).out_features)
            if each := factors.get(names[id(layer)]):
                addends.append(Addend(each.down, each.up, rows))
        if addends:
            found.append((projection, tuple(addends)))
    if len(factors) > sum(len(addends) for _, addends in found):
        logger.warning("sample pictures wear what the training adapter changes before the main blocks read a caption")
    return found


@contextmanager
def adding(denoiser: Denoiser, addends: Sequence[tuple[Projection, tuple[Addend, ...]]]) -> Iterator[None]:
    """Add these addends to the projections for the length of the context."""
    for projection, parts in addends:
        projection.addends = tuple(
            Addend(down.to(denoiser.device, denoiser.dtype), up.to(denoiser.device, denoiser.dtype), rows)
            for down, up, rows in parts
        )
    try:
        yield
    finally:
        for projection, _ in addends:
            projection.addends = ()

"""Begin a training with the matrices of an existing LoRA instead of new ones.

Any dialect that `zimage inspect` calls usable or convertible is read in memory. Its change is kept exactly where its
rank is at most `train.rank`: a smaller one gets further rows as a new LoRA draws them, with zeros in the up-matrix. A
larger one, or a change in another form than two matrices, becomes its best approximation of `train.rank` by SVD.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer

from zimage.core.errors import InputError
from zimage.lora.convert.change import Change, exact_factors, spectrum
from zimage.lora.convert.reading import read_lora
from zimage.lora.files.given import require_pinned
from zimage.lora.files.portable import Decomposed, Factors
from zimage.model.fast.linear import ADAPTER
from zimage.training.params import TrainParams

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

logger = logging.getLogger(__name__)


@torch.no_grad()
def begin_with_lora(transformer: "ZImageTransformer2DModel", params: TrainParams) -> None:
    """Put the change of `train.init_lora` into the new adapters of a transformer; without that setting do nothing.

    Args:
        transformer: With adapters of `train.rank` that change nothing yet.
        params: Of the run.

    Raises:
        InputError: the file is absent, another one than was pinned, for another model, or changes layers that get no
            adapter or have other widths; or the adapter that is trained is no LoRA.
    """
    if params.init_lora is None:
        return
    path = require_pinned(params.init_lora.file, params.init_lora.sha256, setting="train.init_lora", what="LoRA")
    if params.adapter != "lora":
        raise InputError(
            f"train.init_lora goes on with a LoRA, but train.adapter is {params.adapter}; set it to lora, or "
            "train.init_lora to null."
        )
    changes = read_lora(path).changes
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}
    if other := [name for name in changes if name not in layers]:
        raise InputError(
            f"train.init_lora names {path}, which changes {len(other)} layers that train.targets leaves out or that "
            f"the base does not have, such as {other[0]}; add their kind to train.targets, or choose another LoRA."
        )
    reduced = 0
    for name, change in changes.items():
        down, up = layers[name].lora_A[ADAPTER].weight, layers[name].lora_B[ADAPTER].weight
        factors, is_reduced = _factors(change, len(down), path)
        if (factors.up.shape[0], factors.down.shape[1]) != (up.shape[0], down.shape[1]):
            raise InputError(
                f"train.init_lora names {path}, which changes {name} by a matrix "
                f"{(factors.up.shape[0], factors.down.shape[1])}, but the base has {(up.shape[0], down.shape[1])}; "
                "choose a LoRA that was made for this base."
            )
        rank = len(factors.down)
        down[:rank] = factors.down.to(down)
        up[:, :rank] = factors.up.to(up) / layers[name].scaling[ADAPTER]
        reduced += is_reduced
    logger.info("going on from %s: %d of %d layers begin with its change", path, len(changes), len(layers))
    if reduced:
        logger.warning("%s has a larger rank than its adapter, or another form, in %d layers: reduced", path, reduced)


def _factors(change: Change, rank: int, path: Path) -> tuple[Factors, bool]:
    """Return a change as two matrices of at most this rank, and whether it is only approximated so."""
    if isinstance(change, Decomposed):
        raise InputError(f"train.init_lora names {path}, which is DoRA and so no sum with the base; choose a LoRA.")
    exact = exact_factors(change)
    if exact is not None and len(exact.down) <= rank:
        return exact, False
    return spectrum(change, rank).factors(rank), True

"""Which layers get an adapter, of which rank and with which learning rate."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from zimage.core.errors import InputError
from zimage.training.params import Target, TargetParams, TrainParams

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

_INNER = r"(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123])"
_FINAL_MODULATION = r"|all_final_layer\.2-1\.adaLN_modulation\.1"  # of no block
# Names of diffusers@0.42.1:src/diffusers/models/transformers/transformer_z_image.py.
MODULES: dict[Target, str] = {
    "attention": r"layers\.\d+\.attention\.to_(q|k|v|out\.0)",
    "feed_forward": r"layers\.\d+\.feed_forward\.w[123]",
    "modulation": rf"layers\.\d+\.adaLN_modulation\.0{_FINAL_MODULATION}",
    "noise_refiner": rf"noise_refiner\.\d+\.{_INNER}",
    "context_refiner": rf"context_refiner\.\d+\.{_INNER}",
    "image_embedder": r"all_x_embedder\.2-1",
    "caption_embedder": r"cap_embedder\.1",
    "time_embedder": r"t_embedder\.mlp\.[02]",
    "final_layer": r"all_final_layer\.2-1\.linear",
}


def kinds_of(targets: Iterable[Target | TargetParams]) -> set[Target]:
    """Return the kinds of layers among targets."""
    return {target.layers if isinstance(target, TargetParams) else target for target in targets}


def largest_rank(params: TrainParams) -> int:
    """Return the rank of the largest adapter."""
    return max((_own(target).rank or params.rank for target in params.targets), default=params.rank)


def said(targets: Iterable[Target | TargetParams]) -> str:
    """Return the targets in words, as the metadata of a LoRA file tells them."""
    return " ".join(_said(_own(target)) for target in targets)


def adapted_layers(
    transformer: "ZImageTransformer2DModel", targets: Sequence[Target | TargetParams]
) -> dict[str, TargetParams]:
    """Return the target of each layer that gets an adapter, by the layer's name.

    Args:
        transformer: Before it has any adapter.
        targets: Kinds of layers, some with blocks, a rank or a learning rate of their own.

    Raises:
        InputError: a target names no layer of this base, or two targets name the same one.
    """
    from torch import nn

    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    found: dict[str, TargetParams] = {}
    for target in map(_own, targets):
        pattern = _pattern(target)
        mine = [name for name in names if re.fullmatch(pattern, name)]
        if not mine:
            blocks = {int(each[1]) for name in names if (each := re.match(_stack(target) + r"\.(\d+)\.", name))}
            raise InputError(
                f"train.targets names {_said(target)}, but the base has only the blocks 0 to {max(blocks, default=0)} "
                "of that kind; choose some of these."
            )
        twice = next((name for name in mine if found.get(name, target) != target), None)
        if twice is not None:
            raise InputError(
                f"train.targets names {twice} twice, by {_said(found[twice])} and by {_said(target)}; let each layer "
                "stand in one target only."
            )
        found |= dict.fromkeys(mine, target)
    return found


def own_ranks(layers: Mapping[str, TargetParams], rank: int) -> dict[str, int]:
    """Return the ranks that differ from `rank`, by peft's pattern of a layer's name."""
    own = {name: target.rank for name, target in layers.items() if target.rank is not None}
    return {re.escape(name): each for name, each in own.items() if each != rank}


def _own(target: Target | TargetParams) -> TargetParams:
    return target if isinstance(target, TargetParams) else TargetParams(layers=target)


def _said(target: TargetParams) -> str:
    blocks = f" {target.blocks}" if target.blocks is not None else ""
    rank = f" rank {target.rank}" if target.rank is not None else ""
    rate = f" learning rate x {target.learning_rate_factor:g}" if target.learning_rate_factor != 1 else ""
    return f"{target.layers}{blocks}{rank}{rate}"


def _stack(target: TargetParams) -> str:
    return target.layers if target.layers.endswith("refiner") else "layers"


def _pattern(target: TargetParams) -> str:
    pattern = MODULES[target.layers]
    if target.blocks is None:
        return pattern
    first, _, last = target.blocks.partition("-")
    numbers = "|".join(str(number) for number in range(int(first), int(last or first) + 1))
    return pattern.removesuffix(_FINAL_MODULATION).replace(r"\d+", f"({numbers})", 1)

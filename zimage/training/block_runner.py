"""Run transformer blocks compiled or eagerly, with the chosen activation checkpointing."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from zimage.model.denoiser import RunBlock, run_block
from zimage.model.fast.block import Block

if TYPE_CHECKING:
    from torch._inductor.choices import InductorChoices

Checkpointing = Literal["none", "selective", "full"]

# What takes long and is kept; norms, gates and rotations between these are computed again in passing.
ENDS = [
    torch.ops.zimage.sum_of_products.default,
    torch.ops.zimage.fp8_sum.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
NARROW = 8  # times as many outputs as inputs has no weight but an adapter's up-product, whose sum is kept and not it

HEAD = 128  # values

# Up to so many shapes every one gets graphs of its own; beyond, one graph has to serve all lengths.
FEW_SHAPES = 4
# Beyond torch's own limit of 8, blocks would silently run uncompiled, or fail where they are checkpointed.
MOST_GRAPHS = 1000


def _policy(_: SelectiveCheckpointContext, operation: Any, *operands: Any, **options: Any) -> CheckpointPolicy:
    """Return what becomes of an operation's result.

    Of a projection its end is kept, and nothing on the way there as large: the compiler keeps all that is to be kept,
    also what only leads to something else that is. What nobody needs in the backward pass is not computed again either.
    """
    kept = _ends(operation, operands, options)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _ends(operation: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Return whether an operation is attention, or the last one of a projection or of its adapters' down-product."""
    if operation is torch.ops.aten.mm.default:
        return bool(operands[0].shape[1] * NARROW > operands[1].shape[1])
    if operation is torch.ops.aten._to_copy.default:  # what a product in integers ends in; only projections have 2 axes
        return operands[0].ndim == 2 and options.get("dtype") in (torch.bfloat16, torch.float16)
    return operation in ENDS


def _choices() -> "InductorChoices":
    """Return inductor's choices, but that a kernel keeps a head's values in registers from its norm to its end.

    Inductor does so for rows that lie one behind the other; a head's lie side by side with those of other heads, and it
    would write them down in float32 and read them again.
    """
    from torch._inductor import config
    from torch._inductor.choices import InductorChoices
    from torch._inductor.virtualized import V

    class Choices(InductorChoices):
        def uuid(self) -> str:
            return f"{__name__}-{HEAD}"

        @staticmethod
        def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
            if InductorChoices.should_use_persistent_reduction(features, cooperative_reduction):
                return True
            small = V.graph.sizevars.statically_known_leq(features.reduction_numel, HEAD)
            return bool(config.triton.persistent_reductions and small and not cooperative_reduction)

    return Choices()


def make_block_runner(
    checkpointing: Checkpointing,
    *,
    compiled: bool,
    random: bool = False,
    shapes: int = 1,
    backend: str | Callable[..., Any] = "inductor",
) -> RunBlock:
    """Return how the denoiser is to run a block while it learns.

    Args:
        checkpointing: none keeps all activations; selective recomputes the cheap ones, which saves memory only in
            compiled blocks; full keeps only the residual stream between blocks.
        compiled: Fuse each block; one graph serves all blocks of a shape.
        random: Blocks use random numbers (dropout), which must be the same when they are recomputed.
        shapes: How many lengths of sequences there will be.
        backend: Of torch.compile.
    """
    again: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": random}
    if checkpointing == "selective":
        again["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def checkpointed(block: Block, x: Tensor, condition: Tensor | None, table: Tensor, keep: int | None) -> Tensor:
        if not (torch.is_grad_enabled() and (x.requires_grad or block.is_adapted)):
            return block(x, condition, table, keep)  # there is no backward pass through it
        after: Tensor = checkpoint(block, x, condition, table, keep, **again)
        return after

    if not compiled:
        return Block.as_one_node if checkpointing == "none" else checkpointed
    run = run_block if checkpointing == "none" else checkpointed
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MOST_GRAPHS
    torch._inductor.config.inductor_choices_class = _choices
    return torch.compile(run, dynamic=False if shapes <= FEW_SHAPES else None, backend=backend)

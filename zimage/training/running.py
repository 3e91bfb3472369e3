"""How blocks run: fused by the compiler or not, and how much is computed again on the way back."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from zimage.model.blocks import Block
from zimage.model.denoiser import RunBlock, plainly

Checkpointing = Literal["none", "selective", "full"]

# What takes long and is kept; norms, gates and rotations between these are computed again in passing.
ATTENTION = [
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]

# Up to so many shapes every one gets graphs of its own; beyond, one graph has to serve all lengths.
FEW_SHAPES = 4
# Beyond torch's own limit of 8, blocks would silently run uncompiled, or fail where they are checkpointed.
MOST_GRAPHS = 1000


def _policy(_: SelectiveCheckpointContext, operation: Any, *operands: Any, **_options: Any) -> CheckpointPolicy:
    """Return what becomes of an operation's result.

    Of a projection its end is kept, which joins outputs side by side (`Projection`), and no product: the compiler keeps
    all that is to be kept, also what only leads to something else that is, and each of a frozen weight's product, its
    integers and its sum with the LoRA is as large. What nobody needs on the way back is not computed again either.
    """
    ends_projection = operation is torch.ops.aten.cat.default and operands[0][0].ndim == 2
    kept = ends_projection or operation in ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def runner(
    checkpointing: Checkpointing,
    *,
    compiled: bool,
    chance: bool = False,
    shapes: int = 1,
    backend: str | Callable[..., Any] = "inductor",
) -> RunBlock:
    """Return how the denoiser is to run a block while it learns.

    Args:
        checkpointing: none keeps all that the way back needs; selective computes the cheap parts again, which only
            compiled blocks do without keeping more than they save; full keeps only the stream between blocks.
        compiled: Fuse each block; one graph serves all blocks of a shape.
        chance: Blocks draw chance (dropout), which has to be the same when they are computed again.
        shapes: How many lengths of sequences there will be.
        backend: Of torch.compile.
    """
    again: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": chance}
    if checkpointing == "selective":
        again["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def checkpointed(block: Block, x: Tensor, condition: Tensor | None, table: Tensor, keep: int | None) -> Tensor:
        if not (torch.is_grad_enabled() and (x.requires_grad or block.is_adapted)):
            return block(x, condition, table, keep)  # there is no way back through it
        after: Tensor = checkpoint(block, x, condition, table, keep, **again)
        return after

    run = plainly if checkpointing == "none" else checkpointed
    if not compiled:
        return run
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MOST_GRAPHS
    return torch.compile(run, dynamic=False if shapes <= FEW_SHAPES else None, backend=backend)

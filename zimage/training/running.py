"""How blocks run: fused by the compiler or not, and how much is computed again on the way back."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from zimage.model.blocks import Block
from zimage.model.denoiser import RunBlock, plainly

Checkpointing = Literal["none", "selective", "full"]

# What takes long and is kept; norms, gates and rotations between these are computed again in passing.
KEPT_OPERATIONS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._int_mm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]

# Up to so many shapes every one gets graphs of its own; beyond, one graph has to serve all lengths.
FEW_SHAPES = 4
# Beyond torch's own limit of 8, blocks would silently run uncompiled, or fail where they are checkpointed.
MOST_GRAPHS = 1000


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
        again["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT_OPERATIONS)

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

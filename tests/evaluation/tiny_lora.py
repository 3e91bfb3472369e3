"""A LoRA file of random weights that fits the tiny base."""

from pathlib import Path

import torch

from tests.tiny_base import WIDTH
from zimage.lora.files.portable import Factors, kronecker_of, save_portable

RANK = 4


def write_tiny_lora(path: Path, *, seed: int, width: int = WIDTH) -> Path:
    """Write a LoRA on the attention of both main blocks, strong enough to be seen and far from saturation."""
    generator = torch.Generator().manual_seed(seed)
    modules = [f"layers.{layer}.attention.{name}" for layer in (0, 1) for name in ("to_q", "to_k", "to_v", "to_out.0")]

    def factor(*shape: int) -> torch.Tensor:
        return 0.15 * torch.randn(shape, generator=generator)

    weights = {module: Factors(factor(RANK, width), factor(width, RANK)) for module in modules}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_portable(path, weights, metadata={"modelspec.title": "tiny"}, dtype=torch.float32)
    return path


def write_tiny_lokr(path: Path, *, seed: int) -> Path:
    """Write a LoKr on the same layers, one matrix of each whole and one factored."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    modules = [f"layers.{layer}.attention.{name}" for layer in (0, 1) for name in ("to_q", "to_k", "to_v", "to_out.0")]
    large = WIDTH // 4
    weights = {
        module: kronecker_of({"lokr_w1": matrix(4, 4), "lokr_w2_a": matrix(large, 2), "lokr_w2_b": matrix(2, large)})
        for module in modules
    }
    save_portable(path, weights, metadata={"modelspec.title": "tiny"}, dtype=torch.float32)
    return path

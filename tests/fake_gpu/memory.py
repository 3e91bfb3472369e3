"""Counts what a step of the released model takes of a GPU, on one without contents, for every preset.

python -m tests.fake_gpu.memory               all presets at 512, 768 and 1024 px: four minutes
python -m tests.fake_gpu.memory 8gb --px 512  one of them
Blocks are not compiled. What a kernel takes for itself, and what the allocator wastes, is not counted.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from tests.fake_gpu.device import GPU, fake_gpu  # isort: skip - before torch

import torch
from diffusers import ZImageTransformer2DModel

from tasks.workspace.subject import presets
from tests.benchmarks.train import OPTIMISER
from tests.live_bytes import LiveBytes
from zimage.model.denoiser import Denoiser
from zimage.model.sequence import SequenceBucket, sequence_length
from zimage.training.adapters import Adapters, inject, module_names
from zimage.training.block_runner import Checkpointing, make_block_runner
from zimage.training.memory import (
    PRESETS,
    USED_SHARE,
    MemoryPreset,
    Sizes,
    activations_gb,
    adapters_gb,
    lora_gb,
    weights_gb,
)
from zimage.training.optimiser import Optimiser

WIDTH, REFINERS = 3840, 2
CAPTION = 64  # tokens, padded
STEPS = 2  # the second one finds the optimiser's moments there


@dataclass(frozen=True)
class Setting:
    """What is counted."""

    preset: MemoryPreset
    side_px: int
    rank: int
    checkpointing: Checkpointing
    layers: int = 30

    @property
    def sizes(self) -> Sizes:
        """Return the transformer's."""
        return Sizes(WIDTH, self.layers, REFINERS)

    @property
    def tokens(self) -> int:
        """Return how many are computed together."""
        side = self.side_px // 8
        return self.preset.micro_batch_size * sequence_length(SequenceBucket(side, side, CAPTION))

    @property
    def computed_gb(self) -> float:
        """Return what zimage/training/memory.py computes, workspace left out."""
        kept = activations_gb(self.sizes, self.tokens, self.checkpointing)
        return (
            weights_gb(self.sizes, self.preset.memory, self.preset.machine)
            + adapters_gb(lora_gb(self.sizes, self.rank))
            + kept
        )


def released(layers: int, rank: int) -> ZImageTransformer2DModel:
    """The released transformer with adapters, in memory that is never touched."""
    with torch.device("meta"):
        config: dict[str, Any] = {"n_layers": layers, "axes_lens": [1536, 512, 512]}
        transformer = ZImageTransformer2DModel(**config)
    for parameter in transformer.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    transformer = transformer.eval().to_empty(device="cpu")
    inject(transformer, ["attention", "feed_forward"], rank=rank, dropout=0.0, generator=torch.Generator())
    return transformer


def counted_gb(setting: Setting) -> float:
    """Return the most that was there at once in a step."""
    count = setting.preset.micro_batch_size
    transformer = released(setting.layers, setting.rank)
    with fake_gpu(), LiveBytes(GPU, []) as live:
        denoiser = Denoiser(
            transformer,
            dtype=torch.bfloat16,
            stream=torch.bfloat16,
            device=GPU,
            weight_format=setting.preset.memory.base_quantization,
            offloaded_blocks=setting.preset.machine.offloaded_blocks,
        )
        adapters = Adapters(denoiser, module_names(transformer))
        optimiser = Optimiser(adapters, OPTIMISER)
        with torch.no_grad():
            states, lengths = torch.empty(count, CAPTION, 2560, device=GPU), torch.full((count,), CAPTION, device=GPU)
            context = denoiser.refine(states, lengths)
        denoiser.forget_context()
        denoiser.run = make_block_runner(setting.checkpointing, compiled=False)
        clean = torch.empty(count, 16, setting.side_px // 8, setting.side_px // 8, device=GPU)
        live.most = live.now
        for number in range(STEPS):
            noise, sigma = torch.empty_like(clean), torch.empty(count, device=GPU)
            adapters.gradient.zero_()
            noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
            loss = (denoiser.velocity(noisy, sigma, context) - (noise - clean)).square().mean()
            loss.backward()
            optimiser.step(1.0, number)
        return live.most / 1e9


def setting_of(name: str, side_px: int) -> Setting:
    """Return a preset at this size, with everything kept where `auto` finds room for it on its card."""
    preset = PRESETS[name]
    kept = Setting(preset, side_px, presets()[name].values["train.rank"], "none")
    activations = activations_gb(kept.sizes, kept.tokens, "none")
    free_gb = float(name.removesuffix("gb")) - (kept.computed_gb - activations)
    fits = preset.machine.checkpointing == "auto" and activations < free_gb * USED_SHARE
    return kept if fits else Setting(preset, side_px, kept.rank, "full")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--px", type=int, nargs="+", default=[512, 768, 1024])
    asked = parser.parse_args()
    print("| preset | px | at once | checkpointing | counted GB | computed GB, without workspace |")
    print("|---|---|---|---|---|---|")
    for name in asked.presets:
        for side_px in asked.px:
            setting = setting_of(name, side_px)
            start = f"| `{name}` | {side_px} | {setting.preset.micro_batch_size} | {setting.checkpointing} "
            print(f"{start}| {counted_gb(setting):.2f} | {setting.computed_gb:.2f} |", flush=True)


if __name__ == "__main__":
    main()

"""Seconds a training step takes, beside a plain loop over diffusers' transformer. Nothing is downloaded.

python -m tests.benchmarks.train            on a GPU the released size with random weights; on a CPU the demo's size
python -m tests.benchmarks.train --steps 9  more turns for each variant; medians are shown
python -m tests.benchmarks.train --px 512   one size instead of all three, which take a quarter of an hour on a GPU

On a CPU all variants take their steps in turn in one process, so a busy machine slows all of them alike, and the
processor time stands beside the wall time: what else runs there lengthens the latter more. Captions have the demo's
lengths: the plain loop takes them as they come, which its transformer pads to the longest and masks; the trainer's
batches hold one padded length each. A turn is a step of every length, and its time is divided by their number.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from torch import Tensor

from zimage.model.base import TINY, Base, identify, open_vae, resolve
from zimage.model.denoiser import Denoiser
from zimage.model.device import keep_freed_memory, release, sent
from zimage.model.fast.weight_formats import WeightFormat
from zimage.model.sequence import SequenceBucket, padded, sequence_length
from zimage.training.adapters import Adapters, inject, module_names
from zimage.training.block_runner import Checkpointing, make_block_runner
from zimage.training.graphed_step import GraphedStep, Recorder
from zimage.training.optimiser import Optimiser
from zimage.training.params import OptimiserParams, Target

OPTIMISER = OptimiserParams(
    name="adamw",
    learning_rate=1e-4,
    lora_plus_ratio=1.0,
    betas=[0.9, 0.99],
    weight_decay=0.01,
    clip_norm=1.0,
    ema_decay=0.99,
)
LINEAR: list[Target] = ["attention", "feed_forward"]
WARM_UP = 2  # turns that are not timed
GPU_STEPS = 5  # of every length in a turn: a GPU is only waited for at its end, as in training
GPU_PEAK_TFLOPS = 790.0  # dense bfloat16 that an H200 reaches in practice

Step = Callable[[], Tensor]  # makes one and returns its loss, on the device


@dataclass(frozen=True)
class Size:
    """A model and a batch."""

    name: str
    config: tuple[tuple[str, Any], ...]
    side_px: int
    batch: int
    rank: int
    targets: tuple[Target, ...]
    captions: tuple[int, ...]  # tokens of each caption, as they come

    @property
    def by_length(self) -> list[list[int]]:
        """Return a batch's captions for each padded length."""
        found: dict[int, list[int]] = defaultdict(list)
        for tokens in self.captions:
            found[padded(tokens)].append(tokens)
        return [list(islice(cycle(alike), self.batch)) for _, alike in sorted(found.items())]

    @property
    def mixed(self) -> list[int]:
        """Return a batch's captions as they come."""
        return list(islice(cycle(self.captions), self.batch))


DEMO = Size(
    name="demo, 128 px",
    config=(
        *(("dim", 192), ("n_layers", 6), ("n_heads", 6), ("n_kv_heads", 6), ("cap_feat_dim", 96)),
        *(("axes_dims", (8, 12, 12)), ("axes_lens", (640, 64, 64))),
    ),
    side_px=128,
    batch=8,
    rank=32,
    targets=(*LINEAR, "image_embedder", "final_layer"),
    captions=(23, 54, 28, 50, 23, 53, 28, 51),
)


def released(side_px: int) -> Size:
    """Return the released model with one picture and a caption of usual length."""
    return Size(f"released, {side_px} px", (), side_px, 1, 16, tuple(LINEAR), (61,))


def main() -> None:
    """Measure what this machine can and print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--px", type=int, nargs="+", default=[512, 768, 1024])
    asked = parser.parse_args()
    turns = asked.steps
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {machine()}")
    if torch.cuda.is_available():
        print(f"TFLOP/s of bfloat16 to be had: {GPU_PEAK_TFLOPS:.0f}; 8-bit variants may have more than all of it")
        print("| size | variant | ms a step | TFLOP/s | share of it | peak GB | loss against plain |")
        print("|---|---|---|---|---|---|---|")
        for side_px in asked.px:
            _gpu_rows(released(side_px), turns)
    else:
        keep_freed_memory(torch.device("cpu"))
        print("| size | variant | ms a step | processor ms | TFLOP/s | times the plain loop |")
        print("|---|---|---|---|---|---|")
        _cpu_rows(DEMO, turns)


def _cpu_rows(size: Size, turns: int) -> None:
    variants = {
        "plain loop over diffusers, float32": plain_step(size, torch.float32),
        "the same, pictures encoded in each step": plain_step(size, torch.float32, vae=_tiny_vae()),
        "plain loop over diffusers, bfloat16": plain_step(size, torch.bfloat16),
        "ours, float32": our_step(size, dtype=torch.float32),
        "ours, bfloat16 products": our_step(size, dtype=torch.bfloat16),
        "ours, float32, INT8 weights": our_step(size, dtype=torch.float32, kind="int8"),
        "ours, float32, full checkpointing": our_step(size, dtype=torch.float32, checkpointing="full"),
    }
    found = timed(size, variants, turns)
    plain = next(iter(found.values())).processor_s
    for name, times in found.items():
        rate = flops(size, kept=True) / times.processor_s / 1e12
        row = f"{times.wall_s * 1e3:.0f} | {times.processor_s * 1e3:.0f} | {rate:.3f} | {plain / times.processor_s:.2f}"
        print(f"| {size.name} | {name} | {row} |", flush=True)


def _gpu_rows(size: Size, turns: int) -> None:
    """One variant after the other, for two models of the released size need not fit beside each other."""
    plain_loss = 0.0
    for name, make in _gpu_variants(size):
        torch.compiler.reset()  # its code holds on to the blocks of the variant before
        release(_device())
        torch.cuda.reset_peak_memory_stats()
        try:
            (times,) = timed(size, {name: make()}, turns).values()
        except RuntimeError as error:  # too little memory, or a kernel that this GPU lacks: the others are still wanted
            print(f"| {size.name} | {name} | failed: {str(error).splitlines()[0]} |", flush=True)
            continue
        plain_loss = plain_loss or (times.loss if name.startswith("ours") else 0.0)
        rate = flops(size, kept="full" not in name) / times.wall_s / 1e12
        peak = torch.cuda.max_memory_allocated() / 1e9
        against = f"{times.loss / plain_loss - 1:+.2%}" if plain_loss else "-"
        row = f"{times.wall_s * 1e3:.0f} | {rate:.0f} | {rate / GPU_PEAK_TFLOPS:.0%} | {peak:.1f} | {against}"
        print(f"| {size.name} | {name} | {row} |", flush=True)


def _gpu_variants(size: Size) -> Iterator[tuple[str, Callable[[], Step]]]:
    yield "plain loop over diffusers, bfloat16", lambda: plain_step(size, torch.bfloat16)
    choices: list[tuple[WeightFormat, Checkpointing, dict[str, Any]]] = [
        ("none", "none", {}),
        ("none", "none", {"compiled": True}),
        ("none", "selective", {"compiled": True}),
        ("none", "full", {}),
        ("fp8", "none", {"compiled": True, "both_ways": True}),
        ("fp8", "none", {"compiled": True}),
        ("int8", "none", {"compiled": True, "both_ways": True}),
        ("int8", "selective", {"compiled": True}),
        ("int8", "full", {"compiled": True}),
        ("nf4", "full", {}),
        ("nf4", "full", {"away": 15}),
    ]
    for kind, checkpointing, more in choices:
        words = {"compiled": ", compiled", "both_ways": ", kept both ways", "away": f", {more.get('away')} blocks away"}
        name = f"ours, {kind}, checkpointing {checkpointing}{''.join(words[key] for key in more)}"
        yield (
            name,
            lambda k=kind, c=checkpointing, m=more: our_step(  # type: ignore[misc]
                size, dtype=torch.bfloat16, kind=k, checkpointing=c, **m
            ),
        )
    for compiled in (False, True):
        name = f"ours, plain, checkpointing none{', compiled' if compiled else ''}, CUDA graph"
        yield name, lambda f=compiled: our_step(size, dtype=torch.bfloat16, compiled=f, captured=True)  # type: ignore[misc]


@dataclass(frozen=True)
class Times:
    """Medians over turns, and the mean loss."""

    wall_s: float
    processor_s: float
    loss: float


def timed(size: Size, variants: dict[str, Step], turns: int) -> dict[str, Times]:
    """Return what a step of each variant takes, all taking their turns one after the other."""
    steps = len(size.by_length) * (GPU_STEPS if torch.cuda.is_available() else 1)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    for turn in range(turns + WARM_UP):
        for name, step in variants.items():
            wall, processor = time.perf_counter(), time.process_time()
            loss = sum(float(each) for each in [step() for _ in range(steps)])
            if turn >= WARM_UP:
                taken = (time.perf_counter() - wall, time.process_time() - processor, loss)
                found[name].append(tuple(value / steps for value in taken))  # type: ignore[arg-type]
    return {
        name: Times(
            statistics.median(turn[0] for turn in taken),
            statistics.median(turn[1] for turn in taken),
            statistics.fmean(turn[2] for turn in taken),
        )
        for name, taken in found.items()
    }


def our_step(
    size: Size,
    *,
    dtype: torch.dtype,
    kind: WeightFormat = "none",
    checkpointing: Checkpointing = "none",
    compiled: bool = False,
    away: int = 0,
    both_ways: bool = False,
    captured: bool = False,
    device: torch.device | None = None,
    values: list[Tensor] | None = None,
) -> Step:
    """Return a step of this project's trainer: captions refined before, adapters in one vector.

    Args:
        size: Of model and batch.
        dtype: Of the products.
        kind: How the large weights are kept.
        checkpointing: What is computed again on the way back.
        compiled: Fuse each block.
        away: Blocks that wait in the machine's memory.
        both_ways: Keep 8-bit weights the other way round as well.
        captured: Forward and back are one CUDA graph (`machine.cuda_graphs`).
        device: Of the step; None is the GPU where there is one.
        values: Gets the adapters' values, which the steps change.
    """
    device = device or _device()
    transformer = random_transformer(size, torch.float32 if device.type == "cpu" else dtype)
    inject(transformer, size.targets, rank=size.rank, dropout=0.0, generator=torch.Generator())
    stream = torch.float32 if device.type == "cpu" else dtype
    denoiser = Denoiser(
        transformer,
        dtype=dtype,
        stream=stream,
        device=device,
        weight_format=kind,
        offloaded_blocks=away,
        both_ways=both_ways,
    )
    adapters = Adapters(denoiser, module_names(transformer))
    optimiser = Optimiser(adapters, OPTIMISER)
    if values is not None:
        values.append(adapters.values)
    with torch.no_grad():
        contexts = [denoiser.refine(*_captions(size, lengths, device)) for lengths in size.by_length]
    denoiser.forget_context()
    denoiser.run = make_block_runner(checkpointing, compiled=compiled)
    if compiled:
        denoiser.ready = partial(adapters.cast_for_compile, dtype)
    clean, chance, turn = _latents(size).to(device), torch.Generator().manual_seed(2), cycle(contexts)

    def forward_backward(noise: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        loss = (denoiser.velocity(noisy, sigma, context) - (noise - clean)).square().mean()
        loss.backward()
        return loss.detach()

    recorder = Recorder(device) if captured else None
    passes = GraphedStep(forward_backward, adapters.gradient, recorder) if recorder else forward_backward

    def step() -> Tensor:
        noise, sigma = (sent(drawn, device) for drawn in _drawn(size, chance))
        adapters.gradient.zero_()
        loss = passes(noise, sigma, next(turn))
        optimiser.step(1.0, 0)
        return loss

    return step


def plain_step(size: Size, dtype: torch.dtype, *, vae: AutoencoderKL | None = None) -> Step:
    """Return a step as diffusers' Z-Image training script makes it: lists in, peft inside, one tensor at a time.

    Args:
        size: Of model and batch.
        dtype: Of weights, adapters and products.
        vae: Encodes the pictures in each step, as the script does without --cache_latents; None where they are cached.
    """
    device = _device()
    transformer = random_transformer(size, dtype).to(device)
    inject(transformer, size.targets, rank=size.rank, dropout=0.0, generator=torch.Generator())
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.to(dtype)  # as the script leaves it
    adamw = torch.optim.AdamW(trained, lr=1e-4)
    features, lengths = _captions(size, size.mixed, device)
    captions = [feature[:length].to(dtype) for feature, length in zip(features, lengths.tolist(), strict=True)]
    cached, chance = _latents(size).to(device), torch.Generator().manual_seed(2)
    pixels = torch.zeros((size.batch, 3, size.side_px, size.side_px), device=device)

    def step() -> Tensor:
        clean = cached
        if vae is not None:
            clean = (vae.encode(pixels).latent_dist.sample() - vae.config.shift_factor) * vae.config.scaling_factor
        noise, sigma = (drawn.to(device) for drawn in _drawn(size, chance))
        share = sigma[:, None, None, None]
        noisy = ((1 - share) * clean + share * noise).to(dtype)
        answers = transformer(list(noisy.unsqueeze(2).unbind(0)), 1 - sigma, captions, return_dict=False)[0]
        velocity = -torch.stack(answers).squeeze(2).float()
        loss = (velocity - (noise - clean)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        loss.item()
        return loss.detach()

    return step


def flops(size: Size, *, kept: bool) -> float:
    """Return the operations of the main blocks in a step: forward, back to the inputs, and again where not kept.

    Of the trainer's own sequences, on the mean over padded lengths. What the adapters add is not counted.
    """
    config = {"dim": 3840, "n_layers": 30, **dict(size.config)}
    D, layers = int(config["dim"]), int(config["n_layers"])
    total = 0.0
    for lengths in size.by_length:
        T = sequence_length(SequenceBucket(size.side_px // 8, size.side_px // 8, padded(lengths[0])))
        products = 2 * T * (4 * D * D + 3 * D * int(D / 3 * 8))
        attended = 2 * 2 * T * T * D
        total += (2 + (not kept)) * products + (3.5 + (not kept)) * attended
    return size.batch * layers * total / len(size.by_length)


def random_transformer(size: Size, dtype: torch.dtype) -> ZImageTransformer2DModel:
    """Return a transformer of random weights, which all variants of a size and dtype share."""
    with torch.device("meta"):
        transformer = ZImageTransformer2DModel(**dict(size.config))
    transformer.load_state_dict(_weights(size.config, dtype), assign=True)
    return transformer.eval()


@cache
def _weights(config: tuple[tuple[str, Any], ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return random weights on the CPU, norms about one; a GPU draws six billion much faster."""
    generator = torch.Generator(_device()).manual_seed(0)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in ZImageTransformer2DModel(**dict(config)).state_dict().items()}
    found = {}
    for name, shape in shapes.items():
        mean = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        weight = torch.empty(shape, dtype=dtype, device=generator.device)
        found[name] = weight.normal_(mean, 0.02, generator=generator).cpu()
    return found


def _latents(size: Size) -> Tensor:
    return torch.randn(
        (size.batch, 16, size.side_px // 8, size.side_px // 8), generator=torch.Generator().manual_seed(1)
    )


def _drawn(size: Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noise and sigma of a step, on the CPU."""
    shape = (size.batch, 16, size.side_px // 8, size.side_px // 8)
    return torch.randn(shape, generator=generator), torch.rand(size.batch, generator=generator)


def _captions(size: Size, lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return states (B, L, W) and lengths (B,) of a batch's captions."""
    width = int({"cap_feat_dim": 2560, **dict(size.config)}["cap_feat_dim"])
    generator = torch.Generator().manual_seed(1)
    states = torch.randn((len(lengths), padded(max(lengths)), width), generator=generator)
    return states.to(device), torch.tensor(lengths, device=device)


def _tiny_vae() -> AutoencoderKL:
    return open_vae(resolve(Base(model=TINY, identity=identify(TINY))), device="cpu")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """Return the GPU with its libraries, or the name of the CPU."""
    if torch.cuda.is_available():
        sizes = torch.cuda.get_device_properties(0)
        versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        return f"{sizes.name}, {sizes.total_memory / 1e9:.0f} GB, {sizes.multi_processor_count} SMs, {versions}"
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "a CPU")


if __name__ == "__main__":
    main()

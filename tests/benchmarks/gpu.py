"""What a GPU does with this trainer, the most valuable facts first, within minutes. Nothing is downloaded.

python -m tests.benchmarks.gpu OUT                      nine minutes: each part writes a line when it ends
python -m tests.benchmarks.gpu OUT --minutes 4 --px 1024

Needs torch with its GPU, diffusers, peft and transformers; all weights are random and made on the device. OUT/gpu.jsonl
gets one object for each part: its name, `state` (done, failed or skipped), seconds, what it found, or the traceback. A
part that fails stops no other one; a part that would begin after the time is over is skipped. On a CPU the same parts
run with tiny shapes, which shows that the script works and says nothing about a GPU.

In this order: the machine; one step of every form of a run, beside the same step on the CPU in float32; whether a CUDA
graph changes what is learned; the time of a step with its peak memory, beside the computed one and a plain loop over
diffusers in the same run; encoding and sampling at the released sizes; the kernels that take most of a step.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from tests.benchmarks.train import (
    DEMO,
    GPU_PEAK_TFLOPS,
    Size,
    flops,
    machine,
    our_step,
    plain_step,
    random_transformer,
    released,
    timed,
)
from zimage.model.denoiser import Denoiser
from zimage.model.device import release
from zimage.model.latents import decode, posterior
from zimage.model.sequence import SequenceBucket, padded, sequence_length
from zimage.training.memory import WORKSPACE_GB, Sizes, activations_gb, adapters_gb, lora_gb, weights_gb
from zimage.training.params import MachineParams, MemoryParams

IS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_GPU else "cpu")
FORMS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "full checkpointing": {"checkpointing": "full"},
    "int8": {"kind": "int8"},
    "fp8": {"kind": "fp8"},
    "nf4": {"kind": "nf4", "checkpointing": "full"},
    "nf4, 2 blocks away": {"kind": "nf4", "checkpointing": "full", "away": 2},
    "compiled": {"compiled": True},
    "compiled, selective": {"compiled": True, "checkpointing": "selective"},
    "compiled, fp8 both ways": {"compiled": True, "kind": "fp8", "both_ways": True},
    "compiled, int8 both ways": {"compiled": True, "kind": "int8", "both_ways": True},
    "CUDA graph": {"captured": True},
    "compiled, CUDA graph": {"compiled": True, "captured": True},
}
TIMED = ("compiled", "compiled, fp8 both ways", "bfloat16", "compiled, CUDA graph", "compiled, int8 both ways", "nf4")
NEEDS_GPU = {"fp8", "nf4", "nf4, 2 blocks away", "compiled, fp8 both ways", "CUDA graph", "compiled, CUDA graph"}
SLOW_ON_CPU = {name for name in FORMS if name.startswith("compiled")}  # minutes of a C++ compiler
STEPS = 3
KERNELS = 15
# The released autoencoder (Flux's) and text encoder (Qwen3-4B), and what stands for them on a CPU.
VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
ENCODER: dict[str, Any] = {
    **{"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
}
TINY = Size(
    name="tiny, 64 px",
    config=(
        *(("dim", 96), ("n_layers", 2), ("n_heads", 3), ("n_kv_heads", 3), ("cap_feat_dim", 32)),
        *(("axes_dims", (8, 12, 12)), ("axes_lens", (640, 64, 64))),
    ),
    side_px=64,
    batch=2,
    rank=4,
    targets=("attention", "feed_forward"),
    captions=(23, 54),
)
SMALL = DEMO if IS_GPU else TINY  # of the steps that only have to work
if not IS_GPU:
    VAE |= {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    ENCODER |= {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    ENCODER |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


@dataclass
class Record:
    """Writes what each part found as soon as it is known.

    Args:
        file: OUT/gpu.jsonl.
        ends_at: After this moment of time.monotonic() no part begins.
    """

    file: Path
    ends_at: float
    failed: list[str] = field(default_factory=list)

    def run(self, name: str, part: Callable[[], dict[str, Any]]) -> None:
        """Run a part, and write a line for it whatever happens."""
        begun = time.monotonic()
        found: dict[str, Any]
        if begun > self.ends_at:
            found = {"state": "skipped"}
        else:
            try:
                found = {"state": "done", **part()}
            except Exception as error:  # noqa: BLE001 - the parts behind it are still wanted
                self.failed.append(name)
                found = {"state": "failed", "error": str(error)[:300], "traceback": traceback.format_exc()}
            finally:
                torch.compiler.reset()  # compiled code holds on to the blocks of a part
                release(DEVICE)
        line = {"part": name, "seconds": round(time.monotonic() - begun, 1), **found}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = {key: value for key, value in line.items() if key not in {"part", "traceback"}}
        print(f"{name}: {json.dumps(shown)}", flush=True)


def main() -> int:
    """Run all parts; return 1 if one has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for gpu.jsonl")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no part begins")
    parser.add_argument("--px", type=int, nargs="+", default=[1024, 512, 768])
    parser.add_argument("--turns", type=int, default=3, help="of each variant; medians are shown")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    record = Record(asked.out / "gpu.jsonl", time.monotonic() + 60 * asked.minutes)
    for name, part in parts(asked.px, asked.turns):
        record.run(name, part)
    print(f"{len(record.failed)} failed: {', '.join(record.failed)}" if record.failed else "no part failed")
    return 1 if record.failed else 0


def parts(sides_px: list[int], turns: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the parts by value."""
    yield "machine", _about_the_machine
    forms = {name: form for name, form in FORMS.items() if IS_GPU or name not in NEEDS_GPU | SLOW_ON_CPU}
    yield "the same step on the CPU, float32", partial(_first_losses, {}, on_cpu=True)
    for name, form in forms.items():
        yield f"a step: {name}", partial(_first_losses, form)
    if IS_GPU:
        yield "CUDA graph against none", _graph_difference
    timed_forms = {name: forms[name] for name in TIMED if name in forms}
    for side_px in sides_px:
        size = released(side_px) if IS_GPU else TINY
        for name, form in list(timed_forms.items())[:1]:
            yield f"{size.name}: {name}", partial(_time_of, size, form, turns)
        yield f"{size.name}: plain loop over diffusers", partial(_time_of, size, None, turns)
        for name, form in list(timed_forms.items())[1:]:
            yield f"{size.name}: {name}", partial(_time_of, size, form, turns)
        if not IS_GPU:
            break  # there is one tiny size
    side_px = sides_px[0] if IS_GPU else TINY.side_px
    yield f"encode a picture of {side_px} px", partial(_encoding, side_px, turns)
    yield "encode a caption", partial(_captions, turns)
    yield f"sample and decode a picture of {side_px} px", partial(_sampling, side_px)
    size = released(sides_px[0]) if IS_GPU else TINY
    yield f"{size.name}: kernels", partial(_kernels, size, next(iter(timed_forms.values())))


def _about_the_machine() -> dict[str, Any]:
    found: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if IS_GPU:
        found |= {"capability": torch.cuda.get_device_capability(), "free GB": torch.cuda.mem_get_info()[0] / 1e9}
    return found


def _first_losses(form: dict[str, Any], *, on_cpu: bool = False) -> dict[str, Any]:
    """Return the losses of the first steps of a small model, whose weights and noise are always the same."""
    device = torch.device("cpu") if on_cpu else DEVICE
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    step = our_step(SMALL, dtype=dtype, device=device, **form)
    return {"losses": [round(float(step()), 6) for _ in range(STEPS)]}


def _graph_difference() -> dict[str, Any]:
    """Return the largest difference of what a few steps make of the adapters, relative to the largest value."""
    found = []
    for captured in (False, True):
        values: list[Tensor] = []
        step = our_step(SMALL, dtype=torch.bfloat16, captured=captured, values=values)
        for _ in range(2 * STEPS):
            step()
        found.append(values[0].detach().clone())
    largest = float(found[0].abs().max())
    return {"largest difference": float((found[0] - found[1]).abs().max()) / largest}


def _time_of(size: Size, form: dict[str, Any] | None, turns: int) -> dict[str, Any]:
    """Return the median time of a step, its rate, and on a GPU its peak memory beside the computed one."""
    dtype = torch.bfloat16 if IS_GPU else torch.float32
    if IS_GPU:
        torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    step = plain_step(size, dtype) if form is None else our_step(size, dtype=dtype, **form)
    float(step())
    ready_s = time.monotonic() - begun
    (times,) = timed(size, {"": step}, turns).values()
    rate = flops(size, kept=form is None or form.get("checkpointing") != "full") / times.wall_s / 1e12
    found = {"ms a step": times.wall_s * 1e3, "TFLOP/s": rate, "loss": times.loss, "s to the first step": ready_s}
    if IS_GPU:
        found |= {"share of peak": rate / GPU_PEAK_TFLOPS, "peak GB": torch.cuda.max_memory_allocated() / 1e9}
        if form is not None:
            found["computed GB"] = computed_gb(size, form)
    return {name: round(value, 4) for name, value in found.items()}


def computed_gb(size: Size, form: dict[str, Any]) -> float:
    """Return what zimage/training/memory.py computes for this step."""
    sizes, tokens = Sizes(3840, 30, 2), 0
    for lengths in size.by_length:
        bucket = SequenceBucket(size.side_px // 8, size.side_px // 8, padded(lengths[0]))
        tokens = max(tokens, size.batch * sequence_length(bucket))
    away = form.get("away", 0)
    memory = MemoryParams.model_validate({"base_quantization": form.get("kind", "none"), "compile": False})
    how = MachineParams.model_validate({"checkpointing": "none", "offloaded_blocks": away, "cuda_graphs": False})
    weights = weights_gb(sizes, memory, how) * (2 if form.get("both_ways") else 1)
    kept = activations_gb(sizes, tokens, form.get("checkpointing", "none"))
    return weights + kept + adapters_gb(lora_gb(sizes, size.rank)) + WORKSPACE_GB


def _encoding(side_px: int, turns: int) -> dict[str, Any]:
    """Return what a picture takes to encode by an autoencoder of the released size."""
    vae, pixels = _vae(), torch.rand((3, side_px, side_px)) * 2 - 1
    return {"ms a picture": _median_ms(lambda: posterior(vae, pixels).mean, turns)}


def _captions(turns: int) -> dict[str, Any]:
    """Return what a caption of 61 tokens takes in a text encoder of the released size that lies on the device."""
    config = Qwen3Config(**ENCODER)
    torch.set_default_dtype(torch.bfloat16 if IS_GPU else torch.float32)
    try:
        with DEVICE:
            encoder = Qwen3Model(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    ids = torch.randint(config.vocab_size, (1, 61), device=DEVICE)

    def once() -> Tensor:
        with torch.no_grad():
            states: Tensor = encoder(ids, use_cache=False).last_hidden_state
            return states

    return {"ms a caption": _median_ms(once, turns)}


def _sampling(side_px: int) -> dict[str, Any]:
    """Return what a velocity and a decoded picture take: a picture of n guided steps costs 2 n velocities."""
    size = released(side_px) if IS_GPU else TINY
    dtype = torch.bfloat16 if IS_GPU else torch.float32
    transformer = random_transformer(size, dtype)
    denoiser = Denoiser(transformer, dtype=dtype, stream=dtype, device=DEVICE)
    width = int({"cap_feat_dim": 2560, **dict(size.config)}["cap_feat_dim"])
    latents = torch.randn((1, 16, side_px // 8, side_px // 8), device=DEVICE)
    with torch.no_grad():
        states, lengths = torch.randn((1, 64, width), device=DEVICE), torch.tensor([61], device=DEVICE)
        context = denoiser.refine(states, lengths)
        half = torch.full((1,), 0.5, device=DEVICE)
        velocity_ms = _median_ms(lambda: denoiser.velocity(latents, half, context), 3)
    vae = _vae()
    return {"ms a velocity": velocity_ms, "ms a decoded picture": _median_ms(lambda: decode(vae, latents), 3)}


def _vae() -> AutoencoderKL:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with DEVICE:
        vae = AutoencoderKL(
            latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, **blocks, **VAE
        )  # float32, as `encode` has it
    return vae.eval()  # type: ignore[no-any-return]


def _kernels(size: Size, form: dict[str, Any]) -> dict[str, Any]:
    """Return the kernels that take most of a step, each with its share."""
    step = our_step(size, dtype=torch.bfloat16 if IS_GPU else torch.float32, **form)
    for _ in range(STEPS):
        float(step())
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if IS_GPU else [])]
    with torch.profiler.profile(activities=kinds) as profile:
        float(step())
    taken = {
        each.key: each.self_device_time_total if IS_GPU else each.self_cpu_time_total for each in profile.key_averages()
    }
    total = sum(taken.values()) or 1.0
    most = sorted(taken.items(), key=lambda item: -item[1])[:KERNELS]
    return {"ms in all": round(total / 1e3, 2), "kernels": {name[:90]: round(each / total, 4) for name, each in most}}


def _median_ms(work: Callable[[], Tensor], turns: int) -> float:
    taken = []
    for _ in range(turns + 1):
        if IS_GPU:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if IS_GPU:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return round(sorted(taken[1:])[turns // 2] * 1e3, 3)


if __name__ == "__main__":
    raise SystemExit(main())

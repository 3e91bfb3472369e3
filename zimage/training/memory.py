"""Estimate the GPU memory of a training run, and choose what fits."""

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zimage.core.errors import InputError
from zimage.lora.files.loaders import factorized
from zimage.model.device import free_gb, has_bfloat16_units
from zimage.model.fast.block_swap import PLACES
from zimage.model.sequence import SequenceBucket, padded, sequence_length
from zimage.training.block_runner import Checkpointing
from zimage.training.params import FIND_A_RATE, MachineParams, MemoryParams, OptimiserName, TargetParams, TrainParams
from zimage.training.targets import kinds_of, largest_rank

logger = logging.getLogger(__name__)

# Of what is free, the share that activations may take: the rest is workspace of products and what the allocator wastes.
USED_SHARE = 0.85
# Of all there is, what a preset may need to be called fitting.
SPARE = 0.9
# Of the largest weight written out, or of one product in integers: computed for NF4, in GB at the released width.
WORKSPACE_GB = 1.1
WEIGHT_BYTES = {"none": 2.0, "fp8": 1.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
# Numbers that an optimiser keeps for each value, in units of float32; those of rows and columns are too few to count.
MOMENTS: dict[OptimiserName, float] = {
    "adamw": 2.0,
    "adamw_8bit": 0.5,
    "adafactor": 0.0,
    "prodigy": 4.0,
    "schedule_free": 2.0,
    "prodigy_schedule_free": 2.2,  # of p0 and s, one value in eleven
    "came": 1.0,
    "muon": 1.0,
}
COMPILERS = ("cc", "gcc", "clang")
# Adapters here send the backward pass through the blocks that only the picture takes.
BEFORE_THE_LAYERS = {"noise_refiner", "image_embedder", "time_embedder"}
# Weights that are small enough to be learnt with in float32 where there are no bfloat16 units.
SMALL_GB = 1.0
FP8_CAPABILITY = (8, 9)  # the first GPUs with 8-bit floating-point units: Ada and Hopper


@dataclass(frozen=True)
class MemoryPreset:
    """The memory settings of a preset in zimage/assets/presets.yaml; a test compares the two."""

    memory: MemoryParams
    machine: MachineParams
    micro_batch_size: int


def _preset(
    quantization: str, checkpointing: str, *, away: int = 0, compiled: bool, micro_batch_size: int = 1
) -> MemoryPreset:
    machine = {"checkpointing": checkpointing, "offloaded_blocks": away, "cuda_graphs": False}
    memory = MemoryParams.model_validate({"base_quantization": quantization, "compile": compiled})
    return MemoryPreset(memory, MachineParams.model_validate(machine), micro_batch_size)


# By the memory they are made for, least first.
PRESETS = {
    "8gb": _preset("nf4", "full", away=15, compiled=False),
    "16gb": _preset("int8", "auto", compiled=True),
    "24gb": _preset("none", "auto", compiled=True),
    "80gb": _preset("none", "auto", compiled=True, micro_batch_size=2),
}


@dataclass(frozen=True)
class Sizes:
    """Of a transformer."""

    width: int
    layers: int
    refiners: int

    @property
    def feed_forward(self) -> int:
        """Return the width between the feed-forward's products."""
        return int(self.width / 3 * 8)


def sizes_of(base: Path) -> Sizes:
    """Return the sizes of the transformer in a base model's folder."""
    config = json.loads((base / "transformer" / "config.json").read_text(encoding="utf-8"))
    return Sizes(config["dim"], config["n_layers"], config["n_refiner_layers"])


def check(params: TrainParams, machine: MachineParams, sizes: Sizes, device: torch.device) -> None:
    """Refuse memory settings that contradict each other or are impossible on this device.

    Raises:
        InputError: with what excludes what, and what to set instead.
    """
    memory = params.memory
    if params.adapter != "lora" and params.dropout > 0:
        kind = {"lokr": "LoKr", "dora": "DoRA"}[params.adapter]
        raise InputError(f"train.dropout drops inputs of a LoRA and does nothing in a {kind}; set it to 0.")
    if params.adapter == "dora" and params.training_adapter is not None:
        raise InputError(
            "train.adapter is dora, whose magnitudes are those of the weights that it is trained on, and "
            "train.training_adapter changes these for the training only; set train.adapter to lora or lokr."
        )
    if params.optimiser.name in FIND_A_RATE and any(
        isinstance(target, TargetParams) and target.learning_rate_factor != 1 for target in params.targets
    ):
        raise InputError(
            f"train.optimiser.name is {params.optimiser.name}, which finds one learning rate for all layers, but "
            "train.targets has a learning_rate_factor; leave it out, or choose another optimiser."
        )
    if params.adapter != "lokr" and (rank := largest_rank(params)) > sizes.width:
        raise InputError(
            f"train.rank is {rank}, but the base's layers are {sizes.width} wide and no change of them has a "
            f"higher rank; set train.rank to {sizes.width} or less."
        )
    if machine.checkpointing == "selective" and not memory.compile:
        raise InputError(
            "machine.checkpointing is `selective`, which needs the compiler; "
            "set it to `full`, or train.memory.compile to true, which trains anew."
        )
    if memory.compile and not any(shutil.which(name) for name in COMPILERS):
        raise InputError(
            "train.memory.compile needs a C compiler, and there is none here (gcc, clang, cc); "
            "install one, or set it to false."
        )
    if machine.offloaded_blocks and memory.compile:
        raise InputError(
            "machine.offloaded_blocks needs blocks that are not compiled, for their weights come and go; "
            "set it to 0, or train.memory.compile to false, which trains anew."
        )
    if machine.cuda_graphs and (hindrance := _hindrance_of_graphs(params, machine)):
        raise InputError(
            f"machine.cuda_graphs cannot record {hindrance}; set that otherwise, or machine.cuda_graphs to false."
        )
    if machine.offloaded_blocks > sizes.layers:
        raise InputError(
            f"machine.offloaded_blocks is {machine.offloaded_blocks}, but the base has {sizes.layers} main blocks; "
            "set it to at most that."
        )
    if device.type == "cuda":
        _check_units(params, machine, sizes, device)


def _check_units(params: TrainParams, machine: MachineParams, sizes: Sizes, device: torch.device) -> None:
    """Refuse number formats that the GPU does not support."""
    memory = params.memory
    small = weights_gb(sizes, memory, machine) < SMALL_GB
    if params.precision == "bfloat16" and not has_bfloat16_units(device) and not small:
        raise InputError(
            f"train.precision is bfloat16, but {torch.cuda.get_device_name(device)} has no units for it; "
            "use a GPU of the Ampere generation or a later one, or set train.precision to float32, which is slow."
        )
    if params.precision == "float32" and memory.base_quantization == "fp8":
        raise InputError(
            "train.memory.base_quantization is `fp8`, whose products come out in bfloat16, but train.precision is "
            "float32; set train.precision to bfloat16, or base_quantization to `int8`."
        )
    if memory.base_quantization == "fp8" and torch.version.hip:
        raise InputError(
            "train.memory.base_quantization is `fp8`, whose numbers are NVIDIA's, and this GPU is AMD's, which has "
            "others; set it to `int8`, `nf4` or `none`."
        )
    if memory.base_quantization == "fp8" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise InputError(
            f"train.memory.base_quantization is `fp8`, but {torch.cuda.get_device_name(device)} has no units for it; "
            "set it to `int8`."
        )
    if memory.base_quantization in {"fp8", "int8"} and not memory.compile:
        logger.warning("8-bit weights are no faster than bfloat16 without train.memory.compile, only smaller")


def _hindrance_of_graphs(params: TrainParams, machine: MachineParams) -> str | None:
    """Return the setting that a CUDA graph cannot record; None if there is none."""
    if params.dropout > 0:
        return "the random numbers of train.dropout"
    if machine.offloaded_blocks:
        return "the coming and going of machine.offloaded_blocks"
    before_context = {"context_refiner", "caption_embedder"} & kinds_of(params.targets)
    return f"captions that train.targets ({', '.join(sorted(before_context))}) change" if before_context else None


def checkpointing_of(
    params: TrainParams, machine: MachineParams, sizes: Sizes, buckets: Iterable[SequenceBucket], device: torch.device
) -> Checkpointing:
    """Return the checkpointing to use: as asked, or for `auto` the one that recomputes least and fits.

    Args:
        params: Of the run.
        machine: What was asked.
        sizes: Of the transformer, whose weights are in the device's memory already.
        buckets: Of all steps.
        device: Where they run.
    """
    if machine.checkpointing != "auto":
        return machine.checkpointing
    if device.type != "cuda":
        return "none"
    # What a graph keeps lies in memory of its own, beside that of what is not recorded: other shapes, preservation.
    usable_gb = free_gb(device) / (2 if machine.cuda_graphs else 1)
    tokens = params.micro_batch_size * _most_tokens(buckets)
    return least_checkpointing(
        params.memory.compile,
        learning(sizes, params),
        tokens,
        usable_gb,
        dropped=dropped(sizes, params),
        inner=inner_values(sizes, params),
    )


def keeps_both_ways(
    params: TrainParams, machine: MachineParams, sizes: Sizes, buckets: Iterable[SequenceBucket], device: torch.device
) -> bool:
    """Return whether 8-bit weights are kept transposed as well, as the backward pass reads them.

    Without, each is turned in every step. What comes out is the same.

    Args:
        params: Of the run.
        machine: What was asked.
        sizes: Of the transformer, whose weights are not in the device's memory yet.
        buckets: Of all steps.
        device: Where they run.
    """
    if device.type != "cuda":
        return False
    both = room_for_both_ways(params, machine, sizes, params.micro_batch_size * _most_tokens(buckets), free_gb(device))
    if both:
        logger.info("8-bit weights are kept in both orders, which the memory has room for")
    return both


def room_for_both_ways(
    params: TrainParams, machine: MachineParams, sizes: Sizes, tokens: int, available_gb: float
) -> bool:
    """Return whether 8-bit weights fit twice without checkpointing."""
    memory = params.memory
    if memory.base_quantization not in {"fp8", "int8"} or machine.offloaded_blocks:
        return False
    asked, inner = dropped(sizes, params), inner_values(sizes, params)
    kept = activations_gb(learning(sizes, params), tokens, "none", dropped=asked, inner=inner)
    kept *= 2 if machine.cuda_graphs else 1
    adapters = adapters_gb(values_gb(sizes, params), params.optimiser.name)
    need = 2 * weights_gb(sizes, memory, machine) + adapters + kept + WORKSPACE_GB
    return need < available_gb * USED_SHARE


def learning(sizes: Sizes, params: TrainParams) -> Sizes:
    """Return the sizes with all blocks as layers that the backward pass takes: the picture's too, if it goes so far."""
    so_far = BEFORE_THE_LAYERS & kinds_of(params.targets)
    return replace(sizes, layers=sizes.layers + sizes.refiners) if so_far else sizes


def dropped(sizes: Sizes, params: TrainParams) -> int:
    """Return how many values a token a block's adapters read, each its own, where there is dropout; or 0."""
    if params.dropout == 0:
        return 0
    D, F = sizes.width, sizes.feed_forward
    kinds = kinds_of(params.targets)
    return (4 * D if "attention" in kinds else 0) + (2 * D + F if "feed_forward" in kinds else 0)


def inner_values(sizes: Sizes, params: TrainParams) -> int:
    """Return how many more values a token a block's adapters keep for the backward pass than LoRAs do.

    A LoKr keeps what is between its two matrices; a DoRA its layers' outputs before they are given their lengths.
    """
    if params.adapter == "lora":
        return 0
    if params.adapter == "dora":
        return sum(out for out, _ in _adapted(sizes, params))
    inner = 0
    for out, width in _adapted(sizes, params):
        rows, columns = factorized(out, params.lokr.factor), factorized(width, params.lokr.factor)
        inner += columns[0] * (rows[1] + (params.rank if _is_factored(rows[1], columns[1], params) else 0))
    return inner


def _adapted(sizes: Sizes, params: TrainParams) -> list[tuple[int, int]]:
    """Return the shapes (out, in) of a block's adapted layers."""
    D, F = sizes.width, sizes.feed_forward
    kinds = kinds_of(params.targets)
    attention = [(D, D)] * 4 if "attention" in kinds else []
    return attention + ([(F, D), (F, D), (D, F)] if "feed_forward" in kinds else [])


def _is_factored(rows: int, columns: int, params: TrainParams) -> bool:
    """Return whether peft keeps a second matrix of this shape as two factors."""
    return not params.lokr.full_matrix and params.rank < max(rows, columns) / 2


def least_checkpointing(
    compiled: bool, sizes: Sizes, tokens: int, available_gb: float, *, dropped: int = 0, inner: int = 0
) -> Checkpointing:
    """Return the form of checkpointing that recomputes least and lets so many tokens fit; full where none does."""
    choices: list[Checkpointing] = ["none", "selective", "full"] if compiled else ["none", "full"]
    needs = {choice: activations_gb(sizes, tokens, choice, dropped=dropped, inner=inner) for choice in choices}
    chosen: Checkpointing = next((choice for choice in choices if needs[choice] < available_gb * USED_SHARE), "full")
    logger.info("checkpointing %s: activations take %.1f GB of %.1f GB free", chosen, needs[chosen], available_gb)
    return chosen


def activations_gb(
    sizes: Sizes, tokens: int, checkpointing: Checkpointing, *, dropped: int = 0, inner: int = 0
) -> float:
    """Return about how much the main blocks keep from the forward pass for the backward pass, in bfloat16.

    Counted in values a token, D the width and F the feed-forward's:
    none: the stream before both branches (2 D), both normed (2 D), qkv (3 D), turned (3 D), attended twice (2 D), both
    branches' ends (2 D), the feed-forward's two halves, the opened one and their product (4 F);
    selective: the stream (D), qkv (3 D), attended (D), both ends (2 D), the two halves (2 F);
    full: the stream (D), and all of one block while it is computed again.
    What adapters read is kept by `none` once more for each, with a byte of mask a value, if there is dropout;
    and what a LoKr has between its two matrices, or a DoRA's layers put out (`inner` values).
    """
    D, F = sizes.width, sizes.feed_forward
    chosen = dropped + dropped // 2 + inner
    everything, little = 14 * D + 4 * F, 7 * D + 2 * F
    values: dict[Checkpointing, int] = {
        "none": sizes.layers * (everything + chosen),
        "selective": sizes.layers * little,
        "full": sizes.layers * D + everything + chosen,
    }
    return tokens * values[checkpointing] * 2 / 1e9


def weights_gb(sizes: Sizes, memory: MemoryParams, machine: MachineParams) -> float:
    """Return what the frozen weights take on the GPU while it learns; the context refiner is gone by then."""
    D, F = sizes.width, sizes.feed_forward
    here = sizes.layers - machine.offloaded_blocks + min(machine.offloaded_blocks, PLACES) + sizes.refiners
    modulations = (sizes.layers + sizes.refiners) * 256 * 4 * D * 2
    return (here * (4 * D * D + 3 * D * F) * WEIGHT_BYTES[memory.base_quantization] + modulations) / 1e9


def adapters_gb(values_gb: float, optimiser: OptimiserName = "adamw") -> float:
    """Return what adapters take while they learn: values, gradients, the average and the optimiser's moments."""
    return (3 + MOMENTS[optimiser]) * values_gb


def values_gb(sizes: Sizes, params: TrainParams) -> float:
    """Return what the values of the main blocks' adapters take, in float32."""
    if params.adapter != "lokr":
        magnitudes = sum(out for out, _ in _adapted(sizes, params)) if params.adapter == "dora" else 0
        return lora_gb(sizes, largest_rank(params)) + 4 * sizes.layers * magnitudes / 1e9
    values = 0
    for out, width in _adapted(sizes, params):
        rows, columns = factorized(out, params.lokr.factor), factorized(width, params.lokr.factor)
        factored = _is_factored(rows[1], columns[1], params)
        values += rows[0] * columns[0] + (params.rank * (rows[1] + columns[1]) if factored else rows[1] * columns[1])
    return 4 * sizes.layers * values / 1e9


def lora_gb(sizes: Sizes, rank: int) -> float:
    """Return what the values of LoRAs of attention and feed-forward take, in float32."""
    D, F = sizes.width, sizes.feed_forward
    return 4 * rank * sizes.layers * (11 * D + 3 * F) / 1e9


def needed_gb(
    sizes: Sizes, preset: MemoryPreset, values_gb: float, tokens: int, optimiser: OptimiserName = "adamw"
) -> float:
    """Return about what a run needs at least: with full checkpointing where the preset lets it choose.

    Args:
        sizes: Of the transformer.
        preset: What is traded for memory.
        values_gb: What the adapters' values take.
        tokens: Of the longest sequence.
        optimiser: Whose moments the adapters have.
    """
    checkpointing = "full" if preset.machine.checkpointing == "auto" else preset.machine.checkpointing
    activations = activations_gb(sizes, preset.micro_batch_size * tokens, checkpointing)
    adapters = adapters_gb(values_gb, optimiser)
    return weights_gb(sizes, preset.memory, preset.machine) + adapters + activations + WORKSPACE_GB


def too_small(  # noqa: PLR0917
    params: TrainParams, machine: MachineParams, sizes: Sizes, px: tuple[int, int], caption: int, available_gb: float
) -> InputError:
    """Return the error for a run that does not fit into the GPU.

    Args:
        params: Of the run.
        machine: What was asked.
        sizes: Of the transformer.
        px: Width and height of the largest picture.
        caption: Tokens of the longest caption.
        available_gb: GPU memory that this process can use.
    """
    tokens = sequence_length(SequenceBucket(px[1] // 8, px[0] // 8, padded(caption)))
    values = values_gb(sizes, params)
    optimiser = params.optimiser.name
    now = needed_gb(sizes, MemoryPreset(params.memory, machine, params.micro_batch_size), values, tokens, optimiser)
    needs = {name: needed_gb(sizes, preset, values, tokens, optimiser) for name, preset in PRESETS.items()}
    fitting = [f"{name} ({need:.0f} GB)" for name, need in needs.items() if need < min(now, SPARE * available_gb)]
    remedy = f"a preset that fits ({', '.join(reversed(fitting))}), " if fitting else ""
    quantization = params.memory.base_quantization
    weights = params.precision if quantization == "none" else quantization
    return InputError(
        f"{available_gb:.0f} GB of memory are too small for {params.micro_batch_size} picture(s) of {px[0]} x {px[1]} "
        f"px at once with {weights} weights; {_cheaper(params, machine)}choose {remedy}a smaller "
        "train.micro_batch_size, smaller crops, or end what else runs on it."
    )


def _cheaper(params: TrainParams, machine: MachineParams) -> str:
    """Return what this machine can do about too little memory that leaves the LoRA as it is; "" for nothing."""
    values = [] if machine.checkpointing in {"auto", "full"} else ["checkpointing=full"]
    if not params.memory.compile and not machine.offloaded_blocks:
        values.append("offloaded_blocks=15")
    if machine.cuda_graphs:
        values.append("cuda_graphs=false")
    return f'set ZIMAGE_MACHINE="{" ".join(values)}" on this machine, which trains on as before, or ' if values else ""


def _most_tokens(buckets: Iterable[SequenceBucket]) -> int:
    return max(sequence_length(bucket) for bucket in buckets)

"""Build a run from the params: model, adapters, data and plan."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zimage.core.errors import InputError
from zimage.lora.files.portable import Factors
from zimage.model.base import open_scheduler, open_transformer
from zimage.model.denoiser import Denoiser
from zimage.model.device import device_and_dtype, has_bfloat16_units, keep_freed_memory, release
from zimage.model.fast.linear import Addend, Projection
from zimage.training.adapters import Adapters, inject, module_names
from zimage.training.block_runner import make_block_runner
from zimage.training.dataset import Dataset
from zimage.training.distributed import World
from zimage.training.graphed_step import GraphedStep, Passes, Recorder
from zimage.training.init_lora import begin_with_lora
from zimage.training.loop import Loop
from zimage.training.memory import check, checkpointing_of, keeps_both_ways, sizes_of
from zimage.training.noise import generator_of
from zimage.training.objective import Objective
from zimage.training.optimiser import NOT_READ, Optimiser, schedule_of
from zimage.training.params import MachineParams, PriorPreservationParams, TargetParams, TrainParams
from zimage.training.plan import Step, plan
from zimage.training.training_adapter import addends_of, merge

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Run:
    """A run before its first step.

    Args:
        loop: Its steps.
        dataset: Pictures and texts.
        scheduler: Of the base.
        adapter_removal: Addends that cancel the training adapter, by projection; empty where there is none.
    """

    loop: Loop
    dataset: Dataset
    scheduler: "FlowMatchEulerDiscreteScheduler"
    adapter_removal: Sequence[tuple[Projection, tuple[Addend, ...]]]

    @property
    def denoiser(self) -> Denoiser:
        """Return the model."""
        return self.loop.objective.denoiser

    @property
    def adapters(self) -> Adapters:
        """Return what is trained."""
        return self.loop.adapters


def build_run(encode: Path, base: Path, params: TrainParams, machine: MachineParams, world: World) -> Run:
    """Return a run ready for its first step.

    Args:
        encode: The folder of the encode stage.
        base: The folder of the base model.
        params: Of the run.
        machine: How it uses the memory that is here.
        world: The processes that share it.

    Raises:
        InputError: the data, the training adapter or a parameter cannot be used.
    """
    device, _ = device_and_dtype()
    sizes = sizes_of(base)
    check(params, machine, sizes, device)
    keep_freed_memory(device)
    dataset = Dataset(encode, device=device, face_weight=params.face_weight)
    scheduler = open_scheduler(base)
    steps = _plan_steps(dataset, params)
    preservation_steps = (
        _plan_preservation(dataset, params.prior_preservation, params) if params.prior_preservation else []
    )
    buckets = {step.bucket for step in (*steps, *preservation_steps)}
    both_ways = keeps_both_ways(params, machine, sizes, buckets, device)
    denoiser, names, factors, targets = _denoiser(base, params, machine, device, both_ways=both_ways)
    adapters = Adapters(denoiser, names, targets)
    if denoiser.context_is_fixed:
        dataset.refine(denoiser)
        denoiser.forget_context()
    adapter_removal = addends_of(denoiser, names, factors)
    release(device)
    denoiser.run = make_block_runner(
        checkpointing_of(params, machine, sizes, buckets, device),
        compiled=params.memory.compile,
        random=params.dropout > 0,
        shapes=len(buckets),
    )
    if denoiser.dtype is not torch.float32:
        cast = adapters.cast_for_compile if params.memory.compile else adapters.cast
        denoiser.ready = partial(cast, denoiser.dtype)
    logger.info("%d adapter values, precision %s, device %s", len(adapters.values), params.precision, device)
    objective = Objective(
        denoiser,
        dataset,
        timestep_sampling=params.timestep_sampling,
        sampler_shift=float(scheduler.config.shift),
        loss_weight=params.loss_weight,
        latents=params.latents,
        seed=params.seed,
    )
    if not_read := NOT_READ.get(params.optimiser.name):
        unread = " and ".join(f"train.{name}" for name in not_read)
        logger.info("the optimiser %s does not read %s", params.optimiser.name, unread)
    passes: Passes = objective.forward_backward
    if machine.cuda_graphs and device.type == "cuda":
        passes = GraphedStep(passes, adapters.gradient, Recorder(device))
    loop = Loop(
        objective,
        passes,
        adapters,
        Optimiser(adapters, params.optimiser),
        schedule_of(params.optimiser, params.schedule),
        steps=steps,
        preservation_steps=preservation_steps,
        preservation=params.prior_preservation,
        micro_batch_size=params.micro_batch_size,
        world=world,
    )
    return Run(loop, dataset, scheduler, adapter_removal)


def _denoiser(
    base: Path, params: TrainParams, machine: MachineParams, device: torch.device, *, both_ways: bool
) -> tuple[Denoiser, dict[int, str], dict[str, Factors], dict[str, TargetParams]]:
    """Return the model with new adapters, its modules' names, the factors of a training adapter, and layers' targets.

    On a CPU the frozen weights stay in float32 whatever the products are in: the tiny base is small, and the adapters
    are then added to them exactly. To a GPU they go one product at a time, in the form in which they are kept, so that
    it never has to hold them in any other.
    """
    on_cpu = device.type == "cpu"
    dtype = products_dtype(params.precision, device)
    transformer = open_transformer(base, device="cpu", dtype=torch.float32 if on_cpu else dtype)
    factors = merge(transformer, params.training_adapter) if params.training_adapter else {}
    generator = generator_of(params.seed, "adapters")
    targets = inject(
        transformer,
        params.targets,
        rank=params.rank,
        dropout=params.dropout,
        generator=generator,
        adapter=params.adapter,
        lokr=params.lokr,
    )
    begin_with_lora(transformer, params)
    denoiser = Denoiser(
        transformer,
        dtype=dtype,
        stream=torch.float32 if on_cpu else dtype,
        device=device,
        weight_format=params.memory.base_quantization,
        offloaded_blocks=machine.offloaded_blocks,
        both_ways=both_ways,
    )
    if not on_cpu:
        _let_go(transformer)
    return denoiser, module_names(transformer), factors, targets


def products_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products: float32 instead of bfloat16 on a device that has no units for it.

    There it is not only more exact but many times as fast.
    """
    dtype = DTYPES[precision]
    if dtype is torch.bfloat16 and not has_bfloat16_units(device):
        logger.info("this %s has no bfloat16 units; products are in float32", "CPU" if device.type == "cpu" else "GPU")
        return torch.float32
    return dtype


def _let_go(transformer: "ZImageTransformer2DModel") -> None:
    """Free the weights in main memory; the denoiser has its own copy on the GPU."""
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = torch.empty(0)


def _plan_steps(dataset: Dataset, params: TrainParams) -> list[Step]:
    return plan(
        dataset.sources("subject"),
        dataset.lengths,
        steps=params.steps,
        batch=params.batch_size,
        generator=generator_of(params.seed, "plan"),
        dropout=params.caption_dropout,
        empty=dataset.empty,
    )


def _plan_preservation(dataset: Dataset, preservation: PriorPreservationParams, params: TrainParams) -> list[Step]:
    role = "subject" if preservation.pictures == "crops" else "class"
    sources = dataset.sources("subject" if role == "subject" else "class", of_the_class=True)
    if not sources:
        raise InputError(
            "train.prior_preservation.pictures is `class`, but there are no class pictures; "
            "name a folder of them in encode.class_pictures, or let the base make them there, or set it to `crops`."
        )
    if preservation.target == "picture" and preservation.pictures == "crops":
        raise InputError(
            "train.prior_preservation.target is `picture`, but the pictures are the subject's own crops, which would "
            "teach the class to look like the subject; set it to `base`, or pictures to `class`."
        )
    return plan(
        sources,
        dataset.lengths,
        steps=-(-params.steps // preservation.every),
        batch=preservation.batch_size,
        generator=generator_of(params.seed, "preservation"),
    )

"""Stage `train`: train a LoRA of the base's transformer on encoded crops and captions."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zimage.captions.subject import Subject
from zimage.core.errors import InputError
from zimage.core.fingerprint import fingerprint
from zimage.core.folder import aside_of, check_out, made_aside
from zimage.core.jsonl import read_rows, write_metrics
from zimage.core.progress import Progress
from zimage.model.base import Base, identify_files, resolve
from zimage.training.params import MachineParams, TrainParams
from zimage.training.targets import said

if TYPE_CHECKING:
    from zimage.training.checkpoint import TrainingState
    from zimage.training.run_writer import RunWriter
    from zimage.training.setup import Run

logger = logging.getLogger(__name__)

LOSS_STEPS = 100  # that the metrics' mean losses are taken over


def train(
    encode: Path, out: Path, *, params: TrainParams, base: Base, subject: Subject, machine: MachineParams
) -> None:
    """Write a LoRA of the person, its checkpoints and its loss curve.

    A run that was stopped goes on from its last step, and one that was killed from its last checkpoint, if data,
    parameters, base and code are still the same, and ends with the LoRA it would have ended with. On a CPU several
    processes share the work, or those that `torchrun` has started.

    Args:
        encode: The folder of the encode stage.
        out: Gets lora.safetensors, checkpoints/, samples/, tensorboard/, loss.csv and metrics.json.
        params: See `TrainParams`.
        base: The model that is adapted.
        subject: Its trigger is written into the LoRA.
        machine: How the memory of this machine is used, and what shows the training; a run goes on with other values,
            and ends with the same LoRA.

    Raises:
        InputError: see `check_out`; the run was begun on another kind of device and `params.resume` is `exact`; the
            data or the base cannot be used, the loss left all bounds, or the GPU's memory is too small.
    """
    from zimage.model.device import use_one_thread_on_a_cpu
    from zimage.training.checkpoint import run_identity
    from zimage.training.distributed import begin_world
    from zimage.training.setup import build_run
    from zimage.training.turbo import turbo_warning

    check_out(out, (encode,), holds="lora.safetensors")
    use_one_thread_on_a_cpu()
    world = begin_world(params.batch_size, params.micro_batch_size)
    folder = resolve(base)
    warning = turbo_warning(base, folder, params)
    if warning and world.is_main:
        logger.warning("%s", warning)
    dataset = identify_files(encode.glob("*.*"), encode)
    code = fingerprint(__name__)
    # Values left at a default are no part of it: a setting that is new, and not used, begins no run anew.
    settings = params.model_dump_json(exclude={"resume"}, exclude_defaults=True)
    run = run_identity(settings, dataset, base.identity, subject.trigger, code)
    with _out_of_memory_explained(encode, folder, params, machine):
        prepared = build_run(encode, folder, params, machine, world)
        follow = partial(_follow, out, prepared, params, run=run)
        if world.is_main:
            metadata = _metadata(params, base, subject, dataset=dataset, code=code)
            with world.joined(follow, len(prepared.adapters.values), prepared.loop.most_pieces):
                _lead(
                    out,
                    prepared,
                    params,
                    encode=encode,
                    base=folder,
                    run=run,
                    metadata=metadata,
                    machine=machine,
                    warnings=[warning] if warning else [],
                )
        else:
            follow()
    world.close()


def _lead(
    out: Path,
    prepared: "Run",
    params: TrainParams,
    *,
    encode: Path,
    base: Path,
    run: str,
    metadata: dict[str, str],
    machine: MachineParams,
    warnings: list[str],
) -> None:
    """Run the training in the main process and write its results."""
    from zimage.model.device import device_kind
    from zimage.training.checkpoint import take_over
    from zimage.training.demand import DEMAND
    from zimage.training.first_batches import write_first_batches
    from zimage.training.likeness import FACES, open_curve
    from zimage.training.run_writer import RunWriter
    from zimage.training.validation import open_validation

    with made_aside(out, keep_on_failure=True) as aside:
        if params.stop is not None and not (encode / FACES).is_file():
            raise InputError(
                f"train.stop looks at the likeness of the sample pictures, but {encode} holds no face of a training "
                "photo; set it to null."
            )
        device = device_kind(prepared.denoiser.device)
        state = take_over(aside, run=run, device=device, resume=params.resume)
        if state is None:
            _empty(aside)
        else:
            _restore(prepared, state)
        write_metrics(aside / "metrics.json", {"warnings": warnings})  # for the page of the running training
        write_first_batches(encode, aside, prepared.dataset, prepared.loop.steps)
        begin = prepared.loop.world.broadcast_int(state.step if state else 0)
        devices = tuple(dict.fromkeys([*(state.devices if state else ()), device]))
        metadata = {**metadata, "zimage.devices": "; ".join(devices)}
        with Progress("train", params.steps, begin) as progress:
            writer = RunWriter(
                aside,
                prepared,
                params,
                base=base,
                metadata=metadata,
                run=run,
                begin=begin,
                devices=devices,
                progress=progress,
                machine=machine,
                likeness=None if params.samples is None else open_curve(encode, aside, begin),
                validation=open_validation(encode, aside, prepared.loop.objective),
            )
            with closing(writer):
                if state is None:
                    writer.validate(0)
                    writer.sample_at_start()
                elif state.pictures_due:
                    writer.save_checkpoint(begin)
                prepared.loop.run(
                    begin,
                    params.checkpoint_every,
                    on_metrics=writer.log_steps,
                    on_checkpoint=writer.save_checkpoint,
                    on_stop=writer.stopped,
                    is_over=writer.is_over,
                    on_demand=writer.on_demand,
                )
        writer.save_result(aside / "lora.safetensors")
        writer.write_prompts()
        metrics = _metrics(prepared, writer, params, begin, devices)
        write_metrics(aside / "metrics.json", {**metrics, "warnings": warnings})
        shutil.rmtree(aside / "resume")
        (aside / DEMAND).unlink(missing_ok=True)  # it came after the last step


def _follow(out: Path, prepared: "Run", params: TrainParams, *, run: str) -> None:
    """Compute this process's part of the run; nothing is read before the main process has cleaned up."""
    from zimage.training.checkpoint import read_states

    begin = prepared.loop.world.broadcast_int(0)
    if begin:
        states = read_states(aside_of(out) / "resume", run=run)
        state = next((state for state in states if state.step == begin), None)
        if state is None:
            raise InputError(f"{aside_of(out)} is not the same folder for all processes; give them one they share.")
        _restore(prepared, state)
    prepared.loop.run(
        begin,
        params.checkpoint_every,
        on_metrics=_ignored,
        on_checkpoint=_ignored,
        on_stop=_ignored,
        is_over=lambda _: False,
    )


@contextmanager
def _out_of_memory_explained(encode: Path, base: Path, params: TrainParams, machine: MachineParams) -> Iterator[None]:
    """Name the presets that would fit, if the GPU's memory is too small."""
    import torch

    from zimage.model.device import available_gb, device_and_dtype
    from zimage.model.rows import ItemRow, TextRow
    from zimage.training.memory import sizes_of, too_small

    try:
        yield
    except torch.OutOfMemoryError:
        items, texts = read_rows(encode / "items.jsonl", ItemRow), read_rows(encode / "texts.jsonl", TextRow)
        largest = max(((row.width, row.height) for row in items), key=lambda size: size[0] * size[1])
        caption = max(row.tokens for row in texts)
        raise too_small(
            params, machine, sizes_of(base), largest, caption, available_gb(device_and_dtype()[0])
        ) from None


def _restore(prepared: "Run", state: "TrainingState") -> None:
    """Restore a state into the run."""
    prepared.loop.optimiser.restore(state.tensors)
    logger.info("going on after step %d", state.step)


def _empty(aside: Path) -> None:
    """Remove what another run left behind."""
    for path in aside.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _ignored(*_: object) -> None:
    """Ignore what only the main process writes."""


def _adapter(params: TrainParams) -> str:
    """Return what is trained, as the file's metadata and its card tell it."""
    if params.adapter != "lokr":
        return params.adapter
    size = "full matrix" if params.lokr.full_matrix else f"rank {params.rank}, alpha {params.lokr.alpha:g}"
    return f"lokr, factor {params.lokr.factor}, {size}"


def _metadata(params: TrainParams, base: Base, subject: Subject, *, dataset: str, code: str) -> dict[str, str]:
    from zimage.lora.files.portable import metadata_of

    return metadata_of(
        title=subject.trigger,
        trigger=subject.trigger,
        base=base.identity,
        dataset=dataset.removeprefix("sha256:"),
        notes={
            "steps": str(params.steps),
            "adapter": _adapter(params),
            "rank": str(params.rank),
            "targets": said(params.targets),
            "code": code,
            **({"init_lora": f"sha256:{params.init_lora.sha256}"} if params.init_lora else {}),
        },
    )


def _metrics(
    prepared: "Run", writer: "RunWriter", params: TrainParams, begin: int, devices: tuple[str, ...]
) -> dict[str, object]:
    return {
        "devices": "; ".join(devices),
        "steps": len(writer.record.losses),
        "resumed_after": begin,
        "loss_first": round(writer.record.mean(first=LOSS_STEPS), 6),
        "loss_last": round(writer.record.mean(last=LOSS_STEPS), 6),
        "trained_values": len(prepared.adapters.values),
        "buckets": len({step.bucket for step in prepared.loop.steps}),
        "optimiser": params.optimiser.name,
        "learning_rate_found": prepared.loop.optimiser.found_learning_rate,
        "sampler_shift": prepared.loop.objective.sampler_shift,
        "steps_per_s": round(writer.steps_per_s, 3),
        "peak_memory_gb": round(writer.peak_gb, 3),
    }

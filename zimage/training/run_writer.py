"""Write what a run produces: losses, checkpoints, sample pictures and the state to resume from."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from zimage.core.csv_rows import write_table
from zimage.core.progress import Progress
from zimage.lora.files.portable import save_portable
from zimage.model.base import open_vae
from zimage.model.denoiser import run_block
from zimage.model.device import peak_memory_gb, sent
from zimage.model.latents import decode, image_of
from zimage.model.sampling import sample
from zimage.model.sequence import PATCH
from zimage.training.checkpoint import TrainingState, write_state
from zimage.training.demand import is_demanded
from zimage.training.divergence import DivergedError, DivergenceMonitor, StepMetrics
from zimage.training.likeness import LikenessCurve, has_plateaued
from zimage.training.noise import generator_of, noise_levels
from zimage.training.optimiser import learning_rate, rate_factor
from zimage.training.page import NOISE_LEVELS
from zimage.training.params import MachineParams, SampleParams, TrainParams
from zimage.training.run_log import Record
from zimage.training.setup import DTYPES, Run
from zimage.training.tracking import Trackers
from zimage.training.training_adapter import adding
from zimage.training.validation import ValidationCurve

logger = logging.getLogger(__name__)


class RunWriter:
    """Writes losses, checkpoints, sample pictures and resume states of a run.

    Args:
        folder: Where it goes; `checkpoints/`, `samples/`, `resume/`, `tensorboard/` and `loss.csv` are made in it.
        prepared: The run.
        params: Of the run.
        base: The folder of the base model, whose autoencoder makes sample pictures visible.
        metadata: Of the LoRA files.
        run: What states belong to.
        begin: How many steps are done already.
        devices: The kinds of devices that all steps are made on, those that are done already first.
        progress: Shown to whoever waits.
        machine: Names the trackers besides TensorBoard.
        likeness: Scores sample pictures; None where there is nothing to score them against.
        validation: Measures the loss on held-out crops; None where there are none.
    """

    def __init__(
        self,
        folder: Path,
        prepared: Run,
        params: TrainParams,
        *,
        base: Path,
        metadata: Mapping[str, str],
        run: str,
        begin: int,
        devices: tuple[str, ...],
        progress: Progress,
        machine: MachineParams,
        likeness: LikenessCurve | None = None,
        validation: ValidationCurve | None = None,
    ) -> None:
        self.record = Record(folder / "loss.csv", begin)
        self._trackers = Trackers(
            folder / "tensorboard",
            begin,
            machine.trackers,
            store=Path(machine.tracking_folder).expanduser(),
            run=run,
            settings=params,
        )
        self._folder, self._prepared, self._params = folder, prepared, params
        self._base, self._metadata, self._run, self._progress = base, metadata, run, progress
        self._devices, self._last_state, self._likeness, self._validation = devices, begin, likeness, validation
        self._watch = DivergenceMonitor(params.divergence_factor, self.record.losses)
        self._write_noise_levels()
        self._since = time.monotonic()
        self._training_s = 0.0
        self._steps_here = 0

    def _write_noise_levels(self) -> None:
        """Write how often each noise level is trained on, for the page."""
        objective, dataset = self._prepared.loop.objective, self._prepared.loop.objective.dataset
        height, width = dataset.commonest_size()
        levels = noise_levels(
            objective.timestep_sampling,
            sampler_shift=objective.sampler_shift,
            tokens=(height // PATCH) * (width // PATCH),
        )
        rows = [{"sigma": f"{sigma:g}", "density": f"{density:.6g}"} for sigma, density in levels]
        (self._folder / NOISE_LEVELS).parent.mkdir(exist_ok=True)
        write_table(self._folder / NOISE_LEVELS, ("sigma", "density"), rows)

    @property
    def steps_per_s(self) -> float:
        """Return the speed of the steps made in this process; checkpoints and pictures are not counted."""
        return self._steps_here / self._training_s if self._training_s else 0.0

    def log_steps(self, readings: list[StepMetrics]) -> None:
        """Log the metrics of steps, show them, and stop a diverged run.

        Raises:
            DivergedError: with the step, its photos, its sigmas and the gradients' norm.
        """
        if not readings:
            return
        self._training_s += time.monotonic() - self._since
        self._steps_here += len(readings)
        self.record.add(readings, self._rate)
        for reading in readings:
            if fault := self._watch.broken(reading):
                raise DivergedError(self._sentence(reading, fault))
        speed = {"steps_per_s": self.steps_per_s, "peak_gb": self.peak_gb}
        self._trackers.add(readings, self._rate, {"smooth": self.record.smooth, **speed})
        self._progress.advance(len(readings), loss=self.record.smooth, **speed)
        self._since = time.monotonic()

    def save_checkpoint(self, done: int, stop: Callable[[], None] = lambda: None) -> None:
        """Write a checkpoint's LoRA, its pictures, and the state from which a killed run goes on.

        Args:
            done: How many steps are done.
            stop: Called between steps of the sampling of pictures; what it raises ends it.
        """
        path = self._folder / "checkpoints" / f"step-{done:06d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        self.save(path)
        self.validate(done)
        if self._params.samples is not None:
            self._write_samples(done, self._params.samples, stop)
        self._write_state(done)  # last of all: a state says that everything before it has been written
        self._since = time.monotonic()

    def sample_at_start(self) -> None:
        """Write the sample pictures of the model before the first step, where `train.samples` asks for them."""
        if self._params.samples is not None and self._params.samples.at_start:
            self._write_samples(0, self._params.samples, lambda: None)
            self._since = time.monotonic()

    def on_demand(self) -> Callable[[int, Callable[[], None]], None] | None:
        """Return what writes the LoRA and the pictures of this step if somebody asks for them now."""
        return self._write_demanded if is_demanded(self._folder) else None

    def _write_demanded(self, done: int, stop: Callable[[], None]) -> None:
        """Write them beside the sample pictures: what `evaluate` and `train.stop` choose from stays as it is."""
        (self._folder / "samples").mkdir(exist_ok=True)
        self.save(self._folder / "samples" / f"step-{done:06d}.safetensors")
        if self._params.samples is not None:
            self._write_samples(done, self._params.samples, stop, scored=False)
        logger.info("wrote the LoRA%s of step %d on demand", " and pictures" if self._params.samples else "", done)
        self._since = time.monotonic()

    def validate(self, done: int) -> None:
        """Write the loss on held-out crops after so many steps, of exactly the values that are saved."""
        if self._validation is not None:
            (self._folder / "samples").mkdir(exist_ok=True)
            with self._saved_weights():
                self._trackers.number("validation_loss", done, self._validation.add(done))
            self._since = time.monotonic()

    def is_over(self, done: int) -> bool:
        """Return whether `train.stop` ends the run at the checkpoint after so many steps."""
        stop = self._params.stop
        if stop is None or self._likeness is None:
            return False
        return has_plateaued(self._likeness.closeness_upto(done), stop.patience, stop.min_gain)

    def stopped(self, done: int) -> None:
        """Write the state of the last step, unless it is written already; pictures of a checkpoint may be due."""
        if done > self._last_state:
            at_checkpoint = done % self._params.checkpoint_every == 0 or done == self._params.steps
            self._write_state(done, pictures_due=at_checkpoint)

    def _write_state(self, done: int, *, pictures_due: bool = False) -> None:
        tensors = self._prepared.loop.optimiser.tensors()
        state = TrainingState(done, tensors, devices=self._devices, pictures_due=pictures_due)
        write_state(self._folder / "resume", state, run=self._run)
        self._last_state = done

    def close(self) -> None:
        """Write all pending metrics."""
        self._trackers.close()

    def save_result(self, path: Path) -> None:
        """Write the LoRA of the last step, an earlier one than planned where `train.stop` ended the run."""
        done = len(self.record.losses)
        if done < self._params.steps:
            self._metadata = {**self._metadata, "zimage.steps": str(done)}
            logger.info("ended after %d of %d steps: the likeness no longer rises", done, self._params.steps)
        self.save(path)

    def save(self, path: Path) -> None:
        """Write the current LoRA."""
        weights = self._prepared.adapters.weights(self._prepared.loop.optimiser.result)
        save_portable(path, weights, metadata=self._metadata, dtype=DTYPES[self._params.save_dtype])

    def _write_samples(self, done: int, params: SampleParams, stop: Callable[[], None], *, scored: bool = True) -> None:
        """Write a picture of each sample prompt, of exactly the values that were saved."""
        (self._folder / "samples").mkdir(exist_ok=True)
        vae = open_vae(self._base, device=self._prepared.denoiser.device)
        images = []
        with self._saved_weights():
            for number, latents in enumerate(self._latents(params, stop)):
                pixels = decode(vae, latents)
                image = image_of(pixels[0])
                Image.fromarray(image).save(self._folder / "samples" / f"step-{done:06d}-{number}.png")
                self._trackers.picture(number, done, image)
                images.append(image)
        if self._likeness is not None and images and scored and done:
            self._trackers.number("likeness", done, self._likeness.add(done, images))

    def write_prompts(self) -> None:
        """Write the prompts of the sample pictures, numbered as their files are.

        `samples/` is an output of dvc.yaml, so it has to be there, with a file in it, where no pictures are asked for.
        """
        (self._folder / "samples").mkdir(exist_ok=True)
        prompts = [row.prompt for row in self._prepared.dataset.texts if row.sample]
        lines = [f"{number}: {prompt}\n" for number, prompt in enumerate(prompts)]
        (self._folder / "samples" / "prompts.txt").write_text("".join(lines), encoding="utf-8")

    def _latents(self, params: SampleParams, stop: Callable[[], None]) -> Iterator[Tensor]:
        dataset, denoiser = self._prepared.dataset, self._prepared.denoiser
        height, width = dataset.commonest_size()
        texts = [number for number, row in enumerate(dataset.texts) if row.sample]
        for number, text in enumerate(texts):
            generator = generator_of(params.seed, "sample", number)
            noise = torch.randn((1, dataset.channels, height, width), generator=generator)
            context, empty = (
                dataset.context(dataset.one(which, (height, width)), denoiser) for which in (text, dataset.empty)
            )
            yield sample(
                denoiser,
                self._prepared.scheduler,
                sent(noise, denoiser.device),
                context,
                empty,
                steps=params.steps,
                guidance_scale=params.guidance_scale,
                before_step=stop,
            )

    @contextmanager
    def _saved_weights(self) -> Iterator[None]:
        """Give the model the values that are saved, on the base without the training adapter, and eager blocks."""
        values, denoiser = self._prepared.adapters.values, self._prepared.denoiser
        trained, run = values.clone(), denoiser.run
        values.copy_(self._prepared.loop.optimiser.result.to(DTYPES[self._params.save_dtype]))
        denoiser.run = run_block
        try:
            with adding(denoiser, self._prepared.adapter_removal):
                yield
        finally:
            values.copy_(trained)
            denoiser.run = run

    def _rate(self, step: int) -> float:
        factor = rate_factor(step, self._params.steps, self._prepared.loop.schedule)
        return learning_rate(self._params.optimiser) * factor

    @property
    def peak_gb(self) -> float:
        """Return the most memory this process has held, in GB."""
        return peak_memory_gb(self._prepared.denoiser.device)

    def _sentence(self, reading: StepMetrics, fault: str) -> str:
        loop = self._prepared.loop
        step = loop.steps[reading.step]
        sigmas = ", ".join(f"{sigma:.3f}" for sigma in loop.objective.sample_noise(reading.step, step).sigma.tolist())
        photos = ", ".join(self._prepared.dataset.photos(step))
        return (
            f"Training stopped at step {reading.step + 1}: {fault} (photos {photos}; "
            f"sigma {sigmas}; gradient norm {reading.norm:.4g}); lower train.optimiser.learning_rate, "
            "or look whether those photos are damaged."
        )

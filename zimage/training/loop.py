"""The training loop. Nothing in it waits for the device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zimage.training.adapters import Adapters
from zimage.training.distributed import Piece, World
from zimage.training.divergence import PendingMetrics, StepMetrics
from zimage.training.graphed_step import Passes
from zimage.training.noise import StepNoise, seed_of
from zimage.training.objective import Objective
from zimage.training.optimiser import Optimiser, rate_factor
from zimage.training.params import PriorPreservationParams, ScheduleParams
from zimage.training.plan import Step
from zimage.training.stop_signal import deferred_stop

READ_EVERY = 10  # steps whose metrics are copied to the host together


@dataclass(frozen=True)
class Loop:
    """The parts of a training run, and its steps.

    Args:
        objective: The loss.
        passes: Forward and back: the objective's own, or recorded (see `Recorded`).
        adapters: What is trained.
        optimiser: How it follows its gradients.
        schedule: Of the learning rate.
        steps: The samples of every step.
        preservation_steps: The samples of each step that also preserves the class, in order; empty where none does.
        preservation: How those do; None where none does.
        micro_batch_size: Samples computed together; a larger step is computed in pieces.
        world: The processes that share the run.
    """

    objective: Objective
    passes: Passes
    adapters: Adapters
    optimiser: Optimiser
    schedule: ScheduleParams
    steps: list[Step]
    preservation_steps: list[Step]
    preservation: PriorPreservationParams | None
    micro_batch_size: int
    world: World

    def run(
        self,
        begin: int,
        every: int,
        *,
        on_metrics: Callable[[list[StepMetrics]], None],
        on_checkpoint: Callable[[int, Callable[[], None]], None],
        on_stop: Callable[[int], None],
        is_over: Callable[[int], bool],
        on_demand: Callable[[], Callable[[int, Callable[[], None]], None] | None] | None = None,
    ) -> None:
        """Run all steps from `begin` on; SIGINT and SIGTERM take effect at the end of a step.

        Args:
            begin: How many steps are done already.
            every: Steps between two calls of `on_checkpoint`.
            on_metrics: Gets the metrics of steps, up to READ_EVERY steps late; all of them before `on_checkpoint`.
            on_checkpoint: Gets the number of steps done, and a function that raises KeyboardInterrupt if a stop was
                asked for, to be called during long work.
            on_stop: Gets the number of steps done when the run is stopped, to save its state.
            on_demand: Asked after each step that is no checkpoint; what it returns, if anything, is called as
                `on_checkpoint` is. None for a process that writes nothing.
            is_over: Gets the number of steps done at a checkpoint and tells whether the run ends there; of several
                processes the main one decides.
        """
        readings, done = PendingMetrics(self.objective.denoiser.device, READ_EVERY), begin
        with deferred_stop(together=self.world.can_hang) as stop:
            try:
                for number in range(begin, len(self.steps)):
                    if number and number % every == 0 and self.world.broadcast_int(int(is_over(number))):
                        break
                    numbers = self.step(number)
                    done = number + 1
                    on_metrics(readings.put(number, numbers))
                    if done % every == 0 or done == len(self.steps):
                        on_metrics(readings.rest())
                        on_checkpoint(done, stop.raise_if_asked)
                    elif on_demand is not None and (write := on_demand()) is not None:
                        on_metrics(readings.rest())
                        write(done, stop.raise_if_asked)
                    if self.world.is_main:  # the others wait for the main process in each step, and end after it
                        stop.raise_if_asked()
            except BaseException:
                if stop.asked:  # also where another stopped process did not finish this step
                    on_metrics(readings.rest())
                    on_stop(done)
                raise

    @property
    def most_pieces(self) -> int:
        """Return the largest number of pieces of a step."""
        batches = [len(steps[0].items) for steps in (self.steps, self.preservation_steps) if steps]
        return sum(len(self.world.cut(batch, self.micro_batch_size)) for batch in batches)

    def step(self, number: int) -> Tensor:
        """Run one step and return its loss and gradient norm (2,), on the device."""
        loss = self.backward(number)
        return torch.stack([loss, self.optimiser.step(rate_factor(number, len(self.steps), self.schedule), number)])

    def backward(self, number: int) -> Tensor:
        """Compute a step's gradients, summed over all processes, and return its loss."""
        return self.world.all_reduce(self._pieces(number), self.adapters.gradient)

    def _pieces(self, number: int) -> list[Piece]:
        step = self.steps[number]
        step_noise = self.objective.sample_noise(number, step)
        pieces: list[Piece] = [
            partial(self._forward_backward, number, step, step_noise, rows)
            for rows in self.world.cut(len(step.items), self.micro_batch_size)
        ]
        if self.preservation is not None and number % self.preservation.every == 0:
            pieces += self._preservation_pieces(number // self.preservation.every, self.preservation)
        return pieces

    def _forward_backward(self, number: int, step: Step, step_noise: StepNoise, rows: slice) -> Tensor:
        self._seed_dropout("dropout", number, rows)
        return self.passes(*self.objective.inputs(step, step_noise, rows))

    def _preservation_pieces(self, index: int, params: PriorPreservationParams) -> list[Piece]:
        step = self.preservation_steps[index]
        step_noise = self.objective.sample_noise(index, step, name="preservation")

        def preserve(rows: slice) -> Tensor:
            self._seed_dropout("preservation dropout", index, rows)
            self.objective.preservation_loss(step, step_noise, rows, params).backward()
            return torch.zeros((), device=self.objective.denoiser.device)  # the reported loss is the subject's alone

        return [partial(preserve, rows) for rows in self.world.cut(len(step.items), self.micro_batch_size)]

    def _seed_dropout(self, name: str, number: int, rows: slice) -> None:
        """Seed torch's dropout, the same for whichever process computes the piece."""
        if self.adapters.drop_inputs:
            torch.manual_seed(seed_of(self.objective.seed, name, number, rows.start))

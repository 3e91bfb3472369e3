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

READ_EVERY = 10  # steps whose numbers cross to the host together


@dataclass(frozen=True)
class Loop:
    """All that a run is made of.

    Args:
        objective: The loss.
        passes: Forward and back: the objective's own, or recorded (see `Recorded`).
        adapters: What is trained.
        optimiser: How it follows its gradients.
        schedule: The course of the learning rate.
        planned: The samples of every step.
        preserving: The samples of every step that also preserves the class, in turn; empty where none does.
        preservation: How those do; None where none does.
        micro_batch_size: Samples computed together; a larger step is computed in pieces.
        world: The processes that share the run.
    """

    objective: Objective
    passes: Passes
    adapters: Adapters
    optimiser: Optimiser
    schedule: ScheduleParams
    planned: list[Step]
    preserving: list[Step]
    preservation: PriorPreservationParams | None
    micro_batch_size: int
    world: World

    def run(
        self,
        begin: int,
        every: int,
        *,
        told: Callable[[list[StepMetrics]], None],
        kept: Callable[[int, Callable[[], None]], None],
        stopped: Callable[[int], None],
    ) -> None:
        """Make all steps from `begin` on; SIGINT and SIGTERM take effect at the end of a step.

        Args:
            begin: How many steps are done already.
            every: Steps between two calls of `kept`.
            told: Gets the numbers of steps, some steps later; of all steps made so far before `kept` is called.
            kept: Gets how many steps are done, to keep what they made of the adapters, and what raises
                KeyboardInterrupt where the run shall stop, to be called where that takes long.
            stopped: Gets how many steps are done where the run stops, to keep its state.
        """
        readings, done = PendingMetrics(self.objective.denoiser.device, READ_EVERY), begin
        with deferred_stop(together=self.world.can_hang) as stop:
            try:
                for number in range(begin, len(self.planned)):
                    numbers = self.step(number)
                    done = number + 1
                    told(readings.put(number, numbers))
                    if done % every == 0 or done == len(self.planned):
                        told(readings.rest())
                        kept(done, stop.raise_if_asked)
                    if self.world.is_main:  # who follows waits in each step for the leading process, and ends after it
                        stop.raise_if_asked()
            except BaseException:
                if stop.asked:  # also where another process, which was stopped too, did not end this step
                    told(readings.rest())
                    stopped(done)
                raise

    @property
    def most_pieces(self) -> int:
        """Return how many pieces a step has at most."""
        batches = [len(steps[0].items) for steps in (self.planned, self.preserving) if steps]
        return sum(len(self.world.cut(batch, self.micro_batch_size)) for batch in batches)

    def step(self, number: int) -> Tensor:
        """Make one step and return its loss and the gradients' norm (2,), on the device."""
        loss = self.backward(number)
        return torch.stack([loss, self.optimiser.step(rate_factor(number, len(self.planned), self.schedule), number)])

    def backward(self, number: int) -> Tensor:
        """Leave a step's gradients in the adapters' and return its loss, both of all processes together."""
        return self.world.all_reduce(self._pieces(number), self.adapters.gradient)

    def _pieces(self, number: int) -> list[Piece]:
        step = self.planned[number]
        chance = self.objective.sample_noise(number, step)
        pieces: list[Piece] = [
            partial(self._learn, number, step, chance, rows)
            for rows in self.world.cut(len(step.items), self.micro_batch_size)
        ]
        if self.preservation is not None and number % self.preservation.every == 0:
            pieces += self._preserving_pieces(number // self.preservation.every, self.preservation)
        return pieces

    def _learn(self, number: int, step: Step, chance: StepNoise, rows: slice) -> Tensor:
        self._seed_dropout("dropout", number, rows)
        return self.passes(*self.objective.inputs(step, chance, rows))

    def _preserving_pieces(self, turn: int, params: PriorPreservationParams) -> list[Piece]:
        step = self.preserving[turn]
        chance = self.objective.sample_noise(turn, step, name="preservation")

        def preserve(rows: slice) -> Tensor:
            self._seed_dropout("preservation dropout", turn, rows)
            self.objective.preservation(step, chance, rows, params).backward()
            return torch.zeros((), device=self.objective.denoiser.device)  # it is not what the person is learnt by

        return [partial(preserve, rows) for rows in self.world.cut(len(step.items), self.micro_batch_size)]

    def _seed_dropout(self, name: str, number: int, rows: slice) -> None:
        """Seed torch, which draws dropout where it is needed, alike in whichever process."""
        if self.adapters.drop_inputs:
            torch.manual_seed(seed_of(self.objective.seed, name, number, rows.start))

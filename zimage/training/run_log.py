"""Log of a running training: a CSV file."""

import csv
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from zimage.core.csv_rows import read_whole_rows, write_table
from zimage.training.divergence import StepMetrics

COLUMNS = ("step", "loss", "smooth", "gradient_norm", "learning_rate")
MEMORY = 0.98  # of the smooth loss: about the mean of the last 50 steps


class Record:
    """`loss.csv`: one row a step, written as its numbers arrive.

    Args:
        path: The file; rows of steps that will be made again are dropped from it.
        begin: How many steps are done already.
    """

    def __init__(self, path: Path, begin: int) -> None:
        rows = read_whole_rows(path)[:begin]
        self.losses = [float(row["loss"]) for row in rows]
        self._path = path
        self._sum = self._weight = 0.0
        for loss in self.losses:
            self._remember(loss)
        write_table(path, COLUMNS, rows)

    def add(self, readings: list[StepMetrics], rate: Callable[[int], float]) -> None:
        """Append the numbers of some steps; `rate` tells the learning rate of each."""
        with self._path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for step, exact, norm in readings:
                loss = float(f"{exact:.6g}")  # as written, so that a resumed run averages the same numbers
                self.losses.append(loss)
                self._remember(loss)
                writer.writerow((step + 1, f"{loss:.6g}", f"{self.smooth:.6g}", f"{norm:.6g}", f"{rate(step):.6g}"))

    @property
    def smooth(self) -> float:
        """Return the loss averaged over about the last 50 steps."""
        return self._sum / self._weight if self._weight else 0.0

    def mean(self, first: int | None = None, last: int | None = None) -> float:
        """Return the mean loss of the first or of the last so many steps."""
        return fmean(self.losses[:first] if first else self.losses[-(last or 1) :])

    def _remember(self, loss: float) -> None:
        self._sum = MEMORY * self._sum + (1 - MEMORY) * loss
        self._weight = MEMORY * self._weight + (1 - MEMORY)

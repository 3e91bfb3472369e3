"""Measure the loss on held-out crops while a LoRA learns, at fixed noise and sigmas: person or photos?

The training loss jumps with the noise of each step; this one compares checkpoints by the same noise on photos that are
not learnt from. It falls while the LoRA learns what holds for other photos too, and rises where it only learns these.
It is drawn beside the loss and read by no stage: which checkpoint is taken, and when a run stops, may not depend on
held-out photos, for these report afterwards.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from zimage.core.jsonl import Row, read_rows

if TYPE_CHECKING:
    from zimage.training.objective import Objective

ITEMS, LATENTS = "validation.jsonl", "validation.safetensors"  # in the encode folder
CURVE = Path("samples") / "validation.csv"  # in the train folder
MOST_CROPS = 8  # that are measured, so that a checkpoint costs no more than a few pictures
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class ValidationItemRow(Row):
    """One held-out crop as latents."""

    item: str
    """Names its tensor in validation.safetensors: the mean of its posterior, (C, H, W)."""
    file: str
    """The crop, as detect names it."""
    text: str
    """Its caption in texts.jsonl."""
    width: int
    """In px, cut to the training crops' size that is nearest in shape."""
    height: int
    """In px."""


class ValidationRow(Row):
    """The loss of all held-out crops at one sigma."""

    step: int
    """Steps done; 0 is the base model."""
    sigma: float
    """Share of noise."""
    loss: float
    """Mean squared error of the velocity, over crops and latents."""


@dataclass(frozen=True)
class ValidationCurve:
    """`samples/validation.csv`: a row for each sigma at each checkpoint, in order of steps.

    Args:
        encode: The folder of the encode stage.
        train: The folder of the training.
        objective: Whose model is measured, with its adapters as they are.
    """

    encode: Path
    train: Path
    objective: "Objective"

    def add(self, step: int) -> float:
        """Measure the loss after so many steps, write it down, and return its mean over sigmas."""
        measured = [ValidationRow(step=step, sigma=sigma, loss=round(self._loss(sigma), 6)) for sigma in SIGMAS]
        rows = [row for row in read_validation(self.train / CURVE) if row.step < step] + measured
        with (self.train / CURVE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(ValidationRow.model_fields), lineterminator="\n")
            writer.writeheader()
            writer.writerows(row.model_dump() for row in rows)
        return fmean(row.loss for row in measured)

    def _loss(self, sigma: float) -> float:
        import torch
        from safetensors.torch import load_file

        from zimage.model.device import sent
        from zimage.training.noise import generator_of

        objective, losses = self.objective, []
        latents = load_file(self.encode / LATENTS)
        for row in read_rows(self.encode / ITEMS, ValidationItemRow):
            noise = torch.randn(latents[row.item].shape, generator=generator_of(objective.seed, "validation", row.item))
            clean, noise = (sent(each[None], objective.denoiser.device) for each in (latents[row.item], noise))
            losses.append(objective.plain_loss(clean, noise, sigma, objective.dataset.number[row.text]))
        return fmean(losses)


def open_validation(encode: Path, train: Path, objective: "Objective") -> ValidationCurve | None:
    """Return the curve of a training; None where no held-out crop was encoded, or an older version encoded them."""
    return ValidationCurve(encode, train, objective) if (encode / ITEMS).is_file() else None


def read_validation(path: Path) -> list[ValidationRow]:
    """Return the rows of a curve, without a last one that is half written."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    return [ValidationRow.model_validate(row) for row in rows]


def mean_loss(rows: Sequence[ValidationRow]) -> dict[int, float]:
    """Return the mean loss over sigmas of each step, in order."""
    return {step: fmean(row.loss for row in rows if row.step == step) for step in sorted({row.step for row in rows})}

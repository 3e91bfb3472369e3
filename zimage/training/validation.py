"""Measure the loss on held-out crops while a LoRA learns, at fixed noise and sigmas: person or photos?

The training loss jumps with the noise of each step; this one compares checkpoints by the same noise on photos that are
not learnt from. It falls while the LoRA learns what holds for other photos too, and rises where it only learns these.
It is drawn beside the loss and read by no stage: which checkpoint is taken, and when a run stops, may not depend on
held-out photos, for these report afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from zimage.core.csv_rows import read_whole_rows, write_table
from zimage.core.jsonl import Row, read_rows

if TYPE_CHECKING:
    from torch import Tensor

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
        path: The file.
        objective: Whose model is measured, with its adapters as they are.
        crops: Of each held-out crop its latents and its noise (1, C, H, W), on the model's device, and the number of
            its caption.
    """

    path: Path
    objective: "Objective"
    crops: "Sequence[tuple[Tensor, Tensor, int]]"

    def add(self, step: int) -> float:
        """Measure the loss after so many steps, write it down, and return its mean over sigmas."""
        measured = [ValidationRow(step=step, sigma=sigma, loss=round(self._loss(sigma), 6)) for sigma in SIGMAS]
        rows = [row for row in read_validation(self.path) if row.step < step] + measured
        write_table(self.path, list(ValidationRow.model_fields), (row.model_dump() for row in rows))
        return fmean(row.loss for row in measured)

    def _loss(self, sigma: float) -> float:
        return fmean(self.objective.plain_loss(clean, noise, sigma, text) for clean, noise, text in self.crops)


def open_validation(encode: Path, train: Path, objective: "Objective") -> ValidationCurve | None:
    """Return the curve of a training; None where no held-out crop was encoded, or an older version encoded them."""
    if not (encode / ITEMS).is_file():
        return None
    import torch
    from safetensors.torch import load_file

    from zimage.model.device import sent
    from zimage.training.noise import generator_of

    latents, crops = load_file(encode / LATENTS), []
    for row in read_rows(encode / ITEMS, ValidationItemRow):
        clean = latents[row.item]
        noise = torch.randn(clean.shape, generator=generator_of(objective.seed, "validation", row.item))
        device = objective.denoiser.device
        crops.append((sent(clean[None], device), sent(noise[None], device), objective.dataset.number[row.text]))
    return ValidationCurve(train / CURVE, objective, crops)


def read_validation(path: Path) -> list[ValidationRow]:
    """Return the rows of a curve, without a last one that is half written."""
    return [ValidationRow.model_validate(row) for row in read_whole_rows(path)]


def mean_loss(rows: Sequence[ValidationRow]) -> dict[int, float]:
    """Return the mean loss over sigmas of each step, in order."""
    return {step: fmean(row.loss for row in rows if row.step == step) for step in sorted({row.step for row in rows})}

"""Warn of training the distilled Turbo as it is; importing this module imports no torch."""

from pathlib import Path

from zimage.model.base import Base, is_turbo, shift_of
from zimage.training.params import TrainParams


def turbo_warning(base: Base, folder: Path, params: TrainParams) -> str | None:
    """Return what happens to Turbo if it is trained as it is; None for another base or with a training adapter.

    Args:
        base: The model.
        folder: Where it lies.
        params: Of the run.
    """
    if params.training_adapter is not None or not is_turbo(base.model, folder):
        return None
    return (
        f"The base model {base.model} is Turbo by its name or its noise schedule (shift {shift_of(folder):g}), and "
        "train.training_adapter is null: training it as it is undoes its distillation, so that pictures of few steps "
        "become grainy and blurred; set train.training_adapter (for example a file of "
        "ostris/zimage_turbo_training_adapter), or train on Base or De-Turbo."
    )

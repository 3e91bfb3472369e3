"""The course of a run for TensorBoard: `tensorboard --logdir FOLDER` shows it while it runs, beside earlier ones."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from zimage.training.watch import Reading

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHOWN_EVERY_S = 5


class Board:
    """Event files that grow while the run does.

    Args:
        folder: Gets one file for each process of the run.
        begin: How many steps are done already; what an earlier process wrote beyond them is no longer shown.
    """

    def __init__(self, folder: Path, begin: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=begin + 1 if begin else None, flush_secs=SHOWN_EVERY_S)

    def add(self, readings: list[Reading], rate: Callable[[int], float], numbers: dict[str, float]) -> None:
        """Write steps down: loss, gradients' norm and learning rate of each, and numbers that hold for the last."""
        for step, loss, norm in readings:
            for name, value in (("loss", loss), ("gradient_norm", norm), ("learning_rate", rate(step))):
                self._writer.add_scalar(f"train/{name}", value, step + 1)
        for name, value in numbers.items():
            self._writer.add_scalar(f"train/{name}", value, readings[-1].step + 1)

    def picture(self, number: int, done: int, image: "NDArray[np.uint8]") -> None:
        """Write the sample picture (H, W, 3) of a prompt after so many steps."""
        self._writer.add_image(f"samples/{number}", image, done, dataformats="HWC")

    def close(self) -> None:
        """Write what is still on its way."""
        self._writer.close()

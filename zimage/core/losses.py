"""Read the losses of a finished training from its loss.csv."""

import csv
from pathlib import Path


def read_losses(path: Path) -> list[tuple[float, float]]:
    """Return the steps of a training with their losses; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(float(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]

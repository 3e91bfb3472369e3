"""Ask a running training for its LoRA and sample pictures as they are now, by a file in the folder that it writes."""

from pathlib import Path

from zimage.core.errors import InputError
from zimage.core.folder import aside_of

DEMAND = "sample-now"  # the file, which the training removes when it has seen it


def demand(train: Path) -> Path:
    """Leave the wish in a running training's folder, and return the folder that gets the result.

    Args:
        train: The folder that the training will have written when it ends, such as `data/train`.

    Raises:
        InputError: no training of that folder has begun.
    """
    aside = aside_of(train)
    if not aside.is_dir():
        raise InputError(f"No training that would write {train} has begun; name the folder of a running one.")
    (aside / DEMAND).touch()
    return aside / "samples"


def is_demanded(aside: Path) -> bool:
    """Return whether somebody asked, and remove the wish."""
    try:
        (aside / DEMAND).unlink()
    except FileNotFoundError:
        return False
    return True

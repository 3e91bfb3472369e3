"""Checkouts of other projects, which variables name; what asks their code is skipped where none is named."""

import os
from pathlib import Path


def checkout(variable: str, file: str) -> Path | None:
    """Return the checkout that a variable names; None where it names none.

    Args:
        variable: Such as ZIMAGE_COMFYUI.
        file: A file by which the checkout is known.
    """
    named = os.environ.get(variable)
    return Path(named) if named and (Path(named) / file).is_file() else None

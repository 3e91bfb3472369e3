"""Find packaged data files. Code gives each name in full, so that a stage's fingerprint finds the file."""

from pathlib import Path

import zimage

FOLDER = Path(zimage.__file__).with_name("assets")


def asset(name: str) -> Path:
    """Return the path of a packaged data file or folder, such as `words.txt`."""
    return FOLDER / name


def read_asset(name: str) -> str:
    """Return the text of a packaged data file."""
    return asset(name).read_text(encoding="utf-8")

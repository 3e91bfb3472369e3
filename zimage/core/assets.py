"""Where packaged data files lie. Code names each by its whole name, by which a stage's fingerprint finds it."""

from pathlib import Path

import zimage

FOLDER = Path(zimage.__file__).with_name("assets")


def asset(name: str) -> Path:
    """Return the path of a packaged data file or folder, such as `words.txt`."""
    return FOLDER / name


def read_asset(name: str) -> str:
    """Return the text of a packaged data file."""
    return asset(name).read_text(encoding="utf-8")

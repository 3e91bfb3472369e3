"""Read captions that a person wrote."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zimage.core.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Overrides:
    """Captions by the stem of a crop ("0123456789abcdef-head") or of a photo ("0123456789abcdef").

    Args:
        captions: The lines of each file.
        unused: Files that name no crop and no photo of this run.
    """

    captions: Mapping[str, list[str]]
    unused: list[str]

    def of(self, file: str, photo: str) -> list[str]:
        """Return the captions of a crop; if it has none, those of its photo; else an empty list."""
        return self.captions.get(Path(file).stem) or self.captions.get(photo) or []


def read_overrides(folder: Path, photos: Mapping[str, str]) -> Overrides:
    """Return the captions in `folder`; a missing folder has none.

    Args:
        folder: Holds `<photo>.txt` or `<photo>-head.txt`, one caption a line.
        photos: The photo of each crop, by the crop's stem.

    Raises:
        InputError: a file holds no caption.
    """
    captions = {path.stem: _lines(path) for path in sorted(folder.glob("*.txt"))}
    wanted = set(photos) | set(photos.values())
    unused = [f"{stem}.txt" for stem in captions if stem not in wanted]
    if unused:
        logger.warning("no training crop is called %s; these captions are not used", ", ".join(unused))
    return Overrides(captions, unused)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    captions = [line for line in lines if line]
    if not captions:
        raise InputError(f"{path} holds no caption; write one on each line, or delete the file.")
    return captions

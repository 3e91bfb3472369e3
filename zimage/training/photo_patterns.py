"""Decide how often the crops of each photo are trained on and how much they count, by the photo's name.

kohya's trainers read repeats from names of folders, `10_ohwx woman`. Here a name decides nothing by itself: cameras
name their folders `100_PANA` and `101_0505` (JEITA CP-3461, DCF), people name theirs `2019_summer`, and the trigger
stands in params.yaml. A pattern such as `10_*` gives the same repeats where they are meant.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.photos.rows import ManifestRow

Value = TypeVar("Value", int, float)


def by_photo(detect: Path, patterns: Mapping[str, Value], key: str) -> dict[str, Value]:
    """Return the value of each photo whose name a pattern matches, by its short hash.

    Args:
        detect: The folder of the detect stage, whose manifest has the names of all photos.
        patterns: Of names, with / between folders and `*` for any letters, to values; of several that match one name
            the last one holds.
        key: Of params.yaml, for messages.

    Raises:
        InputError: a pattern matches no photo of the album.
    """
    if not patterns:
        return {}
    names = {row.photo: row.name for row in read_rows(detect / "manifest.jsonl", ManifestRow)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise InputError(
                f"{key} names `{pattern}`, which matches no photo; take names of {detect}/manifest.jsonl, "
                f"such as {_an_example(names.values())}."
            )
    return {
        photo: value
        for pattern, value in patterns.items()
        for photo, name in names.items()
        if fnmatchcase(name, pattern)
    }


def _an_example(names: Iterable[str]) -> str:
    """Return a name, of a photo in a folder where there is one."""
    return f"`{max(names, key=lambda name: name.count('/'), default='portraits/IMG_1.jpg')}`"

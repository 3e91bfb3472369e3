"""Decide how often the crops of each photo are trained on, by the photo's name.

kohya's trainers read repeats from names of folders, `10_ohwx woman`. Here a name decides nothing by itself: cameras
name their folders `100_PANA` and `101_0505` (JEITA CP-3461, DCF), people name theirs `2019_summer`, and the trigger
stands in params.yaml. A pattern such as `10_*` gives the same repeats where they are meant.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.photos.rows import ManifestRow


def repeats_of(detect: Path, patterns: Mapping[str, int]) -> dict[str, int]:
    """Return how often the crops of each photo come, by its short hash; a photo that is not there comes once.

    Args:
        detect: The folder of the detect stage, whose manifest has the names of all photos.
        patterns: Of names, with / between folders and `*` for any letters, to repeats; of several that match one name
            the last one holds.

    Raises:
        InputError: a pattern matches no photo of the album.
    """
    if not patterns:
        return {}
    names = {row.photo: row.name for row in read_rows(detect / "manifest.jsonl", ManifestRow)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise InputError(
                f"encode.repeats names `{pattern}`, which matches no photo; take names of {detect}/manifest.jsonl, "
                f"such as {_an_example(names.values())}."
            )
    return {
        photo: times
        for pattern, times in patterns.items()
        for photo, name in names.items()
        if fnmatchcase(name, pattern)
    }


def _an_example(names: Iterable[str]) -> str:
    """Return a name, of a photo in a folder where there is one."""
    return f"`{max(names, key=lambda name: name.count('/'), default='portraits/IMG_1.jpg')}`"

"""List the files that a user gave: a folder, a zip or a tar archive, never unpacked to disk.

Each entry becomes one `Given`, in the order of its name (a tar: in its own order), also when it can only be refused.
Names are only ever shown: they never become paths, so an entry that calls itself ../../x writes nowhere.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from zimage.core.errors import InputError
from zimage.photos.archives import DAMAGED, in_archive, num_entries
from zimage.photos.given_file import MAX_ENTRIES, Given, TooManyFilesError, shown
from zimage.photos.kinds import is_sidecar


def given(source: Path, *, max_files: int, max_bytes: int) -> Iterator[Given]:
    """Yield every file of a folder or archive; after `max_files`, sidecars not counted, the rest are only named.

    Raises:
        InputError: there is nothing at `source`, it is neither a folder, a zip nor a tar, or it holds too many files.
    """
    photos = 0
    for number, one in enumerate(_entries(source, max_files, max_bytes)):
        if number >= MAX_ENTRIES:
            raise TooManyFilesError(source)
        photos += not is_sidecar(one.name)
        if photos <= max_files:
            yield one
        else:
            detail = f"Only the first {max_files} files are looked at (ingest.max_files)."
            yield Given(one.name, one.size_bytes, refusal=("over_limit", detail))


def expected(source: Path) -> int:
    """Return how many files there are, for a progress bar; 0 where only reading all of a tar would tell."""
    if source.is_dir():
        return sum(len(files) for _, _, files in os.walk(source))
    return num_entries(source)


def _entries(source: Path, max_files: int, max_bytes: int) -> Iterator[Given]:
    if source.is_dir():
        return _in_folder(source)
    if not source.is_file():
        raise InputError(f"There are no photos at {source}; name a folder, or a zip or tar archive of photos.")
    try:
        return in_archive(source, max_files, max_bytes)
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(
            f"{source} is neither a folder, a zip nor a tar that can be read ({' '.join(str(error).split())}); "
            "pack the photos again, or name the folder that holds them."
        ) from None


def _in_folder(folder: Path) -> Iterator[Given]:
    """Yield the files below `folder`, by name; links to folders are named and not followed, so no cycle can trap it."""
    waiting = [os.fsencode(folder)]
    found: list[tuple[str, bytes]] = []
    refused: list[Given] = []
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    name = shown(os.path.relpath(entry.path, os.fsencode(folder)))
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        found.append((name, entry.path))
        except OSError as error:
            name = shown(os.path.relpath(here, os.fsencode(folder)))
            refused.append(Given(name, 0, refusal=("unreadable", f"The folder cannot be read ({error.strerror}).")))
    yield from sorted(refused, key=lambda one: one.name)
    for name, path in sorted(found):
        yield _file(name, path)


def _file(name: str, path: bytes) -> Given:
    """Return a regular file, or the refusal of what only looks like one: opening a pipe would wait for ever."""
    try:
        status = os.stat(path)  # noqa: PTH116 - bytes paths hold names that are no text
    except OSError as error:
        return Given(name, 0, refusal=("unreadable", f"The file cannot be read ({error.strerror})."))
    if stat.S_ISDIR(status.st_mode):
        return Given(name, 0, refusal=("link", "Links to folders are not followed; copy the photos in."))
    if not stat.S_ISREG(status.st_mode):
        return Given(name, 0, refusal=("not_a_file", "It is a pipe, socket or device, not a file."))
    return Given(name, status.st_size, path=Path(os.fsdecode(path)))

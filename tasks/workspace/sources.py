"""Record where a subject's photos, consent and overrides come from, and detect whether they changed."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks.store.bucket import Bucket
from tasks.workspace.photos import MOST_FILES
from zimage.core.errors import InputError
from zimage.core.section import Section


class Source(Section):
    """A place from which an input is taken over."""

    address: str
    """A file, a folder, s3://bucket/prefix, or s3://bucket/key of one object."""
    seen: str
    """A hash of what it looked like: names, sizes and times of its files; "" where it is not to be seen from here."""


def source(address: str) -> Source:
    """Return the source at `address` as it looks now; a path becomes absolute."""
    if not address.startswith("s3://"):
        address = str(Path(address).expanduser().absolute())
    return Source(address=address, seen=look(address))


def look(address: str) -> str:
    """Return a hash of names, sizes and times of all files at `address`, without opening one; "" if nothing is there.

    A bucket is listed by keys and ETags.

    Raises:
        InputError: the bucket cannot be listed, or holds too much there.
        StoreError: it is away.
    """
    lines = _objects(address) if address.startswith("s3://") else _files(Path(address))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


def content(address: str, *, max_bytes: int) -> bytes | None:
    """Return what the one file or object at `address` holds; None if none is to be seen from here.

    Raises:
        InputError: it is larger than `max_bytes`, or it cannot be read as it was stored.
        StoreError: its bucket is away.
    """
    if address.startswith("s3://"):
        return _fetched(address, max_bytes)
    path = Path(address).expanduser()
    if not path.is_file():
        return None
    _refuse_larger(address, path.stat().st_size, max_bytes)
    return path.read_bytes()


def _fetched(address: str, max_bytes: int) -> bytes | None:
    found = Bucket.at(address).itself()
    if found is None:
        return None
    bucket, one = found
    _refuse_larger(address, one.size_bytes, max_bytes)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "content"
        bucket.fetch(one, path)
        return path.read_bytes()


def _refuse_larger(address: str, size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise InputError(f"{address} has {size_bytes} bytes, more than {max_bytes}; check that it is the right file.")


def _objects(address: str) -> list[str]:
    bucket = Bucket.at(address)
    found = bucket.listed(MOST_FILES)
    if not found and (itself := bucket.itself()):
        found = [itself[1]]
    return [f"{each.key} {each.etag}" for each in found]


def _files(path: Path) -> list[str]:
    if not path.exists():
        return []
    if path.is_file():
        return [f". {_size_and_time(path.stat())}"]
    return ["folder", *(f"{'/'.join(parts)} {stamp}" for parts, stamp in sorted(_below(str(path), ())))]


def _below(folder: str, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path and the size and time of each file below a folder; links to folders are not followed."""
    try:
        entries = os.scandir(folder)
    except PermissionError:
        return
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, (*above, entry.name))
            elif entry.is_file():
                yield (*above, entry.name), _size_and_time(entry.stat())


def _size_and_time(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"

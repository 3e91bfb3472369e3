"""Where a subject's photos, consent and overrides come from, and whether they look as they did."""

import hashlib
from pathlib import Path

from tasks.bucket import Bucket
from tasks.photos import MOST_FILES
from zimage.section import Section


class Source(Section):
    """A place from which an input is taken over."""

    address: str
    """A file, a folder, or s3://bucket/prefix."""
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
    """
    lines = _objects(address) if address.startswith("s3://") else _files(Path(address))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


def _objects(address: str) -> list[str]:
    return [f"{each.key} {each.etag}" for each in Bucket.at(address).listed(MOST_FILES)]


def _files(path: Path) -> list[str]:
    if not path.exists():
        return []
    found = [path] if path.is_file() else [path, *sorted(each for each in path.rglob("*") if each.is_file())]
    return [_described(each, path) for each in found]


def _described(path: Path, root: Path) -> str:
    if path == root and path.is_dir():
        return "folder"
    status = path.stat()
    return f"{path.relative_to(root).as_posix()} {status.st_size} {status.st_mtime_ns}"

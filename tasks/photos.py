"""Bringing a subject's photos into the workspace: from a folder, an archive, or a prefix of a bucket."""

import filecmp
import shutil
from pathlib import Path

from tasks.storage import open_store
from zimage.errors import InputError
from zimage.folder import made_aside, write_whole


def bring_photos(source: str, target: Path) -> bool:
    """Make `target` equal to `source` and return whether it had to change.

    Args:
        source: A folder, an archive file (which stays one), or `s3://bucket/prefix`; is only read.
        target: `data/photos` of a workspace; a folder, or a file where the source is an archive.

    Raises:
        InputError: there is nothing at `source`.
    """
    if source.startswith("s3://"):
        return _bring_objects(source, target)
    path = Path(source).expanduser()
    if path.is_dir():
        return _bring_folder(path, target)
    if path.is_file():
        return _bring_file(path, target)
    raise InputError(f"There are no photos at {source}; name a folder, a zip or tar archive, or s3://bucket/prefix.")


def _bring_folder(source: Path, target: Path) -> bool:
    if target.is_dir() and _same(source, target):
        return False
    _clear_file(target)
    with made_aside(target) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True)
    return True


def _bring_file(source: Path, target: Path) -> bool:
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return False
    if target.is_dir():
        shutil.rmtree(target)
    write_whole(target, source.read_bytes())
    return True


def _bring_objects(source: str, target: Path) -> bool:
    store = open_store(source)
    keys = store.keys("")
    if not keys:
        raise InputError(f"There are no photos at {source}; check the bucket, the prefix and the right to list it.")
    beside = target.with_name(f".{target.name}.fetched")
    with made_aside(beside) as aside:
        for key in keys:
            path = aside / key
            path.parent.mkdir(parents=True, exist_ok=True)
            store.get(key, path)
    try:
        return _bring_folder(beside, target)
    finally:
        shutil.rmtree(beside)


def _clear_file(target: Path) -> None:
    if target.is_file():
        target.unlink()


def _same(some: Path, other: Path) -> bool:
    """Return whether two folders hold the same files with the same content."""
    files = _files(some)
    return files == _files(other) and all(filecmp.cmp(some / name, other / name, shallow=False) for name in files)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

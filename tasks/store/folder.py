"""A store in a folder. Files are written under a hidden name in the same place and then renamed."""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tasks.store.pages import LINK_MAX_S, SECRET, secret_of, signed
from tasks.store.protocol import (
    MAX_FILE_BYTES,
    MAX_SMALL_BYTES,
    ConflictError,
    Inventory,
    MissingError,
    Stored,
    checked_key,
)
from zimage.core.errors import InputError
from zimage.core.folder import make_private

TICK_S = 2.0  # of the times of files: 2 s on FAT, a few ms on other file systems
LOCKS = ".locks"  # a fixed number of them, so that none tells of a key that is gone


@dataclass(frozen=True)
class FolderStore:
    """See `tasks.store.protocol.Store`; versions are distinguished by the SHA-256 of their content.

    Args:
        root: The folder.
        pages: The address at which `tasks.store.pages` serves it, if it does.
        listing_lag_s: See Store.
        link_max_s: See Store.
        tick_s: How exactly the file system tells when a file changed.
    """

    root: Path
    pages: str = ""
    listing_lag_s: float = 0.0
    link_max_s: int = LINK_MAX_S
    tick_s: float = TICK_S

    def require_usable(self, key: str) -> None:
        """See Store; a folder does, or fails with an error at the first write."""

    def put_if_absent(self, key: str, source: Path) -> bool:
        """See Store; the file is written under a temporary name and linked to its own, which fails if that exists."""
        target = self._path(key)
        with self._aside(target) as aside:
            shutil.copyfile(source, aside)
            _flush(aside)
            try:
                os.link(aside, target)
            except FileExistsError:
                return False
        return True

    def link_if_absent(self, key: str, source: Path) -> None:
        """See Store."""
        target = self._path(key)
        self._make_folder(target.parent)
        with suppress(OSError):  # the key is taken, or it is another file system, or one without links
            os.link(source, target)

    def holds(self, key: str, source: Path) -> bool:
        """See Store."""
        path = self._path(key)
        return path.is_file() and path.stat().st_size == source.stat().st_size and _sha256(path) == _sha256(source)

    def overwrite(self, key: str, source: Path) -> None:
        """See Store."""
        target = self._path(key)
        with self._aside(target) as aside:
            shutil.copyfile(source, aside)
            _flush(aside)
            aside.replace(target)

    def get(self, key: str, target: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """See Store."""
        path = self._path(key)
        if not path.is_file():
            raise MissingError(f"There is no {key} in the store {self.root}.")
        if path.stat().st_size > max_bytes:
            raise InputError(f"{key} in the store {self.root} has {path.stat().st_size} bytes, more than {max_bytes}.")
        part = target.with_name(f".{target.name}.part")
        try:
            shutil.copyfile(path, part)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)

    def read(self, key: str) -> Stored | None:
        """See Store."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_SMALL_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        if len(content) > MAX_SMALL_BYTES:
            raise InputError(
                f"{key} in the store {self.root} is larger than {MAX_SMALL_BYTES} bytes; it is none of ours."
            )
        return Stored(content, _tag(content))

    def compare_and_swap(self, key: str, content: bytes, tag: str | None) -> str:
        """See Store; a lock makes comparing and replacing one step."""
        target = self._path(key)
        with self._locked(key):
            now = self.read(key)
            if (now.tag if now else None) != tag:
                raise ConflictError(f"{key} was changed by somebody else")
            with self._aside(target) as aside:
                aside.write_bytes(content)
                _flush(aside)
                aside.replace(target)
        return _tag(content)

    def keys(self, below: str) -> list[str]:
        """See Store."""
        return sorted(key for key in self._keys(below) if not _is_hidden(key) and key != below)

    def list_children(self, below: str) -> list[str]:
        """See Store."""
        folder = self._path(below) if below else self.root
        return sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []

    def stamps(self, below: str) -> dict[str, str]:
        """See Store; size, times and inode of the file."""
        found = {key: self._stamp(key) for key in self.keys(below)}
        return {key: stamp for key, stamp in found.items() if stamp}

    def is_stamped(self, key: str, tag: str, stamp: str) -> bool:
        """See Store; a file that was written a moment ago may be written again within one tick of its times."""
        changed_ns = int(stamp.split()[2])
        return self._stamp(key) == stamp and changed_ns < time.time_ns() - self.tick_s * 1e9

    def _stamp(self, key: str) -> str:
        try:
            each = self._path(key).stat()
        except FileNotFoundError:
            return ""
        return f"{each.st_size} {each.st_mtime_ns} {each.st_ctime_ns} {each.st_ino}"

    def sizes(self, below: str) -> dict[str, int]:
        """See Store."""
        return {key: self._path(key).stat().st_size for key in self.keys(below)}

    def inventory(self, below: str) -> Inventory:
        """See Store; what was being written when its writer was killed counts as an upload."""
        objects = uploads = size = 0
        for key in self._keys(below):
            with suppress(FileNotFoundError):  # somebody's file aside
                size += (self.root / key).stat().st_size
            uploads += _is_hidden(key)
            objects += not _is_hidden(key)
        return Inventory(objects=objects, versions=objects, uploads=uploads, bytes=size)

    def earlier(self, key: str, target: Path) -> Iterator[None]:
        """See Store; a folder keeps none."""
        yield from ()

    def delete(self, below: str, *, only: Callable[[str], bool] = lambda _: True) -> int:
        """See Store; what was left half written goes too, and folders that became empty."""
        keys = [key for key in self._keys(below) if only(key)]
        for key in keys:
            (self.root / key).unlink(missing_ok=True)
        top = self._path(below) if below else self.root
        for folder in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            self._remove_empty(folder)
        self._remove_empty(top if top.is_dir() else top.parent)
        return sum(not _is_hidden(key) for key in keys)

    def link(self, key: str, *, seconds: int) -> str:
        """See Store; where nobody serves pages, the file's address, which holds while the file is there."""
        path, secret = self._path(key), secret_of(self.root)
        if not self.pages or secret is None:
            return path.as_uri()
        return signed(self.pages, key, secret, expires=int(time.time()) + seconds)

    def _keys(self, below: str) -> Iterator[str]:
        """Yield the key `below` if it is one, and all files below it, those that are being written included."""
        top = self._path(below) if below else self.root
        for path in [top, *top.rglob("*")]:
            key = path.relative_to(self.root).as_posix()
            if path.is_file() and not key.startswith((f"{LOCKS}/", SECRET)):
                yield key

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*checked_key(key).split("/"))

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder, and those above it in the store, as far as they are empty."""
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.ENOENT, errno.ENOTDIR, errno.EEXIST}:
                    return
                raise
            folder = folder.parent

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of the store; the topmost below the root, which may be anybody's, is closed to other users."""
        make_private(self.root / folder.relative_to(self.root).parts[0] if folder != self.root else folder)
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _aside(self, target: Path) -> Iterator[Path]:
        """Yield a hidden name in the folder of `target`; a file left under that name is deleted."""
        aside = target.with_name(f".{uuid4().hex}.part")
        try:
            self._make_folder(target.parent)
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        self._make_folder(self.root / LOCKS)
        name = hashlib.sha256(key.encode()).hexdigest()[:2]
        with (self.root / LOCKS / name).open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_hidden(key: str) -> bool:
    return key.rpartition("/")[2].startswith(".")


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""Files as a user gives them: a folder, a zip or a tar archive; nothing is ever unpacked to disk.

Each entry becomes one `Given`, in the order of its name (a tar: in its own order), also when it can only be refused.
Names are only ever shown: they never become paths, so an entry that calls itself ../../x writes nowhere.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from zimage.errors import InputError
from zimage.faces.decode import RefusedError

# Photos hardly shrink in an archive: an entry that grows this much beyond the first 10 MB is made to fill memory.
MAX_RATIO, RATIO_FROM_BYTES = 100, 10_000_000
# Bytes of a compressed tar that are unpacked at most, so that a bomb ends; several thousand photos fit.
MAX_UNPACKED_BYTES = 64_000_000_000
MAX_READ_BYTES = 1_000_000_000  # a tar's header may not ask for more at once
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True)
class Given:
    """One file that was given.

    Attributes:
        name: For people: inside the folder or archive, / between folders, undecodable bytes escaped.
        size_bytes: As the folder or archive claims.
        path: Where to read it, for a file in a folder.
        content: Its bytes, for an entry of an archive.
        refusal: Why it is not even read; then neither path nor content is set.
    """

    name: str
    size_bytes: int
    path: Path | None = None
    content: bytes | None = None
    refusal: tuple[str, str] | None = None

    def read(self, max_bytes: int) -> bytes:
        """Return the file's bytes.

        Raises:
            RefusedError: it was refused, cannot be read, or has more than `max_bytes`.
        """
        if self.refusal is not None:
            raise RefusedError(*self.refusal)
        if self.content is not None:
            return self.content
        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                return _bounded(file, max_bytes)
        except OSError as error:
            raise RefusedError("unreadable", f"The file cannot be read ({error.strerror}).") from None


def given(source: Path, *, max_files: int, max_bytes: int) -> Iterator[Given]:
    """Yield every file of a folder or archive; after `max_files` the rest are named but refused.

    Raises:
        InputError: there is nothing at `source`, or it is neither a folder, a zip nor a tar.
    """
    for number, one in enumerate(_entries(source, max_files, max_bytes)):
        if number < max_files:
            yield one
        else:
            detail = f"Only the first {max_files} files are looked at (ingest.max_files)."
            yield Given(one.name, one.size_bytes, refusal=("over_limit", detail))


def expected(source: Path) -> int:
    """Return how many files there are, for a progress bar; 0 where only reading all of a tar would tell."""
    if source.is_dir():
        return sum(len(files) for _, _, files in os.walk(source))
    with contextlib.suppress(*DAMAGED), zipfile.ZipFile(source) as archive:
        return sum(not entry.is_dir() for entry in archive.infolist())
    return 0


def _entries(source: Path, max_files: int, max_bytes: int) -> Iterator[Given]:
    if source.is_dir():
        return _in_folder(source)
    if not source.is_file():
        raise InputError(f"There are no photos at {source}; name a folder, or a zip or tar archive of photos.")
    try:
        if zipfile.is_zipfile(source):
            return _in_zip(zipfile.ZipFile(source), max_files, max_bytes)
        stream = _unpacked(source)
        return _in_tar(_opened_tar(stream), stream, max_files, max_bytes)
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
                    name = _shown(os.path.relpath(entry.path, os.fsencode(folder)))
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        found.append((name, entry.path))
        except OSError as error:
            name = _shown(os.path.relpath(here, os.fsencode(folder)))
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


def _in_zip(archive: zipfile.ZipFile, max_files: int, max_bytes: int) -> Iterator[Given]:
    with archive:
        entries = sorted((entry for entry in archive.infolist() if not entry.is_dir()), key=lambda e: e.filename)
        for number, entry in enumerate(entries):
            name = _shown(entry.filename.encode("utf-8", "surrogateescape"))
            refusal = _zip_refusal(entry, max_bytes)
            if refusal is None and number < max_files:
                yield _zip_entry(archive, entry, name, max_bytes)
            else:
                yield Given(name, entry.file_size, refusal=refusal or ("over_limit", ""))


def _zip_refusal(entry: zipfile.ZipInfo, max_bytes: int) -> tuple[str, str] | None:
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "link", "Links inside an archive are not followed."
    if entry.flag_bits & 1:
        return "encrypted", "The entry is encrypted; pack the photos without a password."
    if entry.file_size > RATIO_FROM_BYTES and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
        return "archive_bomb", f"The entry unpacks to {entry.file_size} bytes from {entry.compress_size}."
    return _name_refusal(entry.filename) or _size_refusal(entry.file_size, max_bytes)


def _zip_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, max_bytes: int) -> Given:
    try:
        with archive.open(entry) as file:
            return Given(name, entry.file_size, content=_bounded(file, max_bytes))
    except RefusedError as error:
        return Given(name, entry.file_size, refusal=(error.reason, error.detail))
    except (*DAMAGED, NotImplementedError, RuntimeError) as error:
        detail = f"The entry cannot be unpacked ({' '.join(str(error).split())[:120]})."
        return Given(name, entry.file_size, refusal=("unreadable", detail))


def _opened_tar(stream: "_Bounded") -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:")
    except BaseException:
        stream.close()
        raise


def _in_tar(archive: tarfile.TarFile, stream: "_Bounded", max_files: int, max_bytes: int) -> Iterator[Given]:
    """Yield the entries in their own order, each read as it passes: a compressed tar can only be read forwards."""
    with contextlib.closing(stream), archive:
        number = 0
        while True:
            try:
                entry = archive.next()
                if entry is None:
                    return
                if entry.isdir():
                    continue
                name = _shown(entry.name.encode("utf-8", "surrogateescape"))
                refusal = _tar_refusal(entry, max_bytes)
                if refusal is None and number >= max_files:
                    refusal = ("over_limit", "")
                content = _tar_content(archive, entry, max_bytes) if refusal is None else None
                archive.members = []  # type: ignore[attr-defined] # or tarfile keeps every header it has seen
            except DAMAGED as error:
                detail = f"The archive is damaged or ends early here ({' '.join(str(error).split())[:120]})."
                yield Given(f"(after entry {number})", 0, refusal=("truncated_archive", detail))
                return
            number += 1
            yield Given(name, entry.size, content=content, refusal=refusal)


def _tar_refusal(entry: tarfile.TarInfo, max_bytes: int) -> tuple[str, str] | None:
    if entry.issym() or entry.islnk():
        return "link", "Links inside an archive are not followed."
    if not entry.isreg():
        return "not_a_file", "It is a pipe or device, not a file."
    return _name_refusal(entry.name) or _size_refusal(entry.size, max_bytes)


def _tar_content(archive: tarfile.TarFile, entry: tarfile.TarInfo, max_bytes: int) -> bytes:
    file = archive.extractfile(entry)
    assert file is not None
    content = _bounded(file, max_bytes)
    if len(content) < entry.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _name_refusal(name: str) -> tuple[str, str] | None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return "escaping_path", "The entry's path leads out of the archive; such archives are not trusted."
    return None


def _size_refusal(size_bytes: int, max_bytes: int) -> tuple[str, str] | None:
    if size_bytes > max_bytes:
        return "too_large", f"The file has {size_bytes} bytes; ingest.max_file_mb allows {max_bytes // 1_000_000} MB."
    return None


def _bounded(file: IO[bytes], max_bytes: int) -> bytes:
    content = file.read(max_bytes + 1)
    refusal = _size_refusal(len(content), max_bytes)
    if refusal is not None:
        raise RefusedError(*refusal)
    return content


def _shown(name: bytes) -> str:
    """Return a name as text that any table can hold; bytes that are no text are escaped."""
    return name.decode("utf-8", "backslashreplace").replace(os.sep, "/")


class _Bounded:
    """A stream that refuses to be read too much at once or in all, for tarfile, which believes its headers."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        if self._stream.tell() + size > MAX_UNPACKED_BYTES:
            raise tarfile.ReadError(f"more than {MAX_UNPACKED_BYTES} bytes unpacked")
        return self._stream.read(size)


def _unpacked(source: Path) -> _Bounded:
    """Return a tar's bytes, decompressed as its first bytes say."""
    with source.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"\x1f\x8b"):
        return _Bounded(cast("IO[bytes]", gzip.open(source)))
    if head.startswith(b"BZh"):
        return _Bounded(cast("IO[bytes]", bz2.open(source)))
    if head.startswith(b"\xfd7zXZ"):
        return _Bounded(cast("IO[bytes]", lzma.open(source)))
    return _Bounded(source.open("rb"))

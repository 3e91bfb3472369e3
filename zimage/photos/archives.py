"""Read zip and tar archives entry by entry, without unpacking to disk and without trusting headers."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from zimage.core.errors import InputError
from zimage.photos.decode import RefusedError
from zimage.photos.given_file import MAX_ENTRIES, Given, TooManyFilesError, bounded, shown
from zimage.photos.kinds import is_sidecar

# Photos hardly shrink in an archive: an entry that grows this much beyond the first 10 MB is made to fill memory.
MAX_RATIO, RATIO_FROM_BYTES = 100, 10_000_000
MAX_DIRECTORY_BYTES = 256 * MAX_ENTRIES  # of a zip; an entry of a photo takes about half of that
# Bytes of a compressed tar that are unpacked at most, so that a bomb ends; several thousand photos fit.
MAX_UNPACKED_BYTES = 64_000_000_000
MAX_READ_BYTES = 1_000_000_000  # a tar's header may not ask for more at once
# APPNOTE 6.3.10, 4.4.5: what Python's zipfile unpacks, and names of the rest.
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
OTHER_METHODS = {9: "deflate64", 20: "zstd", 93: "zstd", 94: "mp3", 95: "xz", 96: "jpeg", 97: "wavpack", 98: "ppmd"}
END_BYTES = 22 + 65_535  # of a zip: its end record and the longest comment
UNPACK = "unpack it and name the folder that then holds the photos"
OTHER_ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\7": "a RAR archive",
    b"(\xb5/\xfd": "packed with zstd",
}
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


def in_archive(source: Path, max_files: int, max_bytes: int) -> Iterator[Given]:
    """Return the entries of an archive, whatever it is called; a zip's by name, a tar's in their own order.

    Raises:
        InputError: it is an archive of a kind that is not read, or a part of one.
        DAMAGED: it is no archive.
    """
    _refuse_other_kinds(source)
    if zipfile.is_zipfile(source):
        return _in_zip(*_opened_zip(source), max_files, max_bytes)
    stream = _unpacked(source)
    return _in_tar(_opened_tar(stream), stream, max_files, max_bytes)


def _refuse_other_kinds(source: Path) -> None:
    """Pass unless a file is an archive of a kind that is not read.

    Raises:
        InputError: it is.
    """
    with source.open("rb") as file:
        head = file.read(8)
        file.seek(max(0, source.stat().st_size - END_BYTES))
        end = file.read()
    for first, kind in OTHER_ARCHIVES.items():
        if head.startswith(first):
            raise InputError(f"{source} is {kind}, which is not read; {UNPACK}.")
    at = end.rfind(b"PK\5\6")
    disk = int.from_bytes(end[at + 4 : at + 6], "little") if at >= 0 else 0
    if head.startswith(b"PK\7\x08") or 0 < disk < 0xFFFF or (head.startswith(b"PK\3\4") and at < 0):
        raise InputError(
            f"{source} is one part of a split zip archive, or was not copied to its end; bring all parts together, "
            "unpack them (7-Zip and Keka do) and name the folder that then holds the photos."
        )


def num_entries(source: Path) -> int:
    """Return how many files a zip holds; 0 for a tar, which would have to be read for it."""
    with contextlib.suppress(*DAMAGED, TooManyFilesError):
        file, archive = _opened_zip(source)
        with file, archive:
            return sum(not entry.is_dir() for entry in archive.infolist())
    return 0


def _opened_zip(source: Path) -> "tuple[_SmallDirectory, zipfile.ZipFile]":
    """Return a zip whose directory was small enough to be read, and its file, which the zip does not close.

    Raises:
        TooManyFilesError: it has more entries than any set of photos.
    """
    file = _SmallDirectory(source)
    try:
        archive = zipfile.ZipFile(cast("IO[bytes]", file))
        if len(archive.infolist()) > MAX_ENTRIES:
            raise _DirectoryTooLarge
    except _DirectoryTooLarge:
        file.close()
        raise TooManyFilesError(source) from None
    except BaseException:
        file.close()
        raise
    file.is_open = True
    return file, archive


class _DirectoryTooLarge(Exception):  # noqa: N818 - it never leaves this module
    """A zip's directory is larger than that of any set of photos."""


class _SmallDirectory(io.FileIO):
    """A zip file that refuses to have its directory read where that is large: zipfile reads all of it at once.

    Args:
        is_open: The directory was read; the entries may be of any size.
    """

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        self.is_open = False

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if not self.is_open and wanted > MAX_DIRECTORY_BYTES:
            raise _DirectoryTooLarge
        return super().read(wanted) or b""


def _in_zip(file: "_SmallDirectory", archive: zipfile.ZipFile, max_files: int, max_bytes: int) -> Iterator[Given]:
    with file, archive:
        entries = sorted((entry for entry in archive.infolist() if not entry.is_dir()), key=lambda e: e.filename)
        number = 0
        for entry in entries:
            name = shown(entry.filename.encode("utf-8", "surrogateescape"))
            refusal = _zip_refusal(entry)
            number += not is_sidecar(name)
            if refusal is None and number <= max_files:
                yield _zip_entry(archive, entry, name, max_bytes)
            else:
                yield Given(name, entry.file_size, refusal=refusal or ("over_limit", ""))


def _zip_refusal(entry: zipfile.ZipInfo) -> tuple[str, str] | None:
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "link", "Links inside an archive are not followed."
    if entry.flag_bits & 1:
        return "encrypted", "It is encrypted in the archive; unpack that with its password and name the folder."
    if entry.compress_type not in METHODS:
        method = OTHER_METHODS.get(entry.compress_type, f"method {entry.compress_type}")
        return (
            "unknown_compression",
            f"It is packed with {method}, which is not read; unpack the archive and name the folder.",
        )
    if entry.file_size > RATIO_FROM_BYTES and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
        return "archive_bomb", f"The entry unpacks to {entry.file_size} bytes from {entry.compress_size}."
    return None


def _zip_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, max_bytes: int) -> Given:
    try:
        with archive.open(entry) as file:
            return Given(name, entry.file_size, content=bounded(file, entry.file_size, max_bytes))
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
        number = photos = 0
        while True:
            try:
                entry = archive.next()
                if entry is None:
                    return
                if entry.isdir():
                    continue
                name = shown(entry.name.encode("utf-8", "surrogateescape"))
                refusal, content = _tar_refusal(entry), None
                if refusal is None and photos >= max_files:
                    refusal = ("over_limit", "")
                if refusal is None:
                    try:
                        content = _tar_content(archive, entry, max_bytes)
                    except RefusedError as error:
                        refusal = (error.reason, error.detail)
                archive.members = []  # type: ignore[attr-defined] # or tarfile keeps every header it has seen
            except DAMAGED as error:
                detail = f"The archive is damaged or ends early here ({' '.join(str(error).split())[:120]})."
                yield Given(f"(after entry {number})", 0, refusal=("truncated_archive", detail))
                return
            number += 1
            photos += not is_sidecar(name)
            yield Given(name, entry.size, content=content, refusal=refusal)


def _tar_refusal(entry: tarfile.TarInfo) -> tuple[str, str] | None:
    if entry.issym() or entry.islnk():
        return "link", "Links inside an archive are not followed."
    if not entry.isreg():
        return "not_a_file", "It is a pipe or device, not a file."
    return None


def _tar_content(archive: tarfile.TarFile, entry: tarfile.TarInfo, max_bytes: int) -> bytes:
    file = archive.extractfile(entry)
    assert file is not None
    content = bounded(file, entry.size, max_bytes)
    if len(content) < entry.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


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

"""A file of the user's folder or archive."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from zimage.core.errors import InputError, printable
from zimage.photos.decode import RefusedError
from zimage.photos.kinds import HEAD_BYTES, kind_refusal

MAX_ENTRIES = 20_000  # of a folder or archive: no set of photos has more, and each gets a row


class TooManyFilesError(InputError):
    """A folder or archive, `source` as the user named it, holds more files than any set of photos."""

    def __init__(self, source: Path | str) -> None:
        super().__init__(f"{source} holds more than {MAX_ENTRIES} files; give a folder or archive of photos alone.")


@dataclass(frozen=True)
class Given:
    """One file of the user's folder or archive.

    Args:
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
                return bounded(file, self.size_bytes, max_bytes)
        except OSError as error:
            raise RefusedError("unreadable", f"The file cannot be read ({error.strerror}).") from None


def bounded(file: IO[bytes], size_bytes: int, max_bytes: int) -> bytes:
    """Return all of a file.

    Args:
        file: Open for reading.
        size_bytes: As the folder or archive claims.
        max_bytes: Larger files are not read.

    Raises:
        RefusedError: it has more than `max_bytes`, whatever its header says; a video, an archive and so on is called by
            its kind.
    """
    content = file.read(max_bytes + 1 if size_bytes <= max_bytes else HEAD_BYTES)
    size_bytes = max(size_bytes, len(content))
    if size_bytes > max_bytes:
        raise RefusedError(*kind_refusal(content[:HEAD_BYTES]) or _too_large(size_bytes, max_bytes))
    return content


def _too_large(size_bytes: int, max_bytes: int) -> tuple[str, str]:
    return "too_large", f"The file has {size_bytes} bytes; ingest.max_file_mb allows {max_bytes // 1_000_000} MB."


def shown(name: bytes) -> str:
    """Return a name as text that any table or terminal can hold; what is no text, or controls one, is escaped."""
    return printable(name.decode("utf-8", "backslashreplace").replace("\n", "\\n")).replace(os.sep, "/")

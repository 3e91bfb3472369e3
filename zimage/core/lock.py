"""File locks between processes, released by the kernel, that name their holder."""

import errno
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from zimage.core.errors import InputError

logger = logging.getLogger(__name__)

# Errors of flock on a file system without such locks (Lustre without `-o flock`, some FUSE mounts).
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class Holder(NamedTuple):
    """A process that holds a lock."""

    pid: int
    host: str

    def __str__(self) -> str:
        """Return its name for messages."""
        return f"process {self.pid} on {self.host}"


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold an exclusive lock (flock) on a file for the length of the block; the file is removed at its end.

    Where the file system has no locks, the block runs without one, which is logged.

    Args:
        path: The lock file; its folder must exist.
        refusal: How the message begins where another process has the lock, such as "data/train is being written".

    Raises:
        InputError: another process has the lock; the message names it.
    """
    file = _acquired(path, refusal)
    with file:
        try:
            file.truncate(0)
            file.write(f"{os.getpid()} {platform.node()}")
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)  # while the lock is held: the next process sees that its file has gone


def holder_of(path: Path) -> Holder | None:
    """Return which process wrote a lock file last, or None where there is none or it cannot be read."""
    try:
        pid, _, host = path.read_text(encoding="utf-8").partition(" ")
        return Holder(int(pid), host)
    except (FileNotFoundError, ValueError):
        return None


def _acquired(path: Path, refusal: str) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            holder = holder_of(path) or "another process"
            raise InputError(f"{refusal} by {holder}; wait for it to end, or stop it.") from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                file.close()
                raise
            logger.warning("%s cannot be locked (%s); let no other process work there meanwhile", path, error.strerror)
            return file
        if _is_at(file, path):
            return file
        file.close()  # its holder removed it between the two calls: lock the new file


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

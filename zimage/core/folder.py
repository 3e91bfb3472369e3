"""Write output folders and files atomically."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zimage.core.errors import InputError
from zimage.core.lock import locked

PRIVATE, OTHERS = 0o700, 0o077  # modes: access for this user only; the bits of all others
READ_ONLY = 0o444
CLONE = 0x40049409  # FICLONE of Linux (linux/fs.h): a copy that shares its blocks until one of both is written
METRICS = "metrics.json"  # in the output of every stage


def aside_of(out: Path) -> Path:
    """Return the temporary folder next to `out`, later renamed to it: `data/.train.part` for `data/train`."""
    return out.with_name(f".{out.name}.part")


def refused_of(out: Path) -> Path:
    """Return where a stage that refuses its input leaves its table and contact sheet: `data/detect.refused`.

    It lies beside the output, which a refusal leaves as it was, and the next run of the stage deletes it.
    """
    return out.with_name(f"{out.name}.refused")


def fetched_beside(aside: Path) -> Path:
    """Return the folder for an unfinished training fetched from another machine, before it is resumed."""
    return aside.with_name(f"{aside.name}.fetched")


def check_out(out: Path, inputs: Iterable[Path], *, holds: str) -> None:
    """Refuse an output folder if replacing it would delete files that no earlier run of the same stage made.

    Args:
        out: The folder that is going to be replaced.
        inputs: What is read; `out` may be none of these, hold none and lie in none, by whatever name it is called.
        holds: A file that every output of this stage contains, besides its metrics.

    Raises:
        InputError: it would, or the folder cannot be made.
    """
    place = out.resolve()
    for given in inputs:
        read = given.resolve()
        if place.is_relative_to(read) or read.is_relative_to(place):
            raise InputError(f"{out} cannot be written while {given} is read, one lies in the other; name another one.")
    check_earlier(out, [METRICS, holds])
    make_writable(out.parent)


def check_earlier(out: Path, holds: Iterable[str]) -> None:
    """Refuse to replace anything but an earlier output: a file, or a non-empty folder that lacks one of `holds`.

    Raises:
        InputError: it is none.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder to write.")
    lacking = [name for name in holds if not (out / name).is_file()]
    if out.is_dir() and any(out.iterdir()) and lacking:
        raise InputError(
            f"{out} is not empty, and no earlier output either (it has no {lacking[0]}); it is left as it is. "
            "Name a new folder to write."
        )


def make_writable(folder: Path, remedy: str = "name another place") -> None:
    """Make a folder if it is missing, and check that files can be created in it.

    Raises:
        InputError: it cannot be made, or is closed to writing; what to do is `remedy`, or to change the permissions.
    """
    remedy += ", or change what may be written there"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(f"The folder {folder} cannot be made ({error.strerror}); {remedy}.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"Nothing can be written in the folder {folder}; {remedy}.")


def claim(out: Path, file: str, record: Mapping[str, Any], *, held: str, purpose: str) -> None:
    """Write into a folder what all in it will be made of, or check that an earlier call wrote the same.

    Args:
        out: A new or empty folder, or one that was claimed before.
        file: Name of the record in it.
        record: What JSON can hold.
        held: What a folder with another record holds, for the message.
        purpose: What the folder is for, idem.

    Raises:
        InputError: it holds another record, or other files, or cannot be made.
    """
    path = out / file
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise InputError(f"{out} holds {held}; name another folder, or delete it.")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; name a new folder for {purpose}.")
    make_writable(out)
    write_whole(path, text.encode())


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user only, whatever the umask.

    A folder of this user that is there already is closed to others; those above it stay as they are.
    """
    for each in reversed((folder, *folder.parents)):
        if not each.exists():
            each.mkdir(mode=PRIVATE, exist_ok=True)
    found = folder.stat()
    if found.st_mode & OTHERS and found.st_uid == os.geteuid():
        folder.chmod(PRIVATE)


@contextmanager
def made_aside(out: Path, *, keep_on_failure: bool = False) -> Iterator[Path]:
    """Yield an empty folder next to `out`; on success it replaces `out`, on failure `out` is unchanged.

    One process at a time makes an output: a lock file next to it ensures that.

    Args:
        out: The folder that shall appear, whole.
        keep_on_failure: Leave the folder aside behind when the body fails, and start from what an earlier failure
            left (the caller decides what of it is still good): this is how long work goes on where it stopped.

    Raises:
        InputError: nothing can be written there, or another process makes the same output.
    """
    make_writable(out.parent)
    with locked(out.with_name(f".{out.name}.lock"), f"{out} is being written"):
        aside = aside_of(out)
        if aside.exists() and not keep_on_failure:
            shutil.rmtree(aside)
        aside.mkdir(exist_ok=True)
        try:
            yield aside
        except BaseException:
            if not keep_on_failure:
                shutil.rmtree(aside, ignore_errors=True)
            raise
        _replace(out, aside)


def share(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`, which takes no extra space if the file system can clone or link.

    A clone, else a second name of the same file, else a copy. `source` becomes read-only: whoever wrote into one of two
    names would write into the other; a file is replaced by a new one instead, as everything here does.
    """
    source.chmod(READ_ONLY)
    if not cloned(source, target):
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)


def cloned(source: Path, target: Path) -> bool:
    """Clone `source` as the new file `target`; return whether that worked. If not, `target` does not exist."""
    with source.open("rb") as read, target.open("xb") as written:
        try:
            fcntl.ioctl(written.fileno(), CLONE, read.fileno())
        except OSError:
            target.unlink()
            return False
    return True


def clones(folder: Path) -> bool:
    """Return whether the file system of a folder can clone files; tried with two small files."""
    with TemporaryDirectory(dir=folder) as name:
        one = Path(name, "one")
        one.write_bytes(b"1")
        return cloned(one, Path(name, "two"))


def _replace(out: Path, whole: Path) -> None:
    """Replace `out` by a complete folder."""
    if out.exists():
        old = out.with_name(f".{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        whole.rename(out)
        shutil.rmtree(old)
    else:
        whole.rename(out)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Check that a file may be written: it does not exist, or it is to be replaced.

    Raises:
        InputError: something is there.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists already; name another file with --out, or replace it with --force.")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file in the same folder, flushed to disk, then renamed."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise

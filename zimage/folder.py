"""Output folders that appear only when whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def aside_of(out: Path) -> Path:
    """Return the folder beside `out` in which it is made before it is renamed: `data/.train.part` for `data/train`."""
    return out.with_name(f".{out.name}.part")


@contextmanager
def made_aside(out: Path, *, keep_on_failure: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `out`; on success it replaces `out`, on failure nothing of `out` has changed.

    Args:
        out: The folder that shall appear, whole.
        keep_on_failure: Leave the folder aside behind when the body fails, and start from what an earlier failure
            left (the caller decides what of it is still good): this is how long work goes on where it stopped.
    """
    aside = aside_of(out)
    if aside.exists() and not keep_on_failure:
        shutil.rmtree(aside)
    aside.mkdir(parents=True, exist_ok=True)
    try:
        yield aside
    except BaseException:
        if not keep_on_failure:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    if out.exists():
        old = out.with_name(f".{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        aside.rename(out)
        shutil.rmtree(old)
    else:
        aside.rename(out)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either absent or complete: made beside its place, flushed to disk, then renamed."""
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

"""Temporary folders inside the workspace, so that they are deleted when the subject is forgotten."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(".dvc", "tmp", "scratch")  # in a workspace


@contextmanager
def scratch(workspace: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder in a workspace, which is removed with the block; what a killed run left there goes first.

    Args:
        workspace: It is held by this process, so nobody else uses the folder.
        name: Of the work.
    """
    folder = workspace / FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(workspace: Path) -> None:
    """Remove what killed runs left; nobody works in the workspace."""
    shutil.rmtree(workspace / FOLDER, ignore_errors=True)

"""Cache of results for single photos beside a stage's output, so that three added photos cost three.

The cache is a sibling of the output folder, `data/.detect.cache` for `data/detect`, because DVC empties an output
folder before its stage runs. It is part of no result: deleting it at any time costs only the time to fill it again. It
holds what the photos hold (pictures, embeddings), lies in the subject's own workspace and goes with it; entries that a
run did not use are removed at its end.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from zimage.core.fingerprint import fingerprint

# Libraries whose version can change a pixel or an embedding.
LIBRARIES = ("dlib-bin", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "pillow", "pillow-heif")


class Cache:
    """Folders of files, one for each key.

    Args:
        folder: Where they lie; made when the first is filled.
        salt: All that decides about the results besides the key: code, libraries, engine, parameters.
    """

    def __init__(self, folder: Path, salt: str) -> None:
        self.folder, self.salt = folder, salt
        self._used: set[str] = set()

    def entry(self, key: str) -> Path:
        """Return the folder of a key's files, whether or not it is there yet."""
        return self.folder / hashlib.sha256(f"{self.salt}\0{key}".encode()).hexdigest()[:40]

    def keep(self, entry: Path) -> None:
        """Spare an entry from the next `prune`."""
        self._used.add(entry.name)

    def prune(self) -> None:
        """Remove the entries that were not kept since this object was made, and what an interrupted run left."""
        if not self.folder.is_dir():
            return
        for entry in self.folder.iterdir():
            if entry.name not in self._used:
                shutil.rmtree(entry, ignore_errors=True)


def cache_of(out: Path) -> Path:
    """Return the cache folder of a stage's output folder: `data/.detect.cache` for `data/detect`."""
    return out.with_name(f".{out.name}.cache")


def salt(module: str, *parts: str) -> str:
    """Return a text that changes when `module`, what it imports, a library or one of `parts` changes."""
    return "\n".join([fingerprint(module), *(f"{name} {version(name)}" for name in LIBRARIES), *parts])


def filled(entry: Path, fill: Callable[[Path], None]) -> Path:
    """Return `entry`, filled by `fill` if it is not there yet; it appears only when whole, whoever is first."""
    if entry.is_dir():
        return entry
    aside = entry.with_name(f".{entry.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        fill(aside)
        _appear(aside, entry)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return entry


def _appear(aside: Path, entry: Path) -> None:
    try:
        aside.rename(entry)
    except OSError:
        if not entry.is_dir():  # else another worker was first, with the same result
            raise

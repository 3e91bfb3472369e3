"""Read reference photos that say whose face is meant."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zimage.core.errors import InputError
from zimage.faces.engine import Engine, EngineInfo, EngineParams, between, open_engine
from zimage.photos.decode import Limits, RefusedError, decoded
from zimage.photos.given_file import Given
from zimage.photos.sources import given
from zimage.photos.worker_pool import Lost, mapped

LIMITS = Limits(max_megapixels=120, max_side_px=4096)
MAX_BYTES, MAX_FILES = 100_000_000, 50


@dataclass(frozen=True)
class Reference:
    """The largest face in one photo, as its embedding; without one, why the photo cannot be used."""

    embedding: list[float] | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Referrer:
    """Reads reference photos in a worker process.

    Args:
        params: The engine, which is opened at the first photo.
    """

    params: EngineParams

    @cached_property
    def engine(self) -> Engine:
        """The opened engine."""
        return open_engine(self.params)

    def __call__(self, one: Given) -> Reference:
        """Return the largest face in a photo."""
        try:
            found = self.engine.find(decoded(one.read(MAX_BYTES), LIMITS).pixels_rgb)
        except RefusedError as error:
            return Reference(refusal=error.detail)
        return Reference(found[0].embedding.tolist() if found else None)


def read_references(folder: Path, params: EngineParams, info: EngineInfo) -> NDArray[np.float32] | None:
    """Return the embeddings of the largest face in each photo of `folder`, (N, D); None where there is no photo.

    Args:
        folder: It may be absent.
        params: The engine that looks.
        info: Of the same engine.

    Raises:
        InputError: a photo cannot be used, shows no face, or shows another person than the first.
    """
    if not folder.is_dir():
        return None
    photos = (one for one in given(folder, max_files=MAX_FILES, max_bytes=MAX_BYTES) if not one.name.startswith("."))
    names, embeddings = [], []
    for one, read in mapped(partial(Referrer, params), photos, Reference):
        names.append(one.name)
        embeddings.append(_embedding(read, folder / one.name))
    faces = np.asarray(embeddings, np.float32)
    for name, face in zip(names[1:], faces[1:], strict=True):
        if between(faces[:1], face[None], info.metric)[0, 0] > info.threshold:
            raise InputError(
                f"The photos in {folder} show different people; leave only photos of the subject.",
                names=f"They are {names[0]} and {name}",
            )
    return faces if names else None


def _embedding(read: Reference | Lost, photo: Path) -> list[float]:
    refusal = read.detail if isinstance(read, Lost) else read.refusal
    if refusal:
        raise InputError(f"A photo in {photo.parent} cannot be used: {refusal}", names=f"It is {photo.name}")
    assert isinstance(read, Reference)
    if read.embedding is None:
        raise InputError(
            f"No face was found in a photo in {photo.parent}; use photos that show the subject's face.",
            names=f"It is {photo.name}",
        )
    return read.embedding

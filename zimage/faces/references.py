"""Photos that say whose face is meant, where the set itself leaves it open."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zimage.errors import InputError
from zimage.faces.decode import Limits, RefusedError, decoded
from zimage.faces.engine import Engine, Face
from zimage.faces.sources import given

LIMITS = Limits(max_megapixels=120, max_side_px=4096)
MAX_BYTES, MAX_FILES = 100_000_000, 50


def read_references(folder: Path, engine: Engine) -> NDArray[np.float32] | None:
    """Return the embeddings of the largest face in each photo of `folder`, (N, D); None where there is no photo.

    Raises:
        InputError: a photo cannot be used, shows no face, or shows another person than the first.
    """
    if not folder.is_dir():
        return None
    names, faces = [], []
    for one in given(folder, max_files=MAX_FILES, max_bytes=MAX_BYTES):
        if not one.name.startswith("."):
            names.append(one.name)
            try:
                faces.append(_face(decoded(one.read(MAX_BYTES), LIMITS).pixels_rgb, engine, folder / one.name))
            except RefusedError as error:
                raise InputError(f"The reference photo {folder / one.name} cannot be used: {error.detail}") from None
    for name, face in zip(names[1:], faces[1:], strict=True):
        if not engine.same_person(faces[0], face):
            raise InputError(
                f"The reference photos {names[0]} and {name} in {folder} show different people; "
                "leave only photos of the subject."
            )
    return np.stack([face.embedding for face in faces]) if faces else None


def _face(image_rgb: NDArray[np.uint8], engine: Engine, path: Path) -> Face:
    found = engine.find(image_rgb)
    if not found:
        raise InputError(f"No face was found in the reference photo {path}; use one that shows the subject's face.")
    return found[0]

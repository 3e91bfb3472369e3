"""Score real photos of other people like generated pictures, as the control of the threshold."""

import hashlib
import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zimage.core.errors import InputError
from zimage.evaluation.score.likeness import Embeddings, Targets, likeness
from zimage.evaluation.score.picture import Search, SearchedPicture
from zimage.photos.pictures import Picture, fitted, read_rgb, write_png
from zimage.photos.rows import Box

logger = logging.getLogger(__name__)

# Photographs of people inside packages that the set-up installs: package, file, SHA-256. skimage's portrait is missing
# because it is the demo's subject.
PACKAGED = (
    ("insightface", "data/images/t1.jpg", "47f682e945b659f93a9e490b9c9c4a2a864abe64dace9e1a2893845ddfd69489"),
    (
        "insightface",
        "data/images/Tom_Hanks_54745.png",
        "8545da294e8c7c79911169c3915fed8528f1960cd0ed99b92453788ca4275083",
    ),
    (
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
    ),
)
AROUND = 2.0  # side of a picture over that of the face in it, as in a head crop


@dataclass(frozen=True)
class Impostor:
    """One face of another person.

    Args:
        photo: Where it is from, such as `matplotlib/grace_hopper.jpg`.
        picture: The face with its surroundings, at most as large as the generated pictures.
        distance: To the held-out centroid by the primary engine; None where it finds no face at that size.
        second_distance: The same by the second engine; None where there is none.
        same: Whether it passes for the person by the primary engine.
        embedding: Of the face at that size by the primary engine, (D,); None without a face.
    """

    photo: str
    picture: Picture
    distance: float | None
    second_distance: float | None
    same: bool
    embedding: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Impostors:
    """All of them.

    Args:
        faces: Each face of each photo.
    """

    faces: list[Impostor]

    @property
    def found(self) -> list[Impostor]:
        """Those with a face at the pictures' size: the distances that strangers have."""
        return [one for one in self.faces if one.distance is not None]

    @property
    def gallery(self) -> Embeddings:
        """Their embeddings by the primary engine, (N, D), the nearest to the person first."""
        nearest_first = sorted(self.found, key=lambda one: one.distance or 0.0)
        return np.array([one.embedding for one in nearest_first], np.float32)


def impostors(search: Search, targets: Sequence[Targets], side_px: int) -> Impostors:
    """Return every face in the packaged photos, cut out, brought to the pictures' size and held against the targets.

    Args:
        search: Finds the faces, by each engine.
        targets: The subject by each engine, in the same order.
        side_px: Of the generated pictures.

    Raises:
        InputError: a photo is not on this machine, or is another one: figures would depend on what is installed.
    """
    present = packaged_photos()
    whole = search.faces_in([SearchedPicture(path, engines=1) for path in present.values()])
    cut = [
        (photo, fitted(_around(picture, face.box_xyxy), side_px))
        for (photo, path), faces in zip(present.items(), whole, strict=True)
        for picture in [read_rgb(path)]
        for face in faces[0]
    ]
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"{number}.png" for number in range(len(cut))]
        for file, (_, picture) in zip(files, cut, strict=True):
            write_png(file, picture)
        found = list(search.faces_in([SearchedPicture(file) for file in files]))
    scored = [[likeness(faces, target) for faces, target in zip(each, targets, strict=True)] for each in found]
    logger.info("%d faces of other people in %s", len(cut), ", ".join(present))
    return Impostors(
        faces=[
            Impostor(
                photo,
                picture,
                first.distance,
                rest[0].distance if rest else None,
                first.same,
                first.face.embedding if first.face else None,
            )
            for (photo, picture), (first, *rest) in zip(cut, scored, strict=True)
        ],
    )


def packaged_photos() -> dict[str, Path]:
    """Return where each packaged photo lies, by a short name such as `matplotlib/grace_hopper.jpg`.

    Raises:
        InputError: one is not on this machine, or is not the one that is pinned here.
    """
    found = {}
    for package, file, sha256 in PACKAGED:
        path = _place(package, file)
        if path is None or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise InputError(
                f"The photo {Path(file).name} of the package {package}, which is scored for comparison, is "
                f"{'not here' if path is None else 'another one here'}; install the version of {package} in "
                "constraints.txt (insightface with `pip install --no-deps`), or set evaluate.impostors to null."
            )
        found[f"{package}/{path.name}"] = path
    return found


def _place(package: str, file: str) -> Path | None:
    """Return where a file of a package lies, without importing the package; None where it is not installed."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    return path if path and path.is_file() else None


def _around(picture: Picture, box: Box) -> Picture:
    """Return the square around a face, as far as the picture reaches."""
    height, width = picture.shape[:2]
    half = AROUND * max(box[2] - box[0], box[3] - box[1]) / 2
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    left, right = (min(max(round(x + side), 0), width) for side in (-half, half))
    top, bottom = (min(max(round(y + side), 0), height) for side in (-half, half))
    return picture[top:bottom, left:right]

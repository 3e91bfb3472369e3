"""Score the sample pictures of a running training: a curve of likeness beside the loss, which says little about a face.

Pictures are held against the middle of the training photos by an embedded engine, never against held-out photos:
training may not know these, and what somebody stops a run by must not be what reports afterwards. So the curve shows
when the face of the photos is learnt, and nothing about other days; `evaluate` tells about these.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from zimage.core.csv_rows import read_whole_rows, write_table
from zimage.core.jsonl import Row
from zimage.faces.engine import Engine, between, closeness, open_engine
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS

FACES = "faces.safetensors"  # in the encode folder
CURVE = Path("samples") / "likeness.csv"  # in the train folder


class LikenessRow(Row):
    """One sample picture."""

    step: int
    """Steps done."""
    picture: int
    """Number of its prompt."""
    distance: float | None
    """Of the largest face to the middle of the training photos; null without a face."""
    closeness: float
    """1 at distance 0, one half at the engine's threshold, 0 at twice the threshold and without a face."""


def write_faces(folder: Path, pictures: Iterable[NDArray[np.uint8]]) -> int:
    """Write the embeddings of the faces in training crops (H, W, 3), and return their number; none without a face."""
    import torch

    from zimage.core.tensor_file import write_tensors

    engine = open_engine(YUNET_SFACE_PARAMS)
    found = [faces[0].embedding for picture in pictures if (faces := engine.find(picture))]
    if found:
        embeddings = torch.from_numpy(np.stack(found).astype(np.float32))
        write_tensors(folder / FACES, {"embeddings": embeddings}, {"engine": engine.info.engine_id})
    return len(found)


class LikenessCurve:
    """`samples/likeness.csv`: a row for each sample picture, in order of steps.

    Args:
        faces: (N, D) of training photos.
        path: The file; rows of steps that will be made again are dropped from it.
        begin: How many steps are done already.
    """

    def __init__(self, faces: NDArray[np.float32], path: Path, begin: int) -> None:
        self._engine: Engine = open_engine(YUNET_SFACE_PARAMS)
        directions = faces / np.linalg.norm(faces, axis=1, keepdims=True)
        self._centre = np.asarray(directions.mean(axis=0, keepdims=True), np.float32)
        self._path = path
        self._rows = [row for row in read_likeness(path) if row.step <= begin]

    def add(self, step: int, pictures: Sequence[NDArray[np.uint8]]) -> float:
        """Score the pictures (H, W, 3) of a checkpoint, write them down, and return their mean closeness."""
        scored = [self._row(step, number, picture) for number, picture in enumerate(pictures)]
        self._rows = [row for row in self._rows if row.step < step] + scored
        write_table(self._path, list(LikenessRow.model_fields), (row.model_dump() for row in self._rows))
        return fmean(row.closeness for row in scored)

    def closeness_upto(self, done: int) -> list[float]:
        """Return the mean closeness at each checkpoint, up to that after so many steps."""
        return [value for step, value in mean_closeness(self._rows).items() if step <= done]

    def _row(self, step: int, number: int, picture: NDArray[np.uint8]) -> LikenessRow:
        faces = self._engine.find(picture)
        if not faces:
            return LikenessRow(step=step, picture=number, distance=None, closeness=0.0)
        info = self._engine.info
        distance = float(between(faces[0].embedding[None], self._centre, info.metric)[0, 0])
        near = closeness(distance, info.threshold)
        return LikenessRow(step=step, picture=number, distance=round(distance, 4), closeness=round(near, 4))


def has_plateaued(closeness_at_checkpoints: Sequence[float], patience: int, min_gain: float) -> bool:
    """Return whether the last `patience` checkpoints came no nearer than the best one before them, by `min_gain`."""
    before, last = closeness_at_checkpoints[:-patience], closeness_at_checkpoints[-patience:]
    return bool(before) and max(last) <= max(before) + min_gain


def open_curve(encode: Path, train: Path, begin: int) -> LikenessCurve | None:
    """Return the curve of a training; None where no face was found in its crops, or an older version encoded them."""
    from safetensors.numpy import load_file

    file = encode / FACES
    return LikenessCurve(load_file(file)["embeddings"], train / CURVE, begin) if file.is_file() else None


def read_likeness(path: Path) -> list[LikenessRow]:
    """Return the rows of a curve, without a last one that is half written."""
    rows = read_whole_rows(path)
    return [LikenessRow.model_validate({**row, "distance": row["distance"] or None}) for row in rows]


def mean_closeness(rows: Sequence[LikenessRow]) -> dict[int, float]:
    """Return the mean closeness of each step's pictures, in order."""
    steps = sorted({row.step for row in rows})
    return {step: fmean(row.closeness for row in rows if row.step == step) for step in steps}

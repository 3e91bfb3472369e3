"""The interface of a face engine: detector, landmarks and embedding."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from zimage.core.errors import InputError
from zimage.core.section import Section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zimage.faces.landmarks import PointsKind

Metric = Literal["l2", "cosine"]
Attempt = Literal["plain", "finer", "padded"]

PACKS = Path("~/.insightface/models")
DIFFERENCES_AT_ONCE = 4_000_000  # numbers, 32 MB; all differences of 5,000 faces at once would take 26 GB
MAX_FACES = 32  # a crowd holds no photo of one person; the largest faces are enough to see that


class EngineParams(Section):
    """Which engine finds and compares faces. Scores of different engines are never compared."""

    name: Literal["yunet-sface", "dlib", "insightface"]
    """yunet-sface and dlib are embedded; insightface needs a local pack."""
    pack: str | None
    """Insightface: name of a pack under ~/.insightface/models, or a folder; else null."""
    identity: str | None
    """Insightface: sha256:<hex> over the pack's *.onnx files; a stage refuses a pack without it."""
    min_score: float
    """Detector score from which a face counts; yunet-sface 0.6, dlib 0.0, insightface 0.5."""
    max_distance: float = Field(gt=0)
    """Same person up to this; yunet-sface: 1 - cosine 0.637; dlib: L2 0.6; insightface: 1 - cosine 0.6."""


@dataclass(frozen=True)
class EngineInfo:
    """Facts about an engine that are reported with every score.

    Args:
        engine_id: Names the recogniser and its weights; embeddings with different ids are never compared.
        metric: "l2" is the Euclidean distance, "cosine" is 1 - cosine similarity; smaller is closer in both.
        threshold: The largest distance at which two faces count as the same person.
        model_sha256: Hash of every weight file in use, by file name.
        licence: What the weights may be used for.
        embedded: True for the engines that ship with the project: good for screening, not for publication.
        points_kind: Which five points `Face.points_xy` holds (see zimage.faces.landmarks).
        aligned_px: Side of the aligned face the recogniser sees.
    """

    engine_id: str
    metric: Metric
    threshold: float
    model_sha256: dict[str, str]
    licence: str
    embedded: bool
    points_kind: PointsKind
    aligned_px: int

    def distances(self, some: Sequence[Face], others: Sequence[Face]) -> NDArray[np.float32]:
        """Return the distance of each of `some` to each of `others`, (len(some), len(others)).

        Raises:
            InputError: a face comes from another engine.
        """
        import numpy as np

        for face in (*some, *others):
            self._check(face)
        if not some or not others:
            return np.zeros((len(some), len(others)), np.float32)
        return between(np.stack([f.embedding for f in some]), np.stack([f.embedding for f in others]), self.metric)

    def distance(self, a: Face, b: Face) -> float:
        """Return how far apart two faces are: see `metric`; smaller is closer."""
        return float(self.distances([a], [b])[0, 0])

    def same_person(self, a: Face, b: Face) -> bool:
        """Return whether two faces are close enough to be one person."""
        return self.distance(a, b) <= self.threshold

    def _check(self, face: Face) -> None:
        if face.engine_id != self.engine_id:
            raise InputError(
                f"A face found by {face.engine_id} cannot be compared by {self.engine_id}: their scores mean different "
                "things; use the same `engine:` in all sections of params.yaml and run again."
            )


@dataclass(frozen=True, eq=False)
class Face:
    """One face in one picture.

    Args:
        box_xyxy: Left, top, right, bottom in px of the picture; may reach beyond its border.
        points_xy: Five points in px, (5, 2) float32; `EngineInfo.points_kind` names them.
        score: The detector's own score.
        embedding: (D,) float32, only for comparing with faces of the same `engine_id`.
        yaw_deg: Positive where the nose points to the picture's right; None if the engine does not measure it.
        roll_deg: Positive where the head leans clockwise; None if the engine does not measure it.
        engine_id: The engine that made the embedding.
        attempt: The detector's attempt that found it.
    """

    box_xyxy: tuple[float, float, float, float]
    points_xy: NDArray[np.float32]
    score: float
    embedding: NDArray[np.float32]
    yaw_deg: float | None
    roll_deg: float | None
    engine_id: str
    attempt: Attempt = "plain"

    @property
    def side_px(self) -> float:
        """The square root of the box's area."""
        left, top, right, bottom = self.box_xyxy
        return float((max(right - left, 0) * max(bottom - top, 0)) ** 0.5)

    def as_plain(self) -> dict[str, Any]:
        """Return the face as JSON-compatible data."""
        plain = {"points_xy": self.points_xy.tolist(), "embedding": self.embedding.tolist()}
        return vars(self) | plain | {"box_xyxy": [float(side) for side in self.box_xyxy], "score": float(self.score)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Face:
        """Return the face that `as_plain` described, equal to the last bit."""
        import numpy as np

        arrays = {name: np.asarray(plain[name], np.float32) for name in ("points_xy", "embedding")}
        return cls(**plain | arrays | {"box_xyxy": tuple(plain["box_xyxy"])})


class Engine(Protocol):
    """A loaded face engine."""

    @property
    def info(self) -> EngineInfo:
        """Facts about this engine that are reported with every score."""
        ...

    def find(self, image_rgb: NDArray[np.uint8]) -> list[Face]:
        """Return the faces in a picture (H, W, 3), largest first, tried again finer and padded where none is found."""
        ...

    def distance(self, a: Face, b: Face) -> float:
        """Return how far apart two faces of this engine are; smaller is closer."""
        ...

    def same_person(self, a: Face, b: Face) -> bool:
        """Return whether two faces of this engine are one person."""
        ...


def between(some: NDArray[np.float32], others: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Return the distance of each row of `some` (N, D) to each of `others` (M, D), (N, M) in `metric`."""
    import numpy as np

    a, b = some.astype(np.float64), others.astype(np.float64)
    if metric == "l2":
        found = np.empty((len(a), len(b)), np.float32)
        step = max(1, DIFFERENCES_AT_ONCE // max(b.size, 1))
        for start in range(0, len(a), step):
            found[start : start + step] = np.linalg.norm(a[start : start + step, None] - b[None], axis=2)
        return found
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    return np.asarray(1 - a @ b.T, np.float32)


def closeness(distance: float, threshold: float) -> float:
    """Return 1 at distance 0, one half at the threshold, 0 from twice the threshold on."""
    return max(0.0, 1 - distance / (2 * threshold))


def is_present(params: EngineParams, *, packs: Path = PACKS) -> bool:
    """Return whether an optional engine is available: False for a named pack that is not installed.

    A pack that is given as a path and does not exist is an error, which `open_engine` raises.
    """
    if params.name != "insightface" or params.pack is None:
        return True
    if not importlib.util.find_spec("insightface"):
        return False
    by_path = len(Path(params.pack).parts) > 1 or Path(params.pack).expanduser().is_dir()
    return by_path or (packs.expanduser() / params.pack).is_dir()


def require_pinned_pack(params: EngineParams, key: str, *, packs: Path = PACKS) -> None:
    """Check that an engine's weights are pinned; `open_engine` compares them with the pin.

    Args:
        params: The engine.
        key: Its key in params.yaml, for example `detect.engine`.
        packs: Folder of insightface packs, one subfolder per pack name.

    Raises:
        InputError: a pack that is on this machine is named without an identity; the remedy has it.
    """
    if params.name == "insightface" and params.identity is None and (here := identity_here(params, packs=packs)):
        raise InputError(
            f"Nothing pins the face pack `{params.pack}` of {key}, so exchanged weights would go unnoticed; "
            f"set {key}.identity to {here}, which is what lies here now."
        )


def identity_here(params: EngineParams, *, packs: Path = PACKS) -> str | None:
    """Return the identity to pin for an engine's pack; None for an embedded engine or a pack that is not installed.

    Raises:
        InputError: the pack is a path and there is none, or one of its files is not the released one.
    """
    if params.name != "insightface" or not is_present(params, packs=packs):
        return None
    from zimage.faces.insightface_engine import checked_hashes, identify_pack, pack_folder

    folder = pack_folder(params.pack or "", packs)
    checked_hashes(folder, None)
    return identify_pack(folder)


def open_engine(
    params: EngineParams, *, packs: Path = PACKS, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> Engine:
    """Return the engine that `params` name, loaded; nothing is ever downloaded.

    Args:
        params: Which engine, from which pack, with which thresholds.
        packs: Folder of insightface packs, one subfolder per pack name.
        providers: ONNX Runtime's execution providers for insightface, in order.

    Raises:
        InputError: weights are missing or are not the ones that were pinned.
    """
    if params.name == "yunet-sface":
        from zimage.faces.yunet_sface_engine import YunetSfaceEngine

        return YunetSfaceEngine.load(min_score=params.min_score, max_distance=params.max_distance)
    if params.name == "dlib":
        from zimage.faces.dlib_engine import DlibEngine

        return DlibEngine.load(min_score=params.min_score, max_distance=params.max_distance)
    from zimage.faces.insightface_engine import InsightfaceEngine

    if params.pack is None:
        raise InputError(
            "`engine.pack` is null, but insightface needs a pack; name one that lies under "
            f"{packs} (such as buffalo_l) or a folder of .onnx files, or set `engine.name: yunet-sface`."
        )
    return InsightfaceEngine.load(params, packs=packs, providers=providers)

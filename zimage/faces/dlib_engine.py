"""The second embedded engine: dlib's HOG detector, 5-point predictor and ResNet, from ordinary packages."""

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zimage.core.errors import InputError
from zimage.faces.engine import MAX_FACES, Attempt, EngineInfo, Face
from zimage.faces.landmarks import roll_deg, yaw_deg

# The 68-point predictor in the same package may not be used commercially (iBUG 300-W), so it is never opened.
POINTS_FILE = "shape_predictor_5_face_landmarks.dat"
RESNET_FILE = "dlib_face_recognition_resnet_model_v1.dat"
# The detector's window is 80 px: faces of 50 px in a small picture are found once it is enlarged to this long side;
# twice that costs 4x the time and is the second attempt. Larger pictures are searched at the upper bound, at which a
# face of 1/20 of the long side still fills the window.
SMALL_PX, LARGE_PX = 256, 1600
FINER = 2.0
# A face that fills the frame has no surroundings for the detector's window: a quarter of the side is added.
PAD = 0.25
ATTEMPTS: tuple[tuple[Attempt, float, float], ...] = (("plain", 1.0, 0.0), ("finer", FINER, 0.0), ("padded", 1.0, PAD))
# get_face_chip's defaults, with which the ResNet was trained: dlib@v20.0:tools/python/src/face_recognition.cpp.
CHIP_PX, CHIP_PADDING = 150, 0.25


@dataclass(frozen=True)
class _Found:
    """Boxes in `image_rgb`, which is the given picture times `scale` with a border of `pad_px` around it."""

    image_rgb: NDArray[np.uint8]
    boxes: list[Any]
    scores: list[float]
    scale: float
    pad_px: int
    attempt: Attempt

    def back(self, x: float, y: float) -> tuple[float, float]:
        """Return a point of `image_rgb` in px of the given picture."""
        return (x - self.pad_px) / self.scale, (y - self.pad_px) / self.scale


@dataclass(frozen=True)
class DlibEngine:
    """dlib behind the engine interface. It is good enough for screening, but not for published scores.

    Its models are read when they are first used: whoever only compares faces pays nothing for them.
    """

    info: EngineInfo
    min_score: float
    weights: Path

    @classmethod
    def load(cls, *, min_score: float, max_distance: float) -> "DlibEngine":
        """Return the engine, its weights found and hashed.

        Raises:
            InputError: the weights are not installed.
        """
        folder = weights_folder()
        info = EngineInfo(
            engine_id=f"dlib-resnet-v1/{_hashes(folder)[RESNET_FILE][:8]}",
            metric="l2",
            threshold=max_distance,
            model_sha256=_hashes(folder),
            licence="CC0-1.0 (weights), BSL-1.0 (dlib)",
            embedded=True,
            points_kind="corners",
            aligned_px=CHIP_PX,
        )
        return cls(info, min_score, folder)

    @cached_property
    def detector(self) -> Any:
        """The HOG detector; unpacking it from dlib's library takes 0.6 s."""
        import dlib

        return dlib.get_frontal_face_detector()

    @cached_property
    def predictor(self) -> Any:
        """The 5-point predictor."""
        import dlib

        return dlib.shape_predictor(str(self.weights / POINTS_FILE))

    @cached_property
    def resnet(self) -> Any:
        """The ResNet that embeds chips."""
        import dlib

        return dlib.face_recognition_model_v1(str(self.weights / RESNET_FILE))

    def find(self, image_rgb: NDArray[np.uint8]) -> list[Face]:
        """Return the faces in a picture (H, W, 3), largest first: as it is, then finer, then with a border."""
        image_rgb = np.ascontiguousarray(image_rgb)
        long_px = max(image_rgb.shape[:2])
        scale = max(SMALL_PX / long_px, min(1.0, LARGE_PX / long_px))
        for attempt, factor, pad in ATTEMPTS:
            found = self._search(image_rgb, scale * factor, pad, attempt)
            if found.boxes:
                return self._described(_in_full_detail(found, image_rgb))
        return []

    def distance(self, a: Face, b: Face) -> float:
        """Return the Euclidean distance of two embeddings."""
        return self.info.distance(a, b)

    def same_person(self, a: Face, b: Face) -> bool:
        """Return whether the distance is within the threshold."""
        return self.info.same_person(a, b)

    def _search(self, image_rgb: NDArray[np.uint8], scale: float, pad: float, attempt: Attempt) -> _Found:
        searched = _resized(image_rgb, scale)
        pad_px = round(pad * max(searched.shape[:2]))
        searched = _bordered(searched, pad_px)
        boxes, scores, _ = self.detector.run(searched, 0, self.min_score)
        largest = sorted(range(len(boxes)), key=lambda i: -boxes[i].area())[:MAX_FACES]
        return _Found(searched, [boxes[i] for i in largest], [scores[i] for i in largest], scale, pad_px, attempt)

    def _described(self, found: _Found) -> list[Face]:
        """Return the faces found, with points and embeddings."""
        import dlib

        shapes = [self.predictor(found.image_rgb, box) for box in found.boxes]
        chips = [dlib.get_face_chip(found.image_rgb, shape, CHIP_PX, CHIP_PADDING) for shape in shapes]
        embeddings = self.resnet.compute_face_descriptor(chips)
        return [self._face(found, i, shapes[i], embeddings[i]) for i in range(len(shapes))]

    def _face(self, found: _Found, index: int, shape: Any, embedding: Any) -> Face:
        box = found.boxes[index]
        points_xy = np.array([found.back(part.x, part.y) for part in shape.parts()], np.float32)
        return Face(
            box_xyxy=(*found.back(box.left(), box.top()), *found.back(box.right() + 1, box.bottom() + 1)),
            points_xy=points_xy,
            score=float(found.scores[index]),
            embedding=np.asarray(embedding, np.float32),
            yaw_deg=yaw_deg(points_xy, "corners"),
            roll_deg=roll_deg(points_xy, "corners"),
            engine_id=self.info.engine_id,
            attempt=found.attempt,
        )


def _in_full_detail(found: _Found, image_rgb: NDArray[np.uint8]) -> _Found:
    """Map faces found in a reduced picture to the full picture, so that points and chips use its full detail."""
    if found.scale >= 1:
        return found
    pad_px = round(found.pad_px / found.scale)
    boxes = [_scaled(box, 1 / found.scale) for box in found.boxes]
    return _Found(_bordered(image_rgb, pad_px), boxes, found.scores, 1.0, pad_px, found.attempt)


def weights_folder() -> Path:
    """Return the folder of dlib's weights, without importing their package (which needs pkg_resources).

    Raises:
        InputError: the package is not installed or lacks a file.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else None
    if folder is None or not all((folder / name).is_file() for name in (POINTS_FILE, RESNET_FILE)):
        raise InputError(
            "dlib's weights are not installed; run `pip install face_recognition_models`, "
            "or name another engine under `engine:` in params.yaml."
        )
    return folder


@cache
def _hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (POINTS_FILE, RESNET_FILE)}


def _resized(image_rgb: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    import cv2

    if scale == 1:
        return image_rgb
    height, width = image_rgb.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image_rgb, size, interpolation=how), np.uint8)


def _bordered(image_rgb: NDArray[np.uint8], pad_px: int) -> NDArray[np.uint8]:
    return np.pad(image_rgb, ((pad_px, pad_px), (pad_px, pad_px), (0, 0)), mode="edge") if pad_px else image_rgb


def _scaled(box: Any, factor: float) -> Any:
    import dlib

    sides = (box.left(), box.top(), box.right() + 1, box.bottom() + 1)
    left, top, right, bottom = (round(side * factor) for side in sides)
    return dlib.rectangle(left, top, right - 1, bottom - 1)

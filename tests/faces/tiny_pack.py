"""A face pack of a few kilobytes that insightface's own loader takes: a detector, a recogniser and 3-D landmarks.

A "face" is a red patch: the detector fires where the red of a cell of 8 px is about half of what a full cell has, and
puts a box of 80 px and five points around the cell's corner. The recogniser is a fixed random projection of the chip.

With `central` it sees one face in the middle of every picture instead, so that it has something to say about photos in
which a real face fills the middle, and the mean of a chip does not count: a weak judge, but an independent one.
"""

import pickle
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
CELL_PX, BOX_PX = 8, 80
POINTS_PX = ((-16, -16), (16, -16), (0, 4), (-12, 20), (12, 20))  # eyes, nose, corners of the mouth
SIDE_PX = 640  # at which the detector looks first


@dataclass(frozen=True)
class _Eye:
    """What a detector sees: the side of its boxes, its five points around their middle, and whether always one."""

    box_px: int
    points_px: tuple[tuple[int, int], ...]
    always: bool


SMALL = _Eye(BOX_PX, POINTS_PX, always=False)
CENTRAL = _Eye(4 * BOX_PX, tuple((4 * x, 4 * y) for x, y in POINTS_PX), always=True)
OPSET = [helper.make_opsetid("", 13)]


def write_pack(
    folder: Path, *, batch: int | None = None, yaw_deg: float | None = None, points: bool = True, central: bool = False
) -> Path:
    """Write a pack into `folder` and return it.

    Args:
        folder: Is made.
        batch: What the recogniser takes at once; any number where None.
        yaw_deg: The turn that its 3-D landmarks always tell; none are written where None.
        points: Whether its detector gives facial points.
        central: Whether it sees a face in the middle of every picture.
    """
    folder.mkdir(parents=True)
    onnx.save(_detector(points, CENTRAL if central else SMALL), folder / "det_tiny.onnx")
    onnx.save(_recogniser(batch, centred=central), folder / "rec_tiny.onnx")
    if yaw_deg is not None:
        onnx.save(_landmarks(yaw_deg), folder / "1k3d68_tiny.onnx")
    return folder


def picture(*patches: tuple[int, int, int, int], side_px: int = 640) -> NDArray[np.uint8]:
    """Return a black picture with red patches (left, top, width, height); a half-filled cell is a face."""
    image = np.zeros((side_px, side_px, 3), np.uint8)
    for left, top, width, height in patches:
        image[top : top + height, left : left + width, 0] = 255
    return image


def _tensor(name: str, values: object, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, kind), name)


def _detector(points: bool, eye: _Eye) -> onnx.ModelProto:
    red = np.zeros((1, 3, 1, 1))
    red[0, 0], red[0, 1] = 0.5, -0.5  # 1 where a pixel is red, 0 where it is black (mean 127.5, std 128)
    nodes = [helper.make_node("Conv", ["input.1", "red"], ["redness"])]
    constants = [
        _tensor("red", red),
        _tensor("half", 0.5),
        _tensor("sharp", 8.0),
        _tensor("one", 1.0),
        _tensor("nil", 0.0),
    ]
    constants.append(_tensor("column", (-1, 1), np.int64))
    for stride in STRIDES:
        fires = float(stride == CELL_PX)
        constants.append(_tensor(f"fires{stride}", fires))
        steps = (
            ("AveragePool", ["redness"], "pooled", {"kernel_shape": [stride, stride], "strides": [stride, stride]}),
            ("Sub", [f"pooled{stride}", "half"], "off", {}),
            ("Abs", [f"off{stride}"], "away", {}),
            ("Mul", [f"away{stride}", "sharp"], "steep", {}),
            ("Sub", ["one", f"steep{stride}"], "tent", {}),
            ("Clip", [f"tent{stride}", "nil", "one"], "clipped", {}),
            ("Mul", [f"clipped{stride}", f"fires{stride}"], "score", {}),
            ("Concat", [f"score{stride}", f"score{stride}"], "anchors", {"axis": 1}),
            ("Transpose", [f"anchors{stride}"], "last", {"perm": [0, 2, 3, 1]}),
            ("Reshape", [f"last{stride}", "column"], "scores", {}),
            ("Mul", [f"scores{stride}", "nil"], "zeros", {}),
        )
        if eye.always:
            middle = np.zeros((2 * (SIDE_PX // stride) ** 2, 1))
            middle[SIDE_PX // stride * (SIDE_PX // stride + 1)] = fires
            constants.append(_tensor(f"middle{stride}", middle))
            steps = (
                *steps[:-2],
                ("Reshape", [f"last{stride}", "column"], "seen", {}),
                ("Mul", [f"seen{stride}", "nil"], "zeros", {}),
                ("Add", [f"zeros{stride}", f"middle{stride}"], "scores", {}),
            )
        for kind, inputs, output, attributes in steps:
            nodes.append(helper.make_node(kind, inputs, [f"{output}{stride}"], **attributes))
        constants.append(_tensor(f"reach{stride}", np.full((1, 4), eye.box_px / 2 / stride)))
        constants.append(_tensor(f"places{stride}", np.array(eye.points_px, np.float32).reshape(1, 10) / stride))
        nodes.append(helper.make_node("Add", [f"zeros{stride}", f"reach{stride}"], [f"boxes{stride}"]))
        if points:
            nodes.append(helper.make_node("Add", [f"zeros{stride}", f"places{stride}"], [f"kps{stride}"]))
    widths = {"scores": 1, "boxes": 4, "kps": 10} if points else {"scores": 1, "boxes": 4}
    outputs = [
        helper.make_tensor_value_info(f"{name}{stride}", TensorProto.FLOAT, ["n", width])
        for name, width in widths.items()
        for stride in STRIDES
    ]
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "height", "width"])
    return helper.make_model(
        helper.make_graph(nodes, "det", [image], outputs, constants), opset_imports=OPSET, ir_version=8
    )


def _recogniser(batch: int | None, *, centred: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("AveragePool", ["data"], ["small"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("ReduceMean", ["small"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Sub", ["small", "mean" if centred else "nil"], ["layout"]),
        helper.make_node("Flatten", ["layout"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["embedding"]),
    ]
    first = batch or "batch"
    image = helper.make_tensor_value_info("data", TensorProto.FLOAT, [first, 3, 112, 112])
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [first, 32])
    weights = _tensor("weights", rng.normal(size=(192, 32)))
    return helper.make_model(
        helper.make_graph(nodes, "rec", [image], [output], [weights, _tensor("nil", 0.0)]),
        opset_imports=OPSET,
        ir_version=8,
    )


def _landmarks(yaw_deg: float) -> onnx.ModelProto:
    """Return a model that answers every picture with the mean head turned by `yaw_deg`, 68 points last."""
    spec = find_spec("insightface")
    assert spec is not None and spec.origin is not None
    mean = np.asarray(pickle.loads((Path(spec.origin).parent / "data/objects/meanshape_68.pkl").read_bytes()))
    angle = np.radians(yaw_deg)
    about_y = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    answer = np.zeros((1103, 3), np.float32)
    answer[-68:] = 0.5 * mean @ about_y.T
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "nil"], ["zero"]),
        helper.make_node("Unsqueeze", ["zero", "last"], ["column"]),
        helper.make_node("Add", ["column", "answer"], ["fc1"]),
    ]
    image = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 192, 192])
    output = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, 3309])
    constants = [_tensor("nil", 0.0), _tensor("last", [1], np.int64), _tensor("answer", answer.reshape(1, 3309))]
    return helper.make_model(
        helper.make_graph(nodes, "lmk", [image], [output], constants), opset_imports=OPSET, ir_version=8
    )

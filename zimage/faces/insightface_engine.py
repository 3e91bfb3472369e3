"""Face engine on insightface's FaceAnalysis, from a local pack of ONNX files; nothing is downloaded."""

import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zimage.core.errors import InputError
from zimage.faces.engine import MAX_FACES, Attempt, EngineInfo, EngineParams, Face
from zimage.faces.landmarks import chip, roll_deg, yaw_deg
from zimage.faces.onnx_runtime import load_onnxruntime

logger = logging.getLogger(__name__)

# SHA-256 of the released packs' files, published with many mirrors of them; a file of this name with another hash is
# truncated, tampered with or not what its name says. Names that are not listed are hashed and recorded only.
RELEASED = {
    "det_10g.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    "scrfd_10g_bnkps.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    "w600k_r50.onnx": "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
}
# Side of the detector's square: where a face is missed, smaller sides find large ones (cubiq/ComfyUI_FaceAnalysis and
# PhotoMaker go down by 64 to 320 and 256; the ends of that ladder find what its steps find).
# The last attempt adds a quarter of the side, for faces that fill the frame.
ATTEMPTS: tuple[tuple[int, Attempt, float], ...] = (
    (640, "plain", 0.0),
    (320, "finer", 0.0),
    (256, "finer", 0.0),
    (640, "padded", 0.25),
)
LICENCE = "released insightface packs: non-commercial research only; other packs: see their own licence"


@dataclass(frozen=True)
class InsightfaceEngine:
    """A pack opened by insightface's own loader; detection by SCRFD, embedding by ArcFace on chips in one batch."""

    info: EngineInfo
    app: Any

    @classmethod
    def load(cls, params: EngineParams, *, packs: Path, providers: Sequence[str]) -> "InsightfaceEngine":
        """Return the engine of a pack that was checked file by file before insightface sees it.

        Raises:
            InputError: insightface or the pack is missing, nested, altered, or lacks a detector or a recogniser.
        """
        folder = pack_folder(params.pack or "", packs)
        hashes = checked_hashes(folder, params.identity)
        app = _opened(folder, params.min_score, providers)
        recogniser = app.models["recognition"]
        name = Path(recogniser.model_file).name
        return cls(
            info=EngineInfo(
                engine_id=f"insightface-{folder.name}/{hashes[name][:8]}",
                metric="cosine",
                threshold=params.max_distance,
                model_sha256=hashes,
                licence=LICENCE,
                embedded=False,
                points_kind="centres",
                aligned_px=int(recogniser.input_size[0]),
            ),
            app=app,
        )

    def find(self, image_rgb: NDArray[np.uint8]) -> list[Face]:
        """Return the faces in a picture (H, W, 3), largest first: at three detector sizes, then with a border."""
        for side_px, attempt, pad in ATTEMPTS:
            pad_px = round(pad * max(image_rgb.shape[:2]))
            faces = self._search(_bordered(image_rgb, pad_px), side_px)
            if faces:
                return sorted((_moved(face, pad_px, attempt) for face in faces), key=lambda face: -face.side_px)
        return []

    def distance(self, a: Face, b: Face) -> float:
        """Return 1 - cosine similarity of two embeddings."""
        return self.info.distance(a, b)

    def same_person(self, a: Face, b: Face) -> bool:
        """Return whether the distance is within the threshold."""
        return self.info.same_person(a, b)

    def _search(self, image_rgb: NDArray[np.uint8], side_px: int) -> list[Face]:
        image_bgr = np.ascontiguousarray(image_rgb[:, :, ::-1])
        boxes, points = self.app.det_model.detect(
            image_bgr, input_size=(side_px, side_px), max_num=MAX_FACES, metric="max"
        )
        if len(boxes) == 0:
            return []
        if points is None:
            raise InputError(
                f"The detector in {self.info.engine_id} gives no facial points, and without them no face can be "
                "compared; use a pack whose detector has them (buffalo_l, antelopev2)."
            )
        embeddings = self._embedded(image_rgb, points)
        return [self._face(image_bgr, box, *rest) for box, *rest in zip(boxes, points, embeddings, strict=True)]

    def _embedded(self, image_rgb: NDArray[np.uint8], points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embeddings of all faces of a picture, in one batch where the model takes batches."""
        recogniser = self.app.models["recognition"]
        chips = [chip(image_rgb, point, "centres", self.info.aligned_px)[:, :, ::-1] for point in points]
        if isinstance(recogniser.input_shape[0], int):
            return np.concatenate([recogniser.get_feat([each]) for each in chips])
        return np.asarray(recogniser.get_feat(chips), np.float32)

    def _face(
        self,
        image_bgr: NDArray[np.uint8],
        box: NDArray[np.float32],
        points_xy: NDArray[np.float32],
        embedding: NDArray[np.float32],
    ) -> Face:
        yaw, roll = self._pose(image_bgr, box, points_xy)
        left, top, right, bottom = (float(side) for side in box[:4])
        return Face(
            box_xyxy=(left, top, right, bottom),
            points_xy=np.asarray(points_xy, np.float32),
            score=float(box[4]),
            embedding=np.asarray(embedding, np.float32),
            yaw_deg=yaw,
            roll_deg=roll,
            engine_id=self.info.engine_id,
        )

    def _pose(
        self, image_bgr: NDArray[np.uint8], box: NDArray[np.float32], points_xy: NDArray[np.float32]
    ) -> tuple[float, float]:
        """Return yaw and roll from the pack's 3-D landmarks where it has them, else from the five points."""
        landmarks = self.app.models.get("landmark_3d_68")
        if landmarks is None:
            return yaw_deg(points_xy, "centres"), roll_deg(points_xy, "centres")
        from insightface.app.common import Face as TheirFace

        face = TheirFace(bbox=box[:4], kps=points_xy, det_score=box[4])
        landmarks.get(image_bgr, face)
        _, yaw, roll = (float(angle) for angle in face["pose"])
        return yaw, roll


def _bordered(image_rgb: NDArray[np.uint8], pad_px: int) -> NDArray[np.uint8]:
    return np.pad(image_rgb, ((pad_px, pad_px), (pad_px, pad_px), (0, 0)), mode="edge") if pad_px else image_rgb


def _moved(face: Face, pad_px: int, attempt: Attempt) -> Face:
    left, top, right, bottom = (side - pad_px for side in face.box_xyxy)
    return replace(
        face, box_xyxy=(left, top, right, bottom), points_xy=face.points_xy - np.float32(pad_px), attempt=attempt
    )


def pack_folder(pack: str, packs: Path) -> Path:
    """Return the folder of a pack that is named or given as a folder.

    Raises:
        InputError: there is none, it is empty, or its files lie one folder deeper (as antelopev2.zip unpacks).
    """
    direct = Path(pack).expanduser()
    folder = direct if direct.is_dir() else packs.expanduser() / pack
    if not folder.is_dir():
        raise InputError(
            f"There is no face pack {pack!r} in {packs} and no folder of that name; unpack it there, or use "
            "the embedded engine (`--engine yunet-sface`, or `engine.name: yunet-sface` in params.yaml). Nothing is "
            "downloaded."
        )
    if not any(folder.glob("*.onnx")):
        nested = sorted({file.parent for file in folder.glob("*/*.onnx")})
        remedy = f"its .onnx files lie in {nested[0]}; name that folder" if nested else "unpack the pack into it"
        raise InputError(f"The face pack {folder} holds no .onnx files; {remedy}.")
    return folder


def identify_pack(folder: Path) -> str:
    """Return `sha256:<hex>` over names and contents of a pack's .onnx files, to be pinned as `engine.identity`."""
    return _identity(_hashes(folder))


def checked_hashes(folder: Path, identity: str | None) -> dict[str, str]:
    """Return the SHA-256 of every .onnx file, after comparing with what was pinned and with the released packs.

    Raises:
        InputError: a file is not the one its name or the pin stands for.
    """
    hashes = _hashes(folder)
    altered = [name for name, value in hashes.items() if RELEASED.get(name, value) != value]
    if altered:
        raise InputError(
            f"{folder / altered[0]} is not the released file of that name (SHA-256 {hashes[altered[0]][:16]}…): it is "
            "truncated or altered; fetch the pack again, or rename the file if it is a model of your own."
        )
    if identity is not None and identity != _identity(hashes):
        raise InputError(
            f"The face pack {folder} is {_identity(hashes)}, but `engine.identity` pins {identity}; "
            "restore the pinned pack, or pin this one if the change is meant."
        )
    return hashes


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.onnx"))}


def _identity(hashes: dict[str, str]) -> str:
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(hashes.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def require_insightface() -> None:
    """Pass if the package insightface is installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("insightface") is None:
        raise InputError(
            "insightface is not installed; run `pip install --no-deps insightface onnx onnxruntime`, "
            "or use the embedded engine (`--engine yunet-sface`, or `engine.name: yunet-sface` in params.yaml)."
        )


def _opened(folder: Path, min_score: float, providers: Sequence[str]) -> Any:
    """Return insightface's FaceAnalysis over a folder that is known to hold models."""
    require_insightface()
    load_onnxruntime()  # insightface imports it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from insightface.app import FaceAnalysis
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile

    try:
        app = FaceAnalysis(
            str(folder), allowed_modules=["detection", "recognition", "landmark_3d_68"], providers=list(providers)
        )
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise InputError(
            f"The face pack {folder} cannot be opened ({' '.join(str(error).split())}); fetch it again."
        ) from None
    except AssertionError:
        raise InputError(
            f"The face pack {folder} holds no face detector; use a whole pack such as buffalo_l."
        ) from None
    if "recognition" not in app.models:
        raise InputError(f"The face pack {folder} holds no face recogniser; use a whole pack such as buffalo_l.")
    app.prepare(ctx_id=0 if "CUDAExecutionProvider" in providers else -1, det_thresh=min_score, det_size=(640, 640))
    logger.info("opened the face pack %s", folder)
    return app

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from tests.evaluation.photos import SIDE_PX, twin
from zimage.curation.same_shot import same_shots
from zimage.demo import other_people
from zimage.faces.engine import open_engine
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS
from zimage.faces.quality import look
from zimage.photos.pictures import Mask

Picture = NDArray[np.uint8]
ENGINE = open_engine(YUNET_SFACE_PARAMS)


@dataclass(frozen=True)
class Seen:
    """The largest face of a picture."""

    texture: Mask
    embedding: NDArray[np.float32]


def seen(picture: Picture) -> Seen:
    face = ENGINE.find(np.ascontiguousarray(picture))[0]
    return Seen(look(picture, face.points_xy, ENGINE.info.points_kind).texture, face.embedding)


def pairs(faces: list[Seen]) -> list[tuple[int, int]]:
    embeddings = np.stack([face.embedding for face in faces])
    info = ENGINE.info
    return same_shots(faces, embeddings, correlation=0.97, threshold=info.threshold, metric=info.metric)


def portrait() -> Picture:
    return np.asarray(data.astronaut(), np.uint8)


def coded(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def on_a_screen(picture: Picture) -> Picture:
    shown = np.full((900, 540, 3), 20, np.uint8)
    shown[200:712, 14:526] = picture
    return coded(np.asarray(cv2.resize(shown, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA), np.uint8), 80)


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "mirrored": lambda one: one[:, ::-1],
    "cropped": lambda one: one[10:330, 60:400],
    "grey": lambda one: np.repeat(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2),
    "recompressed": lambda one: coded(one, 30),
    "smaller": lambda one: np.asarray(cv2.resize(one, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA), np.uint8),
    "screenshot": on_a_screen,
    "mirrored, cropped and darker": lambda one: coded((one[20:300, 80:360][:, ::-1] * 0.7).astype(np.uint8), 70),
}


@cache
def original() -> Seen:
    return seen(portrait())


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_is_the_same_shot(change: Callable[[Picture], Picture]) -> None:
    assert pairs([original(), seen(change(portrait()))]) == [(0, 1)]


def test_other_people_and_another_expression_are_other_shots() -> None:
    group = other_people()
    info = ENGINE.info
    faces = [Seen(look(group, face.points_xy, info.points_kind).texture, face.embedding) for face in ENGINE.find(group)]
    assert pairs([*faces, original()]) == []
    (upright, drawn_apart), light = (
        (twin(amount) for amount in (0.0, 0.3)),
        np.linspace(1, 0.15, SIDE_PX)[None, :, None],
    )
    assert pairs([seen(upright), seen(drawn_apart), seen((upright * light**2).astype(np.uint8))]) == []


def test_one_photo_alone_has_no_pair() -> None:
    assert pairs([original()]) == []

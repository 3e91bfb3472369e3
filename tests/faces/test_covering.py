"""Masks and sunglasses are drawn onto photographs that ship in packages; the engine finds the faces anew each time."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from tests.covered_faces import LENSES, MASKS, Picture, Points, in_glasses, in_sunglasses, masked, photographs
from zimage.faces.covering import Covering
from zimage.faces.dlib_engine import DlibEngine
from zimage.faces.engine import Face, open_engine
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS
from zimage.faces.quality import look

ENGINE = open_engine(YUNET_SFACE_PARAMS)
Change = Callable[[Picture, Points], Picture]


@pytest.fixture(scope="module")
def faces() -> list[tuple[Picture, Points]]:
    """The nine people: a photo of each alone, and the five points of the face in it."""
    return [around(photo, face) for photo in photographs().values() for face in ENGINE.find(photo)]


def around(photo: Picture, face: Face) -> tuple[Picture, Points]:
    """Return the part of a photo that reaches one side of the face's box beyond it, and the points there."""
    left, top, right, bottom = face.box_xyxy
    x, y = max(0, round(2 * left - right)), max(0, round(2 * top - bottom))
    part = photo[y : round(2 * bottom - top), x : round(2 * right - left)]
    return np.ascontiguousarray(part), face.points_xy - np.float32([x, y])


def seen_on(photo: Picture) -> Covering | str | None:
    """Return what is seen on the largest face of a photo; "no face" where the engine finds none any more."""
    found = ENGINE.find(photo)
    return look(photo, found[0].points_xy, ENGINE.info.points_kind).covering if found else "no face"


def test_masks_of_many_colours_are_seen(faces: list[tuple[Picture, Points]]) -> None:
    assert len(faces) == 9
    seen = [seen_on(masked(*face, colour)) for face in faces for colour in MASKS.values()]
    assert seen.count("sunglasses") == 0
    assert seen.count("no face") <= 0.3 * len(seen)
    assert seen.count("mask") >= 0.85 * (len(seen) - seen.count("no face"))


def test_sunglasses_of_many_colours_are_seen(faces: list[tuple[Picture, Points]]) -> None:
    seen = [seen_on(in_sunglasses(*face, colour)) for face in faces for colour in LENSES.values()]
    assert seen.count("mask") == 0
    assert seen.count("no face") <= 0.3 * len(seen)
    assert seen.count("sunglasses") >= 0.75 * (len(seen) - seen.count("no face"))


def bearded(photo: Picture, points_xy: Points) -> Picture:
    """Darken chin, cheeks below the mouth and upper lip, with the texture of hair, but neither lips nor nose."""
    covered = masked(photo, points_xy + np.float32([0, 0.42 * np.ptp(points_xy[:2, 0])]), (40, 32, 28))
    drawn = np.asarray(photo * 0.25 + covered * 0.75, np.uint8)
    lips = points_xy[3:].mean(0).round().astype(int)
    size = int(0.45 * np.ptp(points_xy[:2, 0])), int(0.16 * np.ptp(points_xy[:2, 0]))
    mouth = cv2.ellipse(np.zeros(photo.shape[:2], np.uint8), (int(lips[0]), int(lips[1])), size, 0, 0, 360, 255, -1)
    drawn[mouth > 0] = photo[mouth > 0]
    return drawn


def shaded(photo: Picture, points_xy: Points) -> Picture:
    """Darken the eyes as deep shadow or make-up does."""
    dark = np.zeros(photo.shape[:2], np.float32)
    for eye in points_xy[:2]:
        cv2.circle(dark, (round(float(eye[0])), round(float(eye[1]))), int(0.3 * np.ptp(points_xy[:2, 0])), 0.55, -1)
    dark = cv2.GaussianBlur(dark, (0, 0), 0.08 * float(np.ptp(points_xy[:2, 0])))
    return np.asarray(photo * (1 - dark[:, :, None]), np.uint8)


HARMLESS: dict[str, Change] = {
    "as it is": lambda photo, _: photo,
    "mirrored": lambda photo, _: np.ascontiguousarray(photo[:, ::-1]),
    "grey": lambda photo, _: np.repeat(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2),
    "sepia": lambda photo, _: np.clip(photo.mean(2, keepdims=True) * [1.1, 0.95, 0.75], 0, 255).astype(np.uint8),
    "dark": lambda photo, _: np.asarray(photo * 0.3, np.uint8),
    "bright": lambda photo, _: np.clip(photo * 1.5, 0, 255).astype(np.uint8),
    "blue light": lambda photo, _: np.asarray(photo * [0.6, 0.8, 1.0], np.uint8),
    "lamp light": lambda photo, _: np.asarray(photo * [1.0, 0.78, 0.5], np.uint8),
    "glasses": lambda photo, points: in_glasses(photo, points, (20, 20, 20)),
    "beard": bearded,
    "shaded eyes": shaded,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_nothing_is_seen_on_a_face_that_shows_itself(name: str, faces: list[tuple[Picture, Points]]) -> None:
    seen = [seen_on(HARMLESS[name](*face)) for face in faces]
    assert seen.count(None) >= 7
    assert set(seen) <= {None, "no face"}


def test_a_face_that_the_border_cuts_or_a_shadow_hides_is_not_called_covered(
    faces: list[tuple[Picture, Points]],
) -> None:
    for photo, points in faces:
        below_nose = round(float(points[2, 1] + 0.1 * np.ptp(points[:2, 0])))
        shadow = photo.copy()
        shadow[:below_nose] //= 50
        for changed in (photo[: below_nose - 2], shadow):
            assert look(changed, points, "centres").covering is None


def test_another_engines_points_do_as_well(faces: list[tuple[Picture, Points]]) -> None:
    """dlib finds no face with a mask, so its points are those of the photo without."""
    photo, points = faces[0]
    (face,) = DlibEngine.load(min_score=0.0, max_distance=0.6).find(photo)
    covered = (photo, in_sunglasses(photo, points, LENSES["black"]), masked(photo, points, MASKS["blue"]))
    assert [look(each, face.points_xy, "corners").covering for each in covered] == [None, "sunglasses", "mask"]

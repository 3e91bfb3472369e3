import numpy as np
import pytest
import skimage.data

from zimage.captions.measure import measure
from zimage.captions.template import describe

FACE = (177.0, 75.0, 280.0, 180.0)  # of skimage.data.astronaut(), by eye


def test_a_picture_of_one_colour_measures_as_that_colour() -> None:
    image = np.full((100, 80, 3), (200, 100, 50), np.uint8)
    measured = measure(image, (30, 40, 50, 65), yaw_deg=1.0, roll_deg=None)
    assert measured.framing == 0.25
    assert (measured.yaw_deg, measured.roll_deg, measured.background_rgb) == (1.0, None, (200, 100, 50))
    assert abs(measured.warmth - 150 / 255) < 1e-5 and abs(measured.chroma - 150 / 255) < 1e-5
    assert abs(measured.face_luma - (0.2126 * 200 + 0.7152 * 100 + 0.0722 * 50) / 255) < 1e-5


def test_the_luma_is_that_of_the_face_and_not_of_its_surroundings() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 40:60] = 255
    assert abs(measure(image, (40, 40, 60, 60), yaw_deg=None, roll_deg=None).face_luma - 1) < 1e-5


@pytest.mark.parametrize(
    ("size", "box", "close"),
    [
        ((600, 1000), (100, 300, 500, 760), True),  # fills the width of a tall picture; 0.46 of its height
        ((600, 1000), (180, 300, 420, 600), False),  # 0.30 of the height
        ((1600, 900), (600, 230, 930, 650), False),  # 0.47 of the height of a wide picture, much of which is beside it
        ((1000, 1000), (250, 250, 750, 800), True),
        ((1000, 1000), (-200, 100, 400, 1100), True),  # cut by the border
    ],
)
def test_a_close_up_is_told_by_the_faces_share_of_the_picture(
    size: tuple[int, int], box: tuple[float, float, float, float], close: bool
) -> None:
    image = np.full((size[1], size[0], 3), 128, np.uint8)
    measured = measure(image, box, yaw_deg=None, roll_deg=None)
    caption = describe(measured, trigger="", class_noun="person", language="en")
    assert ("close-up of the face" in caption) is close


def test_a_wall_with_light_falling_off_is_plain_and_a_street_is_not() -> None:
    wall = np.full((200, 200, 3), (120, 130, 140), np.float32) * np.linspace(0.8, 1.2, 200)[None, :, None]
    measured = measure(wall.astype(np.uint8), (80, 80, 120, 130), yaw_deg=None, roll_deg=None)
    assert measured.plain and measured.background_rgb == (119, 129, 139)
    street = wall.astype(np.uint8)
    street[:, :70], street[:, 150:] = (200, 40, 30), (30, 90, 40)
    assert not measure(street, (80, 80, 120, 130), yaw_deg=None, roll_deg=None).plain
    assert not measure(skimage.data.astronaut(), FACE, yaw_deg=None, roll_deg=None).plain  # a flag and a shuttle


def test_shoulders_do_not_count_as_background() -> None:
    image = np.full((100, 100, 3), (10, 20, 200), np.uint8)
    image[60:] = (200, 0, 0)
    assert measure(image, (40, 30, 60, 60), yaw_deg=None, roll_deg=None).background_rgb == (10, 20, 200)


def test_a_face_that_fills_the_picture_leaves_no_background() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    assert measure(image, (-5, -5, 105, 105), yaw_deg=None, roll_deg=None).background_rgb is None


def test_a_real_photo_is_measured_as_one_sees_it() -> None:
    measured = measure(skimage.data.astronaut(), FACE, yaw_deg=None, roll_deg=None)
    assert 0.5 < measured.face_luma < 0.7 and measured.chroma > 0.1 and measured.warmth > 0.1
    grey = np.repeat(skimage.data.astronaut().mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    assert measure(grey, FACE, yaw_deg=None, roll_deg=None).chroma == 0

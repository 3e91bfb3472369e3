import numpy as np
import pytest
from skimage import data

from zimage.curation.cutting import background_rgb, face_mask
from zimage.faces.dlib_engine import DlibEngine
from zimage.faces.engine import Face
from zimage.faces.landmarks import upright_points


@pytest.fixture(scope="module")
def face() -> Face:
    (found,) = DlibEngine.load(min_score=0.0, max_distance=0.6).find(np.asarray(data.astronaut(), np.uint8))
    return found


def test_the_mask_covers_eyes_nose_and_mouth_and_not_the_surroundings(face: Face) -> None:
    mask = face_mask((512, 512), face.points_xy, "corners")
    assert mask.shape == (512, 512) and mask.dtype == np.uint8
    assert all(mask[round(y), round(x)] > 250 for x, y in face.points_xy)
    assert mask[150, 226] > 250  # mouth
    assert mask[40, 223] == mask[127, 290] == mask[230, 223] == mask[400, 100] == 0  # hair, hair, neck, suit
    assert 0.01 < (mask > 128).mean() < 0.06


def test_the_mask_has_a_soft_edge(face: Face) -> None:
    mask = face_mask((512, 512), face.points_xy, "corners")
    assert ((mask > 20) & (mask < 235)).sum() > 200


def test_the_mask_leans_with_the_head() -> None:
    upright = upright_points("centres", 100) + np.float32(50)
    quarter = np.array([[0, -1], [1, 0]], np.float32)
    turned = ((upright - 100) @ quarter.T + 100).astype(np.float32)
    straight, lying = (face_mask((200, 200), points, "centres") for points in (upright, turned))
    assert np.abs(np.rot90(straight, -1).astype(int) - lying).mean() < 2


def test_the_mask_follows_a_turned_head_away_from_the_nose() -> None:
    points = upright_points("centres", 100) + np.float32(50)
    turned = points.copy()
    turned[2, 0] -= 12  # the nose points to the left
    columns = np.arange(200)
    middles = [float((face_mask((200, 200), p, "centres").sum(0) * columns).sum()) for p in (points, turned)]
    weights = [float(face_mask((200, 200), p, "centres").sum()) for p in (points, turned)]
    assert middles[1] / weights[1] > middles[0] / weights[0] + 3


def test_the_background_is_the_colour_beside_the_head(face: Face) -> None:
    image = np.full((512, 512, 3), (30, 90, 200), np.uint8)
    image[60:240, 150:300] = (220, 170, 140)
    assert background_rgb(image, face.points_xy, "corners") == (30, 90, 200)


def test_a_head_that_fills_the_crop_still_has_a_background() -> None:
    image = np.full((64, 64, 3), (10, 20, 30), np.uint8)
    assert background_rgb(image, upright_points("centres", 64) * 3 - np.float32(64), "centres") == (10, 20, 30)

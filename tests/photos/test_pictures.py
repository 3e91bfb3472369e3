import cv2
import numpy as np
import pytest
from skimage import data

from zimage.photos.pictures import brought_down


@pytest.mark.parametrize("size", [(640, 480), (100, 75), (1024, 768), (37, 50), (256, 100)])
def test_a_picture_that_is_halved_on_the_way_looks_like_one_brought_down_at_once(size: tuple[int, int]) -> None:
    picture = cv2.resize(np.asarray(data.astronaut(), np.uint8), (1024, 768))
    expected = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    found = brought_down(np.asarray(picture, np.uint8), size)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 1.5
    assert np.array_equal(found, expected) == (min(1024 / size[0], 768 / size[1]) < 4)

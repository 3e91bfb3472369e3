import cv2
import numpy as np
import pytest

from tests.evaluation.photos import Picture, noise, others, views
from zimage.evaluation.score.copies import most_alike, originals_of, variety

LIMIT = 0.95
TRAINING = views(6, seed=1)


def jpeg(picture: Picture) -> Picture:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 40))[1], 1), np.uint8)


CHANGES = {
    "as it is": lambda picture: picture,
    "mirrored": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
    "half the size": lambda picture: cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "recompressed": jpeg,
    "brighter": lambda picture: np.clip(picture.astype(np.float32) * 1.15 + 8, 0, 255).astype(np.uint8),
    "noisy": lambda picture: np.clip(picture + np.random.default_rng(0).normal(0, 12, picture.shape), 0, 255).astype(
        np.uint8
    ),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_training_photo_is_known_again_however_it_was_saved(change: str) -> None:
    originals = originals_of([(f"photo {number}", picture) for number, picture in enumerate(TRAINING)])
    for number, picture in enumerate(TRAINING):
        found, correlation = most_alike(CHANGES[change](picture), originals)
        assert (found, correlation >= LIMIT) == (f"photo {number}", True)


@pytest.mark.parametrize("pictures", [others(), noise(3, seed=0)], ids=["others", "noise"])
def test_other_pictures_are_no_copies(pictures: list[Picture]) -> None:
    originals = originals_of([("photo", picture) for picture in TRAINING])
    assert max(most_alike(picture, originals)[1] for picture in pictures) < 0.8


def test_a_picture_of_one_colour_is_like_nothing() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert most_alike(flat, originals_of([("photo", TRAINING[0])]))[1] == 0


def test_the_same_picture_again_has_no_variety_and_noise_has_all_of_it() -> None:
    assert variety([TRAINING[0]] * 3) == pytest.approx([0, 0, 0], abs=1e-5)
    assert min(variety(noise(3, seed=1))) > 0.8
    assert variety([TRAINING[0]]) == []

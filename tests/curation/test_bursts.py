import cv2
import numpy as np
from skimage import data

from zimage.curation.bursts import Moment, Sameness, bursts, groups, mirrored, near_duplicates
from zimage.faces.quality import dhash

SAME = Sameness(bits=6, face=0.2, metric="l2")


def moment(
    photo: str,
    taken_at: float | None = None,
    dhash: int = 0,
    *,
    face: float = 0.0,
    quality: float = 0.5,
    size: int = 100,
    in_colour: bool = True,
) -> Moment:
    return Moment(photo, taken_at, dhash, np.array([face, 0], np.float32), quality, size, in_colour)


def grouped(moments: list[Moment], *, gap_s: float, same: Sameness = SAME) -> list[int]:
    return bursts(moments, groups(len(moments), same.one_shot(moments)), gap_s=gap_s)


def duplicates(moments: list[Moment], same: Sameness = SAME) -> dict[str, str]:
    return near_duplicates(moments, same.one_shot(moments), same)


def far(number: int) -> int:
    """Return hashes that differ in 16 bits and more."""
    return 0xFFFF << (16 * number)


def test_photos_without_a_pause_between_them_are_one_burst() -> None:
    times = [0.0, 100.0, 8.0, 17.0, 109.9]
    moments = [moment(str(n), t, far(n % 4) ^ n) for n, t in enumerate(times)]
    assert grouped(moments, gap_s=10, same=Sameness(0, 0.2, "l2")) == [0, 1, 0, 0, 1]


def test_copies_are_one_burst_whenever_they_were_taken() -> None:
    moments = [moment("a", 0.0, far(0)), moment("b", None, far(0) ^ 0b111), moment("c", None, far(1))]
    assert grouped(moments, gap_s=10) == [0, 0, 1]


def test_photos_without_a_time_stand_alone() -> None:
    assert grouped([moment("a", None, far(0)), moment("b", None, far(1))], gap_s=1e9) == [0, 1]


def test_of_near_duplicates_the_best_is_kept() -> None:
    moments = [moment("a", quality=0.4), moment("b", quality=0.9), moment("c", quality=0.6)]
    assert duplicates(moments) == {"a": "b", "c": "b"}


def test_of_equally_good_duplicates_the_larger_file_is_kept() -> None:
    moments = [moment("a", quality=0.901, size=100), moment("b", quality=0.899, size=900)]
    assert duplicates(moments) == {"a": "b"}


def test_another_expression_or_picture_is_no_duplicate() -> None:
    assert duplicates([moment("a"), moment("b", face=0.3)]) == {}
    assert duplicates([moment("a"), moment("b", dhash=far(0))]) == {}


def test_a_mirrored_picture_has_the_mirrored_hash() -> None:
    for picture in (data.astronaut(), data.chelsea(), data.coffee()):
        found = dhash(np.ascontiguousarray(cv2.flip(picture, 1)))
        assert (mirrored(dhash(picture)) ^ found).bit_count() <= 2
        assert mirrored(mirrored(dhash(picture))) == dhash(picture)


def test_copies_by_their_faces_or_mirrored_are_one_shot_and_photos_of_one_session_are_not() -> None:
    moments = [moment("a", 0.0, far(0)), moment("b", 5.0, far(1)), moment("c", None, far(2)), moment("d", None, far(3))]
    moments.append(moment("e", None, mirrored(far(1))))
    same = Sameness(6, 0.2, "l2", copies=frozenset({frozenset({"c", "a"})}))
    assert groups(len(moments), same.one_shot(moments)) == [0, 1, 0, 2, 1]
    assert grouped(moments, gap_s=10, same=same) == [0, 0, 0, 1, 0]


def test_a_copy_by_its_face_is_a_duplicate_and_the_colour_photo_stands_for_the_better_grey_one() -> None:
    copies = frozenset({frozenset({"a", "b"})})
    moments = [moment("a", quality=0.4), moment("b", dhash=far(1), quality=0.9, size=900, in_colour=False)]
    assert duplicates(moments, Sameness(6, 0.2, "l2", copies)) == {"b": "a"}

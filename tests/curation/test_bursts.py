import numpy as np

from zimage.curation.bursts import Moment, Sameness, bursts, near_duplicates

SAME = Sameness(bits=6, face=0.2, metric="l2")


def moment(
    photo: str,
    taken_at: float | None = None,
    dhash: int = 0,
    *,
    face: float = 0.0,
    quality: float = 0.5,
    size: int = 100,
) -> Moment:
    return Moment(photo, taken_at, dhash, np.array([face, 0], np.float32), quality, size)


def far(number: int) -> int:
    """Return hashes that differ in 16 bits and more."""
    return 0xFFFF << (16 * number)


def test_photos_without_a_pause_between_them_are_one_burst() -> None:
    times = [0.0, 100.0, 8.0, 17.0, 109.9]
    moments = [moment(str(n), t, far(n % 4) ^ n) for n, t in enumerate(times)]
    assert bursts(moments, gap_s=10, same_bits=0) == [0, 1, 0, 0, 1]


def test_copies_are_one_burst_whenever_they_were_taken() -> None:
    moments = [moment("a", 0.0, far(0)), moment("b", None, far(0) ^ 0b111), moment("c", None, far(1))]
    assert bursts(moments, gap_s=10, same_bits=6) == [0, 0, 1]


def test_photos_without_a_time_stand_alone() -> None:
    assert bursts([moment("a", None, far(0)), moment("b", None, far(1))], gap_s=1e9, same_bits=6) == [0, 1]


def test_of_near_duplicates_the_best_is_kept() -> None:
    moments = [moment("a", quality=0.4), moment("b", quality=0.9), moment("c", quality=0.6)]
    assert near_duplicates(moments, [0, 0, 0], SAME) == {"a": "b", "c": "b"}


def test_of_equally_good_duplicates_the_larger_file_is_kept() -> None:
    moments = [moment("a", quality=0.901, size=100), moment("b", quality=0.899, size=900)]
    assert near_duplicates(moments, [0, 0], SAME) == {"a": "b"}


def test_another_expression_picture_or_burst_is_no_duplicate() -> None:
    assert near_duplicates([moment("a"), moment("b", face=0.3)], [0, 0], SAME) == {}
    assert near_duplicates([moment("a"), moment("b", dhash=far(0))], [0, 0], SAME) == {}
    assert near_duplicates([moment("a"), moment("b")], [0, 1], SAME) == {}

import numpy as np
import pytest
from numpy.typing import NDArray

from zimage.curation.subject_match import (
    PhotoFaces,
    centroid,
    clusters,
    is_dominant,
    match,
    noteworthy,
    people_in,
    rival,
)
from zimage.faces.engine import EngineInfo, Metric


def info(metric: Metric = "l2", threshold: float = 0.6) -> EngineInfo:
    return EngineInfo("test/1", metric, threshold, {}, "none", True, "corners", 150)


def people(*counts: int, spread: float = 0.15, seed: int = 1) -> NDArray[np.float32]:
    """Return unit embeddings of people that lie far apart, `counts` faces of each."""
    rng = np.random.default_rng(seed)
    middles = np.eye(128)[: len(counts)]
    faces = [
        middle + rng.normal(0, spread / np.sqrt(128), (count, 128))
        for middle, count in zip(middles, counts, strict=True)
    ]
    every = np.concatenate(faces)
    return np.asarray(every / np.linalg.norm(every, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_people_are_told_apart_and_the_most_frequent_comes_first(metric: Metric) -> None:
    found = clusters(people(3, 12, 1), info(metric))
    assert [sorted(person.members) for person in found] == [list(range(3, 15)), [0, 1, 2], [15]]


def test_one_face_is_one_person() -> None:
    assert [person.members for person in clusters(people(1), info())] == [[0]]


@pytest.mark.parametrize(
    ("counts", "doubt"), [((14, 4), True), ((14, 3), False), ((40, 9), False), ((10, 2), False), ((1, 1), True)]
)
def test_a_second_person_in_a_quarter_as_many_photos_alone_is_a_rival(counts: tuple[int, ...], doubt: bool) -> None:
    album = [PhotoFaces([100.0], face[None]) for face in people(*counts)]
    found = people_in(album, info())
    assert [one.photos for one in found] == list(counts)
    assert (rival(found) is not None) is doubt


def test_a_companion_in_half_of_the_photos_is_a_rival_and_one_in_fewer_is_noteworthy() -> None:
    one, other = people(20, 20)[:20], people(20, 20)[20:]
    for together, doubt in ((10, True), (6, False)):
        album = [
            PhotoFaces([100.0, 90.0][: 1 + (i < together)], np.stack([one[i], other[i]])[: 1 + (i < together)])
            for i in range(20)
        ]
        found = people_in(album, info())
        assert [(who.photos, who.without_first) for who in found] == [(20, 0), (together, 0)]
        assert (rival(found) is not None) is doubt
        assert noteworthy(found, 20) == found


def test_small_faces_in_the_background_are_nobody() -> None:
    one, other = people(10, 10)[:10], people(10, 10)[10:]
    album = [PhotoFaces([100.0, 40.0], np.stack([one[i], other[i]])) for i in range(10)]
    assert [who.photos for who in people_in(album, info())] == [10]


def test_examples_are_the_faces_nearest_to_the_middle() -> None:
    faces = np.concatenate([people(8), people(1, spread=0.5, seed=2)])
    (person,) = clusters(faces, info())
    assert person.members[-1] == 8


def test_a_few_wrong_faces_do_not_move_the_centroid() -> None:
    faces = people(10, 1)
    clean, mixed = centroid(faces[:10], "l2"), centroid(faces, "l2")
    assert np.linalg.norm(clean - mixed) < 0.05


def test_a_photo_is_matched_by_its_nearest_face() -> None:
    faces = people(10, 2)
    found = match(faces[[10, 3, 11]], centroid(faces[:10], "l2"), "l2")
    assert found.face == 1
    assert found.distance < 0.3
    assert found.next_distance is not None and found.next_distance > 1
    assert match(faces[:1], centroid(faces[:10], "l2"), "l2").next_distance is None


@pytest.mark.parametrize(
    ("sides", "one"), [([100.0], True), ([100.0, 50.0], True), ([100.0, 51.0], False), ([], False)]
)
def test_a_photo_is_of_one_person_when_that_face_is_four_times_as_large(sides: list[float], one: bool) -> None:
    assert is_dominant(sides) is one

import numpy as np
import pytest
from numpy.typing import NDArray

from zimage.curation.subject_match import centroid, clusters, is_dominant, match, rivals
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


@pytest.mark.parametrize(("counts", "doubt"), [((10, 5), True), ((10, 4), False), ((1, 1), True), ((7,), False)])
def test_a_second_person_half_as_frequent_is_a_rival(counts: tuple[int, ...], doubt: bool) -> None:
    assert rivals(clusters(people(*counts), info())) is doubt


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

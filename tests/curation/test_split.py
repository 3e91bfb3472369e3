import pytest

from zimage.curation.split import Candidate, held_out


def candidates(bursts: list[int], **changes: set[int]) -> list[Candidate]:
    """Return a candidate for each burst number; `profile` and `forced` name places that differ."""
    return [
        Candidate(f"{n:016x}", burst, n not in changes.get("profile", set()), n in changes.get("forced", set()))
        for n, burst in enumerate(bursts)
    ]


def held(some: list[Candidate], share: float = 0.18, at_least: int = 3, seed: int = 1) -> list[int]:
    return sorted(int(photo, 16) for photo in held_out(some, share=share, at_least=at_least, seed=seed))


@pytest.mark.parametrize(("count", "wanted"), [(8, 3), (16, 3), (22, 4), (100, 18)])
def test_the_share_and_the_least_number_are_kept(count: int, wanted: int) -> None:
    assert len(held(candidates(list(range(count))))) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_no_burst_is_ever_split(seed: int) -> None:
    bursts = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5, 6, 6, 7, 8]
    out = held(candidates(bursts), seed=seed)
    assert {bursts[n] for n in out}.isdisjoint(bursts[n] for n in range(16) if n not in out)
    assert 3 <= len(out) <= 4


def test_faces_that_are_turned_away_are_held_out_last() -> None:
    some = candidates(list(range(10)), profile=set(range(7)))
    assert held(some) == [7, 8, 9]


def test_what_a_human_holds_out_is_held_out_with_its_burst() -> None:
    out = held(candidates([0, 0, *range(1, 12)], forced={0}))
    assert {0, 1} <= set(out) and len(out) == 3


def test_another_seed_draws_others_and_the_same_seed_the_same() -> None:
    some = candidates(list(range(30)))
    assert held(some, seed=1) == held(some, seed=1)
    assert len({tuple(held(some, seed=seed)) for seed in range(5)}) == 5


def test_three_more_photos_move_few_of_the_others() -> None:
    before = set(held(candidates(list(range(30)))))
    after = set(held(candidates(list(range(33)))))
    assert len(before - after) <= 3


def test_a_set_of_one_burst_is_held_out_as_a_whole() -> None:
    assert held(candidates([0] * 9)) == list(range(9))

import pytest

from zimage.curation.split import Candidate, held_out


def candidates(bursts: list[int], **changes: set[int]) -> list[Candidate]:
    """Return a candidate for each burst number; `profile`, `forced` and `copies` (of the one before) name places."""
    shots: list[int] = []
    for n in range(len(bursts)):
        shots.append(shots[-1] if n in changes.get("copies", set()) else n)
    return [
        Candidate(
            f"{n:016x}",
            burst,
            shot,
            taken_at=10.0 * n,
            shows_well=n not in changes.get("profile", set()),
            forced=n in changes.get("forced", set()),
        )
        for n, (burst, shot) in enumerate(zip(bursts, shots, strict=True))
    ]


def held(some: list[Candidate], share: float = 0.18, at_least: int = 3, min_train: int = 1, seed: int = 1) -> list[int]:
    out = held_out(some, share=share, at_least=at_least, min_train=min_train, seed=seed)
    return sorted(int(photo, 16) for photo in out)


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


def test_of_a_single_session_the_end_is_held_out() -> None:
    assert held(candidates([0] * 14), min_train=8) == [11, 12, 13]


def test_a_session_is_divided_only_where_whole_ones_leave_too_little() -> None:
    assert held(candidates([0] * 10 + [1] * 6), min_train=8) == list(range(10, 16))
    assert held(candidates([0] * 14 + [1] * 2), min_train=8) == [13, 14, 15]


def test_copies_stay_together_where_a_session_is_divided() -> None:
    some = candidates([0] * 14, copies={11, 13})
    assert held(some, min_train=8) == [10, 11, 12, 13]
    assert held(candidates([0] * 9, copies=set(range(1, 9))), min_train=4) == []


def test_a_human_who_holds_out_one_photo_of_the_only_session_does_not_hold_out_all() -> None:
    assert held(candidates([0] * 14, forced={3}, copies={4}), min_train=8) == [3, 4, 13]


def test_a_set_that_is_too_small_anyway_is_not_divided_further() -> None:
    assert len(held(candidates(list(range(10))), min_train=30)) == 3

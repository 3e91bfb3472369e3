import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from zimage.core import progress
from zimage.core.progress import Progress, follow_in, tracked


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "progress.jsonl"
    follow_in(path)
    yield path
    follow_in(None)


def events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_follower_sees_the_first_and_the_last_step(followed: Path) -> None:
    with Progress("train", total=3) as work:
        for _ in range(3):
            work.advance(loss=0.5)

    assert events(followed)[0] == {"name": "train", "done": 0, "total": 3}
    assert events(followed)[-1] == {"name": "train", "done": 3, "total": 3}


def test_a_follower_sees_the_numbers(followed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FOLLOWED_EVERY_S", 0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)

    with Progress("train", total=2) as work:
        work.advance(loss=0.25, phase="warm-up")

    told = {"name": "train", "done": 1, "total": 2, "loss": 0.25, "phase": "warm-up", "left_s": 0}
    assert events(followed)[1] == told


def test_both_readers_are_told_how_long_it_will_take(
    followed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FOLLOWED_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    now = iter([100.0, 100.0, 110.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now, 110.0))

    with Progress("train", total=8, done=2) as work:
        work.advance(2)

    assert events(followed)[1]["left_s"] == 20
    assert "train 4/8  20 s left" in capsys.readouterr().err


def test_a_follower_is_not_flooded(followed: Path) -> None:
    with Progress("train", total=10_000) as work:
        for _ in range(10_000):
            work.advance()

    assert len(events(followed)) < 100


def test_resumed_work_begins_where_it_stopped(followed: Path) -> None:
    with Progress("train", total=800, done=600):
        pass

    assert events(followed)[0]["done"] == 600


def test_elsewhere_than_on_a_terminal_it_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("pictures", total=2) as work:
        work.advance(2)

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pictures 0/2"
    assert lines[-1] == "pictures 2/2"
    assert all("\r" not in line and "\x1b" not in line for line in lines)


def test_items_are_counted_as_they_are_taken(followed: Path) -> None:
    assert list(tracked("abc", "photos", total=3)) == ["a", "b", "c"]

    assert events(followed)[-1] == {"name": "photos", "done": 3, "total": 3}

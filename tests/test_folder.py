from pathlib import Path

import pytest

from zimage.folder import aside_of, made_aside, write_whole


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "data" / "train"

    with made_aside(out) as folder:
        (folder / "lora").write_text("weights")
        assert not out.exists()

    assert (out / "lora").read_text() == "weights"
    assert [path.name for path in out.parent.iterdir()] == ["train"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "train"
    out.mkdir()
    (out / "lora").write_text("old")

    with pytest.raises(KeyboardInterrupt), made_aside(out) as folder:
        (folder / "lora").write_text("half")
        raise KeyboardInterrupt

    assert (out / "lora").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_new_folder_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    out = tmp_path / "train"
    out.mkdir()
    (out / "stale").write_text("old")

    with made_aside(out) as folder:
        (folder / "lora").write_text("new")

    assert [path.name for path in out.iterdir()] == ["lora"]
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_long_work_goes_on_from_what_a_failure_left(tmp_path: Path) -> None:
    out = tmp_path / "train"
    with pytest.raises(RuntimeError, match="lost"), made_aside(out, keep_on_failure=True) as folder:
        (folder / "step-200").write_text("checkpoint")
        raise RuntimeError("lost")
    assert not out.exists()

    with made_aside(out, keep_on_failure=True) as folder:
        assert (folder / "step-200").read_text() == "checkpoint"

    assert (out / "step-200").exists()


def test_what_an_earlier_kill_left_is_not_mixed_in(tmp_path: Path) -> None:
    out = tmp_path / "train"
    aside_of(out).mkdir()
    (aside_of(out) / "half").write_text("of an earlier run")

    with made_aside(out) as folder:
        assert list(folder.iterdir()) == []

    assert list(out.iterdir()) == []


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_whole(path, b"one")
    write_whole(path, b"two")

    assert path.read_bytes() == b"two"
    assert [found.name for found in tmp_path.iterdir()] == ["state.json"]


def test_a_file_that_could_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()

    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "a.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

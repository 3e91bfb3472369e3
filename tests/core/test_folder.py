from pathlib import Path

import pytest

from zimage.core.errors import InputError
from zimage.core.folder import aside_of, check_out, made_aside, make_writable, write_whole


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


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "day.jpg").write_text("a photo")
    return tmp_path / "photos"


@pytest.mark.parametrize("out", ["photos", "", "photos/clean", "link", "absent/../photos"])
def test_an_output_that_touches_an_input_is_refused(tmp_path: Path, photos: Path, out: str) -> None:
    (tmp_path / "link").symlink_to(photos)

    with pytest.raises(InputError, match=r"cannot be written while .*photos is read.*; name another one"):
        check_out(tmp_path / out, (photos,), holds="photos.jsonl")


def test_only_an_earlier_output_of_the_same_stage_may_be_replaced(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "ingest"
    check_out(out, (photos,), holds="photos.jsonl")
    out.mkdir()
    check_out(out, (photos,), holds="photos.jsonl")
    (out / "metrics.json").touch()
    with pytest.raises(
        InputError, match=r"is not empty, .*it has no photos\.jsonl.*; it is left as it is\. Name a new"
    ):
        check_out(out, (photos,), holds="photos.jsonl")
    (out / "photos.jsonl").touch()
    check_out(out, (photos,), holds="photos.jsonl")


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "out").write_text("a file")

    with pytest.raises(InputError, match="is a file; name a folder"):
        check_out(tmp_path / "out", (photos,), holds="photos.jsonl")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match=r"file/data cannot be made \(Not a directory\); name another place"):
        make_writable(tmp_path / "file" / "data")
    with pytest.raises(InputError, match=r"file cannot be made \(File exists\)"), made_aside(tmp_path / "file" / "out"):
        pass

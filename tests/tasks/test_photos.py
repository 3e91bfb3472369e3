import os
import zipfile
from pathlib import Path

import pytest

from tasks.photos import bring_photos
from zimage.errors import InputError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "holiday"
    (folder / "beach").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a")
    (folder / "beach" / "b.jpg").write_bytes(b"b")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_copied_with_its_folders(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "photos"

    assert bring_photos(str(source), target)
    assert files(target) == {"a.jpg": b"a", "beach/b.jpg": b"b"}


def test_the_same_photos_are_not_copied_again(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "photos"
    bring_photos(str(source), target)
    os.utime(target / "a.jpg", (0, 0))

    assert not bring_photos(str(source), target)
    assert (target / "a.jpg").stat().st_mtime == 0


def test_what_is_gone_from_the_source_is_gone_from_the_workspace(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "photos"
    bring_photos(str(source), target)
    (source / "beach" / "b.jpg").unlink()
    (source / "a.jpg").write_bytes(b"A")

    assert bring_photos(str(source), target)
    assert files(target) == {"a.jpg": b"A"}


def test_an_archive_stays_one_and_may_follow_a_folder(source: Path, tmp_path: Path) -> None:
    target, archive = tmp_path / "photos", tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.write(source / "a.jpg", "a.jpg")
    bring_photos(str(source), target)

    assert bring_photos(str(archive), target)
    assert zipfile.is_zipfile(target)
    assert not bring_photos(str(archive), target)
    assert bring_photos(str(source), target)
    assert target.is_dir()


def test_nothing_at_the_source_is_refused_and_changes_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "photos"
    bring_photos(str(source), target)

    with pytest.raises(InputError, match=r"There are no photos at .*/holidays; name a folder, a zip or tar archive"):
        bring_photos(f"{source}s", target)
    assert files(target)

import logging
import os
import zipfile
from pathlib import Path

import pytest

from tasks.workspace import photos
from tasks.workspace.photos import STRANGE, brought, places
from tests.album import Album
from zimage.core.errors import InputError
from zimage.core.folder import aside_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "holiday"
    (folder / "beach").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a")
    (folder / "beach" / "b.jpg").write_bytes(b"b")
    return folder


def bring_photos(source: str, target: Path) -> bool:
    """Return whether the target had to change."""
    with brought(source, target) as aside:
        return aside is not None


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


def test_links_pipes_and_the_unreadable_stay_where_they_are_and_are_named(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(source / "pipe.jpg")
    (source / "cycle").symlink_to(source)
    (source / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (source / "linked.jpg").symlink_to(source / "a.jpg")
    with caplog.at_level(logging.WARNING):
        assert bring_photos(str(source), tmp_path / "photos")

    assert files(tmp_path / "photos") == {"a.jpg": b"a", "beach/b.jpg": b"b", "linked.jpg": b"a"}
    assert "3 of 6 entries in " in caplog.text and "'cycle', 'gone.jpg', 'pipe.jpg'" in caplog.text
    assert not bring_photos(str(source), tmp_path / "photos")


def test_a_link_that_leads_out_of_the_folder_is_not_followed_and_named(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret.txt").write_text("not hers")
    (source / "link.jpg").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "album").symlink_to(source)
    with caplog.at_level(logging.WARNING):
        assert bring_photos(str(tmp_path / "album"), tmp_path / "photos")

    assert files(tmp_path / "photos") == {"a.jpg": b"a", "beach/b.jpg": b"b"}
    assert "1 of 3 entries in " in caplog.text and "are no files of it that can be read" in caplog.text
    assert "'link.jpg'" in caplog.text


def test_a_name_that_is_no_text_becomes_one(source: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.jpg")).write_bytes(b"c")
    assert bring_photos(str(source), tmp_path / "photos")

    assert sorted(files(tmp_path / "photos").values()) == [b"a", b"b", b"c"]
    assert all(name.isprintable() for name in files(tmp_path / "photos"))
    assert not bring_photos(str(source), tmp_path / "photos")


def test_photos_come_out_of_a_bucket_with_their_folders(album: Album, tmp_path: Path) -> None:
    target = tmp_path / "photos"
    album.put("a.jpg", b"a")
    album.put("beach/b.jpg", b"b" * 3_000_000)

    assert bring_photos("s3://album/ada", target)
    assert files(target) == {"a.jpg": b"a", "beach/b.jpg": b"b" * 3_000_000}


def test_of_a_bucket_only_what_is_new_is_fetched(album: Album, tmp_path: Path) -> None:
    target = tmp_path / "photos"
    album.put("a.jpg", b"a")
    bring_photos("s3://album/ada", target)
    assert not bring_photos("s3://album/ada", target)

    album.damage("a.jpg")  # would be refused, were it fetched again
    album.put("b.jpg", b"b")
    assert bring_photos("s3://album/ada", target)
    assert files(target) == {"a.jpg": b"a", "b.jpg": b"b"}

    album.client.delete_object(Bucket="album", Key="ada/b.jpg")
    assert bring_photos("s3://album/ada", target)
    assert files(target) == {"a.jpg": b"a"}


def test_a_bucket_that_fails_halfway_changes_nothing(album: Album, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "photos"
    bring_photos(str(source), target)
    for number in range(20):
        album.put(f"{number:02d}.jpg", b"photo %d" % number)
    album.damage("13.jpg")

    with pytest.raises(InputError, match=r"13\.jpg did not arrive as it was stored"):
        bring_photos("s3://album/ada", target)
    assert files(target) == {"a.jpg": b"a", "beach/b.jpg": b"b"}
    assert not aside_of(target).exists()


def test_every_key_arrives_and_none_outside(album: Album, tmp_path: Path) -> None:
    target = tmp_path / "data" / "photos"
    keys = ["../../evil.jpg", "/etc/x.jpg", "IMG.jpg", "img.JPG", "a", "a/b.jpg", "double//slash.png",
            "\u5199\u771f.jpg", "cafe\u0301.jpg", "caf\u00e9.jpg", "renamed", f"{'long' * 60}.jpg"]  # fmt: skip
    for key in keys:
        album.put(key, key.encode())

    bring_photos("s3://album/ada", target)

    brought = files(target)
    assert sorted(brought.values()) == sorted(key.encode() for key in keys)
    assert {"IMG.jpg", "a", "\u5199\u771f.jpg"} <= set(brought)
    assert len({name.casefold() for name in brought}) == len(keys)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        name.rsplit("/", 1)[-1] for name in brought
    )


def test_a_strange_key_keeps_its_place_when_others_are_added() -> None:
    few, more = places(["b.jpg", "../x.jpg"]), places(["b.jpg", "../x.jpg", "a.jpg", "z.jpg"])
    assert few.items() <= more.items()
    assert few["../x.jpg"].startswith(f"{STRANGE}/") and few["../x.jpg"].endswith(".jpg")


@pytest.mark.parametrize("key", ["x\n.jpg", "x\0.jpg", ".", "a/./b", "", "renamed", "x\udcff.jpg"])
def test_what_is_no_name_for_a_file_is_named_by_its_hash(key: str) -> None:
    assert places([key])[key].startswith(f"{STRANGE}/")


def test_more_than_any_album_is_refused_before_it_is_fetched(
    album: Album, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album.put("film.mov", b"1" * 2_000_000)
    album.put("a.jpg", b"a")
    monkeypatch.setattr(photos, "MOST_BYTES", 1_000_000)
    with pytest.raises(InputError, match=r"in 2 files, the largest with .* GB, and at most .* are taken") as caught:
        bring_photos("s3://album/ada", tmp_path / "photos")
    assert caught.value.names.endswith("film.mov") and "film" not in str(caught.value)
    monkeypatch.setattr(photos, "MOST_BYTES", 10**12)
    monkeypatch.setattr(photos, "SPARE_BYTES", 10**18)
    with pytest.raises(InputError, match=r"and this disk has 0\.0 GB; name a prefix"):
        bring_photos("s3://album/ada", tmp_path / "photos")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_prefix_is_one_sentence(album: Album, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There are no photos at s3://album/eve; check the bucket and the prefix"):
        bring_photos("s3://album/eve", tmp_path / "photos")


def test_an_archive_that_cannot_be_copied_leaves_the_photos_as_they_were(source: Path, tmp_path: Path) -> None:
    target, archive = tmp_path / "photos", tmp_path / "photos.zip"
    bring_photos(str(source), target)
    archive.write_bytes(b"zip")
    (tmp_path / ".photos.part").mkdir()
    assert bring_photos(str(archive), target)
    assert target.read_bytes() == b"zip" and not aside_of(target).exists()

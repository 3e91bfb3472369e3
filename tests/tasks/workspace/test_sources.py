import os
from pathlib import Path

import pytest

from tasks.workspace.sources import content, look, source
from tests.album import Album
from zimage.core.errors import InputError


def test_a_folder_looks_the_same_until_a_file_in_it_changes(tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "trip" / "1.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"one")
    before = look(str(tmp_path / "photos"))

    assert look(str(tmp_path / "photos")) == before
    photo.write_bytes(b"other")
    changed = look(str(tmp_path / "photos"))
    assert changed != before
    (photo.parent / "2.jpg").write_bytes(b"two")
    assert look(str(tmp_path / "photos")) != changed


def test_a_file_of_the_same_size_and_another_time_looks_different(tmp_path: Path) -> None:
    consent = tmp_path / "consent.yaml"
    consent.write_text("expires: 2027-01-01")
    os.utime(consent, (0, 0))
    before = look(str(consent))

    consent.write_text("expires: 2028-01-01")

    assert look(str(consent)) != before


def test_what_is_not_there_looks_like_nothing_and_an_empty_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert look(str(tmp_path / "nowhere")) == ""
    assert look(str(tmp_path / "empty")) != ""


def test_an_address_does_not_depend_on_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)

    assert source("photos").address == str(tmp_path / "photos")
    assert source("~/photos").address == str(Path.home() / "photos")


def test_one_object_of_a_bucket_looks_different_when_it_changes_and_its_neighbours_do_not_matter(album: Album) -> None:
    album.put("consent.yaml", b"expires: 2027-01-01")
    before = source("s3://album/ada/consent.yaml")
    album.put("consent.yaml.old", b"expires: 2026-01-01")

    assert before.address == "s3://album/ada/consent.yaml"
    assert look(before.address) == before.seen != ""
    album.put("consent.yaml", b"expires: 2028-01-01")
    assert look(before.address) not in (before.seen, "")


def test_an_object_that_is_not_there_looks_like_nothing_and_has_no_content(album: Album) -> None:
    album.put("consent.yaml.old", b"expires: 2026-01-01")

    for address in ("s3://album/ada/consent.yaml", "s3://album/ada/consent", "s3://album"):
        assert content(address, max_bytes=100) is None
    assert look("s3://album/ada/consent.yaml") == ""


def test_the_content_of_an_object_is_what_was_stored_or_is_not_taken(album: Album) -> None:
    album.put("consent.yaml", b"expires: 2027-01-01")
    assert content("s3://album/ada/consent.yaml", max_bytes=100) == b"expires: 2027-01-01"

    album.damage("consent.yaml")

    with pytest.raises(InputError, match=r"s3://album/ada/consent\.yaml did not arrive as it was stored"):
        content("s3://album/ada/consent.yaml", max_bytes=100)


def test_content_that_is_too_large_is_refused_before_it_is_read(album: Album, tmp_path: Path) -> None:
    album.put("film.mov", b"1" * 101)
    (tmp_path / "film.mov").write_bytes(b"1" * 101)

    for address in ("s3://album/ada/film.mov", str(tmp_path / "film.mov")):
        with pytest.raises(
            InputError, match=r"film\.mov has 101 bytes, more than 100; check that it is the right file"
        ):
            content(address, max_bytes=100)


def test_a_bucket_that_is_not_there_is_one_sentence(s3: None) -> None:
    with pytest.raises(InputError, match=r"s3://nobody/consent\.yaml cannot be read \(NoSuchBucket"):
        content("s3://nobody/consent.yaml", max_bytes=100)

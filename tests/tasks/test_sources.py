import os
from pathlib import Path

import pytest

from tasks.sources import look, source


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

from pathlib import Path

import pytest

from zimage.captions.overrides import read_overrides
from zimage.core.errors import InputError

CROPS = {"aa-full": "aa", "aa-head": "aa", "bb-full": "bb"}


def test_a_crops_own_file_goes_before_its_photos(tmp_path: Path) -> None:
    (tmp_path / "aa.txt").write_text("of the photo\n\nanother\n", encoding="utf-8")
    (tmp_path / "aa-head.txt").write_text("of the head", encoding="utf-8")
    own = read_overrides(tmp_path, CROPS)
    assert own.of("train/aa-full.png", "aa") == ["of the photo", "another"]
    assert own.of("train/aa-head.png", "aa") == ["of the head"]
    assert own.of("train/bb-full.png", "bb") == []


def test_a_file_that_names_no_crop_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cc.txt").write_text("nobody", encoding="utf-8")
    assert read_overrides(tmp_path, CROPS).unused == ["cc.txt"]


def test_a_missing_folder_holds_no_captions(tmp_path: Path) -> None:
    assert read_overrides(tmp_path / "absent", CROPS).captions == {}


@pytest.mark.parametrize(("content", "said"), [(b" \n", "holds no caption"), (b"\xff\xfe\xff", "not UTF-8")])
def test_an_unusable_file_is_told_in_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "aa.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_overrides(tmp_path, CROPS)

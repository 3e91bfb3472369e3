from pathlib import Path

import pytest

from zimage.core.errors import InputError
from zimage.lora.files.given import file_and_strength


@pytest.mark.parametrize(
    ("written", "file", "strength"),
    [
        ("ada.safetensors", "ada.safetensors", None),
        ("loras/ada.safetensors:0.8", "loras/ada.safetensors", 0.8),
        ("ada.safetensors:-1", "ada.safetensors", -1.0),
        ("s3://bucket/ada.safetensors", "s3://bucket/ada.safetensors", None),
        ("s3://bucket/ada.safetensors:0.5", "s3://bucket/ada.safetensors", 0.5),
    ],
)
def test_a_strength_stands_behind_the_last_colon(written: str, file: str, strength: float | None) -> None:
    assert file_and_strength(written) == (file, strength)


def test_a_file_whose_name_ends_like_a_strength_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "ada:2"
    file.touch()
    assert file_and_strength(str(file)) == (str(file), None)
    assert file_and_strength(f"{file}:0.5") == (str(file), 0.5)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match=r"^The strength in ada.safetensors:strong is not a number; write FILE:STREN"):
        file_and_strength("ada.safetensors:strong")

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Tag

from zimage.core.errors import InputError
from zimage.core.section import (
    MAX_PARAMS_BYTES,
    PLAIN,
    Section,
    checked,
    read_params,
    read_section,
    refuse_unknown,
    told_by_keys,
)


class Crop(Section):
    """How a face is cut."""

    margin: float
    sides_px: list[int]
    weights: list[float] | None = None
    name: str = ""


class Detect(Section):
    """Values of a stage, with a section inside."""

    min_photos: int
    crop: Crop


GOOD = "detect:\n  min_photos: 10\n  crop:\n    margin: 0.4\n    sides_px: [512, 768]\n"


def params(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_section_is_read_with_the_sections_inside_it(tmp_path: Path) -> None:
    section = read_section(params(tmp_path, GOOD), "detect", Detect)

    assert section == Detect(min_photos=10, crop=Crop(margin=0.4, sides_px=[512, 768]))


def test_a_section_cannot_be_changed(tmp_path: Path) -> None:
    section = read_section(params(tmp_path, GOOD), "detect", Detect)

    with pytest.raises(ValueError, match="frozen"):
        section.min_photos = 1  # type: ignore[misc]


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as refused:
        read_section(params(folder, text), "detect", Detect)
    return str(refused.value)


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD.replace("min_photos", "min_photo"))

    assert "detect: " in said
    assert "unknown key `min_photo` (did you mean `min_photos`?)" in said
    assert "`min_photos` is missing" in said


def test_an_unknown_key_inside_a_section_names_its_place(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD.replace("margin", "margins"))

    assert "unknown key `crop.margins` (did you mean `margin`?)" in said


def test_a_wrong_type_is_not_bent(tmp_path: Path) -> None:
    assert "`min_photos` is '10': input should be a valid integer" in refusal(tmp_path, GOOD.replace("10", "'10'"))


def test_a_number_in_quotes_is_a_number_where_a_float_is_wanted(tmp_path: Path) -> None:
    for text, value in {
        "'1e-4'": 1e-4,
        '"5e-05"': 5e-5,
        "1e-4": 1e-4,
        ".5e3": 500.0,
        "' 0.25 '": 0.25,
        "'-3'": -3.0,
    }.items():
        section = read_section(params(tmp_path, GOOD.replace("0.4", text)), "detect", Detect)
        assert section.crop.margin == value and section.crop.weights is None
    listed = GOOD.replace("0.4", "1\n    weights: ['1e-4', 2]\n    name: '1e-4'")
    crop = read_section(params(tmp_path, listed), "detect", Detect).crop
    assert (crop.weights, crop.name) == ([1e-4, 2.0], "1e-4")
    assert "`crop.margin` is '1e': input should be a valid number" in refusal(tmp_path, GOOD.replace("0.4", "1e"))
    assert crop.model_dump_json() == crop.model_copy(update={"weights": [0.0001, 2.0]}).model_dump_json()


def test_a_missing_section_is_named_with_the_nearest(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD.replace("detect:", "detekt:"))

    assert "has no section `detect:` (did you mean `detekt`?)" in said


def test_a_missing_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no .*params\.yaml; run in a workspace"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\ta: 1"])
def test_what_is_not_yaml_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is not valid YAML") as refused:
        read_params(params(tmp_path, text))

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- a\n", "list"), ("text\n", "str")])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    with pytest.raises(InputError, match=rf"must be a mapping of sections .*, not {kind}"):
        read_params(params(tmp_path, text))


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is larger than"):
        read_params(params(tmp_path, "#" * (MAX_PARAMS_BYTES + 1)))


def test_yaml_tags_build_no_objects(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not valid YAML"):
        read_params(params(tmp_path, "a: !!python/object/apply:os.getcwd []\n"))


def test_an_unknown_section_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(InputError, match=r"params\.yaml: unknown section `trian:` \(did you mean `train`\?\)"):
        refuse_unknown(["detect", "trian"], {"detect", "train"}, "params.yaml")


def test_values_from_elsewhere_are_checked_the_same_way() -> None:
    with pytest.raises(InputError, match=r"preset 8gb: `sides_px` is missing"):
        checked({"margin": 0.1}, Crop, "preset 8gb")


class Ramp(Section):
    """A value that rises."""

    first: float
    last: float


class Wave(Section):
    """A value that swings."""

    height: float


class Sized(Section):
    """A number, or how it changes."""

    size: Annotated[
        Annotated[float, Tag(PLAIN)] | Annotated[Ramp, Tag("(Ramp)")] | Annotated[Wave, Tag("(Wave)")],
        told_by_keys(Ramp, Wave),
    ]


def test_a_fault_in_a_value_or_section_is_named_for_the_one_that_is_meant() -> None:
    for value, message in (
        ("big", "`size` is 'big': input should be a valid number"),
        ({"last": 1.0}, "`size.first` is missing"),
        ({"height": "tall"}, "`size.height` is 'tall'"),
        ({"height": 1.0, "width": 2.0}, "unknown key `size.width`"),
    ):
        with pytest.raises(InputError) as raised:
            checked({"size": value}, Sized, "p.yaml: sized")
        assert message in str(raised.value) and ";" not in str(raised.value)
    assert [checked({"size": value}, Sized, "").size for value in ("1e-1", {"height": 2})] == [0.1, Wave(height=2.0)]

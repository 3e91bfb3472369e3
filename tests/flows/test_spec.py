import pytest
from pydantic import BaseModel, ValidationError

from flows.__main__ import SPECS
from flows.spec import PersonalizeSpec, PrepareSpec, PublishSpec, RetrainSpec


@pytest.mark.parametrize("subject", ["ada", "s-4f1c", "a1_b", "demo"])
def test_a_pseudonym_is_accepted(subject: str) -> None:
    assert PersonalizeSpec(subject=subject).subject == subject


@pytest.mark.parametrize(
    "subject", ["", "a", "Ada", "ada lovelace", "../ada", "ada/1", "-ada", "ada\n", "ada\x00", "аda", "a" * 42]
)
def test_what_could_name_another_folder_is_refused(subject: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        PersonalizeSpec(subject=subject)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        PublishSpec(subject="ada", force=True)  # type: ignore[call-arg]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValidationError, match="Input should be '', 'tiny'"):
        PrepareSpec(subject="ada", preset="best")  # type: ignore[arg-type]


def test_nothing_is_published_unless_it_is_asked_for() -> None:
    assert PersonalizeSpec(subject="ada").publish == "never"


@pytest.mark.parametrize("kind", [*SPECS.values(), RetrainSpec])
def test_every_field_tells_a_form_what_it_is(kind: type[BaseModel]) -> None:
    for name, field in kind.model_fields.items():
        assert field.title, name
        assert field.description, name


@pytest.mark.parametrize(("field", "value"), [("steps", -1), ("steps", 50_001), ("rank", 257)])
def test_a_number_outside_its_range_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValidationError, match=r"should be (greater|less) than or equal to"):
        PrepareSpec.model_validate({"subject": "ada", field: value})


def test_named_values_join_the_own_ones_which_win() -> None:
    spec = PersonalizeSpec(subject="ada", steps=800, values=["train.rank=8"])

    assert spec.chosen() == {"train.steps": 800, "train.rank": 8}
    assert PersonalizeSpec(subject="ada", rank=4, values=["train.rank=8"]).chosen() == {"train.rank": 8}
    assert PersonalizeSpec(subject="ada").chosen() == {}


def test_reference_photos_are_a_value_of_detect() -> None:
    spec = PersonalizeSpec(subject="ada", reference="IMG_1.jpg, 4f1d0c2b9a8e7766")
    assert spec.chosen() == {"detect.subject.reference": ["IMG_1.jpg", "4f1d0c2b9a8e7766"]}

import pytest
from pydantic import ValidationError

from flows.spec import PersonalizeSpec, PrepareSpec, PublishSpec


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


def test_every_field_tells_a_form_what_it_is() -> None:
    for name, field in PersonalizeSpec.model_fields.items():
        assert field.title, name
        assert field.description, name

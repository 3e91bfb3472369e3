import pytest

from tests.tiny_base import tiny_tokenizer
from zimage.captions.trigger import TriggerParams, checked_trigger
from zimage.core.errors import InputError

LIMITS = TriggerParams(min_tokens=2, max_tokens=6)


def test_a_rare_string_is_taken_and_its_tokens_are_counted() -> None:
    assert checked_trigger("ohzw", tiny_tokenizer(), LIMITS) == 5  # a byte each, and the space before it


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        ("sunflower", "is an English word"),
        ("julia", "is a given name"),
        ("Ohzw", "one word of small letters"),
        ("two words", "one word of small letters"),
        ("", "one word of small letters"),
        ("xyqzkwvbnm", "takes 11 token"),
    ],
)
def test_a_trigger_that_cannot_stand_for_a_person_is_refused_with_the_remedy(trigger: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        checked_trigger(trigger, tiny_tokenizer(), LIMITS)


def test_a_trigger_that_is_one_token_is_a_word_to_the_model() -> None:
    with pytest.raises(InputError, match="choose a rarer string"):
        checked_trigger("q", tiny_tokenizer(), TriggerParams(min_tokens=3, max_tokens=6))

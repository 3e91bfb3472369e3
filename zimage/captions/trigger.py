"""Check that a trigger can stand for a person: rare, no word, no name, few tokens."""

from functools import cache
from typing import Protocol

from zimage.core.assets import read_asset
from zimage.core.errors import InputError
from zimage.core.section import Section


class TriggerParams(Section):
    """Limits on the number of tokens of a trigger."""

    min_tokens: int
    """One token is usually a word that the model already knows; 2 or more is a new combination."""
    max_tokens: int
    """More tokens than this are hard to bind to one person."""


class Tokenizer(Protocol):
    """The part of the base model's tokenizer that is used here."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return token ids."""
        ...


def checked_trigger(trigger: str, tokenizer: Tokenizer, params: TriggerParams) -> int:
    """Return how many tokens the trigger takes inside a sentence.

    Raises:
        InputError: it is not one plain word, is a word or a given name, or takes too few or too many tokens.
    """
    if not (trigger.isascii() and trigger.isalnum() and trigger == trigger.lower()):
        raise InputError(
            f"subject.trigger is {trigger!r}, but one word of small letters and digits is wanted; "
            "choose one that means nothing, such as `ohzw`."
        )
    for kind, words in (("an English word", known("words")), ("a given name", known("names"))):
        if trigger in words:
            raise InputError(
                f"subject.trigger `{trigger}` is {kind}, to which the base model already ties a look; "
                "choose a string that means nothing, such as `ohzw`."
            )
    tokens = len(tokenizer.encode(f" {trigger}", add_special_tokens=False))
    if not params.min_tokens <= tokens <= params.max_tokens:
        raise InputError(
            f"subject.trigger `{trigger}` takes {tokens} token(s) of the base model's tokenizer, but "
            f"{params.min_tokens} to {params.max_tokens} are wanted (caption.trigger); "
            + ("one token is a word it knows: choose a rarer string." if tokens < params.min_tokens else "shorten it.")
        )
    return tokens


LISTS = {"words": "words.txt", "names": "names.txt"}  # by their names in full: a stage's fingerprint looks for them


@cache
def known(name: str) -> frozenset[str]:
    """Return the packaged list `words` (common English) or `names` (given names in Latin letters), in small letters."""
    return frozenset(read_asset(LISTS[name]).split())

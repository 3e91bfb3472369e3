"""The word lists of the leak filter, as patterns."""

import re
from collections.abc import Sequence
from functools import cache

from zimage.captions.template import Language
from zimage.core.section import Section


class LeakWords(Section):
    """The words of one language that identify a person. `*` stands for the rest of a word."""

    segment: list[str]
    """Names of permanent traits (hair, beard, freckles): the phrase or clause about one goes. A part of the body (eyes,
    skin, nose) goes only where it is described (blue eyes), whether it stands here or not."""
    word: list[str]
    """Words of age, origin or build (young, Asian, slender): they go where they describe a person."""
    class_noun: list[str]
    """Words that name the person more closely than the class noun (girl, lady): the class noun takes their place."""


def pattern(phrases: Sequence[str], language: Language) -> re.Pattern[str]:
    """Return what finds any of `phrases` as whole words (in Chinese: anywhere); an empty list finds nothing."""
    return _compiled(tuple(phrases), language)


@cache
def _compiled(phrases: tuple[str, ...], language: Language) -> re.Pattern[str]:
    if not phrases:
        return re.compile(r"(?!)")
    parts = [re.escape(phrase).replace(r"\*", r"[\w-]*").replace(r"\ ", r"\s+") for phrase in phrases]
    any_of = "|".join(sorted(parts, key=len, reverse=True))
    return re.compile(any_of if language == "zh" else rf"(?<![\w-])(?:{any_of})(?![\w-])", re.IGNORECASE)

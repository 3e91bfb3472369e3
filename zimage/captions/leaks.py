"""Remove identity from captions: what a caption names is not learned by the trigger.

A phrase or clause about a permanent trait goes, a word of age, origin or build goes where it describes the person, a
name goes, and a word such as "girl" becomes the class noun. What is left of a sentence is a sentence.
"""

import re
from dataclasses import dataclass

from zimage.captions.chinese_filter import filter_chinese
from zimage.captions.english_filter import filter_english
from zimage.captions.rows import Rewrite
from zimage.captions.template import CLASS_NOUNS, ClassNoun, Language
from zimage.captions.words import LeakWords, pattern
from zimage.core.section import Section


class Leaks(Section):
    """The word lists of the leak filter."""

    en: LeakWords
    zh: LeakWords


@dataclass(frozen=True)
class Cleaned:
    """A caption without identity, and what was done to it."""

    caption: str
    rewrites: list[Rewrite]


def without_leaks(caption: str, leaks: Leaks, *, class_noun: ClassNoun, language: Language) -> Cleaned:
    """Return `caption` without what names the identity; what describes clothes, pose, light or place stays.

    Args:
        caption: One or more sentences.
        leaks: The word lists.
        class_noun: Stands in the place of words such as "girl", and of names.
        language: Of the caption; it chooses the list and the grammar.
    """
    lists = leaks.en if language == "en" else leaks.zh
    phrase = CLASS_NOUNS[class_noun]
    noun = phrase.en if language == "en" else phrase.zh
    found = [match.group() for match in pattern(lists.class_noun, language).finditer(caption)]
    caption = pattern(lists.class_noun, language).sub(noun, caption)
    if found and language == "en":
        caption = re.sub(rf"\b(a)n\s+(?={noun}\b)", r"\1 ", caption, flags=re.IGNORECASE)
    cleaned, removed = (filter_english if language == "en" else filter_chinese)(caption, lists, noun)
    changes = [*((word, f"{word} → {noun}") for word in found), *removed]
    return Cleaned(cleaned, [Rewrite(word=word, removed=text, language=language) for word, text in changes])

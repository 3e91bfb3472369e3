"""Remove identity from captions: what a caption names is not learned by the trigger.

A caption is cut into segments (at commas, full stops and words such as "with", "wearing", "in"). A segment that names a
permanent trait goes; a single word of age or origin goes alone; a word such as "girl" becomes the class noun.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zimage.captions.rows import Rewrite
from zimage.captions.template import CLASS_NOUNS, ClassNoun, Language
from zimage.core.section import Section


class LeakWords(Section):
    """The words of one language that tell who somebody is. `*` stands for the rest of a word."""

    segment: list[str]
    """Names of permanent traits (hair, eyes, skin): the whole part of the sentence that holds one goes."""
    word: list[str]
    """Words of age, origin or build (young, Asian, slender): only the word goes."""
    class_noun: list[str]
    """Words that name the person more closely than the class noun (girl, lady): the class noun takes their place."""


class Leaks(Section):
    """The word lists of the leak filter."""

    en: LeakWords
    zh: LeakWords


@dataclass(frozen=True)
class Cleaned:
    """A caption without identity, and what was done to it."""

    caption: str
    rewrites: list[Rewrite]


# Words that open a new part of an English sentence; they stay with the part that they open.
_CONNECTORS = (
    "with|and|wearing|dressed|in|on|at|against|under|while|who|whose|has|having|holding|standing|sitting|looking|"
    "framing|falling|featuring|lit|set|behind|beside|near"
)
_EN_CUT = re.compile(rf"(?<=[,.;])\s+|\s+(?=(?:{_CONNECTORS})\b)", re.IGNORECASE)
_ZH_CUT = re.compile(r"(?<=[，。；、])")
_AND = re.compile(r"^and\b", re.IGNORECASE)
_GONE = "\0"
_ARTICLE = re.compile(rf"\b(an?)\s+{_GONE}[\s,{_GONE}]*(\w)", re.IGNORECASE)


def without_leaks(caption: str, leaks: Leaks, *, class_noun: ClassNoun, language: Language) -> Cleaned:
    """Return `caption` without what names the identity; its first segment, the subject, is never dropped."""
    words = leaks.en if language == "en" else leaks.zh
    caption, nouns = _as_class_noun(caption, words.class_noun, CLASS_NOUNS[class_noun], language)
    segments = [part for part in (_EN_CUT if language == "en" else _ZH_CUT).split(caption) if part]
    kept, dropped = _without_segments(segments, words.segment, language)
    joined = (" " if language == "en" else "").join(kept)
    cleaned, single = _without_words(joined, words.word, language)
    return Cleaned(_tidied(cleaned, language), [*nouns, *dropped, *single])


def pattern(phrases: Sequence[str], language: Language) -> re.Pattern[str]:
    """Return what finds any of `phrases` as whole words (in Chinese: anywhere); an empty list finds nothing."""
    if not phrases:
        return re.compile(r"(?!)")
    parts = [re.escape(phrase).replace(r"\*", r"[\w-]*").replace(r"\ ", r"\s+") for phrase in phrases]
    any_of = "|".join(sorted(parts, key=len, reverse=True))
    return re.compile(any_of if language == "zh" else rf"(?<![\w-])(?:{any_of})(?![\w-])", re.IGNORECASE)


def _as_class_noun(caption: str, words: Sequence[str], noun: object, language: Language) -> tuple[str, list[Rewrite]]:
    said = str(getattr(noun, language))
    found = [match.group() for match in pattern(words, language).finditer(caption)]
    changed = pattern(words, language).sub(said, caption)
    return changed, [Rewrite(word=word, removed=f"{word} → {said}", language=language) for word in found]


def _without_segments(
    segments: Sequence[str], words: Sequence[str], language: Language
) -> tuple[list[str], list[Rewrite]]:
    """Return the segments that tell nothing; one that began with "and" takes over the connector that went before it."""
    leak = pattern(words, language)
    kept: list[str] = list(segments[:1])
    rewrites: list[Rewrite] = []
    connector: str | None = None
    for segment in segments[1:]:
        found = leak.search(segment)
        if found:
            rewrites.append(Rewrite(word=found.group(), removed=segment.strip(), language=language))
            first = segment.split()[0]
            connector = connector if _AND.match(segment) else first if re.fullmatch(_CONNECTORS, first) else None
            if kept and segment.rstrip()[-1] in ",.;" and kept[-1][-1] not in ",.;":
                kept[-1] += segment.rstrip()[-1]
        else:
            kept.append(_AND.sub(connector, segment) if connector else segment)
            connector = None
    return kept, rewrites


def _without_words(caption: str, words: Sequence[str], language: Language) -> tuple[str, list[Rewrite]]:
    leak = pattern(words, language)
    rewrites = [
        Rewrite(word=found.group(), removed=found.group(), language=language) for found in leak.finditer(caption)
    ]
    marked = leak.sub(_GONE, caption)
    if language == "en":
        marked = _ARTICLE.sub(lambda found: _article(found.group(1), found.group(2)), marked)
    return marked.replace(_GONE, ""), rewrites


def _article(article: str, letter: str) -> str:
    """Return the article before a removed word, as the letter that now follows it wants it."""
    wanted = "an" if letter.lower() in "aeio" else "a"
    return f"{wanted if article.islower() else wanted.capitalize()} {letter}"


def _tidied(caption: str, language: Language) -> str:
    """Return the caption with the gaps closed that removed parts left behind."""
    if language == "zh":
        return re.sub(r"[，、]+(?=[，。；]|$)", "", re.sub(r"([，。；])[，、]+", r"\1", caption)).strip()
    caption = re.sub(r"\s+", " ", caption)
    caption = re.sub(r"\s+([,.;])", r"\1", caption)
    caption = re.sub(r"(?:,\s*)+([,.;])", r"\1", caption)
    return caption.strip().rstrip(",; ")

"""The leak filter's English: a shallow grammar that takes a trait out of a sentence and leaves a sentence.

Each word gets one letter for its part of speech; a noun phrase that names a trait becomes a gap, `G`. Rules that read
the letters then take the gap's preposition, verb, conjunction or clause with it: "She has G and wears a coat" becomes
"She wears a coat". No parser with a maintained model is installable as a package, and captions are plain enough for
closed classes of words plus endings (zimage/assets/english_words.yaml).

Letters: P preposition, V finite verb, B form of "be", H "has", I -ing form, E participle, C and/or/but, K comma,
S subject pronoun, D determiner, Q possessive 's, R relative pronoun, U while/when, A adverb, N any other word,
G gap, X end of a sentence, O other punctuation.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from zimage.captions.words import pattern
from zimage.core.assets import read_asset
from zimage.core.plain_yaml import load_trusted


@cache
def _grammar() -> dict[str, Any]:
    grammar: dict[str, Any] = load_trusted(read_asset("english_words.yaml"))
    return grammar


@cache
def words(name: str) -> frozenset[str]:
    """Return a list of zimage/assets/english_words.yaml, such as `persons`; `looks` holds `lasting` too."""
    found = frozenset(_grammar()[name].split())
    return found | words("lasting") if name == "looks" else found


@cache
def compounds() -> re.Pattern[str]:
    """Return what finds a noun that makes a trait before it the name of a thing: "band" in "hair band"."""
    return pattern(sorted(words("compounds")), "en")


@cache
def _closed() -> dict[str, str]:
    return {word: letter for letter, listed in _grammar()["closed"].items() for word in listed.split()}


@cache
def _participles() -> dict[str, str]:
    """Return the -ing form of each listed verb by its third person: "sits" gives "sitting"."""
    return {_third_person(base): _ing(base) for base in words("verbs")}


def _third_person(base: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh|o)$", base):
        return base + "es"
    return re.sub(r"(?<![aeiou])y$", "ie", base) + "s"


def _ing(base: str) -> str:
    if base in ("lie", "tie"):
        return f"{base[:-2]}ying"
    if base in words("doubled"):
        return f"{base}{base[-1]}ing"
    return f"{base[:-1]}ing" if re.search(r"[^eoy]e$", base) else f"{base}ing"


def participle(verb: str) -> str:
    """Return the -ing form of a verb in the third person: "sits" gives "sitting"."""
    base = re.sub(r"ie$", "y", re.sub(r"(?<=[sxzo])e$|(?<=[cs]h)e$", "", verb[:-1])) if verb.endswith("s") else verb
    return _participles().get(verb) or _ing(base)


_TENS = "twenties|thirties|forties|fifties|sixties|seventies|eighties|nineties|teens|[1-9]0'?s"
_NUMBER = (
    r"(?:\d{1,2}|(?:twenty|thirty|forty|fifty|sixty|seventy|eighty)"
    r"(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?"
    r"|eighteen|nineteen|sixteen|seventeen|fifteen|ten)"
)
AGE = re.compile(
    r"(?:(?:who|that)\s+)?(?:(?:appears|seems|looks|appearing|seeming|looking|is|appear|probably|likely|possibly|perhaps"
    r"|maybe)\s+(?:to\s+be\s+)?)*"
    rf"(?:(?:somewhere\s+)?in\s+(?:(?:his|her|their|the)\s+)?(?:(?:very\s+)?(?:early|mid|middle|late|mid-to-late)(?:\s+to\s+"
    rf"(?:early|mid|late))?[\s-]+)?(?:or\s+late\s+)?(?:(?:{_TENS})(?:\s+(?:or|to)\s+(?:early\s+|late\s+)?(?:{_TENS}))?)"
    r"(?!\s+(?:style|fashion|dress|suit|look|outfit|clothes|clothing|costume|attire|decor|diner|car|music|jacket))"
    r"|in\s+(?:(?:his|her|their)\s+)?(?:middle|old|advanced)\s+age|in\s+(?:his|her|their)\s+(?:youth|prime)"
    rf"|(?:aged?|of)\s+(?:about\s+|around\s+|roughly\s+|approximately\s+|between\s+)?{_NUMBER}(?:\s+(?:to|and|or)\s+{_NUMBER})?"
    r"(?:\s+years(?:\s+of\s+age)?)?(?![\w-])(?!\s+(?:people|guests|\w+s\b))"
    rf"|(?:about|around|roughly|approximately)?\s*{_NUMBER}(?:\s+(?:to|or)\s+{_NUMBER})?\s+years\s+(?:old|of\s+age)"
    r"|of\s+(?:a\s+)?(?:certain|advanced|indeterminate|middle)\s+age)",
    re.IGNORECASE,
)  # fmt: skip
YEAR_OLD = re.compile(rf"\b{_NUMBER}[\s-]+year[\s-]+old\b(?=\s+[a-z])", re.IGNORECASE)
LIKENESS = re.compile(
    r"(?:who\s+)?(?:(?:is\s+)?(?:closely\s+)?(?:resembl(?:es?|ing)|reminiscent\s+of|looks?\s+(?:\w+ly\s+)?like|looking\s+"
    r"(?:\w+ly\s+)?like)|with\s+an?\s+(?:striking\s+|strong\s+)?resemblance\s+to|bears?\s+an?\s+\w+\s+resemblance\s+to)"
    r"\s+(?:(?!(?:in|on|at|with|wearing|and|standing|holding|who|sits|stands)\b)[\w'’-]+\s*)+",
    re.IGNORECASE,
)
OF_COLOUR = re.compile(
    r"(?:(?<=\bwoman )|(?<=\bman )|(?<=\bperson )|(?<=\bwomen )|(?<=\bmen )|(?<=\bpeople ))of\s+colou?r\b",
    re.IGNORECASE,
)
NAMED = re.compile(r"\s+(?:named|called|known\s+as)\s+(?:[A-Z][\w'’-]+\s?)+(?<!\s)")


@dataclass(frozen=True)
class Token:
    """One word or mark of a caption.

    Args:
        text: As written; empty for a gap.
        space: True if a space goes before it.
        letter: Part of speech, see the legend on top of the module.
        trait: What the word list found in it, or "".
    """

    text: str
    space: bool
    letter: str
    trait: str = ""

    @property
    def low(self) -> str:
        """The word in small letters."""
        return self.text.lower()


_WORD = re.compile(r"\0|['’]s\b|[^\W_]+(?:(?:[-&/]|['’](?!s\b)|\.(?=\d))[^\W_]+)*|\S")
GAP = "\0"


def tokenize(text: str, traits: re.Pattern[str] | None = None) -> list[Token]:
    """Return the words and marks of a text with their letters; a word that `traits` finds is marked.

    Args:
        text: May hold gaps, `GAP` with any number.
        traits: What the word list of traits finds.
    """
    found = list(_WORD.finditer(text))
    spans = [match.span() for match in (traits.finditer(text) if traits else ())]
    spans = [(a, b) for a, b in spans if text[a:b].rsplit(maxsplit=1)[-1].lower() not in words("parts")]
    texts = [match.group() for match in found]
    tokens: list[Token] = []
    for at, match in enumerate(found):
        inside = next((text[a:b] for a, b in spans if a <= match.start() and match.end() <= b), "")
        before, after = tokens[-1] if tokens else None, texts[at + 1] if at + 1 < len(texts) else "."
        letter = "N" if inside else _letter(match.group(), before, after)
        space = match.start() > 0 and text[match.start() - 1].isspace()
        tokens.append(Token(match.group(), space, letter, inside))
    return tokens


def render(tokens: Sequence[Token], original: Sequence[Token]) -> str:
    """Return the text of what is left of `original`, with articles, capitals and spaces put right."""
    pairs = {(a.low, b.low) for a, b in itertools.pairwise(original)}
    text, upper = "", bool(original) and original[0].text[:1].isupper()
    start = True
    for at, token in enumerate(tokens):
        word = token.text
        after = tokens[at + 1].low if at + 1 < len(tokens) else ""
        if token.low in ("a", "an") and (token.low, after) not in pairs:
            word = "an" if re.match(r"(?!uni|use|euro|one)[aeiou]|hour|honest|heir", after) else "a"
        if start and token.letter not in "KX":
            word, start = (word[:1].upper() + word[1:] if upper else word), False
        if token.letter == "X" and token.text != ";":
            start = True
            upper = True
        text += (" " if token.space and text else "") + word
    return text.strip()


def _letter(word: str, before: Token | None, after: str) -> str:
    low, last = word.lower(), before.letter if before else "X"
    if word[0] == "\0":
        return "G"
    if not word[0].isalnum() and low not in ("'s", "’s"):
        return "K" if word in ",–—" else "X" if word in ".;!?…" else "O"
    if low in ("'s", "’s"):
        return "B" if last == "S" else "Q"
    follows = _closed().get(after.lower(), "N") if after[0].isalnum() else "X"
    if low == "her":
        return "D" if follows in "NA" else "N"
    if low == "as":
        return "U" if follows == "S" else "P"
    if low == "that":
        return "R" if last == "N" else "D"
    if low == "down":
        return "P" if follows in "DN" else "A"
    if low in _closed():
        return _closed()[low]
    return _open_class(low, last, before, follows)


def _open_class(low: str, last: str, before: Token | None, follows: str) -> str:
    if low.endswith("ing") and len(low) > 4 and low not in words("nouns_in_ing"):
        return "N" if last in "DQ" else "I"
    if (low.endswith("ed") and len(low) > 3 and low != "red") or low in words("irregular"):
        return "E" if follows in "PAXCUBV" and last not in "DQ" else "N"
    if low in _participles() and last in "NSRCGAKIEX" and follows != "V":
        return "V"
    plural = before is not None and last == "N" and before.low.endswith("s") and not before.low.endswith("ss")
    if low in words("verbs") and (last == "G" or (plural and follows in "PDAX") or (before and before.low == "they")):
        return "V"
    return "A" if low.endswith("ly") and low not in ("family", "curly", "ugly", "elderly", "friendly") else "N"

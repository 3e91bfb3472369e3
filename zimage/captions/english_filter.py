"""Take the identity out of an English caption: find traits, make them gaps, close the gaps."""

import re
from dataclasses import replace

from zimage.captions.english import (
    AGE,
    GAP,
    LIKENESS,
    NAMED,
    OF_COLOUR,
    YEAR_OLD,
    Token,
    compounds,
    render,
    tokenize,
    words,
)
from zimage.captions.english_gaps import Draft, close_gaps, match_length
from zimage.captions.trigger import known
from zimage.captions.words import LeakWords, pattern


def filter_english(caption: str, lists: LeakWords, noun: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the caption without traits, and (word found, text taken out) for each of them."""
    removed: list[tuple[str, str]] = []

    def gap(match: re.Match[str]) -> str:
        lead = len(match.group()) - len(match.group().lstrip())
        removed.append((match.group().strip(), match.group().strip()))
        return f"{match.group()[:lead]}{GAP}{' ' if match.group()[-1].isspace() else ''}"

    text = YEAR_OLD.sub(lambda match: re.sub(r"[\s-]+", "-", match.group()), caption)
    for one in (AGE, LIKENESS, NAMED, OF_COLOUR):
        text = one.sub(gap, text)
    original = tokenize(text, pattern(lists.segment, "en"))
    work = Draft(list(original), pattern(lists.word, "en"), noun, original, removed)
    for step in (_names, _traits, _parts, _words, _words, close_gaps):  # words twice: "an attractive brunette"
        step(work)
    return render(work.tokens, original), work.removed


def _names(work: Draft) -> None:
    """Put the class noun in the place of a given name that stands for a person."""
    names, at = known("names"), 0
    while at < len(work.tokens):
        token = work.tokens[at]
        end = at + 1
        if not (token.text[:1].isupper() and token.low in names and token.letter == "N"):
            at += 1
            continue
        while end < len(work.tokens) and work.tokens[end].text[:1].isupper() and work.tokens[end].letter == "N":
            end += 1
        before = work.tokens[at - 1] if at else None
        after = work.tokens[end].letter if end < len(work.tokens) else "X"
        place = before is not None and before.low in ("in", "at", "from", "to", "through", "near")
        if after in "NE" or (before is not None and before.letter == "D") or place:
            at = end
            continue
        work.removed.append((work.text(at, end), work.text(at, end)))
        at = _without_name(work, at, end)


def _without_name(work: Draft, at: int, end: int) -> int:
    letters = work.letters()
    if re.match(r"KD[NAI]*N", letters[end:]):  # "Angelina, a woman in a black dress, waves"
        close = re.match(r"[^XK]*", letters[end + 1 :])
        last = end + 1 + (close.end() if close else 0)
        if re.match(r"K[VBH]", letters[last:]):
            work.cut(last, last + 1)
        work.cut(at, end + 1)
        return at
    shown = at > 1 and work.tokens[at - 1].low == "of" and work.tokens[at - 2].low in words("shown")
    if shown:
        work.tokens[at:end] = [replace(work.tokens[at], text="a", letter="D"), Token(work.noun, True, "N")]
        return at + 2
    other = (at > 0 and work.tokens[at - 1].letter in "PI") or (at > 0 and work.tokens[at - 1].letter == "C")
    first = replace(work.tokens[at], text="another" if other else "the", letter="D")
    work.tokens[at:end] = [first, Token("person" if other else work.noun, True, "N")]
    return at + 2


def _traits(work: Draft) -> None:
    """Make gaps of the phrases that name a trait; take out adjectives such as "bearded" before a person."""
    at = 0
    while at < len(work.tokens):
        token = work.tokens[at]
        if not token.trait or token.low in words("parts"):
            at += 1
            continue
        end = at + 1
        while (
            end < len(work.tokens)
            and work.tokens[end].trait == token.trait
            and work.tokens[end].low not in words("parts")
            and len(token.trait.split()) > end - at
        ):
            end += 1
        at = _trait(work, at, end)


def _trait(work: Draft, at: int, end: int) -> int:
    """Handle the trait at tokens `at` to `end`; return where to look next."""
    tokens = work.tokens
    after = tokens[end] if end < len(tokens) else None
    if after is not None and compounds().fullmatch(after.text) and not after.trait:
        return end
    if re.search(r"(?:ed|shaven|ing)$", tokens[end - 1].low) and after is not None and after.letter == "N":
        head = end
        while head + 1 < len(tokens) and tokens[head + 1].letter == "N":
            head += 1
        if any(tokens[one].trait and tokens[one].low not in words("parts") for one in range(end, head + 1)):
            return end
        if any(tokens[one].low in words("others") for one in range(end, head + 1)):
            return end
        if tokens[at].low in words("things_too") and not any(
            tokens[one].low in words("persons") for one in range(end, head + 1)
        ):
            return end
        work.cut(at, end, word=tokens[at].trait)
        _join_adjectives(work, at)
        return at
    left, right = _left(work, at), _right(work, end)
    if _others(work, left):
        return end
    _mark_verb(work, left)
    work.cut(left, right, gap=True, word=work.text(at, end))
    return left + 1


def _mark_verb(work: Draft, left: int) -> None:
    """Mark a verb that no list names before a trait: "a man scratches his beard"."""
    before = work.tokens[left - 1] if left else None
    if (
        before is not None
        and before.letter == "N"
        and before.low.endswith("s")
        and work.tokens[left].low in ("his", "her", "their")
    ):
        work.tokens[left - 1] = replace(before, letter="V")


def _join_adjectives(work: Draft, at: int) -> None:
    """Close up where an adjective went at `at`: "a tall and slim man", "a young, smiling woman"."""
    tokens = work.tokens
    before = tokens[at - 1].letter if at else "X"
    if at < len(tokens) and tokens[at].letter in "KC" and before not in "N":
        work.cut(at, at + 1)
    elif at and before in "KC" and at < len(tokens) and tokens[at].letter == "N":
        at_start = at < 2 or tokens[at - 2].letter in "DX"
        if (
            at_start
            or (before == "C" and tokens[at - 2].letter == "N" and tokens[at].low in words("persons"))
            or (
                before == "K"
                and tokens[at].low in words("persons")
                and tokens[at - 2].letter in "IEN"
                and at > 2
                and tokens[at - 3].letter == "D"
            )
        ):
            work.cut(at - 1, at)


def _left(work: Draft, at: int) -> int:
    """Return where the noun phrase begins whose head is at `at`."""
    tokens, left = work.tokens, at
    while left:
        before = tokens[left - 1]
        two = tokens[left - 2] if left > 1 else None
        if (
            (before.letter == "N" and before.low not in words("persons"))
            or before.low in words("looks")
            or before.low in words("hair_does")
            or (before.letter == "A" and before.low.endswith("ly"))
        ):
            left -= 1
        elif (
            before.letter in "KC"
            and two is not None
            and two.low in words("looks")
            and tokens[left].low in words("looks") | words("hair_does")
        ):
            left -= 2
        elif before.letter == "D":
            left -= 1
            if left > 1 and tokens[left - 1].low == "of" and tokens[left - 2].low in words("quantities"):
                left -= 2
                continue
            return left
        elif before.low == "of" and two is not None and two.low in words("quantities"):
            left -= 2
        else:
            break
    return left


def _others(work: Draft, left: int) -> bool:
    """Return whether the phrase that begins at `left` belongs to a doll, a child, a dog or a picture."""
    tokens = work.tokens
    if left < 2:
        return False
    lead, owner = tokens[left - 1], tokens[left - 2]
    if lead.letter == "Q" or lead.low in ("with", "of", "has", "having"):
        return owner.low in words("others")
    return False


def _right(work: Draft, end: int) -> int:
    """Return the end of the words that belong to a trait: "hair tied back in a bun", "scar on his cheek"."""
    end = _adjectives_after(work, end)
    letters, tokens = work.letters() + "X", work.tokens
    while end < len(tokens):
        start, rest = end, letters[end:]
        comma = 1 if rest[0] == "K" else 0
        following = tokens[end + comma] if end + comma < len(tokens) else None
        if following is not None and following.letter in "EIAN" and following.low in words("hair_does"):
            end += comma + 1
            end += match_length(r"A*(?:D?N+)?", letters[end:])
        elif rest[0] == "P":
            end += _place_length(work, end, match_length(r"P+[DNAQ]*", rest))
        elif rest[0] == "R" and tokens[end].low in ("that", "which"):
            end += match_length(r"R[VBH][EA]*(?:P?[DNA]+)*", rest)
        elif rest[0] == "A":
            end += 1
        if end == start:
            break
    return end


def _adjectives_after(work: Draft, end: int) -> int:
    """Return the end of adjectives between commas: "hair, long and blonde, is covered"."""
    letters, last = work.letters() + "X", end + 1
    if letters[end] != "K":
        return end
    while last < len(work.tokens) and (work.tokens[last].low in words("looks") or letters[last] in "KC"):
        last += 1
    found = last > end + 1 and letters[last] in "VBHX" and work.tokens[end + 1].low in words("looks")
    return last if found else end


def _place_length(work: Draft, end: int, length: int) -> int:
    """Return the length of a phrase of place if it names a part of the body or another trait, else 0."""
    inside = work.tokens[end : end + length]
    of_trait = any(one.low in words("body") or (one.trait and one.low not in words("parts")) for one in inside)
    return length if of_trait or (inside[0].low == "of" and length > 1) else 0


def _parts(work: Draft) -> None:
    """Take out lasting descriptions of parts of the body: "with blue eyes", "blue" in "her blue eyes close"."""
    at = 0
    while at < len(work.tokens):
        tokens = work.tokens
        token = tokens[at]
        after = tokens[at + 1] if at + 1 < len(tokens) else None
        if token.low not in words("parts") or token.letter != "N" or (after and compounds().fullmatch(after.text)):
            at += 1
            continue
        first = at
        while first and (
            (tokens[first - 1].letter in "N" and tokens[first - 1].low not in words("persons"))
            or tokens[first - 1].low in words("looks")
        ):
            first -= 1
        described = [one for one in range(first, at) if work.lasting(one)]
        at = _described(work, at, described) if described else _predicate(work, at)


def _predicate(work: Draft, at: int) -> int:
    """Make a gap of a part that "is" what it is: "her eyes are blue"."""
    says = re.match(r"(?:B|V)A*([NE])(?:[KCXPU]|$)", work.letters()[at + 1 :] + "X")
    if says and work.lasting(at + 1 + says.start(1)) and (work.tokens[at + 1].letter == "B"):
        left = _left(work, at)
        work.cut(left, at + 1, gap=True, word=work.text(left, at + 1 + says.end(1)))
        return left + 1
    return at + 1


def _described(work: Draft, at: int, described: list[int]) -> int:
    tokens = work.tokens
    left = _left(work, at)
    if _others(work, left):
        return at + 1
    lead = tokens[left - 1] if left else None
    after = work.letters()[at + 1 : at + 2] or "X"
    says = " ".join(tokens[one].text for one in described) + f" {tokens[at].text}"
    following = tokens[at + 1].low if at + 1 < len(tokens) else ""
    listed = re.search(r"([PHIVB])(?:[DNAG]+K?C?)*$", work.letters()[:left])
    lead = tokens[listed.start(1)] if lead is not None and lead.letter in "KC" and listed else lead
    owned = lead is not None and (lead.low in ("with", "of") or lead.letter == "H")
    subject = following in words("states") or (not owned and after in "VBIEA" and following not in words("person_does"))
    if lead is not None and left and tokens[left - 1].letter == "N":
        _mark_verb(work, left)
        lead = tokens[left - 1]
    mine = (
        tokens[left].low in ("his", "her", "their", "the")
        and lead is not None
        and lead.letter in "PIV"
        and not re.match(r"with$|of$|show|reveal|featur|display|hav|highlight|accentuat|emphasi|enhanc", lead.low)
    )
    if subject or mine:
        for one in reversed(described):
            work.cut(one, one + 1, word=tokens[one].text)
            at -= 1
            if work.tokens[one].letter in "KC":
                work.cut(one, one + 1)
                at -= 1
        return at + 1
    right = _right(work, at + 1)
    _mark_verb(work, left)
    work.cut(left, right, gap=True, word=says)
    return left + 1


def _words(work: Draft) -> None:
    """Take out words of age, origin and build where they describe a person."""
    text = work.text(0, len(work.tokens))
    at = (
        0
        if work.words.search(text) or re.search(r"\b(?:white|black|brown)\b", text, re.IGNORECASE)
        else len(work.tokens)
    )
    while at < len(work.tokens):
        found = 0
        for length in (3, 2, 1):
            text = work.text(at, at + length)
            if at + length <= len(work.tokens) and work.words.fullmatch(text):
                found = length
                break
        token = work.tokens[at]
        if (
            not found
            and token.low in ("white", "black", "brown")
            and at + 1 < len(work.tokens)
            and (
                work.tokens[at + 1].low in words("persons")
                or (work.is_word(at + 1) and _head(work, at + 1) == "person")
            )
        ):
            found = 1
        at = _word(work, at, at + found) if found else at + 1


def _head(work: Draft, end: int) -> str:
    """Return "person", "other" or "thing": what the words before `end` describe."""
    tokens, at = work.tokens, end
    while at < len(tokens) and at < end + 6:
        token = tokens[at]
        if token.low in words("others"):
            return "other"
        if token.low in words("persons"):
            return "person"
        if token.letter in "KC" and (at == end or tokens[at - 1].low in words("looks") or work.is_word(at - 1)):
            if at + 1 >= len(tokens) or tokens[at + 1].letter not in "NIA":
                return "thing"
        elif token.letter not in "NAI" or (token.letter == "I" and at > end and tokens[at - 1].letter not in "KCNA"):
            return "thing"
        at += 1
    return "thing"


def _word(work: Draft, at: int, end: int) -> int:
    tokens, letters = work.tokens, work.letters() + "X"
    word = work.text(at, end)
    start = at
    while start and (tokens[start - 1].low in words("degrees")):
        start -= 1
    head = _head(work, end)
    before, after = (letters[start - 1] if start else "X"), letters[end]
    if head == "person":
        work.cut(start, end, word=word)
        _join_adjectives(work, start)
        return start
    if head == "other" and after == "N":
        return end
    chained = before in "KC" and start > 1 and letters[start - 2] in "G"
    if (
        (before in "BKX" or chained or (before == "V" and tokens[start - 1].low in ("looks", "appears", "seems")))
        and after in "KCXPU"
        and (before != "X" or after in "KC")
    ):
        work.cut(start, end, gap=True, word=word)
        return start + 1
    if (
        before == "C"
        and after in "KXU"
        and start > 1
        and letters[start - 2] in "NIEA"
        and re.search(r"B[NIEAKC]*$", letters[:start])
    ):
        work.cut(start, end, gap=True, word=word)
        return start + 1
    left = start
    while left and letters[left - 1] == "N" and (work.lasting(left - 1) or tokens[left - 1].low in words("looks")):
        left -= 1
    if (
        left
        and letters[left - 1] == "D"
        and after in "PIVRKXEBQCU"
        and tokens[left - 1].low in ("a", "an", "the", "this", "that")
    ):
        work.removed.append((word, f"{word} → {work.noun}"))
        tokens[at:end] = [replace(tokens[at], text=work.noun, letter="N")]
        return at + 1
    return end

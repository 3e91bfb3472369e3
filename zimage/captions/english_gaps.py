"""Close the gaps that removed traits leave in an English sentence, so that what is left is a sentence.

Rules read the letters of the words (zimage/captions/english.py), in which a removed phrase is `G`.
"""

import re
from dataclasses import dataclass, field, replace

from zimage.captions.english import Token, words

Tokens = list[Token]


@dataclass
class Draft:
    """A caption that is being cleaned.

    Args:
        tokens: What is left of it.
        words: What finds a word of age, origin or build.
        noun: The class noun.
        original: All tokens of the caption.
        removed: The word found and the text taken out, for each change.
    """

    tokens: Tokens
    words: re.Pattern[str]
    noun: str
    original: Tokens
    removed: list[tuple[str, str]] = field(default_factory=list)

    def letters(self) -> str:
        """Return the letters of the tokens that are left."""
        return "".join(token.letter for token in self.tokens)

    def text(self, start: int, end: int) -> str:
        """Return the text of tokens `start` to `end`."""
        return "".join((" " if token.space else "") + token.text for token in self.tokens[start:end]).strip()

    def cut(self, start: int, end: int, gap: bool = False, word: str = "") -> None:
        """Take out tokens `start` to `end`; leave a gap in their place if asked; record it where a word says why."""
        if word:
            self.removed.append((word, self.text(start, end)))
        self.tokens[start:end] = [Token("", self.tokens[start].space, "G")] if gap else []

    def is_word(self, at: int) -> bool:
        """Return whether a token is a word of age, origin or build."""
        return bool(self.words.fullmatch(self.tokens[at].text))

    def lasting(self, at: int) -> bool:
        """Return whether a token describes a part of the body for good."""
        token = self.tokens[at]
        return token.low in words("lasting") or self.is_word(at) or bool(token.trait)


# Each rule deletes the groups whose name begins with d; where a group is named "be", that verb becomes "is".
_SUBJECT = r"(?:S|D[NA]+)"
_SAYS = r"A*(?:[HVB][AE]*|BA*EP)A*G"  # "has G", "is G", "is framed by G"
_RULES: tuple[str, ...] = (
    r"(?P<d>G(?:K?C|K)A*)(?=G)",
    r"(?P<d>G)(?=G)",
    # "has G in a park", "She has G, wearing": the verb becomes "is".
    rf"(?:^|(?<=[XU])){_SUBJECT}A*(?P<be>[HV])A*(?P<d>GK?)(?=[IP])",
    # A whole sentence about a trait, or a clause after "and" or a comma.
    rf"(?:^|(?<=X))(?P<d>[KC]*{_SUBJECT}{_SAYS}X*)$",
    rf"(?:^|(?<=X))(?P<d>[KC]*{_SUBJECT}{_SAYS}X)",
    rf"(?:^|(?<=X))(?P<d>[KC]*{_SUBJECT}{_SAYS}(?:KC?|C))(?=[SD][NA]*[VBH])",
    rf"(?:^|(?<=X))(?P<d>{_SUBJECT}{_SAYS}K?U)(?=S)",
    rf"(?P<d>(?:KC?|C|U){_SUBJECT}{_SAYS})(?=[KXCU]|$)",
    r"(?<=K)(?P<d>GK?C)(?=[IEP])",
    r"(?<=B)(?P<d>P?GK?)(?=E)",
    r"(?P<d>RA*[HVB]A*G)(?=K)",
    # "with G and a scarf", "is G and smiling", "has G, a coat and a hat"
    r"(?<=[PHIV])(?P<d>GK?C)(?=[DNA]+(?:[KXCPIEUVBH]|$))",
    r"(?<=[PHIV])(?P<d>GK)(?=[DNA]+(?:[KXC]|$))",
    r"(?<=B)(?P<d>GK?C?)(?=[NIEAD])",
    r"(?<=B)(?P<d>G)(?=P)",
    r"(?P<d>[BHV]A*GK?C)(?=A*[VHB])",
    r"(?<=[SN])(?P<d>GK?C)(?=A*[VHB])",
    r"(?P<d>CPA*G)(?=[VHBKX]|$)",
    # a relative clause: "who has G", "who is G and wears"
    r"(?P<d>RA*[HVB]A*G)(?![KC]*[VHBIE])",
    r"(?<=R)(?P<d>A*[HVB]A*GK?C)(?=A*[VHBIE])",
    r"(?P<d>RA*[HVB]A*G)",
    r"(?P<d>R[NA]*G[VBH]A*[EIN]*(?:P[DNA]+)*)(?=[VBHKXC]|$)",
    # "with G and wears": the conjunction goes unless a verb goes before it
    r"(?:(?<=[^VI])|^)(?P<d>PGK?C)(?=[VHI])",
    r"(?P<d>KA*[PI]A*GK)(?=[VBH])",
    r"(?P<d>KGK)(?=[VBH])",
)
_TAIL = (
    r"(?P<d>K?CA*G)(?=[KXCPIEURA]|$)",
    r"(?P<d>PA*GK?C)(?=P)",
    r"^(?P<d>[PI]A*GK)(?=[SDN])",
    r"(?<=X)(?P<d>[PI]A*GK)(?=[SDN])",
    r"(?P<d>[PIE]A*G)",
    r"(?P<d>[VHB]A*G)",
)


def close_gaps(work: Draft) -> None:
    """Take out what a gap leaves without a meaning: its preposition, verb, conjunction or clause."""
    for _ in range(4 * len(work.tokens) + 4):
        letters = work.letters()
        if "G" not in letters:
            break
        if (
            not any(_apply(work, rule) for rule in _RULES)
            and not _clause(work)
            and not any(_apply(work, rule) for rule in _TAIL)
        ):
            at = letters.index("G")
            work.cut(at, at + 1)
    _drop_broken(work)
    for rule in (
        r"(?:^|(?<=X))[DNA]+(?P<d>K)(?=[VBH])",
        r"(?:^|(?<=X))[DNA]+(?P<d>U)(?=I)",
        r"(?:^|(?<=X))(?P<d>[KC]+)(?!X)",
        r"(?:^|(?<=X))(?P<d>[KCU]+X)",
        r"(?P<d>[KC]+)(?=X)",
        r"(?P<d>K)(?=K)",
        r"(?P<d>[KC]+)$",
    ):
        while _apply(work, rule):
            pass


_BROKEN = re.compile(r"D(?=[KXVBHCPU]|$)|B(?=[KCVX]|$)|H(?=[VBKXP]|$)|P(?=[KXVBC]|$)|C(?=X|$)|(?:^|(?<=X))[VBH]")


_END = Token("", False, "X")


def _drop_broken(work: Draft) -> None:
    """Take out the part between commas that is broken although nothing of the kind was in the caption before."""
    pairs = {(a.low, b.low) for a, b in zip(work.original, [*work.original[1:], _END], strict=True)}
    while new := [
        found.start()
        for found in _BROKEN.finditer(work.letters())
        if (work.tokens[found.start()].low, [*work.tokens, _END][found.start() + 1].low) not in pairs
    ]:
        at, letters = new[-1], work.letters()
        start = max(letters.rfind("K", 0, at), letters.rfind("X", 0, at)) + 1
        end = next((one for one in range(at + 1, len(letters)) if letters[one] in "KX"), len(letters))
        if start and letters[start - 1] == "K":
            start -= 1
        else:
            end = min(end + 1, len(letters))
        work.cut(start, end)


def match_length(rule: str, letters: str) -> int:
    """Return how many letters a rule matches at the beginning of `letters`; 0 if it does not match."""
    found = re.match(rule, letters)
    return found.end() if found else 0


def _apply(work: Draft, rule: str) -> bool:
    found = re.search(rule, work.letters())
    if found is None:
        return False
    names = found.groupdict()
    if names.get("be"):
        at = found.start("be")
        subject = work.tokens[at - 1].low
        work.tokens[at] = replace(work.tokens[at], text="are" if subject == "they" else "is", letter="B")
    work.cut(*found.span("d"))
    return True


def _clause(work: Draft) -> bool:
    """Take out the clause whose subject is a gap: "her hair falls over her shoulders", "her hair tied back"."""
    found = re.search(r"(?:^|(?<=[XKCUQ]))G(?=[VBHIEAN])", work.letters())
    if found is None:
        return False
    at, letters = found.start(), work.letters()
    end = _clause_end(work, at)
    before, rest = letters[at - 1] if at else "X", letters[end:]
    if before == "Q":
        _cut_owned(work, at, end)
        return True
    start = at
    if before in "KCU" and rest[:1] in ("", "X", "K", "C", "U"):
        start -= 1
        if start and letters[start - 1] == "K":
            start -= 1
        if rest[:2] in ("KV", "KB", "KH") and letters[start] == "K":
            end += 1
    elif before == "X":
        end += match_length(r"X|[KCU]*", rest)
    work.cut(start, end)
    return True


def _clause_end(work: Draft, at: int) -> int:
    """Return where the clause ends whose subject is the gap at `at`."""
    letters, end = work.letters(), at + 1
    finite = bool(re.match(r"A*[VBH]", letters[end:]))
    owned = at > 0 and letters[at - 1] == "Q"
    while end < len(letters) and letters[end] != "X":
        rest = letters[end:]
        goes_on = letters[end] == "K" and end + 1 < len(letters) and work.tokens[end + 1].low in words("hair_does")
        if not goes_on and (letters[end] == "U" or re.match(r"K?C(?:S|D[NA]+[VBH])|K(?:C?[SIEPU]|D)|K?CI", rest)):
            break
        if (not finite and letters[end] in "KVBH") or (finite and owned and re.match(r"KC?[VHB]", rest)):
            break
        end += 1
    return end


def _cut_owned(work: Draft, at: int, end: int) -> None:
    """Take out a clause about "the woman's G": what goes on about the woman keeps "the woman is"."""
    letters = work.letters()
    rest, start = letters[end:], at - 1
    goes_on = re.match(r"[KC]*(?=[IPE])", rest)
    if goes_on:
        work.cut(start, end + goes_on.end())
        work.tokens.insert(start, Token("is", True, "B"))
        return
    if not re.match(r"K?C?(?:U|S|D|X|$)", rest):
        work.cut(start, end)
        return
    while start and letters[start - 1] in "DN":
        start -= 1
    begins = start == 0 or letters[start - 1] == "X"
    if begins:
        end += match_length(r"X|[KCU]*", rest)
    elif letters[start - 1] in "KC":
        start -= 1
    work.cut(start, end)

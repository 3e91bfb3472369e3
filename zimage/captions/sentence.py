"""Turn a free description into a caption: subject first, 20 to 60 words."""

import re
from dataclasses import replace

from zimage.captions.english import Token, participle, render, tokenize, words
from zimage.captions.subject import Subject
from zimage.captions.template import Language, opening
from zimage.captions.template import subject as named

LEAST_WORDS, MOST_WORDS = 20, 60

_EN_PREAMBLE = re.compile(
    r"^(?:this\s+is\s+)?(?:(?:this|the|an?)\s+)?(?:[\w-]+\s+){0,3}?(?:image|picture|photo|photograph|portrait|close-up|selfie|scene|shot)\s+"
    r"(?:shows?|depicts?|features?|captures?|presents?|is\s+of|of)\s+",
    re.IGNORECASE,
)
_EN_PERSON = re.compile(
    r"^(?:(?:(?:an?|the)\s+)?((?:[\w-]+,?\s+){0,5}?)(?:woman|man|person|lady|girl|boy|guy|gentleman|individual|subject)|she|he|they)"
    r"\b(?!['’])[,\s]*",
    re.IGNORECASE,
)
_ZH_PREAMBLE = re.compile(
    r"^(?:这张|这是一张|一张|该|这幅|图中|画面中|图片中)*(?:照片|图片|图像|画面|肖像|特写)?"
    r"(?:展示了|显示了|拍摄了|中是|是|中|里|，)*"
)
_ZH_PERSON = re.compile(
    r"^(?:一个|一位|一名)?([^，。；、]{0,8}?)的?"
    r"(?:她|他|女人|男人|女子|男子|女性|男性|女士|先生|女孩|男孩|人物|人)[，、]?"
)


def begun_with_subject(text: str, subject: Subject, language: Language) -> str:
    """Return a description with "a photo of <trigger> <class noun>" in the place of its own beginning.

    What the person does becomes a participle: "A woman in red stands in a park" is "a photo of ohzw woman, in red,
    standing in a park". A first sentence about something else follows the opening as a sentence. A caption that begins
    with the opening comes back unchanged.
    """
    text = " ".join(text.split()).strip("\"'“”` ")
    start = opening(named(subject.trigger, subject.class_noun, language), language)
    if text.startswith(start):
        return text
    preamble, person = (_EN_PREAMBLE, _EN_PERSON) if language == "en" else (_ZH_PREAMBLE, _ZH_PERSON)
    text = preamble.sub("", text)
    found = person.match(text)
    if found:
        text = _joined((found.group(1) or "").strip(" ,"), text[found.end() :], language)
    if language == "en":
        clause = re.match(r"[NDAQ]*(?:P[DNA]+)*A*[VBH]", "".join(token.letter for token in tokenize(text)))
        if clause and not found and clause.group()[0] in "DN":
            return f"{start}. {text[:1].upper()}{text[1:]}"
        text = _with_participles(text)
    return _joined(start, text[:1].lower() + text[1:], language)


def _with_participles(text: str) -> str:
    """Return the first sentence of a text, whose subject stands before it, with participles for its finite verbs."""
    tokens = tokenize(text)
    original = list(tokens)
    if (
        tokens
        and tokens[0].letter == "N"
        and re.search(r"[^s]s$", tokens[0].low)
        and len(tokens) > 1
        and tokens[1].letter in "DPAN"
    ):
        tokens[0] = replace(tokens[0], letter="V")  # a verb that no list names: "A man orders noodles"
    letters = "".join(token.letter for token in tokens)
    result: list[Token] = []
    relative, at = False, 0
    while at < len(tokens) and letters[at] not in "XU":
        token = tokens[at]
        again = re.match(r"[KC]+(S|D[NA]*N|(?=D))(?=A*[VBH])", letters[at:])
        if again and at:
            last = tokens[at + again.start(1) : at + again.end(1)]
            if last and last[-1].low not in ("she", "he", "they", *words("persons")):
                break
            result += tokens[at : at + again.start(1)]
            at += again.end(1)
            continue
        relative = relative or token.letter == "R"
        if token.letter not in "VBH" or relative:
            relative = relative and token.letter not in "VBH"
            result.append(token)
        elif token.letter == "H":
            result.append(replace(token, text="with", letter="P"))
        else:
            if result and result[-1].letter not in "KCA":
                result.append(Token(",", False, "K"))
            if token.letter == "V":
                result.append(replace(token, text=participle(token.low), letter="I", space=True))
        at += 1
    return render([*result, *tokens[at:]], original)


def fitted(caption: str, fallback: str, language: Language) -> str:
    """Return the caption, cut to at most 60 words; one of fewer than 20 words is extended by parts of `fallback`.

    Args:
        caption: Begins with the subject.
        fallback: The template's caption of the same picture.
        language: Chinese counts characters.
    """
    comma = ", " if language == "en" else "，"
    for part in fallback.split(comma)[1:]:
        if count_words(caption, language) >= LEAST_WORDS:
            break
        caption = f"{caption.rstrip('.。,，；; ')}{comma}{part}"
    if count_words(caption, language) <= MOST_WORDS:
        return caption
    pieces = re.split(r"(?<=[,.;，。；、])", caption)
    shortened = pieces[0]
    for piece in pieces[1:]:
        if count_words(shortened + piece, language) > MOST_WORDS:
            break
        shortened += piece
    return shortened.rstrip(" ,;，；、")


def count_words(caption: str, language: Language) -> int:
    """Return the number of words, or of Chinese characters plus Latin words."""
    if language == "en":
        return len(re.findall(r"[\w'-]+", caption))
    return len(re.findall(r"[\u4e00-\u9fff]|[A-Za-z0-9]+", caption))


def _joined(start: str, rest: str, language: Language) -> str:
    comma = ", " if language == "en" else "，"
    return comma.join(part for part in (start, rest.strip(" ,，、")) if part)

"""Turn a free description into a caption: subject first, 20 to 60 words."""

import re

from zimage.captions.subject import Subject
from zimage.captions.template import Language, opening
from zimage.captions.template import subject as named

LEAST_WORDS, MOST_WORDS = 20, 60

_EN_PREAMBLE = re.compile(
    r"^(?:(?:this|the|an?)\s+)?(?:image|picture|photo|photograph|portrait|close-up|scene)\s+"
    r"(?:shows?|depicts?|features?|captures?|presents?|is\s+of|of)\s+",
    re.IGNORECASE,
)
_EN_PERSON = re.compile(
    r"^(?:(?:an?|the)\s+)?((?:[\w-]+,?\s+){0,5}?)(?:woman|man|person|lady|girl|boy|guy|gentleman|individual)\b[,\s]*",
    re.IGNORECASE,
)
_ZH_PREAMBLE = re.compile(
    r"^(?:这张|这是一张|一张|该|这幅|图中|画面中|图片中)*(?:照片|图片|图像|画面|肖像|特写)?"
    r"(?:展示了|显示了|拍摄了|中是|是|中|里|，)*"
)
_ZH_PERSON = re.compile(
    r"^(?:一个|一位|一名)?([^，。；、]{0,8}?)的?"
    r"(?:女人|男人|女子|男子|女性|男性|女士|先生|女孩|男孩|人物|人)[，、]?"
)


def begun_with_subject(text: str, subject: Subject, language: Language) -> str:
    """Return a description with "a photo of <trigger> <class noun>" in the place of its own beginning."""
    text = " ".join(text.split()).strip("\"'“”` ")
    preamble, person = (_EN_PREAMBLE, _EN_PERSON) if language == "en" else (_ZH_PREAMBLE, _ZH_PERSON)
    text = preamble.sub("", text)
    found = person.match(text)
    if found:
        text = _joined(found.group(1).strip(" ,"), text[found.end() :], language)
    start = opening(named(subject.trigger, subject.class_noun, language), language)
    return _joined(start, text[:1].lower() + text[1:], language)


def fitted(caption: str, fallback: str, language: Language) -> str:
    """Return the caption with at most 60 words, and with the parts of `fallback` it lacks where it has fewer than 20.

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
    kept = pieces[0]
    for piece in pieces[1:]:
        if count_words(kept + piece, language) > MOST_WORDS:
            break
        kept += piece
    return kept.rstrip(" ,;，；、")


def count_words(caption: str, language: Language) -> int:
    """Return the number of words, or of Chinese characters plus Latin words."""
    if language == "en":
        return len(re.findall(r"[\w'-]+", caption))
    return len(re.findall(r"[\u4e00-\u9fff]|[A-Za-z0-9]+", caption))


def _joined(start: str, rest: str, language: Language) -> str:
    comma = ", " if language == "en" else "，"
    return comma.join(part for part in (start, rest.strip(" ,，、")) if part)

"""Rows of the caption stage's output."""

from zimage.core.jsonl import Row


class Rewrite(Row):
    """A part of a caption that told the identity and was taken out before training."""

    word: str
    """The word or phrase that was found, as written in the caption."""
    removed: str
    """What was taken out, or the word that was put in its place after an arrow."""
    language: str


class CaptionRow(Row):
    """All captions of one training crop."""

    file: str
    """The crop, as detect names it."""
    captions: list[str]
    """All are used in training, each in its turn; one per language, or as many lines as a person wrote."""
    captioner: str
    """Who wrote them: "template", "vlm <model> <identity>" or "person"."""
    rewrites: list[Rewrite]

"""Rows of the caption stage's output."""

from zimage.core.jsonl import Row


class Rewrite(Row):
    """A part of a caption that described the identity and was removed before training."""

    word: str
    """The word or phrase that was found, as written in the caption."""
    removed: str
    """The text that was removed; with an arrow, the word that replaced it."""
    language: str


class CaptionRow(Row):
    """All captions of one training crop."""

    file: str
    """Name of the crop in the detect stage's output."""
    captions: list[str]
    """Training uses all of them in turn: one per language, or every line that a person wrote."""
    captioner: str
    """What wrote them: "template", "vlm <model> <identity>" or "person"."""
    rewrites: list[Rewrite]

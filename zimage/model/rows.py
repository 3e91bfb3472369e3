"""Rows of the encode stage's output: latents of each picture and states of each text."""

from typing import Literal

from pydantic import Field

from zimage.core.jsonl import Row


class ItemRow(Row):
    """One picture as latents."""

    item: str
    """Names its tensors: `<item>.mean` and `<item>.std` in latents.safetensors, `<item>` in masks.safetensors."""
    file: str
    """The crop, as detect names it, or the class picture's file name."""
    photo: str
    """The photo it is of, as detect names it; empty for a class picture."""
    role: Literal["subject", "class"]
    """Whom it shows: the person who is learnt, or others of the same class."""
    mirrored: bool
    """Left and right are exchanged, in the picture and in its captions."""
    width: int
    """In px."""
    height: int
    """In px."""
    texts: list[str]
    """Its captions in texts.jsonl; used in rotation."""
    class_texts: list[str]
    """The same captions without the trigger."""
    mask: bool
    """Whether masks.safetensors tells where its face is."""
    repeats: int = Field(default=1, ge=1)
    """How often it comes in a round of training, in which another one comes once."""
    weight: float = Field(default=1.0, gt=0)
    """What its loss is multiplied with."""


class TextRow(Row):
    """One text as states of the text encoder."""

    text: str
    """Names its tensor in texts.safetensors."""
    prompt: str
    """What it says."""
    tokens: int
    """How many tokens it takes, chat template included."""
    sample: bool
    """Sample pictures are made of it while training runs."""

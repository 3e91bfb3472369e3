"""Prompt suites, kept in the repository so that scores of different days can be compared."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from zimage.captions.subject import Subject
from zimage.captions.template import ClassNoun, Language
from zimage.captions.template import subject as named
from zimage.core.assets import asset
from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_plain
from zimage.core.section import Section, checked

Kind = Literal["likeness", "leak_class", "leak_other", "leak_two"]
Half = Literal["selection", "test", "leak"]

FOLDER = asset("suites")
OTHER: dict[ClassNoun, ClassNoun] = {"woman": "man", "man": "woman", "person": "woman"}


class Prompt(Section):
    """One prompt, with placeholders for the subject."""

    id: str
    """Unique in the suite; names the pictures."""
    kind: Kind
    """likeness: the subject is wanted; leak_*: somebody else is."""
    aspect: str
    """What it asks for, such as profile or low light; results are shown by aspect."""
    language: Language
    """The language of the text."""
    text: str
    """With {subject}, {class} or {other} in it."""


class Suite(Section):
    """A file of prompts."""

    prompts: list[Prompt]
    """In the order in which they are shown."""


def read_suite(name: str) -> list[Prompt]:
    """Return the prompts of a packaged suite (`demo`, `full`) or of a YAML file.

    Raises:
        InputError: there is no such suite, it is not valid, or two prompts share an id.
    """
    path = FOLDER / f"{name}.yaml" if (FOLDER / f"{name}.yaml").is_file() else Path(name)
    if not path.is_file():
        packaged = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise InputError(f"There is no prompt suite `{name}`; name one of {packaged} or a YAML file in evaluate.suite.")
    prompts = checked(load_plain(path.read_text(encoding="utf-8")), Suite, str(path)).prompts
    twice = [name for name, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if twice:
        raise InputError(f"{path}: the id {twice[0]} stands at two prompts; give each its own.")
    if sum(prompt.kind == "likeness" for prompt in prompts) < 4:
        raise InputError(f"{path} has fewer than 4 prompts of kind likeness; half of them choose and half report.")
    return prompts


def with_subject(prompt: Prompt, subject: Subject) -> str:
    """Return the prompt as the LoRA is asked."""
    return _filled(prompt, named(subject.trigger, subject.class_noun, prompt.language), subject.class_noun)


def without_trigger(prompt: Prompt, class_noun: ClassNoun) -> str:
    """Return the prompt as the base model is asked: the class noun stands for the subject."""
    return _filled(prompt, named("", class_noun, prompt.language), class_noun)


def halves(prompts: Sequence[Prompt]) -> dict[str, Half]:
    """Return for each prompt's id the half it belongs to; every aspect is spread over both halves.

    What is chosen on one half and reported on it too would flatter: the best of several is partly the luckiest.
    """
    seen: Counter[str] = Counter()
    aspects = list(dict.fromkeys(prompt.aspect for prompt in prompts))
    sides: dict[str, Half] = {}
    for prompt in prompts:
        turn = seen[prompt.aspect] + aspects.index(prompt.aspect)
        seen[prompt.aspect] += 1
        sides[prompt.id] = "leak" if prompt.kind != "likeness" else ("test", "selection")[turn % 2]
    return sides


def _filled(prompt: Prompt, who: str, class_noun: ClassNoun) -> str:
    return prompt.text.format(
        **{
            "subject": who,
            "class": named("", class_noun, prompt.language),
            "other": named("", OTHER[class_noun], prompt.language),
        }
    )

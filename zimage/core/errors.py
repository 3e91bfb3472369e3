"""Errors that a user can cause, and how they name things; all others keep their traceback."""

from collections.abc import Sequence


class InputError(ValueError):
    """Something the user gave cannot be used: one sentence with what was expected, what was found and the remedy.

    The command line prints it without a traceback and ends with exit code 2. Prefect shows it in run states, events and
    notifications, and keeps events after a person was forgotten: it names no photo and no figure of a likeness.

    Args:
        sentence: What is wrong.
        names: A second sentence for terminal and log only: names of photos, or the reasons of a verdict.
    """

    def __init__(self, sentence: str, *, names: str = "") -> None:
        super().__init__(sentence)
        self.names = names


def first_of(texts: Sequence[str], most: int) -> str:
    """Return the first `most` of some texts for a sentence, and how many more there are."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def printable(text: str) -> str:
    """Return a text whose control characters, but for line ends, are escaped: names of files may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)

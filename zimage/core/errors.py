"""Errors that a user can cause; all others keep their traceback."""


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


def printable(text: str) -> str:
    """Return a text whose control characters, but for line ends, are escaped: names of files may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)

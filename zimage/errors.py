"""The errors a user can cause. Everything else is ours and keeps its traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used: one sentence with what was expected, what was found and the remedy.

    The command line prints it without a traceback and ends with exit code 2.
    """

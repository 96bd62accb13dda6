"""Errors for the user, errors that name an option, and the form of a line that is shown."""

from __future__ import annotations

from collections.abc import Sequence

_FULL_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "size calculation overflowed")


class UserError(ValueError):
    """An unusable input from the user. The message is one line: the thing, its value, what was expected.

    The command-line program prints the message and exits with status 2; no traceback is shown.

    Arguments:
        message: the line.
        details: lines for those who ask for them, where the message can only count and give examples.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class OptionError(ValueError):
    """An option of a model or a layer does not fit what it is used for. The message names it first.

    Arguments:
        option: its name.
        reason: what was given, and what was expected.
    """

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option, self.reason = option, reason

    def within(self, section: str) -> OptionError:
        """The same of options that are a section of others."""
        return OptionError(f"{section}.{self.option}", self.reason)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or the device was too small; torch has RuntimeError for
    that as for much else."""
    full = isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL_MEMORY)
    return full or isinstance(error, MemoryError)


def one_line(text: str) -> str:
    r"""A text of any origin, such as the name of a file, as one line without control characters.

    Arguments:
        text: with whatever in it.

    Returns:
        The text with each run of white space as one space, and what cannot be printed escaped (``\x1b``).

    Example:
        >>> one_line("a.png: \x1b[2J\n no image")
        'a.png: \\x1b[2J no image'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))

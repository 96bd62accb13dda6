"""The one kind of error that a user is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line: the thing, its value, what was expected.

    The command-line program prints the message and exits with status 2; no traceback is shown.
    """

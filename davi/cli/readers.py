"""How the values of options are read: functions for the ``type`` of :mod:`argparse`.

Each takes the word that the user typed, and raises :class:`argparse.ArgumentTypeError` with what was expected.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole_number(minimum: int) -> Callable[[str], int]:
    """Reads a whole number that is at least ``minimum``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum or value >= 2**63:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {minimum}")
        return value

    return read


def not_negative(text: str) -> float:
    """Reads a finite number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0")
    return value


def positive(text: str) -> float:
    """Reads a finite number above 0."""
    value = not_negative(text)
    if not value:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def temperature(text: str) -> float | tuple[float, ...]:
    """Reads a number, or several with commas between them; in brackets, also one is a list."""
    if text.startswith("[") and text.endswith("]"):
        return tuple(map(not_negative, text[1:-1].split(",")))
    if "," in text:
        return tuple(map(not_negative, text.split(",")))
    return not_negative(text)


def shape(text: str) -> tuple[int, int, int]:
    """Reads three whole numbers with commas between them."""
    parts = [part.strip() for part in text.strip("()[] ").split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and 0 < len(part) < 9 for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected channels, height and width, such as 1,28,28")
    channels, height, width = map(int, parts)
    return channels, height, width


def path_ending(*suffixes: str) -> Callable[[str], str]:
    """Reads the path of a file with one of the endings."""

    def read(text: str) -> str:
        if not text.lower().endswith(suffixes):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected the path of a {suffixes[0]} file")
        return text

    return read


_NO_FOLDERS = (".npz", ".png", ".jpg", ".jpeg", ".gif", ".csv", ".html")
"""Endings of files of other kinds, which a folder would not be given on purpose."""


def array_or_folder(text: str) -> str:
    """Reads the path of a ``.npy`` file or of a folder."""
    if text.lower().endswith(_NO_FOLDERS):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected the path of a .npy file or of a folder")
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    """Reads one of the words. argparse's own check says what it found in words that change with Python's version."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected one of {', '.join(choices)}")
        return text

    return read


def whole_numbers(text: str) -> tuple[int, ...]:
    """Reads whole numbers from 1 with commas between them."""
    return tuple(map(whole_number(1), text.strip("[]").split(",")))

"""Errors that libtiff reports while Pillow decodes with it.

libtiff prints its errors itself, without the name of the file, and of damaged faxes Pillow takes what there is all the
same. Its error handler belongs to the whole process; errors are kept apart by thread.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_said = threading.local()


def _count(_module: bytes | None, _form: bytes | None, _values: int | None) -> None:
    _said.count = getattr(_said, "count", 0) + 1


_listen = _HANDLER(_count)


def _setter() -> Any:
    """libtiff's function that sets its error handler and returns the last one, or None where it is out of reach."""
    try:
        setter = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler  # type: ignore[attr-defined]  # C has it
    except (AttributeError, OSError):
        return None
    setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    return setter


@contextmanager
def quiet() -> Iterator[None]:
    """A block in which libtiff prints no errors; use it around the decoding threads, not inside them."""
    setter = _setter()
    if setter is None:
        yield
        return
    before = setter(ctypes.cast(_listen, ctypes.c_void_p))
    try:
        yield
    finally:
        setter(before)


def complaints() -> int:
    """How many errors there were in this thread since it was asked last."""
    count: int = getattr(_said, "count", 0)
    _said.count = 0
    return count

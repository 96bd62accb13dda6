"""Several draws of the latents for each image: the same image many times over, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor


@runtime_checkable
class Repeatable(Protocol):
    """Something with one entry per image that knows how to repeat them."""

    def repeat_images(self, times: int) -> Self:
        """Every image's entry ``times`` times, side by side."""


def repeat_images(what: Any, times: int) -> Any:
    """Every image's part of a batch ``times`` times, side by side: ``[B, ...] -> [B * times, ...]``.

    Arguments:
        what: a tensor, a :class:`Repeatable`, or lists, tuples and mappings of them.
        times: how often; with 1 the very same object is returned.

    Raises:
        TypeError: if there is something else in it.

    Example:
        >>> import torch
        >>> repeat_images({"x": torch.tensor([1, 2])}, times=3)
        {'x': tensor([1, 1, 1, 2, 2, 2])}
    """
    if times == 1:
        return what
    if isinstance(what, Tensor):
        return what.repeat_interleave(times, 0)
    if isinstance(what, Repeatable):
        return what.repeat_images(times)
    if isinstance(what, Mapping):
        return {key: repeat_images(value, times) for key, value in what.items()}
    if isinstance(what, tuple | list):
        parts = [repeat_images(value, times) for value in what]
        return type(what)(*parts) if hasattr(what, "_fields") else type(what)(parts)
    raise TypeError(f"context: got {type(what).__name__}, expected tensors, or what consists of them")

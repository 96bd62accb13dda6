"""Networks on PyTorch's meta device: names, shapes and types of tensors, without memory for their numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FILLING: frozenset[Callable[..., Any]] = frozenset(
    (
        *(nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, nn.init.constant_),
        *(Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_),
    )
)
"""What does nothing but give a tensor its numbers."""


@contextmanager
def on_meta() -> Iterator[None]:
    """Build networks on the meta device, and leave out the initialization of their tensors, which have no numbers.

    It takes most of the time that a network takes there: PyTorch goes through its Python references for each.

    Example:
        >>> with on_meta():
        ...     layer = nn.Linear(10**6, 10**6)
        >>> layer.weight.shape, layer.weight.device
        (torch.Size([1000000, 1000000]), device(type='meta'))
    """
    with torch.device("meta"), _WithoutNumbers():
        yield


@contextmanager
def at_most(tensors: int, error: Exception) -> Iterator[None]:
    """Stop the building of a network that registers more tensors of weights: options may ask for any number of layers.

    Arguments:
        tensors: the most.
        error: what is raised.
    """
    left = tensors

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise error

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


LARGEST = 2**20
"""No option of a model is larger. Something absurd would be built before it is noticed."""


def largest(value: Any) -> float:
    """The largest magnitude among the numbers in nested values; infinite where there is one that is not finite."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return max(map(largest, value), default=0.0)
    if isinstance(value, (int, float)):
        return abs(value) if value - value == 0 else float("inf")
    return 0.0


class _WithoutNumbers(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLING:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)

"""The log-determinants of all bijections that a flow is made of, watched by hooks while images pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from davi.distributions.base import sum_per_image
from davi.flows import Bijection, Coupling, Inverse, MultiScale
from davi.inspection.flow_views import Block

_ROUNDING = 1e-4
"""By how much of its size the log-determinant of a whole may differ from the sum of its parts."""


@dataclass(eq=False)
class Call:
    """A bijection, and those that it calls."""

    bijection: Bijection
    log_dets: list[Tensor] = field(default_factory=list)
    """Of the images of each batch, ``[B]``, float64."""
    inner: list[Call] = field(default_factory=list)

    def of_images(self) -> Tensor:
        """Log-determinants of all images so far, ``[N]``, nats."""
        return torch.cat(self.log_dets)

    def parts(self) -> list[Call]:
        """The bijections of which it is made, in order: those that it calls, if their log-determinants make its own.

        It may call others for other ends, such as the one whose inverse it is.
        """
        whole, parts = self.of_images(), [call.of_images() for call in self.inner]
        size = torch.stack([whole.abs(), *(part.abs() for part in parts)]).sum(0) + 1.0
        together = torch.stack(parts).sum(0) if parts else whole.new_full(whole.shape, torch.nan)
        return self.inner if bool(((together - whole).abs() < _ROUNDING * size).all()) else []


class Determinants:
    """Records every batch that passes a bijection within :meth:`recording`.

    Arguments:
        bijection: the whole.
    """

    def __init__(self, bijection: Bijection) -> None:
        self._bijection = bijection
        self.root: Call | None = None
        self.outcome: Tensor | None = None
        """What the last batch became, z."""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block the bijection is called with one batch, in the same order of parts each time."""
        calls = iter(list(_in_order(self.root))) if self.root is not None else None
        running: list[Call] = []

        def begin(module: nn.Module, inputs: Any) -> None:
            assert isinstance(module, Bijection)
            call = Call(module) if calls is None else next(calls)
            if calls is None and running:
                running[-1].inner.append(call)
            elif calls is None:
                self.root = call
            running.append(call)

        def end(module: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
            running.pop().log_dets.append(sum_per_image(outputs[1]).double().cpu())
            if not running:
                self.outcome = outputs[0]

        handles = []
        for module in self._bijection.modules():
            if isinstance(module, Bijection):
                handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def scales(self) -> list[Call]:
        """The bijections of each scale, finest first; none of a flow without scales."""
        assert self.root is not None
        several = (call for call in _in_order(self.root) if isinstance(call.bijection, MultiScale))
        first = next(several, None)
        return [] if first is None else first.parts()

    def blocks(self) -> tuple[Block, ...]:
        """The smallest bijections of which the whole is made, in order."""
        assert self.root is not None
        scales = self.scales()
        numbers: dict[int | None, int] = {}
        found = []
        for call, scale in _leaves(self.root, scales, None):
            numbers[scale] = numbers.get(scale, 0) + 1
            nats = call.of_images()
            deviation = float(nats.std()) if len(nats) > 1 else 0.0
            silent = not bool(nats.any())
            kind = kind_of(call.bijection)
            found.append(Block(kind, scale, numbers[scale], float(nats.mean()), deviation, silent))
        return tuple(found)


def kind_of(bijection: Bijection) -> str:
    """What a bijection is called: its class, of a coupling that of its function."""
    if isinstance(bijection, Inverse):
        return f"inverse {kind_of(bijection.bijection)}"
    if isinstance(bijection, Coupling):
        return type(bijection.function).__name__
    return type(bijection).__name__


def _in_order(call: Call) -> Iterator[Call]:
    """A call and all that it makes, in the order in which they begin."""
    yield call
    for inner in call.inner:
        yield from _in_order(inner)


def _leaves(call: Call, scales: list[Call], scale: int | None) -> Iterator[tuple[Call, int | None]]:
    """The smallest parts, and the scale of each."""
    scale = next((i for i, known in enumerate(scales, 1) if known is call), scale)
    parts = call.parts()
    if not parts:
        yield call, scale
    for part in parts:
        yield from _leaves(part, scales, scale)

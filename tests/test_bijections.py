"""What every bijection promises: an inverse, and a determinant that is the one of autograd's Jacobian.

Everything is in float64, so 1e-10 is far above rounding and far below a missing term. Beside the bijections of the
package a coupling, an invertible 1x1 convolution and a squeeze stand for those whose Jacobians are not triangular in
the raster order, or whose outputs have another shape: the protocol must hold them as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import davi.flows
from davi.flows import (
    AutoregressiveShift,
    Bijection,
    Inverse,
    InverseAutoregressiveFlow,
    InverseAutoregressiveStep,
    Sequential,
    ShiftPairs,
)
from davi.flows.base import solve_in_order, spread

TOLERANCE = 1e-10
WIDTH = 12
"""Channels of the contexts."""


class Coupling(Bijection):
    """The second half of the channels, scaled and shifted by what a convolution sees in the first half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Conv2d(channels // 2, 2 * (channels - channels // 2), 3, padding=1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kept, changed = x.tensor_split([x.shape[1] // 2], 1)
        shift, log_scale = self.net(kept).chunk(2, 1)
        return kept, changed, shift, log_scale.tanh()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, changed, shift, log_scale = self._split(x)
        return torch.cat([kept, changed * log_scale.exp() + shift], 1), torch.cat(
            [torch.zeros_like(kept), log_scale], 1
        )

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, changed, shift, log_scale = self._split(y)
        x = torch.cat([kept, (changed - shift) * (-log_scale).exp()], 1)
        return x, -torch.cat([torch.zeros_like(kept), log_scale], 1)


class Mixing(Bijection):
    """An invertible 1x1 convolution: the same matrix at every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(channels))

    def _log_det(self, x: Tensor) -> Tensor:
        return spread(math.prod(x.shape[2:]) * torch.linalg.slogdet(self.matrix).logabsdet, x)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.conv2d(x, self.matrix[:, :, None, None]), self._log_det(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.conv2d(y, torch.linalg.inv(self.matrix)[:, :, None, None]), -self._log_det(y)


class Squeeze(Bijection):
    """Blocks of 2x2 pixels become channels."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), torch.zeros_like(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(y, 2), torch.zeros_like(y)


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], Bijection]
    shape: tuple[int, int, int]
    context: bool = False


def _cases() -> Iterator[Case]:
    for shape in [(1, 1, 1), (2, 1, 1), (6, 1, 1), (1, 2, 3), (3, 1, 2), (2, 3, 3)]:
        kernel = 1 if shape[1:] == (1, 1) else 3
        for reverse in (False, True):

            def step(shape: tuple[int, ...] = shape, kernel: int = kernel, reverse: bool = reverse) -> Bijection:
                return InverseAutoregressiveStep(shape[0], WIDTH, kernel_size=kernel, reverse=reverse)

            yield Case(f"iaf step{' reverse' * reverse} {shape}", step, shape, context=True)
        for steps in (0, 1, 2, 3):

            def flow(shape: tuple[int, ...] = shape, kernel: int = kernel, steps: int = steps) -> Bijection:
                return InverseAutoregressiveFlow(steps, shape[0], WIDTH, kernel_size=kernel)

            yield Case(f"iaf of {steps} {shape}", flow, shape, context=True)
    yield Case("iaf step without a context", lambda: InverseAutoregressiveStep(2, WIDTH), (2, 3, 3))
    yield Case("shift", lambda: AutoregressiveShift(3, mirrored=False), (3, 4, 4))
    yield Case("mirrored shift", lambda: AutoregressiveShift(3, mirrored=True), (3, 4, 3))
    yield Case("pairs of shifts", lambda: ShiftPairs(2, 2), (2, 3, 4))
    yield Case("inverse", lambda: Inverse(InverseAutoregressiveStep(2, WIDTH)), (2, 2, 2), context=True)
    yield Case("nothing", Sequential, (2, 2, 2))
    yield Case("coupling", lambda: Coupling(3), (3, 2, 3))
    yield Case("1x1 convolution", lambda: Mixing(3), (3, 2, 3))
    yield Case("squeeze", Squeeze, (1, 4, 2))
    yield Case("glow", lambda: Sequential(Coupling(2), Squeeze(), Mixing(8), Coupling(8)), (2, 2, 4))

    def mixed() -> Bijection:
        return Sequential(Mixing(2), InverseAutoregressiveStep(2, WIDTH), AutoregressiveShift(2, True))

    yield Case("with and without a context", mixed, (2, 3, 3), context=True)


CASES = list(_cases())
every_bijection = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def build(case: Case) -> Bijection:
    """In float64, with weights that leave nothing at its neutral value."""
    bijection = case.make()
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return bijection.double()


def inputs(case: Case, n: int) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(n, *case.shape, dtype=torch.float64)
    return x, torch.randn(n, WIDTH, *case.shape[1:], dtype=torch.float64) if case.context else None


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def log_det_of_jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(function, x)
    return torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet


def test_no_bijection_of_the_package_is_left_out() -> None:
    known = {type(case.make()) for case in CASES}
    for name in davi.flows.__all__:
        found = getattr(davi.flows, name)
        if isinstance(found, type) and issubclass(found, Bijection) and found is not Bijection:
            assert found in known, f"{name} has no case here"


@every_bijection
@torch.no_grad()
def test_the_inverse_undoes_it(case: Case) -> None:
    bijection, (x, context) = build(case), inputs(case, 3)
    y, log_det = bijection(x, context)
    assert log_det.shape == x.shape
    assert y.numel() == x.numel()
    back, log_det_back = bijection.inverse(y, context)
    assert log_det_back.shape == y.shape
    close(back, x)
    close(log_det_back.flatten(1).sum(1), -log_det.flatten(1).sum(1))
    again, _ = bijection(bijection.inverse(y + 1.0, context)[0], context)  # and any point can be reached
    close(again, y + 1.0)


@every_bijection
def test_log_determinants_are_those_of_the_jacobians(case: Case) -> None:
    bijection, (x, context) = build(case), inputs(case, 1)
    y, log_det = bijection(x, context)
    expected = log_det_of_jacobian(lambda x: bijection(x, context)[0], x)
    close(log_det.sum(), expected)
    close(bijection.inverse(y, context)[1].sum(), log_det_of_jacobian(lambda y: bijection.inverse(y, context)[0], y))


@every_bijection
@torch.no_grad()
def test_images_of_a_batch_do_not_mix(case: Case) -> None:
    bijection, (x, context) = build(case), inputs(case, 3)
    for function in (bijection.forward, bijection.inverse):
        z = bijection(x, context)[0] if function == bijection.inverse else x
        together = function(z, context)
        for i in range(3):
            alone = function(z[i : i + 1], None if context is None else context[i : i + 1])
            for both, one in zip(together, alone, strict=True):
                close(both[i : i + 1], one)


TRIANGULAR = [case for case in CASES if "step" in case.name or "coup" in case.name]


@pytest.mark.parametrize("case", TRIANGULAR, ids=lambda case: case.name)
def test_shares_of_a_triangular_jacobian_are_its_diagonal(case: Case) -> None:
    bijection, (x, context) = build(case), inputs(case, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: bijection(x, context)[0], x)
    diagonal = jacobian.reshape(x.numel(), x.numel()).diagonal().abs().log()
    close(bijection(x, context)[1].flatten(), diagonal)


@every_bijection
def test_gradients_reach_all_weights_through_the_determinant_or_the_outcome(case: Case) -> None:
    bijection, (x, context) = build(case), inputs(case, 2)
    y, log_det = bijection(x, context)
    if list(bijection.parameters()):
        (y.square().sum() - log_det.sum()).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in bijection.parameters())


def test_solving_takes_no_harm_from_what_is_not_known_yet() -> None:
    """x_i = y_i - 20 x_{i-1}^3, in float32: what is still wrong grows beyond all numbers before it gets right."""
    weights = torch.diag(torch.full((39,), 20.0), -1)
    expected = torch.linspace(-0.1, 0.1, 40)[None]
    y = expected + expected.pow(3) @ weights.T
    found = solve_in_order(lambda x: y - x.pow(3) @ weights.T, y + 3.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_solving_stops_once_nothing_changes() -> None:
    calls = 0

    def step(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.ones_like(x)

    assert torch.equal(solve_in_order(step, torch.zeros(2, 1, 10, 10)), torch.ones(2, 1, 10, 10))
    assert calls == 2


def test_shares_add_up() -> None:
    shares = spread(torch.tensor([3.0, -6.0]), torch.zeros(2, 1, 3, 2))
    assert torch.equal(shares[:, 0, 0, 0], torch.tensor([0.5, -1.0]))
    assert torch.equal(shares.sum((1, 2, 3)), torch.tensor([3.0, -6.0]))


def test_names_of_weights_stay() -> None:
    """Saved models have them."""
    assert set(ShiftPairs(1, 1).state_dict()) == {
        f"shifts.{i}.{name}"
        for i in range(2)
        for name in ("spread.v", "spread.log_g", "look.v", "look.log_g", "mean.v", "mean.log_g", "mean.bias")
    }
    assert set(InverseAutoregressiveFlow(1, 1, 2).state_dict()) == {
        f"steps.0.{name}.conv.{kind}" for name in ("first", "middle.0", "last") for kind in ("weight", "bias")
    }

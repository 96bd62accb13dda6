"""What every bijection promises: an inverse, and a determinant that is the one of autograd's Jacobian.

Everything is in float64, so 1e-10 is far above rounding and far below a missing term. Jacobians of invertible 1x1
convolutions are not triangular in any order: the protocol holds them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import davi.flows
from davi.flows import (
    ActNorm,
    Additive,
    AutoregressiveShift,
    Bijection,
    Conv1x1,
    Coupling,
    Flatten,
    Flip,
    FlowBatchNorm,
    Inverse,
    InverseAutoregressiveFlow,
    InverseAutoregressiveStep,
    Logit,
    LUConv1x1,
    MixtureLogistic,
    MultiScale,
    OnHalves,
    Pointwise,
    PositionNorm,
    Reorder,
    Scale,
    Sequential,
    ShiftPairs,
    Squeeze,
    TanhAffine,
    coupling_steps,
)
from davi.flows.base import solve_in_order, spread
from davi.flows.halves import SplitName
from davi.flows.reshaping import Order
from davi.flows.splits import Alternating, Channels, Checkerboard, Columns, Flattened, Split
from davi.layers.coupling_network import CouplingNetworkConfig

TOLERANCE = 1e-10
WIDTH = 12
"""Channels of the contexts."""


class Look(nn.Module):
    """What a convolution sees, and the context where there is one."""

    def __init__(self, channels: int, out: int, context: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + WIDTH * context, out, 3, padding=1)
        self.context = context

    def forward(self, a: Tensor, context: Tensor | None) -> Tensor:
        found: Tensor = self.conv(a if context is None or not self.context else torch.cat((a, context), 1))
        return found


class Dense(nn.Module):
    """A linear layer."""

    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, out)

    def forward(self, a: Tensor, context: Tensor | None) -> Tensor:
        found: Tensor = self.linear(a)
        return found


def coupling(channels: int, context: bool = False, flipped: bool = False) -> Coupling:
    """Half of the channels, scaled and shifted by what is seen in the other half."""
    split = Channels(channels, flipped)
    a, b = (part.shape[1] for part in split.split(torch.zeros(1, channels)))
    return Coupling(split, TanhAffine(), Look(a, 2 * b, context))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], Bijection]
    shape: tuple[int, int, int]
    context: bool = False
    pixels: bool = False
    """Whether it is for numbers in (0, 1)."""


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
    for flipped in (False, True):
        yield Case(f"coupling{' flipped' * flipped}", partial(coupling, 3, flipped=flipped), (3, 2, 3))
    yield Case("coupling with a context", lambda: coupling(2, context=True), (2, 2, 3), context=True)
    for split in (Columns(), Columns(True), Checkerboard(), Checkerboard(True)):

        def couple(split: Split = split) -> Bijection:
            return Coupling(split, TanhAffine(), Look(2, 4))

        yield Case(f"coupling of {type(split).__name__} {split.flipped}", couple, (2, 3, 4))
    for flipped in (False, True):

        def odd(flipped: bool = flipped) -> Bijection:
            return Coupling(Checkerboard(flipped, (3, 5)), TanhAffine(), Board(2, flipped))

        yield Case(f"coupling of a checkerboard of odd width {flipped}", odd, (2, 3, 5))
    yield Case("batch norm", batch_norm, (3, 2, 2))
    yield Case("another order of channels", lambda: Reorder([2, 0, 1]), (3, 2, 2))
    yield Case("coupling of numbers", lambda: Sequential(Flatten((1, 1, 5)), additive()), (1, 1, 5))
    flattened = Flattened(Alternating(True), (1, 3, 3))
    yield Case("coupling of an image in a row", lambda: Coupling(flattened, Additive(), Dense(4, 5)), (1, 3, 3))
    yield Case("scale", lambda: Scale((2, 1, 3)), (2, 1, 3))
    yield Case("logit", lambda: Logit(0.05), (2, 2, 3), pixels=True)
    yield Case("actnorm", lambda: ActNorm(3), (3, 2, 3))
    yield Case("1x1 convolution", lambda: Conv1x1(3), (3, 2, 3))
    yield Case("1x1 convolution by its factors", lambda: LUConv1x1(3), (3, 2, 3))
    for order in get_args(Order):
        yield Case(f"squeeze, {order} first", partial(Squeeze, order), (3, 4, 2))
    yield Case("squeeze of 3 x 3", lambda: Squeeze("offsets", 3), (2, 3, 6))
    yield Case("flat", lambda: Flatten((2, 1, 3)), (2, 1, 3))
    yield Case("glow", lambda: Sequential(coupling(2), Squeeze(), Conv1x1(8), coupling(8)), (2, 2, 4))
    yield Case("scales", scales, (1, 4, 4))
    yield from _halves()

    def mixed() -> Bijection:
        return Sequential(Conv1x1(2), InverseAutoregressiveStep(2, WIDTH), AutoregressiveShift(2, True))

    yield Case("with and without a context", mixed, (2, 3, 3), context=True)


def _halves() -> Iterator[Case]:
    """Flow++."""
    yield Case("norm of positions", lambda: PositionNorm((2, 3, 2)), (2, 3, 2))
    yield Case("matrices of halves", lambda: Pointwise(2), (4, 2, 2))
    yield Case("flip", Flip, (4, 1, 2))
    yield Case("matrices of the halves of a checkerboard", lambda: OnHalves(Checkerboard(), Pointwise(2)), (2, 2, 4))
    mixture = MixtureLogistic(3)
    look = partial(Look, 1, mixture.numbers)
    yield Case("coupling of mixtures", lambda: Coupling(Channels(2), mixture, look()), (2, 2, 3))
    network = CouplingNetworkConfig(width=4, blocks=1, heads=2)
    splits: dict[SplitName, tuple[int, int, int]] = {
        "checkerboard": (1, 3, 4),
        "columns": (3, 1, 4),
        "channels": (4, 2, 1),
    }
    for split, shape in splits.items():
        make = partial(coupling_steps, shape, 2, network, split=split, components=2)
        yield Case(f"flow++ on {split}", make, shape)
    given = partial(coupling_steps, (2, 2, 2), 1, network, split="channels", components=2, context=WIDTH)
    yield Case("flow++ with a context", given, (2, 2, 2), context=True)
    affine = partial(coupling_steps, (2, 2, 2), 1, replace(network, mixing="maxout"), components=0, pointwise=False)
    yield Case("affine flow++ without attention", affine, (2, 2, 2))


class Board(nn.Module):
    """Speaks of one color of a 3 x 5 checkerboard by what a linear layer sees in the other."""

    def __init__(self, channels: int, flipped: bool) -> None:
        super().__init__()
        a, b = (7, 8) if flipped else (8, 7)
        self.linear = nn.Linear(channels * a, 2 * channels * b)
        self.channels = channels

    def forward(self, a: Tensor, context: Tensor | None) -> Tensor:
        return self.linear(a.flatten(1)).unflatten(1, (2 * self.channels, -1))


def batch_norm() -> Bijection:
    """As in evaluation, with statistics that are not those of the images."""
    norm = FlowBatchNorm(3).eval()
    norm.moments.follow(torch.tensor([-1.0, 2.0, 0.5]), torch.tensor([4.0, 0.1, 9.0]))
    return norm


def additive() -> Bijection:
    """Five numbers, of which the second and the fourth are shifted."""
    return Coupling(Alternating(), Additive(), Dense(3, 2))


def scales() -> Bijection:
    """Three scales of a 4 x 4 image."""
    steps = [Sequential(Squeeze(), Conv1x1(n), coupling(n)) for n in (4, 8)]
    return MultiScale([*steps, coupling(4)], [(2, 2, 2), (4, 1, 1), (4, 1, 1)])


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
    x = x.sigmoid() if case.pixels else x
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
    gradients = [parameter.grad for parameter in bijection.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


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

"""Couplings and NICE against two other libraries of flows, zuko and torchflows, with the same weights.

References:
    zuko: Normalizing flows in PyTorch, F. Rozet and others, https://github.com/probabilists/zuko

    torchflows, D. Nabergoj, https://github.com/davidnabergoj/torchflows
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import pytest
import torch
from contract import shake
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Distribution,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from davi.flows import Additive, Coupling, Sequential, TanhAffine
from davi.flows.splits import Alternating, Channels
from davi.models.nice import NICE, NICEConfig, RectifiedNetwork

zuko = pytest.importorskip("zuko", reason="needs the package zuko, of the extra dev")

N = 50


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


class Network(nn.Module):
    """The network of another library's coupling, which has the parameters of a variable side by side; ours has those of
    one kind together, the scales first.

    Arguments:
        theirs: the network.
        variables: whose parameters it gives.
    """

    def __init__(self, theirs: nn.Module, variables: int) -> None:
        super().__init__()
        self.theirs = theirs
        self.variables = variables

    def parameters_of(self, a: Tensor) -> Tensor:
        """``[B, variables, numbers]``."""
        return self.theirs(a).unflatten(1, (self.variables, -1))

    def forward(self, a: Tensor, context: Tensor | None) -> Tensor:
        return self.parameters_of(a).transpose(1, 2).flatten(1)


@final
class Unbounded(Network):
    """torchflows has the scale exp(s / 2), ours exp(tanh(s))."""

    def parameters_of(self, a: Tensor) -> Tensor:
        scale, shift = super().parameters_of(a).unbind(2)
        return torch.stack(((scale / 2.0).atanh(), shift), 2)


def log_density(bijection: Sequential, base: Distribution, x: Tensor) -> Tensor:
    z, log_det = bijection(x)
    return base.log_prob(z).sum(1) + log_det.sum(1)


def scaled(shift: Tensor, raw: Tensor) -> AffineTransform:
    """Ours has the scale first."""
    return AffineTransform(shift, raw.tanh().exp())


def test_affine_couplings_are_those_of_zuko() -> None:
    flow = shake(
        zuko.flows.RealNVP(5, transforms=3, hidden_features=(8,), univariate=lambda raw, shift: scaled(shift, raw))
    ).double()
    ours = Sequential(
        *(
            Coupling(Alternating(flipped=i % 2 == 1), TanhAffine(), Network(part.hyper, 2 + i % 2))
            for i, part in enumerate(flow.transform.transforms)
        )
    )
    x = 2.0 * torch.randn(N, 5, dtype=torch.float64)
    same(log_density(ours, Normal(0.0, 1.0), x), flow().log_prob(x))
    z = torch.randn(N, 5, dtype=torch.float64)
    same(ours.inverse(z)[0], flow().transform.inv(z))


def perceptrons(model: NICE) -> Iterator[nn.Sequential]:
    """The networks of NICE's couplings, as zuko's has them."""
    for part in model.bijection:
        if isinstance(part, Coupling):
            assert isinstance(part.network, RectifiedNetwork)
            layers = [each for hidden in part.network.hidden for each in (hidden, nn.ReLU())]
            yield nn.Sequential(*layers, part.network.last)


@pytest.mark.parametrize("prior", ["logistic", "normal"])
def test_nice_is_that_of_zuko(prior: Any) -> None:
    """Additive couplings, a scale, and either prior, on images of 2 x 3 pixels: densities, and bounds on pixels."""
    model = shake(NICE((1, 2, 3), 8, NICEConfig((1, 2, 1), width=7, prior=prior))).double()
    parts: list[Any] = []
    for i, network in enumerate(perceptrons(model)):
        mask = torch.arange(6) % 2 == i % 2
        coupling = zuko.flows.GeneralCouplingTransform(
            6, mask=mask, univariate=zuko.transforms.AdditiveTransform, shapes=((),)
        )
        coupling.hyper = network
        parts.append(coupling)
    *_, scale = model.bijection
    parts.append(
        zuko.lazy.UnconditionalTransform(
            lambda factor: zuko.transforms.DependentTransform(AffineTransform(torch.zeros(()), factor), 1),
            scale.log_scale.flatten().exp().detach(),
            buffer=True,
        )
    )
    zero, one = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    base: Distribution = Normal(zero, one)
    if prior == "logistic":
        base = TransformedDistribution(Uniform(zero, one), [SigmoidTransform().inv])
    flow = zuko.distributions.NormalizingFlow(zuko.lazy.LazyComposedTransform(*parts)(), base)
    y = torch.rand(N, 1, 2, 3, dtype=torch.float64)
    z, log_det = model.bijection(y)
    ours = model.base(N).log_prob(z) + log_det.flatten(1).sum(1)
    same(ours, flow.log_prob(y.flatten(1)))


@pytest.mark.parametrize("kind", ["Affine", "Shift"])
def test_couplings_of_halves_are_those_of_torchflows(kind: str) -> None:
    """Two in a row, without its base distribution, which makes torch warn."""
    layers = pytest.importorskip(
        "torchflows.bijections.finite.autoregressive.layers", reason="needs the package torchflows, of the extra dev"
    )
    theirs = [shake(getattr(layers, f"{kind}Coupling")((5,))).double() for _ in range(2)]
    network = Unbounded if kind == "Affine" else Network
    function = TanhAffine if kind == "Affine" else Additive
    ours = Sequential(
        *(Coupling(Channels(5), function(), network(part.conditioner_transform.sequential, 3)) for part in theirs)
    )
    x = torch.randn(N, 5, dtype=torch.float64)
    z, log_det = ours(x)
    first, first_log_det = theirs[0](x)
    second, second_log_det = theirs[1](first)
    # 1e-8: torchflows adds 1e-10 to every scale
    torch.testing.assert_close(z, second, rtol=0.0, atol=1e-8)
    torch.testing.assert_close(log_det.sum(1), (first_log_det + second_log_det).double(), rtol=0.0, atol=1e-8)

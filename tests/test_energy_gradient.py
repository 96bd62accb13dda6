"""The gradient of contrastive divergence in closed form against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from davi.batch import Batch
from davi.layers.pixel_units import Visible
from davi.model import Clamped
from davi.models.rbm import RBM, RBMConfig
from davi.objectives import ContrastiveConfig, ContrastiveObjective, Progress
from davi.objectives.energy_gradient import add_gradient

SHAPE = (1, 2, 3)


class Wrapped(nn.Module):
    """What stands between training and a model where processes share the work."""

    def __init__(self, model: RBM) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: object) -> Any:
        return self.model(*arguments)


def machine(visible: Visible, levels: int) -> RBM:
    """With weights that are not in the gauge of Potts units."""
    model = RBM(SHAPE, levels, RBMConfig(4, visible=visible)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return model


def one_batch(config: ContrastiveConfig, model: RBM, network: nn.Module, x: Tensor) -> tuple[list[float], list[Tensor]]:
    """The losses of a batch of three parts, and the gradients of all together."""
    torch.manual_seed(1)
    model.zero_grad()
    objective, values = ContrastiveObjective(config), []
    objective.begin(model, len(x))
    for start in range(0, len(x), 2):
        loss = objective.loss(network, model, Batch(x[start : start + 2], start=start), Progress(0, 0, 0.0))
        assert loss.value.requires_grad == (network is not model)
        loss.backward(2.0 / len(x))
        values.append(float(loss.value.detach()))
    return values, [parameter.grad.clone() for parameter in model.couplings if parameter.grad is not None]


@pytest.mark.parametrize(("visible", "levels"), [("binary", 2), ("potts", 3), ("gaussian", 8)])
@pytest.mark.parametrize(("chains", "tempering"), [(0, 0), (7, 0), (5, 3)])
def test_it_is_that_of_autograd(visible: Visible, levels: int, chains: int, tempering: int) -> None:
    """In parts that have different numbers of chains."""
    torch.manual_seed(0)
    model, x = machine(visible, levels), torch.randint(levels, (6, *SHAPE))
    config = ContrastiveConfig(chains=chains, tempering_levels=tempering, trajectory_chains=0)
    values, found = one_batch(config, model, model, x)
    expected_values, expected = one_batch(config, model, Wrapped(model), x)
    assert values == expected_values
    assert len(found) == 3
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0.0, atol=1e-12)


def test_weights_have_any_sign_and_what_is_not_trained_stays() -> None:
    torch.manual_seed(0)
    model, weights = machine("potts", 3), torch.tensor([0.5, -2.0, 0.0, 1.0], dtype=torch.float64)
    v = model.state(torch.randint(3, (4, *SHAPE)))
    expected = torch.autograd.grad((weights * model.state_free_energy(v)).sum(), list(model.couplings))
    with torch.no_grad():
        clamped: Clamped = model.clamp(v)
    model.b.requires_grad_(False)
    add_gradient(model, clamped, weights)
    add_gradient(model, clamped, weights)
    assert model.b.grad is None
    torch.testing.assert_close(model.weight.grad, 2.0 * expected[0], rtol=0.0, atol=1e-12)
    torch.testing.assert_close(model.c.grad, 2.0 * expected[2], rtol=0.0, atol=1e-12)
    assert model.weight.grad is not None
    assert model.weight.grad.stride() == model.weight.stride()  # without which the update takes longer

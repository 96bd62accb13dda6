"""Data-dependent initialization: what the network computes afterwards is what it computed while it was initialized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers import WeightNormConv2d
from davi.layers.weight_norm_init import initialize_from_data

ROUNDING = 1e-10
"""float64; lengths are stored as logarithms."""


class Network(nn.Module):
    """Two convolutions in a row, a strided one, one without a bias and one that is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.first = WeightNormConv2d(3, 5)
        self.second = WeightNormConv2d(5, 4, stride=2)
        self.plain = WeightNormConv2d(4, 4, 1, bias=False)
        self.unused = WeightNormConv2d(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.plain(F.elu(self.second(F.elu(self.first(x)))))
        return out


def test_the_initial_pass_and_every_later_one_agree() -> None:
    model, x, found = Network().double(), 3.0 + 5.0 * torch.randn(6, 3, 8, 8, dtype=torch.float64), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initialize_from_data(model, lambda: found.append(model(x)), scale=0.3)
    torch.testing.assert_close(model(x), found[0], rtol=ROUNDING, atol=ROUNDING)
    outputs = model.first(x)
    for y in (outputs, model.second(F.elu(outputs))):
        std, mean = torch.std_mean(y, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(std, torch.full_like(std, 0.3), rtol=ROUNDING, atol=0.0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0.0, atol=ROUNDING)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"first.log_g", "first.bias", "second.log_g", "second.bias"}


def test_what_is_constant_stays() -> None:
    """Zeros as input: nothing but the bias arrives, and no length makes that vary."""
    conv = WeightNormConv2d(2, 3).double()
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    initialize_from_data(conv, lambda: conv(torch.zeros(4, 2, 5, 5, dtype=torch.float64)))
    assert all(torch.equal(before[name], tensor) for name, tensor in conv.state_dict().items())


def test_only_the_first_pass_counts() -> None:
    conv = WeightNormConv2d(1, 1, 1).double()
    first, second = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64)

    def run() -> None:
        conv(first)
        conv(100.0 * second)

    initialize_from_data(conv, run)
    assert abs(float(conv(first).detach().std(correction=0)) - 1.0) < ROUNDING

r"""NICE: additive couplings, one scale of each variable, independent latents.

The D numbers of a dequantized image are divided into two parts. Each coupling changes one of them by what a rectified
network m sees in the other, in turns, so that after three couplings every variable depends on all; the end is a scale:

.. math:: h_b \leftarrow h_b + m_l(h_a), \quad a \leftrightarrow b, \quad l = 1, \dots, L, \qquad z = e^s \odot h

Couplings preserve volume, :math:`\log |\det \partial z / \partial y| = \sum_i s_i` for every image alike. With
:math:`p(z_i)` a standard logistic or Normal variable,

.. math:: \log p(y) = \sum_i \bigl(\log p(z_i) + s_i\bigr)

A large :math:`s_i` marks a direction in which images hardly vary.

References:
    NICE: Non-linear Independent Components Estimation, L. Dinh, D. Krueger, Y. Bengio, 2014,
    https://arxiv.org/abs/1410.8516
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor, nn

from davi.distributions import Latent, Logistic, Normal
from davi.flows import Additive, Coupling, Dequantization, Scale, Sequential
from davi.flows.noise import DequantizationSection, UniformConfig, make_noise
from davi.flows.splits import Alternating, Channels, Flattened
from davi.model import Invertible


@dataclass(frozen=True)
class NICEConfig:
    """Options of :class:`NICE`.

    Arguments:
        hidden_layers: of the network of each coupling; there are as many couplings as numbers.
        width: units of a hidden layer.
        partition: alternating, even and odd places of the image whose channels, rows and columns are put in a row;
            halves, the first and the second half.
        prior: of the latents.
        initial_scale: one, as in the paper; data, by which the first images have the prior's standard deviation.
        low, high: the range of pixels.
        dequantization: the noise.
    """

    hidden_layers: tuple[int, ...] = (5, 5, 5, 5)
    width: int = 1000
    partition: Literal["alternating", "halves"] = "alternating"
    prior: Literal["logistic", "normal"] = "logistic"
    initial_scale: Literal["data", "one"] = "data"
    low: float = 0.0
    high: float = 1.0
    dequantization: DequantizationSection = field(default_factory=UniformConfig)

    def __post_init__(self) -> None:
        if not self.hidden_layers or min(self.hidden_layers) < 1:
            raise ValueError(f"hidden_layers: got {list(self.hidden_layers)}, expected at least 1 for each coupling")
        if self.width < 1:
            raise ValueError(f"width: got {self.width}, expected at least 1")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"high: got {self.high}, expected a finite number above low, {self.low}")


@final
class RectifiedNetwork(nn.Module):
    """m: layers of rectified units and a linear one, which is zero at first.

    Arguments:
        inputs, outputs: numbers that it is given, and that it gives.
        width: units of a hidden layer.
        hidden_layers: how many.
    """

    def __init__(self, inputs: int, outputs: int, width: int, hidden_layers: int) -> None:
        super().__init__()
        hidden = [nn.Linear(width if i else inputs, width) for i in range(hidden_layers)]
        for layer in hidden:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.hidden = nn.ModuleList(hidden)
        self.last = nn.Linear(width, outputs)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, a: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self.hidden:
            a = layer(a).relu()
        found: Tensor = self.last(a)
        return found


_DEVIATION = {"logistic": math.pi / math.sqrt(3.0), "normal": 1.0}
"""Standard deviations of the latents."""


@final
class NICE(Invertible):
    """The flow (module docstring). An image of a single number gets a column of noise beside it."""

    name = "nice"
    Config = NICEConfig
    config: NICEConfig
    bijection: Sequential

    def __init__(self, shape: tuple[int, int, int], levels: int, config: NICEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        padding = (0, 1) if self.dims == 1 else (0, 0)
        self.padded = (shape[0], shape[1], shape[2] + padding[1])
        noise = make_noise(self.padded, levels, config.dequantization)
        self.dequantization = Dequantization(levels, config.low, config.high, noise, padding)
        couplings = [self._coupling(hidden, i % 2 == 1) for i, hidden in enumerate(config.hidden_layers)]
        from_data = config.initial_scale == "data"
        self.bijection = Sequential(*couplings, Scale(self.padded, _DEVIATION[config.prior] if from_data else None))
        self.images_wanted = 256 if from_data or noise is not None else 0

    def _coupling(self, hidden_layers: int, flipped: bool) -> Coupling:
        dims = math.prod(self.padded)
        parts = Alternating(flipped) if self.config.partition == "alternating" else Channels(dims, flipped)
        split = Flattened(parts, self.padded)
        a, b = (part.shape[1] for part in split.split(torch.zeros(1, *self.padded, device="cpu")))
        return Coupling(split, Additive(), RectifiedNetwork(a, b, self.config.width, hidden_layers))

    def base(self, n: int) -> Latent:
        zeros = next(self.parameters()).new_zeros(n, *self.padded)
        kind = Logistic if self.config.prior == "logistic" else Normal
        return kind(zeros, torch.ones_like(zeros))

    def blocks(self) -> Iterable[nn.Module]:
        """The networks of the couplings."""
        return [part.network for part in self.bijection if isinstance(part, Coupling)]

r"""Flow++: couplings by the distribution function of a mixture of logistics, with convolutions and attention.

.. math:: \log P(x) \ge E_{q(u \mid x)}\Bigl[\log N\bigl(f(l)\bigr)
          + \log \Bigl|\det \frac{\partial f}{\partial l}\Bigr|
          + \sum_i \log \frac{\mathrm{d} l_i}{\mathrm{d} y_i} - \log q(u \mid x) - D \log n\Bigr],
          \qquad l = \operatorname{logit}(0.05 + 0.9\, y), \quad y = (x + u) / n

for D values of n levels. f is a sequence of steps (:mod:`davi.flows.halves`): a gain and an offset for each variable, a
matrix for the channels of each half, a coupling that changes one half by what the other one says
(:mod:`davi.flows.mixture_logistic`, :mod:`davi.layers.coupling_network`), an exchange of the halves. Halves are those
of a checkerboard, then, after every block of 2 x 2 pixels has become one, those of the channels, then those of a
checkerboard again. Nothing is let go of before the end: z has as many variables as the image, in one standard Normal
distribution.

Noise u is learned where the options say so (:mod:`davi.flows.variational`).

References:
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, J. Ho,
    X. Chen, A. Srinivas, Y. Duan, P. Abbeel, ICML 2019, https://arxiv.org/abs/1902.00275
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import nn

from davi.distributions import Normal
from davi.flows import Bijection, Dequantization, Logit, Sequential, Squeeze, coupling_steps
from davi.flows.halves import SplitName
from davi.flows.noise import DequantizationSection, UniformConfig, make_noise
from davi.layers.coupling_network import Block, CouplingNetworkConfig
from davi.model import Invertible


@dataclass(frozen=True)
class FlowPPConfig:
    """Options of :class:`FlowPP`.

    Arguments:
        steps: on a checkerboard at full size; then, for each time that 2 x 2 pixels become one, on the channels and on
            a checkerboard.
        components: logistics of each mixture; 0: the couplings only scale and shift.
        network: of each coupling.
        spatial: checkerboard, or columns, even and odd ones, as in the authors' programs.
        pointwise: whether each step has a matrix for the channels.
        dequantization: the noise.
    """

    steps: tuple[int, ...] = (4, 2, 3)
    components: int = 4
    network: CouplingNetworkConfig = field(default_factory=CouplingNetworkConfig)
    spatial: Literal["checkerboard", "columns"] = "checkerboard"
    pointwise: bool = True
    dequantization: DequantizationSection = field(default_factory=UniformConfig)

    def __post_init__(self) -> None:
        if len(self.steps) % 2 == 0 or min(self.steps) < 0 or max(self.steps) < 1:
            raise ValueError(
                f"steps: got {list(self.steps)}, expected an odd number of counts, none below 0 and not all of them 0"
            )
        if self.components < 0:
            raise ValueError(f"components: got {self.components}, expected at least 0")

    @property
    def squeezes(self) -> int:
        """How often blocks of 2 x 2 pixels become one."""
        return len(self.steps) // 2

    def padding(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that images of a size lack."""
        rows = 2**self.squeezes
        columns = max([rows] + [2 ** (i + 1) for i, count in enumerate(self.steps[::2]) if count])
        return -height % rows, -width % columns


@final
class FlowPP(Invertible):
    """The model of the module docstring."""

    name = "flowpp"
    Config = FlowPPConfig
    config: FlowPPConfig
    bijection: Sequential

    def __init__(self, shape: tuple[int, int, int], levels: int, config: FlowPPConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        channels, height, width = shape
        rows, columns = padding = config.padding(height, width)
        padded = (channels, height + rows, width + columns)
        noise = make_noise(padded, levels, config.dequantization)
        self.dequantization = Dequantization(levels, noise=noise, padding=padding)
        self.bijection = Sequential(*_parts(padded, config))
        factor = 2**config.squeezes
        self.grid = (channels * factor**2, padded[1] // factor, padded[2] // factor)

    def base(self, n: int) -> Normal:
        mean = next(self.parameters()).new_zeros(n, *self.grid)
        return Normal(mean, torch.ones_like(mean))

    def blocks(self) -> Iterable[nn.Module]:
        return [module for module in self.modules() if isinstance(module, Block)]


def _parts(shape: tuple[int, int, int], config: FlowPPConfig) -> Iterator[Bijection]:
    def steps(count: int, split: SplitName) -> Iterator[Bijection]:
        if count:
            yield coupling_steps(
                shape, count, config.network, split=split, components=config.components, pointwise=config.pointwise
            )

    yield Logit()
    yield from steps(config.steps[0], config.spatial)
    for on_channels, spatial in zip(config.steps[1::2], config.steps[2::2], strict=True):
        yield Squeeze("offsets")
        shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
        yield from steps(on_channels, "channels")
        yield from steps(spatial, config.spatial)

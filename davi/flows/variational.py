r"""Variational dequantization: noise that a flow draws, given the image.

.. math:: u = \sigma\bigl(g(\epsilon;\, h(x / n - 1/2))\bigr), \qquad \epsilon \sim \mathcal N(0, 1), \qquad
          \log q(u \mid x) = \log \mathcal N(\epsilon) - \log \left| \det \frac{\partial u}{\partial \epsilon} \right|

with n levels, a network h and a bijection g made of steps of Flow++ (:mod:`davi.flows.halves`). Uniform noise makes a
model fill every interval evenly; noise that depends on the image may lie where the model finds it probable. The bound
is tight where :math:`q(u \mid x) = p(x + u) / P(x)`.

The steps divide an image into halves of columns. If the number of columns is odd, noise is drawn for one more, which
:class:`~davi.flows.Dequantization` drops again.

References:
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, J. Ho,
    X. Chen, A. Srinivas, Y. Duan, P. Abbeel, ICML 2019, https://arxiv.org/abs/1902.00275
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from davi.distributions import Normal, TransformedNormal
from davi.flows.base import Inverse, Sequential
from davi.flows.halves import coupling_steps, make_split, side_by_side
from davi.flows.logit import Logit
from davi.layers.coupling_network import CouplingNetworkConfig, GatedConv, Mixing
from davi.layers.data_conv import DataConv2d


@dataclass(frozen=True)
class VariationalOptions:
    """Options of :class:`VariationalNoise`.

    Arguments:
        split: into halves: a checkerboard, or, as in the authors' program, even and odd columns.
        steps: of g; each changes one half.
        width: channels of the networks of its couplings.
        blocks: of each of them.
        mixing: what follows a gated convolution in a block.
        heads: of the attention; they must divide the width.
        components: logistics of the mixture of each variable; 0: the couplings only scale and shift.
        pointwise: whether a step has matrices that mix channels.
        dropout: share of values that training sets to zero within the blocks.
        context_width: channels of h(x).
        context_blocks: gated convolutions of h.
    """

    split: Literal["checkerboard", "columns"] = "checkerboard"
    steps: int = 4
    width: int = 32
    blocks: int = 2
    mixing: Mixing = "attention"
    heads: int = 4
    components: int = 8
    pointwise: bool = True
    dropout: float = 0.0
    context_width: int = 32
    context_blocks: int = 3

    def __post_init__(self) -> None:
        least = {"steps": 1, "components": 0, "context_width": 1, "context_blocks": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {smallest}")
        self.network()

    def network(self) -> CouplingNetworkConfig:
        """Options of the networks of the couplings."""
        return CouplingNetworkConfig(self.width, self.blocks, self.mixing, self.heads, self.dropout)


@final
class Context(nn.Module):
    """h: from the halves of an image, side by side, to ``[B, width, h, w]``.

    Arguments:
        channels: of both halves together.
        width: channels of the result.
        blocks: gated convolutions.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = DataConv2d(channels, width)
        self.blocks = nn.ModuleList(GatedConv(width, kernel=3) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.first(x)
        for block in self.blocks:
            h = block(h)
        return h


@final
class VariationalNoise(nn.Module):
    """x -> q(u | x) (module docstring), a distribution over ``[B, C, H, W]`` numbers, W rounded up to an even number.

    Arguments:
        shape: (C, H, W) of the images.
        levels: n.
        config: the options.

    Example:
        >>> noise = VariationalNoise((1, 4, 3), 256, VariationalOptions(width=4, context_width=4))
        >>> q = noise(torch.zeros(2, 1, 4, 3, dtype=torch.uint8))
        >>> u = q.sample()
        >>> u.shape, bool(((u > 0) & (u < 1)).all()), q.log_prob(u).shape
        (torch.Size([2, 1, 4, 4]), True, torch.Size([2]))
    """

    def __init__(self, shape: tuple[int, int, int], levels: int, config: VariationalOptions) -> None:
        super().__init__()
        channels, height, width = shape
        self.levels = levels
        self.extra = width % 2
        whole = (channels, height, width + self.extra)
        self.split = make_split(config.split, channels)
        self.context = Context(2 * channels, config.context_width, config.context_blocks)
        steps = coupling_steps(
            whole,
            config.steps,
            config.network(),
            split=config.split,
            components=config.components,
            context=config.context_width,
            pointwise=config.pointwise,
        )
        self.flow = Sequential(steps, Inverse(Logit(0.0)))

    def forward(self, x: Tensor) -> TransformedNormal:
        """The distribution of the noise of integer images, ``[B, C, H, W]``."""
        scaled = F.pad(x.to(next(self.parameters()).dtype) / self.levels - 0.5, (0, self.extra))
        context = self.context(side_by_side(self.split, scaled))
        zeros = torch.zeros_like(scaled)
        return TransformedNormal(Normal(zeros, zeros + 1.0), self.flow, self.flow.inverse, context)

r"""The network of Flow++'s couplings: gated convolutions and attention, with layer normalization.

.. math:: h_0 = W_{in} * x, \qquad u = \operatorname{LN}(h_l + G(h_l, c)), \qquad h_{l+1} = \operatorname{LN}(u + A(u)),
          \qquad \text{output} = W_{out} * h_L

with concat-ELU :math:`e(h) = (\operatorname{elu}(h), \operatorname{elu}(-h))`, the gate
:math:`g(h) = h_1\,\sigma(h_2)` of the two halves of the channels, a context c, and position embeddings p,

.. math:: G(h, c) = g\bigl(W_2\, e(W_1 * e(h) + V e(c))\bigr), \qquad
          A(h) = g\bigl(W_4 \operatorname{attention}(W_3 (h + p))\bigr)

References:
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, J. Ho,
    X. Chen, A. Srinivas, Y. Duan, P. Abbeel, ICML 2019, https://arxiv.org/abs/1902.00275
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.convolution import ChannelLayerNorm
from davi.layers.data_conv import DataConv2d
from davi.layers.shifted import concat_elu

Mixing = Literal["attention", "maxout", "none"]
"""What follows a gated convolution: attention; the largest of three linear maps at the same position, with as many
weights; or nothing."""
GATE_SCALE = 0.1
"""Standard deviation of what enters a gate on the first images: at first a block changes little."""


@dataclass(frozen=True)
class CouplingNetworkConfig:
    """Options of :class:`CouplingNetwork`.

    Arguments:
        width: F, channels.
        blocks: L.
        mixing: A.
        heads: of the attention; they must divide the width.
        dropout: share of the values before each W_2 and W_4 that training sets to zero.
        last_elu: concat-ELU before W_out, as in the authors' ImageNet programs.
    """

    width: int = 32
    blocks: int = 2
    mixing: Mixing = "attention"
    heads: int = 4
    dropout: float = 0.0
    last_elu: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.mixing == "attention" and self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, expected a divisor of the width {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 to below 1")


@final
class GatedConv(nn.Module):
    """h + G(h, c) (module docstring).

    Arguments:
        width: channels of h.
        context: channels of c; 0: none.
        kernel: of W_2.
        dropout: share of the values before W_2 that training sets to zero.
    """

    def __init__(self, width: int, context: int = 0, kernel: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = DataConv2d(2 * width, width)
        self.context = DataConv2d(2 * context, width, 1) if context else None
        self.dropout = nn.Dropout(dropout)
        self.second = DataConv2d(2 * width, 2 * width, kernel, GATE_SCALE)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        inner = self.first(concat_elu(h))
        if self.context is not None:
            if context is None:
                raise ValueError("context: got None, expected a tensor")
            inner = inner + self.context(concat_elu(context))
        return h + F.glu(self.second(self.dropout(concat_elu(inner))), 1)


@final
class GatedMixing(nn.Module):
    """h + A(h) (module docstring).

    Arguments:
        width: channels of h.
        heads: of the attention; None: the largest of three linear maps instead.
        dropout: share of the values before W_4 that training sets to zero.
    """

    def __init__(self, width: int, heads: int | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.first = DataConv2d(width, 3 * width, 1)
        self.dropout = nn.Dropout(dropout)
        self.second = DataConv2d(width, 2 * width, 1, GATE_SCALE)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """``h``: ``[B, F, h, w]``; the embeddings of all positions: ``[F, h, w]``."""
        three = self.first(h + embedding)
        mixed = three.unflatten(1, (-1, 3)).amax(2) if self.heads is None else self._attend(three, self.heads)
        return h + F.glu(self.second(self.dropout(mixed)), 1)

    def _attend(self, three: Tensor, heads: int) -> Tensor:
        shape = three.shape
        rows = three.flatten(2).unflatten(1, (3, heads, -1)).transpose(3, 4)  # [B, 3, heads, positions, F / heads]
        queries, keys, values = rows.unbind(1)
        read = F.scaled_dot_product_attention(queries, keys, values)
        return read.transpose(2, 3).flatten(1, 2).unflatten(2, shape[2:])


@final
class Block(nn.Module):
    """One layer of the network.

    Arguments:
        config: the options.
        context: channels of the context; 0: none.
    """

    def __init__(self, config: CouplingNetworkConfig, context: int) -> None:
        super().__init__()
        self.conv = GatedConv(config.width, context, dropout=config.dropout)
        self.norm = ChannelLayerNorm(config.width)
        self.mixing, self.mixing_norm = None, None
        if config.mixing != "none":
            heads = config.heads if config.mixing == "attention" else None
            self.mixing = GatedMixing(config.width, heads, config.dropout)
            self.mixing_norm = ChannelLayerNorm(config.width)

    def forward(self, h: Tensor, embedding: Tensor | None, context: Tensor | None) -> Tensor:
        h = self.norm(self.conv(h, context))
        if self.mixing is None or self.mixing_norm is None or embedding is None:
            return h
        mixed: Tensor = self.mixing_norm(self.mixing(h, embedding))
        return mixed


@final
class CouplingNetwork(nn.Module):
    """``x, context -> [B, outputs, h, w]`` (module docstring).

    Arguments:
        shape: (C, h, w) of x.
        outputs: channels.
        config: the options.
        context: channels of the context, ``[B, context, h, w]``; 0: it is ignored.
    """

    def __init__(
        self, shape: tuple[int, int, int], outputs: int, config: CouplingNetworkConfig, context: int = 0
    ) -> None:
        super().__init__()
        mixes = config.mixing != "none"
        self.embedding = nn.Parameter(0.01 * torch.randn(config.width, *shape[1:])) if mixes else None
        self.first = DataConv2d(shape[0], config.width)
        self.blocks = nn.ModuleList(Block(config, context) for _ in range(config.blocks))
        self.last_elu = config.last_elu
        self.last = DataConv2d((1 + config.last_elu) * config.width, outputs, scale=GATE_SCALE)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h, self.embedding, context)
        raw: Tensor = self.last(concat_elu(h) if self.last_elu else h)
        return raw

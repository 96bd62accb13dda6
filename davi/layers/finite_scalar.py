r"""Each number of a vector rounded to one of a few levels; nothing is learned.

With :math:`L_i` levels for number i, :math:`h_i = (L_i - 1)(1 + \epsilon) / 2` and :math:`o_i = 1/2` where
:math:`L_i` is even, else 0,

.. math:: b_i = h_i \tanh(f_i + \mathrm{artanh}(o_i / h_i)) - o_i, \qquad
          e_i = \mathrm{round}(b_i) / \lfloor L_i / 2 \rfloor

so that f = 0 gives b = 0. Here :math:`\epsilon = 10^{-3}`; above 501 levels it is less, so that b never comes half a
level beyond the outer ones. A position has one code, whose digits are the levels, the first the lowest: there are
:math:`K = \prod_i L_i` values. Gradients pass the rounding as they are, and the tanh as ever.

References:
    Finite Scalar Quantization: VQ-VAE Made Simple, F. Mentzer, D. Minnen, E. Agustsson, M. Tschannen, ICLR 2024,
    https://arxiv.org/abs/2309.15505 (the published program has tan in place of artanh, which is nearly the same)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from davi.errors import OptionError
from davi.layers.quantizing import Assigned, Quantizer, QuantizerConfig

EPSILON = 1e-3
"""By which the outer levels are reached before the tanh is 1."""
BEYOND = 0.25
"""Levels by which the tanh goes beyond the outer ones at most; half a level would be rounded to one that is none."""
LARGEST = 2**16
"""Values of a code; a prior has a logit for each."""


@dataclass(frozen=True)
class FiniteScalarConfig(QuantizerConfig):
    """Rounded numbers.

    Arguments:
        name: ``finite_scalar``.
        levels: of each number; as many as the feature maps have channels.
    """

    name: Literal["finite_scalar"] = "finite_scalar"
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2 or math.prod(self.levels) > LARGEST:
            raise OptionError(
                "levels", f"got {list(self.levels)}, expected numbers from 2 with a product of at most {LARGEST}"
            )


@final
class FiniteScalarQuantizer(Quantizer):
    """See the module docstring.

    Example:
        >>> quantizer = FiniteScalarQuantizer(FiniteScalarConfig(levels=(8, 5)))
        >>> quantizer.embed(torch.tensor([0, 39]).view(2, 1, 1, 1)).flatten(1)
        tensor([[-1.0000, -1.0000],
                [ 0.7500,  1.0000]])
    """

    name: ClassVar[str] = "finite_scalar"
    Config: ClassVar[type[QuantizerConfig]] = FiniteScalarConfig

    def __init__(self, config: FiniteScalarConfig) -> None:
        super().__init__(len(config.levels), 1, math.prod(config.levels))
        self.levels = config.levels

    def _column(self, values: list[float] | list[int], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)

    def _bounded(self, features: Tensor) -> Tensor:
        """b, ``[B, D, h, w]``."""
        halves = [(levels - 1) / 2 + min((levels - 1) * EPSILON / 2, BEYOND) for levels in self.levels]
        offsets = [0.0 if levels % 2 else 0.5 for levels in self.levels]
        shifts = [math.atanh(offset / half) for offset, half in zip(offsets, halves, strict=True)]
        half, offset, shift = (self._column(values, features) for values in (halves, offsets, shifts))
        return half * (features + shift).tanh() - offset

    def forward(self, features: Tensor) -> Assigned:
        with torch.autocast(features.device.type, enabled=False):
            features = self._bounded(features.to(self.frequencies.dtype))
            # What is not finite has no level: the loss tells of it, and codes must be codes.
            rounded = features.detach().nan_to_num().round().long()
            middles = [levels // 2 for levels in self.levels]
            codes = (self._places(rounded) * (rounded + self._column(middles, rounded))).sum(1, keepdim=True)
            features = features / self._column(middles, features)
            return Assigned(codes, features, self.embed(codes))

    def _places(self, like: Tensor) -> Tensor:
        """What a digit counts: 1 for the first, L_1 for the second, L_1 L_2 for the third."""
        return self._column([math.prod(self.levels[:place]) for place in range(len(self.levels))], like)

    def embed(self, codes: Tensor) -> Tensor:
        digits = codes // self._places(codes) % self._column(list(self.levels), codes)  # [B, D, h, w]
        middle = self._column([levels // 2 for levels in self.levels], codes)
        return (digits - middle).to(self.frequencies.dtype) / middle

    def commitment(self, assigned: Assigned) -> Tensor:
        """Zero: the levels are where the features are."""
        return assigned.features.new_zeros(len(assigned.features))

r"""A hierarchy that is an autoregressive model: one latent for each sub-pixel, in the order of the pixels.

.. math:: q(z_i = x_i \mid x) = 1, \qquad p(z_i \mid z_{<i}) = p_{AR}(x_i = z_i \mid x_{<i} = z_{<i}),
          \qquad p(x_i = z_i \mid z) = 1

References:
    Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, R. Child, ICLR 2021,
    https://arxiv.org/abs/2011.10650 (proposition 1)
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from davi.distributions import Bernoulli, Categorical, Codes, Distribution, Point
from davi.model import CausalModel, Choose, Hierarchy


@final
class Copies(Hierarchy):
    """The hierarchy whose conditionals are those of a model (module docstring).

    Arguments:
        model: with Bernoulli or categorical sub-pixels.
    """

    name = "toy_copies"

    def __init__(self, model: CausalModel) -> None:
        super().__init__(model.shape, model.levels, None)
        self.model = model
        self.num_layers = self.dims

    def encode(self, x: Tensor) -> Tensor:
        return x.long()

    def top_down(self, choose: Choose, context: Tensor | None = None) -> Distribution:
        channels, _, width = self.shape
        made = torch.zeros(1, *self.shape, dtype=torch.long)  # 0 where nothing is known yet
        for layer in range(self.num_layers):
            pixel, c = divmod(layer, channels)
            row, column = divmod(pixel, width)
            here = (slice(None), slice(c, c + 1), slice(row, row + 1), slice(column, column + 1))
            logits = _log_probs(self.model.conditionals(made))[:, :, c : c + 1, row : row + 1, column : column + 1]
            z = choose(layer, Codes(logits), None if context is None else Point(context[here]))
            made = made.expand(len(z), -1, -1, -1).clone()
            made[here] = z
        return Point(made)


def _log_probs(pixels: Distribution) -> Tensor:
    """Of every value of every sub-pixel, ``[B, levels, C, H, W]``."""
    if isinstance(pixels, Bernoulli):
        return torch.stack([torch.zeros_like(pixels.logits), pixels.logits], 1).log_softmax(1)
    assert isinstance(pixels, Categorical)
    return pixels.log_probs

r"""The protocol of a bijection with a known determinant.

A bijection f takes a batch of tensors x to y. By the change of variables

.. math:: \log p(x) = \log p(y) + \log \left| \det \frac{\partial y}{\partial x} \right|, \qquad y = f(x)

for each image of the batch. The determinant comes as a *map* of the shape of x whose sum over an image is its
logarithm: every variable has its share, so that a divergence between latents can be read off variable by variable,
channel by channel, or summed.

- Where the Jacobian is triangular in some order of the variables (autoregressive transforms, couplings, scales), the
  share of variable i is :math:`\log |\partial y_i / \partial x_i|`. Variables that pass unchanged have 0.
- Where several variables are mixed by a matrix, they share its log-determinant equally: an invertible 1x1 convolution
  gives every variable :math:`\log |\det W| / C` (:func:`spread`).

References:
    Normalizing Flows for Probabilistic Modeling and Inference, G. Papamakarios, E. Nalisnick, D. J. Rezende,
    S. Mohamed, B. Lakshminarayanan, JMLR 2021, https://arxiv.org/abs/1912.02762
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import cast, final

import torch
from torch import Tensor, nn

from davi.distributions.base import spread as spread
from davi.distributions.base import sum_per_image

Function = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""``(x, context) -> (y, log_det)``: a :class:`Bijection`, or the inverse of one."""


class Bijection(nn.Module, ABC):
    """An invertible function of each image of a batch (module docstring)."""

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y = f(x) and the log-determinant of dy/dx.

        Arguments:
            x: ``[B, ...]``.
            context: what f depends on beside x, ``[B, ...]``. A bijection that depends on nothing else ignores it, so
                that the two kinds can stand in one sequence.

        Returns:
            y, ``[B, ...]`` with as many values, and a map of the shape of **x** that sums to the log-determinant.
        """

    @abstractmethod
    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x with f(x) = y, and the log-determinant of dx/dy, minus that of :meth:`forward` at x.

        Arguments:
            y: ``[B, ...]``.
            context: as in :meth:`forward`.

        Returns:
            x, and a map of the shape of **y** that sums to the log-determinant.
        """


@final
class Sequential(Bijection):
    """Bijections one after the other, all given the same context. Their log-determinants add up, variable by variable.

    Where a part has another shape of x than the first one, its log-determinant is spread equally over the image.
    """

    def __init__(self, *parts: Bijection) -> None:
        super().__init__()
        for i, part in enumerate(parts):
            self.add_module(str(i), part)  # named like the parts of torch's

    def __iter__(self) -> Iterator[Bijection]:
        return iter(cast("list[Bijection]", list(self._modules.values())))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _through(list(self), x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _through([part.inverse for part in self][::-1], y, context)


@final
class Inverse(Bijection):
    """A bijection the other way round.

    Arguments:
        bijection: whose inverse it is.
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.bijection(y, context)
        return x, log_det


def _through(functions: Sequence[Function], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    total = x.new_zeros(x.shape)
    for function in functions:
        x, log_det = function(x, context)
        total = total + (log_det if log_det.shape == total.shape else spread(sum_per_image(log_det), total))
    return x, total


def per_channel(numbers: Tensor, x: Tensor) -> Tensor:
    """One number for each channel of ``[B, C, ...]``, ``[C] -> [C, 1, ...]``."""
    return numbers.view(-1, *[1] * (x.ndim - 2))


def bounded(raw: Tensor, bound: float) -> Tensor:
    """Close to ``raw`` where it is small, and never beyond +- ``bound``."""
    return bound * torch.tanh(raw / bound)


def solve_in_order(step: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    r"""The x with :math:`x = g(x)`, where :math:`g(x)_i` depends on the :math:`x_j` before :math:`x_i` in some order.

    The first variable is right after one step, and each further step makes at least one more of them right, so as many
    steps as an image has variables always do; it stops once nothing changes. Networks that look at a neighborhood make
    whole diagonals of an image right at once.

    Arguments:
        step: g.
        start: anything of the right shape.
    """
    limit = math.sqrt(torch.finfo(start.dtype).max)
    x = start
    for _ in range(math.prod(start.shape[1:])):
        # What is still wrong may be huge, and a masked weight times infinity is not zero.
        following = step(torch.where(x.abs() < limit, x, 0.0))
        if torch.equal(following, x):
            break
        x = following
    return x

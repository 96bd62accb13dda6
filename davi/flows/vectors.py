r"""Flows of the vector of channels at each position, made of steps whose parameters an encoder computes.

A step is a bijection of vectors z with C entries whose parameters are given, numbers of one image and one position.
Planar and Sylvester steps come down to functions of one number,

.. math:: a \mapsto a + p \tanh(q a + s), \qquad p q > -1

which increase. :func:`solve_tanh` finds the a of a given value: there is no closed form, but Newton's method within a
shrinking bracket has it to the last digit after a few steps.

References:
    Variational Inference with Normalizing Flows, D. J. Rezende, S. Mohamed, ICML 2015,
    https://arxiv.org/abs/1505.05770
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from davi.flows.amortized import AmortizedFlow
from davi.flows.solving import solve_increasing


class VectorStep(ABC):
    """A bijection of vectors ``[B, P, C]`` of P positions, its parameters given. Those of a batch of one serve all."""

    @abstractmethod
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z', ``[B, P, C]``, and the log-determinant of each position, ``[B, P]``."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The z with z' = y, ``[B, P, C]``."""


class VectorFlow(AmortizedFlow, ABC):
    """An amortized flow that is a sequence of :class:`VectorStep` at each position."""

    @abstractmethod
    def vector_steps(self, features: Tensor) -> Sequence[VectorStep]:
        """The steps, in their order.

        Arguments:
            features: the context, ``[B, P, F]``.
        """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The flow.

        Arguments:
            x: ``[B, C, h, w]``.
            context: ``[B, F, h, w]``; None: zeros.

        Returns:
            z_K, and the log-determinant of each position in equal shares over its channels, both ``[B, C, h, w]``.
        """
        steps = self._steps(x, context)
        with torch.autocast(x.device.type, enabled=False):
            z = positions(x)
            log_det = z.new_zeros(z.shape[:-1])
            for step in steps:
                z, more = step.forward(z)
                log_det = log_det + more
            return maps(z, x), self._shares(log_det, x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        steps = self._steps(y, context)
        with torch.autocast(y.device.type, enabled=False):
            z = positions(y)
            log_det = z.new_zeros(z.shape[:-1])
            for step in steps[::-1]:
                z = step.inverse(z)
                log_det = log_det - step.forward(z)[1]
            return maps(z, y), self._shares(log_det, y)

    def _steps(self, x: Tensor, context: Tensor | None) -> Sequence[VectorStep]:
        if context is None:
            context = x.new_zeros(1, self.features, *x.shape[2:])
        return self.vector_steps(positions(context))

    def _shares(self, log_det: Tensor, x: Tensor) -> Tensor:
        return maps((log_det / self.channels)[..., None].expand(*log_det.shape, self.channels), x)


def positions(x: Tensor) -> Tensor:
    """Maps ``[B, C, h, w]`` -> vectors ``[B, h w, C]``."""
    return x.flatten(2).mT


def maps(z: Tensor, like: Tensor) -> Tensor:
    """Vectors ``[B, h w, C]`` -> maps ``[B, C, h, w]`` with the rows and columns of ``like``."""
    return z.mT.unflatten(2, like.shape[2:])


def full_precision(x: Tensor) -> Tensor:
    """What a linear layer gave under autocast, in float32; float32 and float64 unchanged."""
    return x if x.dtype == torch.float64 else x.float()


def solve_tanh(p: Tensor, q: Tensor, s: Tensor, t: Tensor) -> Tensor:
    r"""The a with :math:`a + p \tanh(q a + s) = t` (module docstring), of the shape that the arguments have together.

    Each solution is found by itself, whatever else is in the batch. Gradients are those of the solution.

    Arguments:
        p, q: with p q > -1.
        s, t: any numbers.
    """
    p, q, s, t = torch.broadcast_tensors(p, q, s, t)
    reach = p.abs()
    a = solve_increasing(lambda a: _tanh_sum(p, q, s, a), t, t, t - reach, t + reach, 2 * reach)
    value, slope = _tanh_sum(p, q, s, a)
    return a - (value - t) / slope.detach()  # Newton's step once more, whose derivatives are those of the solution


def _tanh_sum(p: Tensor, q: Tensor, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    tanh = (q * a + s).tanh()
    return a + p * tanh, 1 + p * q * (1 - tanh.square())

r"""Inverse autoregressive flow: a bijection with a triangular Jacobian, whose determinant is nearly free.

A masked network (:mod:`davi.layers.masked`) looks at all variables z and at a context h and gives variable i two
numbers :math:`m_i, s_i` that depend on :math:`z_{<i}` and h alone. One step is

.. math:: z'_i = \sigma_i z_i + (1 - \sigma_i)\, m_i, \qquad \sigma_i = \mathrm{sigmoid}(s_i)

Its Jacobian is triangular with the gates on the diagonal:

.. math:: \log \left| \det \frac{\partial z'}{\partial z} \right| = \sum_i \log \sigma_i

The gates begin near one (the bias of s is 2, :math:`\sigma = 0.88`), so that a step forgets little at first. The last
weights begin at zero: before training a step is :math:`z' = \sigma z` whatever the context, and its log-determinant
is -0.126928 for each variable. Every other step has the reverse order of the variables.

The inverse of a step, :math:`z_i = z'_i + (z'_i - m_i)\, e^{-s_i}`, finds the variables one after the other. A
posterior does without: it scores its own draws only.

References:
    Improving Variational Inference with Inverse Autoregressive Flow, D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen,
    I. Sutskever, M. Welling, NeurIPS 2016, https://arxiv.org/abs/1606.04934
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from davi.flows.base import Bijection, Sequential, solve_in_order
from davi.layers.masked import MaskedConv2d, degrees


@final
class InverseAutoregressiveStep(Bijection):
    """One gated step (module docstring).

    Arguments:
        channels: C, of the latent maps.
        width: channels of the hidden layers, and of the context.
        hidden_layers: how many; the context is added to the outcome of the first one, before its activation.
        kernel_size: of all convolutions; 1 for latents without a grid.
        gate_bias: initial bias of s.
        reverse: whether the last variable comes first.

    Raises:
        ValueError: if there is no hidden layer, or the kernel size is even.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        hidden_layers: int = 2,
        kernel_size: int = 3,
        gate_bias: float = 2.0,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        if hidden_layers < 1:
            raise ValueError(f"hidden_layers: got {hidden_layers}, expected at least 1")
        variables, hidden = degrees(channels, channels), degrees(width, channels)
        if reverse:
            variables, hidden = variables.flip(0), hidden.flip(0)
        self.first = MaskedConv2d(variables, hidden, kernel_size, mask_type="A", reverse=reverse)
        self.middle = nn.ModuleList(
            MaskedConv2d(hidden, hidden, kernel_size, mask_type="B", reverse=reverse) for _ in range(hidden_layers - 1)
        )
        self.last = MaskedConv2d(hidden, variables.repeat(2), kernel_size, mask_type="B", reverse=reverse)  # [m | s]
        nn.init.zeros_(self.last.conv.weight)
        assert self.last.conv.bias is not None
        nn.init.zeros_(self.last.conv.bias[:channels])
        nn.init.constant_(self.last.conv.bias[channels:], gate_bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step.

        Arguments:
            x: z, ``[B, C, h, w]``.
            context: h, ``[B, width, h, w]``; None: 0.

        Returns:
            z', and the logarithms of the gates, both ``[B, C, h, w]``; the latter sum to the log-determinant.
        """
        shift, gate = self._shift_and_gate(x, context)
        return gate.sigmoid() * x + (-gate).sigmoid() * shift, F.logsigmoid(gate)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def step(x: Tensor) -> Tensor:
            shift, gate = self._shift_and_gate(x, context)
            return y + (y - shift) * (-gate).exp()

        x = solve_in_order(step, y)
        return x, -self(x, context)[1]

    def _shift_and_gate(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """m and s."""
        hidden = self.first(z)
        hidden = F.elu(hidden if context is None else hidden + context)
        for conv in self.middle:
            hidden = F.elu(conv(hidden))
        return self.last(hidden).to(z.dtype).chunk(2, 1)


@final
class InverseAutoregressiveFlow(Bijection):
    """Several steps, the order of the variables reversed from each to the next.

    Arguments:
        steps: T; 0 is the identity.
        channels, width, hidden_layers, kernel_size, gate_bias: of each step.
    """

    def __init__(
        self,
        steps: int,
        channels: int,
        width: int,
        hidden_layers: int = 2,
        kernel_size: int = 3,
        gate_bias: float = 2.0,
    ) -> None:
        super().__init__()
        self.steps = Sequential(
            *(
                InverseAutoregressiveStep(channels, width, hidden_layers, kernel_size, gate_bias, bool(step % 2))
                for step in range(steps)
            )
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.steps(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.steps.inverse(y, context)

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
posterior does without: it scores its own draws.

The form ``sylvester`` is that of the program of the paper on Sylvester flows. Its last layer is the strict one, so that
:math:`m_0, s_0` see neither variables nor context; a hidden unit sees the units before it and itself, where ours also
sees the others of its degree; the context enters after the first activation; and the order turns round before every
second step and stays so: steps 1, 2, 5, 6 ... have it reversed. That paper begins with a bias of s of 1.

References:
    Improving Variational Inference with Inverse Autoregressive Flow, D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen,
    I. Sutskever, M. Welling, NeurIPS 2016, https://arxiv.org/abs/1606.04934

    Sylvester Normalizing Flows for Variational Inference, R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling,
    UAI 2018, https://arxiv.org/abs/1803.05649
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.flows.amortized import AmortizedFlow, PosteriorFlowConfig
from davi.flows.base import Bijection, Sequential, solve_in_order
from davi.layers.masked import MaskedConv2d, MaskType, degrees

Form = Literal["paper", "sylvester"]
"""Of the masked network (module docstring)."""


@final
class InverseAutoregressiveStep(Bijection):
    """One gated step (module docstring).

    Arguments:
        channels: C, of the latent maps.
        width: channels of the hidden layers, and of the context.
        hidden_layers: how many; the context is added to the outcome of the first one, before its activation (after it,
            in the form ``sylvester``).
        kernel_size: of all convolutions; 1 for latents without a grid.
        gate_bias: initial bias of s.
        reverse: whether the last variable comes first.
        form: of the network (module docstring).

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
        form: Form = "paper",
    ) -> None:
        super().__init__()
        self.form = form
        if hidden_layers < 1:
            raise ValueError(f"hidden_layers: got {hidden_layers}, expected at least 1")
        variables, hidden = degrees(channels, channels), degrees(width, channels)
        if reverse:
            variables = variables.flip(0)
        if form == "paper":
            hidden = hidden.flip(0) if reverse else hidden
            units = hidden
            first: MaskType = "A"
            last: MaskType = "B"
        else:
            units = torch.arange(width)
            first, last = "B", "A"
        self.first = MaskedConv2d(variables, hidden, kernel_size, mask_type=first, reverse=reverse)
        self.middle = nn.ModuleList(
            MaskedConv2d(units, units, kernel_size, mask_type="B", reverse=reverse) for _ in range(hidden_layers - 1)
        )
        self.last = MaskedConv2d(hidden, variables.repeat(2), kernel_size, mask_type=last, reverse=reverse)  # [m | s]
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
        # Far from where draws fall, z grows beyond all numbers. Its density is zero there, and must not be NaN.
        largest = math.sqrt(torch.finfo(y.dtype).max) / 2

        def step(x: Tensor) -> Tensor:
            shift, gate = self._shift_and_gate(x, context)
            return (y + (y - shift) * (-gate).exp()).clamp(-largest, largest)

        x = solve_in_order(step, y)
        return x, -self(x, context)[1]

    def _shift_and_gate(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """m and s."""
        hidden = self.first(z)
        if self.form == "sylvester":
            hidden = F.elu(hidden)
            hidden = hidden if context is None else hidden + context
        else:
            hidden = F.elu(hidden if context is None else hidden + context)
        for conv in self.middle:
            hidden = F.elu(conv(hidden))
        return self.last(hidden).to(z.dtype).chunk(2, 1)


@final
class InverseAutoregressiveFlow(Bijection):
    """Several steps, the order of the variables reversed from each to the next, or every second time (the form
    ``sylvester``).

    Arguments:
        steps: T; 0 is the identity.
        channels, width, hidden_layers, kernel_size, gate_bias, form: of each step.
    """

    def __init__(
        self,
        steps: int,
        channels: int,
        width: int,
        hidden_layers: int = 2,
        kernel_size: int = 3,
        gate_bias: float = 2.0,
        form: Form = "paper",
    ) -> None:
        super().__init__()
        self.steps = Sequential(
            *(
                InverseAutoregressiveStep(
                    channels, width, hidden_layers, kernel_size, gate_bias, is_reversed(step, form), form
                )
                for step in range(steps)
            )
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.steps(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.steps.inverse(y, context)


def is_reversed(step: int, form: Form) -> bool:
    """Whether a step, counted from 0, has the last variable first."""
    turns = step if form == "paper" else (step + 1) // 2
    return bool(turns % 2)


@final
@dataclass(frozen=True)
class IAFConfig(PosteriorFlowConfig):
    """Options of the inverse autoregressive flow.

    Arguments:
        name: ``iaf``.
        steps: how many.
        width: of the hidden layers.
        hidden_layers: how many.
        gate_bias: initial bias of the gates' logits.
        form: of the masked network: ``paper``, or ``sylvester`` (:mod:`davi.flows.iaf`).
    """

    name: Literal["iaf"] = "iaf"
    width: int = 320
    hidden_layers: int = 2
    gate_bias: float = 2.0
    form: Form = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")


@final
class AmortizedIAF(AmortizedFlow):
    """The inverse autoregressive flow of each position, its context linear in the encoder's features."""

    name: ClassVar[str] = "iaf"
    Config: ClassVar[type[PosteriorFlowConfig]] = IAFConfig
    config: IAFConfig

    def __init__(self, channels: int, features: int, config: IAFConfig) -> None:
        super().__init__(channels, features, config)
        self.context = nn.Conv2d(features, config.width, 1)
        self.flow = InverseAutoregressiveFlow(
            config.steps, channels, config.width, config.hidden_layers, 1, config.gate_bias, config.form
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow(x, self._context(context))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(y, self._context(context))

    def _context(self, features: Tensor | None) -> Tensor | None:
        return None if features is None else self.context(features)

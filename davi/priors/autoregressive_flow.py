r"""The autoregressive-flow prior of the Variational Lossy Autoencoder.

The masked network of an inverse autoregressive flow (:mod:`davi.flows.iaf`) takes latents to noise, all at once,

.. math:: \epsilon = g(z), \qquad \log p(z) = \log N(\epsilon; 0, I) + \log \left| \det \frac{dg}{dz} \right|

so the density of any z is known in one pass. To draw, :math:`z = g^{-1}(\epsilon)` is found one variable after the
other: a model is drawn from more rarely than it is measured.

The same network as the last step of a posterior, with a standard Normal prior and a decoder that begins with
:math:`g^{-1}`, gives the very same bound: an autoregressive prior is an inverse autoregressive posterior that does not
depend on the image, with a deeper decoder (section 3.1 of the paper).

On maps the network consists of masked convolutions, so a variable depends on earlier channels of its own position and
on all channels of earlier positions nearby; with 1x1 kernels it depends on its own position only.

References:
    Variational Lossy Autoencoder, X. Chen, D. P. Kingma, T. Salimans, Y. Duan, P. Dhariwal, J. Schulman, I. Sutskever,
    P. Abbeel, ICLR 2017, https://arxiv.org/abs/1611.02731
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from davi.distributions import Latent, Normal, Transformed
from davi.flows.base import Inverse
from davi.flows.iaf import InverseAutoregressiveFlow
from davi.priors.base import Infer, PriorConfig, TopPrior, at_least_one


@final
@dataclass(frozen=True)
class AutoregressiveFlowConfig(PriorConfig):
    """Options of the autoregressive-flow prior.

    Arguments:
        name: ``autoregressive_flow``.
        steps: of the flow; each takes the variables in the order opposite to that of the one before it.
        width: of the hidden layers.
        hidden_layers: how many in each step.
        kernel_size: of the convolutions, odd: 3, or 1 for positions that are independent. Vectors of latents always
            have 1.
        gate_bias: initial bias of the gates' logits.
    """

    name: Literal["autoregressive_flow"] = "autoregressive_flow"
    steps: int = 2
    width: int = 64
    hidden_layers: int = 2
    kernel_size: int = 3
    gate_bias: float = 2.0

    def __post_init__(self) -> None:
        for name in ("steps", "width", "hidden_layers"):
            at_least_one(name, getattr(self, name))
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {self.kernel_size}, expected an odd number")


@final
class AutoregressiveFlow(TopPrior):
    """The autoregressive-flow prior (module docstring). A temperature scales the noise epsilon."""

    name: ClassVar[str] = "autoregressive_flow"
    Config: ClassVar[type[PriorConfig]] = AutoregressiveFlowConfig
    config: AutoregressiveFlowConfig
    zero: Tensor

    def __init__(self, shape: tuple[int, ...], images: tuple[int, int, int], config: AutoregressiveFlowConfig) -> None:
        super().__init__(shape, images, config)
        kernel = config.kernel_size if math.prod(shape[1:]) > 1 else 1
        self.flow = InverseAutoregressiveFlow(
            config.steps, shape[0], config.width, config.hidden_layers, kernel, config.gate_bias
        )
        self.register_buffer("zero", torch.zeros(1, *shape), persistent=False)

    def forward(self, infer: Infer) -> Latent:
        return Transformed(Normal(self.zero, torch.ones_like(self.zero)), Inverse(self.flow))

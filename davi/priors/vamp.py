r"""The VampPrior: a mixture of the model's own posteriors at pseudo-inputs.

.. math:: p(z) = \frac 1K \sum_{k=1}^K q(z \mid u_k)

The pseudo-inputs u_1 .. u_K are images of numbers from 0 to 1, learned with everything else. The best prior for a bound
is the mean of the posteriors of all training images; this is what K learned images can say of it.

The pseudo-inputs are sigmoids of free parameters; the authors clip instead, which leaves a number that has reached 0 or
1 without a gradient. Training begins with images of the training set plus noise of standard deviation 0.01 (an option
of the authors), held to 0.02 .. 0.98 so that no sigmoid is flat. A model that has seen no images begins with uniform
noise.

The posteriors are those of evaluation: batch norms use their running statistics, which pseudo-inputs do not move, and
nothing is dropped. Each pass of the model encodes K images more.

References:
    VAE with a VampPrior, J. M. Tomczak, M. Welling, AISTATS 2018, https://arxiv.org/abs/1705.07120
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from davi.distributions import Latent, Normal, NormalMixture
from davi.errors import OptionError
from davi.priors.base import FromImages, FromPosteriors, Infer, PriorConfig, at_least_one

_MARGIN = 0.02
"""Initial pseudo-inputs lie between this and one minus this."""

_NOISE = 0.01
"""Standard deviation of what tells apart pseudo-inputs that begin as the same image."""


@final
@dataclass(frozen=True)
class VampConfig(PriorConfig):
    """Options of the VampPrior.

    Arguments:
        name: ``vamp``.
        components: K, pseudo-inputs.
    """

    name: Literal["vamp"] = "vamp"
    components: int = 500

    def __post_init__(self) -> None:
        at_least_one("components", self.components)


@final
class Vamp(FromPosteriors, FromImages):
    """The VampPrior (module docstring)."""

    name: ClassVar[str] = "vamp"
    Config: ClassVar[type[PriorConfig]] = VampConfig
    config: VampConfig

    def __init__(self, shape: tuple[int, ...], images: tuple[int, int, int], config: VampConfig) -> None:
        super().__init__(shape, images, config)
        self.images_wanted = config.components
        self.logits = nn.Parameter(torch.empty(config.components, *images))
        self.initialize(torch.rand(config.components, *images))

    @torch.no_grad()
    def initialize(self, pixels: Tensor) -> None:
        """Images become the pseudo-inputs, in turn if they are fewer."""
        chosen = pixels[torch.arange(self.config.components, device=pixels.device) % len(pixels)]
        chosen = chosen + _NOISE * torch.randn_like(chosen)
        self.logits.copy_(chosen.clamp(_MARGIN, 1.0 - _MARGIN).logit())

    def pseudo_inputs(self) -> Tensor:
        """``[K, C, H, W]``, numbers from 0 to 1."""
        return self.logits.sigmoid()

    def forward(self, infer: Infer) -> Latent:
        posterior = infer(self.pseudo_inputs())
        if not isinstance(posterior, Normal):
            raise OptionError(
                "prior.name",
                f"got {self.name} with a posterior of type {type(posterior).__name__}, expected another prior: the "
                "density of this posterior is not known at any point",
            )
        logits = posterior.mean.new_zeros(1, len(self.logits), *[1] * len(self.shape))
        return NormalMixture(logits, Normal(posterior.mean[None], posterior.scale[None]))

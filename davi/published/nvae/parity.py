"""Our NVAE beside activations of the authors' own code.

A fixture of theirs has running statistics in its batch norms, and latents from before any flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from davi.distributions import DiscretizedLogisticMixture, Distribution, TransformedNormal
from davi.model import Step
from davi.model.meta import on_meta
from davi.models.nvae import NVAE
from davi.published.agreement import Comparison
from davi.published.layer_parity import TENSOR, LayerParity, weights_of
from davi.published.nvae.names import configuration, head_order, parameter_names, to_our_layout, without_aliases
from davi.published.torch_files import fitted

_CROP = 2
"""Pixels on each side of a binary image that the authors' likelihood leaves out."""


class NvaeParity(LayerParity):
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    unconditional = "unc"

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        levels, config = configuration(facts["config"], "nvae")
        images = tensors["input_u8"].permute(0, 3, 1, 2).contiguous()
        shape = (images.shape[1], images.shape[2], images.shape[3])
        with on_meta():  # nothing is allocated before the shapes are known to be those of the file
            on_paper = NVAE(shape, levels, config)
        weights = without_aliases(weights_of(tensors), config.single)
        state = fitted(on_paper.state_dict(), weights, parameter_names(on_paper))
        model = NVAE(shape, levels, config)
        model.load_state_dict({**model.state_dict(), **to_our_layout(state, model.pixel_head)})
        # Fewer bits: the authors drop the lowest.
        super().__init__(model, images if levels == 2 else images // (256 // levels), tensors, facts, dtype)

    def latents(self, step: Step) -> Tensor:
        base = step.posterior.base if isinstance(step.posterior, TransformedNormal) else step.posterior
        return base.center()

    def outputs(self, name: str) -> Tensor:
        return self.tensors[name][:, head_order(self.model.pixel_head)]

    def reconstruction(self, likelihood: Distribution) -> list[Comparison]:
        ours = likelihood.log_prob_map(self.x)
        if self.model.config.likelihood.family == "bernoulli":
            ours = ours[..., _CROP:-_CROP, _CROP:-_CROP]
        found = [self.nats("log_likelihood_nats", ours.flatten(1).sum(1), "recon_nll_nats")]
        if "output_mean" in self.tensors and isinstance(likelihood, DiscretizedLogisticMixture):
            theirs = self.tensors["output_mean"]  # of the float32 run, in either precision
            found.append(Comparison("output_mean", _mean_image(likelihood), theirs, TENSOR[torch.float32]))
        return found


def _mean_image(mixture: DiscretizedLogisticMixture) -> Tensor:
    """What the authors call the mean, ``[B, 3, H, W]`` from 0 to 1: means and coefficients averaged over the
    components, then channel after channel."""
    assert mixture.coefficients is not None  # there are three channels
    weights = mixture.log_weights.exp()
    mean, c = ((weights * x).sum(1) for x in (mixture.means, mixture.coefficients))
    red = mean[:, 0].clamp(-1.0, 1.0)
    green = (mean[:, 1] + c[:, 0] * red).clamp(-1.0, 1.0)
    blue = (mean[:, 2] + c[:, 1] * red + c[:, 2] * green).clamp(-1.0, 1.0)
    return torch.stack([red, green, blue], 1) / 2.0 + 0.5

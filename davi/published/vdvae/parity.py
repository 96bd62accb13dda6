"""Our Very Deep VAE beside activations of the authors' own code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from davi.distributions import DiscretizedLogisticMixture, Distribution
from davi.errors import UserError
from davi.model import Step
from davi.model.meta import on_meta
from davi.models.very_deep_vae import VeryDeepVAE
from davi.published.agreement import Comparison
from davi.published.layer_parity import LayerParity, weights_of
from davi.published.torch_files import fitted, without_prefix
from davi.published.vdvae.names import configuration, head_order, parameter_names, to_our_layout

_SCALING = re.compile(r"x=\(u8-([\d.]+)\)/([\d.]+)")


class VdvaeParity(LayerParity):
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    unconditional = "uncond"

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        scaling = _SCALING.match(facts["input_scaling"])
        if scaling is None:
            raise UserError(f"fixture: input_scaling is {facts['input_scaling']!r}, expected x=(u8-MEAN)/DEVIATION")
        mean, deviation = (float(number) / 255 for number in scaling.groups())
        shape, config = configuration(facts["config"], mean, deviation, "openai")
        with on_meta():  # nothing is allocated before the shapes are known to be those of the file
            on_paper = VeryDeepVAE(shape, 256, config)
        state = fitted(on_paper.state_dict(), without_prefix(weights_of(tensors)), parameter_names(on_paper))
        model = VeryDeepVAE(shape, 256, config)
        model.load_state_dict(to_our_layout(state, model.pixel_head))
        super().__init__(model, tensors["input_u8"].permute(0, 3, 1, 2).contiguous(), tensors, facts, dtype)

    def latents(self, step: Step) -> Tensor:
        return step.z

    def outputs(self, name: str) -> Tensor:
        return self.tensors[name].permute(0, 3, 1, 2)[:, head_order(self.model.pixel_head)]

    def reconstruction(self, likelihood: Distribution) -> list[Comparison]:
        """Of 8 bits, and of the 5 bits of FFHQ-256."""
        assert isinstance(likelihood, DiscretizedLogisticMixture)
        found = []
        for form, x, key in (
            ("openai", self.x, "recon_nll_nats"),
            ("openai_5bit", self.x // 8 * 8, "recon_nll_nats_5bit"),
        ):
            if key in self.numbers:
                likelihood.form = form
                found.append(self.nats(key.replace("recon_nll", "log_likelihood"), likelihood.log_prob(x), key))
        return found

"""Our Very Deep VAE beside activations of the authors' own code.

A fixture holds random weights, two images, and what the authors' model computed from them with every latent at its
posterior mean (and, unconditionally, at its prior mean).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from davi.distributions import DiscretizedLogisticMixture
from davi.errors import UserError
from davi.model import Step
from davi.models.very_deep_vae import VeryDeepVAE
from davi.published.comparison import Comparison
from davi.published.torch_files import fitted
from davi.published.vdvae import configuration, head_order, parameter_names, to_our_layout, without_prefix

TENSOR = {torch.float32: 1e-5, torch.float64: 1e-6}
"""Largest difference of a tensor, in units of its largest value."""
KL = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference of a layer's KL divergence, nats."""
RECONSTRUCTION = {torch.float32: 0.05, torch.float64: 1e-6}
"""Largest difference of log p(x | z), nats."""

_SCALING = re.compile(r"x=\(u8-([\d.]+)\)/([\d.]+)")


class VdvaeParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        scaling = _SCALING.match(facts["input_scaling"])
        if scaling is None:
            raise UserError(f"fixture: input_scaling is {facts['input_scaling']!r}, expected x=(u8-MEAN)/DEVIATION")
        mean, deviation = (float(number) / 255 for number in scaling.groups())
        shape, config = configuration(facts["config"], mean, deviation, "openai")
        weights = without_prefix(
            {name.removeprefix("state_dict/"): x for name, x in tensors.items() if name.startswith("state_dict/")}
        )
        with torch.device("meta"):  # nothing is allocated before the shapes are known to be those of the file
            on_paper = VeryDeepVAE(shape, 256, config)
        state = fitted(on_paper.state_dict(), weights, parameter_names(on_paper))
        self.model = VeryDeepVAE(shape, 256, config)
        self.model.load_state_dict(to_our_layout(state, self.model.head))
        self.model.to(dtype).eval()
        self.x = tensors["input_u8"].permute(0, 3, 1, 2).contiguous()
        self.tensors, self.dtype = tensors, dtype
        self.gaps = facts.get("max_abs_f32_minus_f64", {}) if dtype == torch.float64 else {}
        self.numbers = facts["float64" if dtype == torch.float64 else "float32"]
        count = sum(name.startswith("z/") for name in tensors)
        if count != self.model.num_layers:
            raise UserError(f"fixture: z of {count} layers, expected {self.model.num_layers} as configured")

    @torch.no_grad()
    def comparisons(self) -> list[Comparison]:
        """Layer by layer from the top: the divergence, the latents; then the outputs, and what depends on no image."""
        steps: list[Step] = []

        def choose(layer: int, prior: Any, posterior: Any) -> Tensor:
            steps.append(Step(prior, posterior or prior, (posterior or prior).mean))
            return steps[-1].z

        raw: list[Tensor] = []
        hook = self.model.output.register_forward_hook(lambda module, inputs, output: raw.append(output))
        try:
            likelihood = self.model.top_down(choose, self.model.encode(self.x))
            inferred = list(steps)
            self.model.top_down(choose)
        finally:
            hook.remove()
        theirs = torch.tensor(self.numbers["kl_nats_per_layer_per_image"], dtype=torch.float64)  # [B, L]
        found = []
        for layer, step in enumerate(inferred):
            found.append(self._tensor(f"layer {layer}: z", step.z, self.tensors[f"z/{layer}"]))
            found.append(Comparison(f"layer {layer}: kl", step.kl(), theirs[:, layer], KL[self.dtype], "absolute"))
        found.append(self._params("recon_params", raw[0], "par"))
        found += self._reconstruction(likelihood)
        found.append(self._params("uncond_params", raw[1], "uncond"))
        return found

    def _tensor(self, name: str, ours: Tensor, theirs: Tensor) -> Comparison:
        if self.dtype == torch.float64:  # tensors are those of the float32 run; 1e-5 allows for its rounding
            return Comparison(name, ours, theirs, TENSOR[torch.float32])
        return Comparison(name, ours, theirs, TENSOR[self.dtype])

    def _params(self, name: str, ours: Tensor, gap: str) -> Comparison:
        theirs = self.tensors[name].permute(0, 3, 1, 2)[:, head_order(self.model.head)]
        slack = float(self.gaps.get(gap, 0.0))
        return Comparison(name, ours, theirs, TENSOR[self.dtype if slack else torch.float32], slack=slack)

    def _reconstruction(self, likelihood: Any) -> list[Comparison]:
        """log p(x | z) as the authors count it: of 8 bits, and of the 5 bits of FFHQ-256."""
        assert isinstance(likelihood, DiscretizedLogisticMixture)
        found = []
        for form, x, key in (
            ("openai", self.x, "recon_nll_nats"),
            ("openai_5bit", self.x // 8 * 8, "recon_nll_nats_5bit"),
        ):
            if key in self.numbers:
                likelihood.form = form
                theirs = -torch.tensor(self.numbers[key], dtype=torch.float64)
                name = key.replace("recon_nll", "log_likelihood")
                found.append(Comparison(name, likelihood.log_prob(x), theirs, RECONSTRUCTION[self.dtype], "absolute"))
        return found

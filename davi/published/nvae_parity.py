"""Our NVAE beside activations of the authors' own code.

A fixture holds random weights, two images, and what the authors' model computed from them, with running statistics in
its batch norms and every latent at its posterior mean before any flow (and, unconditionally, at its prior mean).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from davi.distributions import TransformedNormal
from davi.errors import UserError
from davi.model import Step
from davi.models.nvae import NVAE
from davi.published.comparison import Comparison
from davi.published.nvae import configuration, head_order, parameter_names, to_our_layout, without_aliases
from davi.published.torch_files import fitted

TENSOR = {torch.float32: 1e-5, torch.float64: 1e-6}
"""Largest difference of a tensor, in units of its largest value."""
KL = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference of a layer's KL divergence, nats."""
RECONSTRUCTION = {torch.float32: 0.05, torch.float64: 1e-6}
"""Largest difference of log p(x | z), nats."""

_CROP = 2
"""Pixels on each side of a binary image that the authors' likelihood leaves out."""


class NvaeParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        levels, config = configuration(facts["config"], "nvae")
        images = tensors["input_u8"].permute(0, 3, 1, 2).contiguous()
        shape = (images.shape[1], images.shape[2], images.shape[3])
        weights = {name.removeprefix("state_dict/"): x for name, x in tensors.items() if name.startswith("state_dict/")}
        with torch.device("meta"):  # nothing is allocated before the shapes are known to be those of the file
            on_paper = NVAE(shape, levels, config)
        state = fitted(on_paper.state_dict(), without_aliases(weights, config.single), parameter_names(on_paper))
        self.model = NVAE(shape, levels, config)
        self.model.load_state_dict({**self.model.state_dict(), **to_our_layout(state, self.model.head)})
        self.model.to(dtype).eval()
        # Fewer bits: the authors drop the lowest.
        self.x = images if levels == 2 else images // (256 // levels)
        self.tensors, self.dtype = tensors, dtype
        self.gaps = facts.get("max_abs_f32_minus_f64", {}) if dtype == torch.float64 else {}
        self.numbers = facts["float64" if dtype == torch.float64 else "float32"]
        count = sum(name.startswith("z/") for name in tensors)
        if count != self.model.num_layers:
            raise UserError(f"fixture: z of {count} groups, expected {self.model.num_layers} as configured")

    @torch.no_grad()
    def comparisons(self) -> list[Comparison]:
        """Group by group from the top: the latents, the divergence; then the outputs, and what depends on no image."""
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
        theirs = torch.tensor(self.numbers["kl_nats_per_layer_per_image"], dtype=torch.float64)  # [B, G]
        found = []
        for layer, step in enumerate(inferred):
            base = step.posterior.base if isinstance(step.posterior, TransformedNormal) else step.posterior
            # The fixture's latents are those of the float32 run, in either precision.
            found.append(Comparison(f"layer {layer}: z", base.mean, self.tensors[f"z/{layer}"], TENSOR[torch.float32]))
            found.append(Comparison(f"layer {layer}: kl", step.kl(), theirs[:, layer], KL[self.dtype], "absolute"))
        found.append(self._params("recon_params", raw[0], "par"))
        reconstruction = likelihood.log_prob_map(self.x)
        if self.model.config.likelihood == "bernoulli":
            reconstruction = reconstruction[..., _CROP:-_CROP, _CROP:-_CROP]
        nats = -torch.tensor(self.numbers["recon_nll_nats"], dtype=torch.float64)
        tolerance = RECONSTRUCTION[self.dtype]
        found.append(Comparison("log_likelihood_nats", reconstruction.flatten(1).sum(1), nats, tolerance, "absolute"))
        found.append(self._params("uncond_params", raw[1], "unc"))
        return found

    def _params(self, name: str, ours: Tensor, gap: str) -> Comparison:
        theirs = self.tensors[name][:, head_order(self.model.head)]
        slack = float(self.gaps.get(gap, 0.0))
        return Comparison(name, ours, theirs, TENSOR[self.dtype if slack else torch.float32], slack=slack)

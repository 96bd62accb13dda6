"""What the comparisons of NVAE and of the Very Deep VAE with activations of the authors' own code have in common.

A fixture holds random weights, two images, and what the authors' model computed from them with every latent at its
posterior mean (and, unconditionally, at its prior mean).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from davi.distributions import Distribution
from davi.errors import UserError
from davi.model import Hierarchy, Step
from davi.models import NVAE, VeryDeepVAE
from davi.published.agreement import Comparison

TENSOR = {torch.float32: 1e-5, torch.float64: 1e-6}
"""Largest difference of a tensor, in units of its largest value."""
KL = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference of a layer's KL divergence, nats."""
RECONSTRUCTION = {torch.float32: 0.05, torch.float64: 1e-6}
"""Largest difference of log p(x | z), nats."""


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dictionary that a fixture holds."""
    return {name.removeprefix("state_dict/"): x for name, x in tensors.items() if name.startswith("state_dict/")}


class LayerParity(ABC):
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        model: ours, with the fixture's weights.
        x: the fixture's images, as the model takes them.
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.

    Raises:
        UserError: if the fixture has another number of latents than the model.
    """

    unconditional: ClassVar[str]
    """What the fixture's facts call the outputs of the unconditional path."""

    def __init__(
        self,
        model: NVAE | VeryDeepVAE,
        x: Tensor,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        dtype: torch.dtype,
    ) -> None:
        self.model = model.to(dtype).eval()
        self.x, self.tensors, self.dtype = x, tensors, dtype
        self.gaps = facts.get("max_abs_f32_minus_f64", {}) if dtype == torch.float64 else {}
        self.numbers = facts["float64" if dtype == torch.float64 else "float32"]
        count = sum(name.startswith("z/") for name in tensors)
        if count != model.num_layers:
            raise UserError(f"fixture: z of {count} layers, expected {model.num_layers} as configured")

    @abstractmethod
    def latents(self, step: Step) -> Tensor:
        """What the fixture calls the latents of a layer."""

    @abstractmethod
    def outputs(self, name: str) -> Tensor:
        """The fixture's parameters of the likelihood ``[B, channels, H, W]``, in our order of channels."""

    @abstractmethod
    def reconstruction(self, likelihood: Distribution) -> list[Comparison]:
        """log p(x | z) as the authors count it."""

    @torch.no_grad()
    def comparisons(self) -> list[Comparison]:
        """Layer by layer from the top: the latents, the divergence; then the outputs, and what depends on no image."""
        steps: list[Step] = []

        def choose(layer: int, prior: Any, posterior: Any) -> Tensor:
            steps.append(Step(prior, posterior or prior, (posterior or prior).center()))
            return steps[-1].z

        model: Hierarchy = self.model
        raw: list[Tensor] = []
        hook = self.model.output.register_forward_hook(lambda module, inputs, output: raw.append(output))
        try:
            likelihood = model.top_down(choose, model.encode(self.x))
            inferred = list(steps)
            model.top_down(choose)
        finally:
            hook.remove()
        theirs = torch.tensor(self.numbers["kl_nats_per_layer_per_image"], dtype=torch.float64)  # [B, L]
        found = []
        for layer, step in enumerate(inferred):
            # The fixture's latents are those of the float32 run, in either precision.
            z, tolerance = self.tensors[f"z/{layer}"], TENSOR[torch.float32]
            found.append(Comparison(f"layer {layer}: z", self.latents(step), z, tolerance))
            found.append(Comparison(f"layer {layer}: kl", step.kl(), theirs[:, layer], KL[self.dtype], "absolute"))
        found.append(self._outputs("recon_params", raw[0], "par"))
        found += self.reconstruction(likelihood)
        found.append(self._outputs("uncond_params", raw[1], self.unconditional))
        return found

    def _outputs(self, name: str, ours: Tensor, gap: str) -> Comparison:
        slack = float(self.gaps.get(gap, 0.0))
        return Comparison(name, ours, self.outputs(name), TENSOR[self.dtype if slack else torch.float32], slack=slack)

    def nats(self, name: str, ours: Tensor, key: str) -> Comparison:
        """Log-likelihoods of the images beside the negative ones that the fixture has under a key."""
        theirs = -torch.tensor(self.numbers[key], dtype=torch.float64)
        return Comparison(name, ours, theirs, RECONSTRUCTION[self.dtype], "absolute")

"""Our Deep Attentive VAE beside activations of the authors' own code, tensor by tensor.

A fixture holds random weights, inputs, and what the authors' classes computed from them with every latent at its
posterior mean (and, unconditionally, at its prior mean).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from davi.errors import UserError
from davi.model import Step
from davi.model.meta import on_meta
from davi.models.attentive_vae import AttentiveVAE, Encoded, Generated, GenerativeLayer, InferenceLayer
from davi.published.agreement import Comparison
from davi.published.attentive.names import configuration, head_order, state_dict, structured_name

TENSOR = {torch.float32: 1e-5, torch.float64: 1e-6}
"""Largest difference of a tensor, in units of its largest value."""
LOG_LIKELIHOOD = {torch.float32: 0.05, torch.float64: 1e-6}
"""Largest difference of a log-likelihood, nats."""
GRADIENT = 1e-6
"""Largest relative difference of a gradient's norm (float64)."""


class _Walk:
    """Everything one pass computes, by the names of the fixture."""

    def __init__(self, model: AttentiveVAE, x: Tensor | None) -> None:
        self.model = model
        self.tensors: dict[str, Tensor] = {}
        self.steps: list[Step] = []
        hooks = [module.register_forward_hook(save) for module, save in self._taps()]
        try:
            context: Encoded | None = None if x is None else model.encode(x)
            self.likelihood = model.top_down(self._choose, context)
        finally:
            for hook in hooks:
                hook.remove()

    def _choose(self, layer: int, prior: Any, posterior: Any) -> Tensor:
        z: Tensor = (prior if posterior is None else posterior).mean
        self.steps.append(Step(prior, posterior or prior, z))
        path = f"layers/{layer}"
        self.tensors[f"{path}/z"] = z
        if layer:
            self.tensors |= {f"{path}/prior_mean": prior.mean, f"{path}/prior_sigma": prior.scale}
        if posterior is not None:
            self.tensors |= {f"{path}/posterior_mean": posterior.mean, f"{path}/posterior_sigma": posterior.scale}
        return z

    def _taps(self) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        def keep(name: str) -> Callable[..., None]:
            return lambda module, inputs, output: self.tensors.__setitem__(name, output)

        yield self.model.preprocess, keep("preproc_output")
        for index, cell in enumerate(self.model.encoder):
            yield cell, keep(f"layers/{index}/encoder_feature")
        yield self.model.merge, keep("final_merge_output")
        yield self.model.postprocess, keep("postproc_output")
        yield self.model.output, keep("likelihood_params")
        yield self.model.top, lambda module, inputs, output: self._save_generated(0, output)
        for index, layer in enumerate(self.model.generative):
            assert isinstance(layer, GenerativeLayer)
            yield layer, lambda module, inputs, output, i=index + 1: self._save_generated(i, output)
        for index, layer in enumerate(self.model.inference):
            assert isinstance(layer, InferenceLayer)
            yield layer, lambda module, inputs, output, i=index: self._save_inferred(i, inputs[0], output)

    def _save_generated(self, layer: int, state: Generated) -> None:
        named = {
            "context": state.context if layer else torch.cat([state.context, state.key], 1),
            "decoder_key": state.key,
            "decoder_query": state.query,
            "decoder_attention_weights": state.weights,
            "decoder_attention_result": state.result,
            "attended_context": state.attended,
            "encoder_query": state.inference_query,
        }
        if state.prior is not None:
            named |= {"prior_mu_raw": state.prior.mean, "prior_log_sigma_raw": state.prior.log_scale}
        self.tensors |= {f"layers/{layer}/{name}": x for name, x in named.items() if x is not None and x.shape[1]}

    def _save_inferred(self, layer: int, state: Generated, inferred: Any) -> None:
        delta = inferred.delta
        raw = delta if state.prior is None else state.prior.shifted(delta)
        named = {
            "encoder_attention_weights": inferred.weights,
            "encoder_attention_result": inferred.result,
            "posterior_condition": inferred.condition,
            "posterior_delta_mu_raw": delta.mean,
            "posterior_delta_log_sigma_raw": delta.log_scale,
            "posterior_mu_raw": raw.mean,
            "posterior_log_sigma_raw": raw.log_scale,
        }
        self.tensors |= {f"layers/{layer}/{name}": x for name, x in named.items() if x is not None}


# The order in which a layer computes what a fixture may hold.
_LAYER_ORDER = [
    "context",
    "decoder_key",
    "decoder_query",
    "decoder_attention_weights",
    "decoder_attention_result",
    "attended_context",
    "prior_mu_raw",
    "prior_log_sigma_raw",
    "prior_mean",
    "prior_sigma",
    "encoder_query",
    "encoder_attention_weights",
    "encoder_attention_result",
    "posterior_condition",
    "posterior_delta_mu_raw",
    "posterior_delta_log_sigma_raw",
    "posterior_mu_raw",
    "posterior_log_sigma_raw",
    "posterior_mean",
    "posterior_sigma",
    "z",
]


def _order(num_layers: int) -> list[str]:
    names = ["preproc_output", *(f"layers/{i}/encoder_feature" for i in reversed(range(num_layers)))]
    names += [f"layers/{i}/{name}" for i in range(num_layers) for name in _LAYER_ORDER]
    return [*names, "final_merge_output", "postproc_output", "likelihood_params"]


class AttentiveParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        shape, levels, config = configuration(facts["config"], facts["image_info"], form="attentive")
        weights = {name.removeprefix("weights/"): x for name, x in tensors.items() if name.startswith("weights/")}
        if sum(config.layers) * config.nodes > len(weights):
            raise UserError(f"configuration: {config.layers} layers, {config.nodes} nodes, but {len(weights)} weights")
        with on_meta():  # nothing is allocated before the shapes are known to be those of the file
            on_paper = AttentiveVAE(shape, levels, config)
        state = state_dict(on_paper, weights)
        self.model = AttentiveVAE(shape, levels, config)
        self.model.load_state_dict(state)
        self.model.to(dtype)
        self.x = tensors["input/x_uint8"].permute(0, 3, 1, 2).contiguous()
        self.expected = {
            name.removeprefix("expected/"): x for name, x in tensors.items() if name.startswith("expected/")
        }
        self.facts, self.dtype = facts, dtype
        self.numbers = facts["float64" if dtype == torch.float64 else "float32"]

    def comparisons(self) -> list[Comparison]:
        """Evaluation mode, unconditional pass, training mode, and in float64 the gradients."""
        self.model.eval()
        with torch.set_grad_enabled(self.dtype == torch.float64):
            walk = _Walk(self.model, self.x)
        found = self._tensors(walk, "") + self._bound(walk, self.numbers, "")
        if self.dtype == torch.float64:
            found += self._gradients(walk)
        with torch.no_grad():
            found += self._tensors(_Walk(self.model, None), "unconditional/")
            found += self._training_mode()
        missing = set(self.expected) - {comparison.name for comparison in found}
        if missing:
            raise UserError(f"fixture: expected/{min(missing)} has no counterpart here")
        return found

    def _tensors(self, walk: _Walk, prefix: str) -> list[Comparison]:
        names = [name for name in _order(self.model.num_layers) if prefix + name in self.expected]
        return [self._tensor(prefix + name, walk.tensors.get(name)) for name in names]

    def _tensor(self, name: str, ours: Tensor | None) -> Comparison:
        theirs = self.expected[name]
        if ours is None:
            raise UserError(f"fixture: expected/{name} is not something this configuration computes")
        if theirs.ndim == 4:
            theirs = theirs.permute(0, 3, 1, 2)
            if name.endswith("likelihood_params"):
                theirs = theirs[:, head_order(self.model.pixel_head)]
            if ours.shape[0] == 1:  # what does not depend on the image is computed once
                ours = ours.expand(theirs.shape[0], -1, -1, -1)
        # Fixtures store tensors of the float32 run; how far those are from the float64 run is recorded beside them,
        # except for moving statistics, which therefore keep the tolerance of float32.
        rounding = self.facts["float32_vs_float64_max_abs_difference_and_scale"].get(name)
        if self.dtype == torch.float64 and rounding is not None:
            return Comparison(name, ours, theirs, TENSOR[torch.float64], "scale", slack=float(rounding[0]))
        return Comparison(name, ours, theirs, TENSOR[torch.float32], "scale")

    def _bound(self, walk: _Walk, numbers: Mapping[str, Any], prefix: str) -> list[Comparison]:
        kl = torch.stack([step.kl() for step in walk.steps], 1)  # [B, L]
        found = [self._number(f"{prefix}kl", "each", kl, numbers["kl_nats_per_layer_per_image"])]
        for name, form in (("official", "attentive"), ("correct_edge_0999", "openai")):
            key = f"log_likelihood_{name}_nats"
            if key in numbers:
                if hasattr(walk.likelihood, "form"):
                    walk.likelihood.form = form
                ours = walk.likelihood.log_prob(self.x)
                found.append(self._number(f"{prefix}log_likelihood/{name}", "absolute", ours, numbers[key]))
        return found

    def _number(self, name: str, relative: str, ours: Tensor, theirs: Any) -> Comparison:
        tolerance = LOG_LIKELIHOOD[self.dtype]
        if relative == "each":
            relative, tolerance = ("absolute", 1e-6) if self.dtype == torch.float64 else ("each", 1e-4)
        return Comparison(name, ours, torch.tensor(theirs, dtype=torch.float64), tolerance, relative)

    def _training_mode(self) -> list[Comparison]:
        """Batch statistics instead of moving ones; the noise on the log-scales is off in the fixtures."""
        self.model.train()
        for layer in (*self.model.generative, *self.model.inference):
            layer.noise = 0.0
        walk = _Walk(self.model, self.x)
        found = self._bound(walk, self.numbers["training_mode"], "training_mode/")
        for key, buffer in self.model.state_dict().items():
            name = f"training_mode/{structured_name(key)}"
            if name in self.expected:
                found.append(self._tensor(name, buffer))
        return found

    def _gradients(self, walk: _Walk) -> list[Comparison]:
        """Norms of the gradient of the negative bound, summed over the images, with respect to every weight."""
        if hasattr(walk.likelihood, "form"):
            walk.likelihood.form = "attentive"
        loss = -walk.likelihood.log_prob(self.x).sum()
        for step in walk.steps:
            loss = loss + step.kl().sum()
        loss.backward()
        parameters = dict(self.model.named_parameters())
        norms = {structured_name(key): x.grad for key, x in parameters.items()}
        found = []
        for name, theirs in self.facts["gradient_l2_norms_float64"].items():
            if name not in norms:
                raise UserError(f"fixture: gradient of {name} has no counterpart here")
            gradient = norms[name]
            ours = torch.zeros(()) if gradient is None else gradient.norm()
            # Gradients that are zero by construction are rounding noise on both sides.
            floor = 1e-9 * max(self.facts["gradient_l2_norms_float64"].values())
            found.append(Comparison(f"gradient/{name}", ours, torch.tensor(theirs), GRADIENT, "each", slack=floor))
        return found

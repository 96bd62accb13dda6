"""Maximizing a model's evidence: the objective of every model that makes a claim about log p(x).

What is minimized is :func:`davi.objectives.bounds.objective`; what is validated is the evidence itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.distributions import Drawn, Latent, Normal
from davi.errors import UserError
from davi.evidence import Evidence
from davi.layers.quantizer import Codebook
from davi.model import Hierarchy, Model, Network
from davi.objectives.base import Loss, Objective, ObjectiveConfig, Progress, options_of
from davi.objectives.bounds import EvidenceConfig, objective
from davi.objectives.mutual_information import check_information, information_term

_NEEDS = {
    "importance weights": ("draws", "bound", "free_nats", "kl_balance"),
    "layers of latents": ("free_nats", "kl_balance"),
    "KL divergences": ("kl_start", "kl_steps", "kl_epochs", "kl_fraction"),
}
"""What a model must have for options to mean something."""


@final
class EvidenceObjective(Objective):
    """Minus the evidence, with the weights, bounds and free bits that the options ask for."""

    name: ClassVar[str] = "evidence"
    Config: ClassVar[type[ObjectiveConfig]] = EvidenceConfig
    wants: ClassVar[type] = Model
    config: EvidenceConfig

    def check(self, model: Network) -> None:
        assert isinstance(model, Model)
        if any(isinstance(module, Codebook) for module in model.modules()):
            raise UserError(
                f"objective: got evidence for {model.name}, whose vectors would not follow the features; expected "
                "vector_quantized for the autoencoder, then evidence for the prior (stages)"
            )
        needed = {what: given for what, names in _NEEDS.items() if (given := options_of(self.config, *names))}
        if needed:
            evidence = _evidence(model)
            has = {
                "importance weights": evidence.log_weight_fn is not None,
                "layers of latents": bool(evidence.kl_maps),
                "KL divergences": any(name.startswith("kl/") for name in evidence.terms),
            }
            for what, given in needed.items():
                if not has[what]:
                    words = ", ".join(f"{name} {value}" for name, value in given.items())
                    raise UserError(f"objective: got {words} for {model.name}, expected a model with {what}")
        if self.config.gradient == "doubly_reparameterized" and isinstance(model, Hierarchy):
            _check_posteriors(model)
        if self.config.mutual_information_weight:
            check_information(model, self.config.mutual_information_weight)

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        evidence: Evidence = network(batch.x, self.config.draws, *_labels(model, batch))
        # Distributions compute in float32 whatever the network's outputs are; so do the sums over them.
        with torch.autocast(batch.x.device.type, enabled=False):
            value = objective(evidence, self.config, self._kl_weight(at))
        if self.config.mutual_information_weight:
            assert isinstance(model, Hierarchy)
            value = value - self.config.mutual_information_weight * information_term(model, len(batch.x))
        return Loss(value, evidence.terms, evidence.kind, evidence.no_divergence)

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        assert isinstance(model, Model)
        evidence = model.evidence(batch.x, generator, *_labels(model, batch))
        return Loss(-evidence.log_px.mean(), evidence.terms, evidence.kind, evidence.no_divergence)

    def reports(self, model: Network, at: Progress) -> Mapping[str, float]:
        return {"kl_weight": self._kl_weight(at)}

    def settled(self, at: Progress) -> bool:
        return self._kl_weight(at) >= 1.0

    def _kl_weight(self, at: Progress) -> float:
        return self.config.kl_weight(at.step, at.epoch, at.fraction)


def _labels(model: Network, batch: Batch) -> tuple[Tensor, ...]:
    """The labels, for a model that makes use of them."""
    return (batch.y,) if model.classes and batch.y is not None else ()


@torch.no_grad()
def _evidence(model: Model) -> Evidence:
    """What the model says about an image of zeros: it tells what an objective can count on. Nothing is moved by it."""
    training, device = model.training, _device(model)
    model.eval()
    try:
        zeros = torch.zeros(1, *model.shape, dtype=torch.uint8, device=device)
        y = torch.zeros(1, dtype=torch.int64, device=device) if model.classes else None
        return model.evidence(zeros, Generator(device).manual_seed(0), y)
    finally:
        model.train(training)


@torch.no_grad()
def _check_posteriors(model: Hierarchy) -> None:
    """The doubly reparameterized gradient needs densities at any place; a flow knows those of its draws."""

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        own = posterior.posterior if isinstance(posterior, Drawn) else posterior
        if not isinstance(own, Normal):
            raise UserError(
                f"doubly reparameterized gradient: {model.name} has a posterior of type {type(own).__name__}, expected "
                "Normal posteriors only"
            )
        return own.mean

    training = model.training
    model.eval()  # no running statistics are moved
    try:
        model.top_down(choose, model.encode(torch.zeros(1, *model.shape, dtype=torch.uint8, device=_device(model))))
    finally:
        model.train(training)


def _device(model: Network) -> torch.device:
    return next(model.parameters()).device

"""What to try when layers of latents are inactive: the switches that a model and its objective leave, in an order.

First what costs nothing in the end, the schedule of the weights; then free bits, which do; then what makes the decoder
weaker; last a posterior that cannot become its prior. :doc:`/concepts/collapse` explains all of them.

References:
    Generating Sentences from a Continuous Space, S. R. Bowman et al., CoNLL 2016, https://arxiv.org/abs/1511.06349
    (warm-up and a weaker decoder)

    Improving Variational Inference with Inverse Autoregressive Flow, D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen,
    I. Sutskever, M. Welling, NeurIPS 2016, https://arxiv.org/abs/1606.04934 (free bits)

    Variational Lossy Autoencoder, X. Chen et al., ICLR 2017, https://arxiv.org/abs/1611.02731 (a small receptive field)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from davi.distributions import Normal
from davi.layers.autoregressive_head import AutoregressiveHead
from davi.model import Network, PixelHierarchy
from davi.model.joint import ask
from davi.objectives.base import ObjectiveConfig
from davi.objectives.bounds import EvidenceConfig
from davi.objectives.lagging import LaggingConfig

_FREE = 2.0
"""Nats of a layer, at first."""
_HIDDEN = 0.3
"""Share of the pixels hidden from a decoder."""


class Remedy(NamedTuple):
    """A switch that may bring inactive layers back.

    Arguments:
        switch: what is typed after ``davi train RECIPE``.
        effect: what it does, in a few words.
    """

    switch: str
    effect: str

    def __str__(self) -> str:
        return f"train again with {self.switch} added ({self.effect})"


def remedies(model: Network, config: ObjectiveConfig | None, inactive: Collection[str]) -> list[Remedy]:
    """The switches that are left, the one to try first at the beginning.

    Arguments:
        model: whose layers they are.
        config: what it is trained with, if that is known.
        inactive: names of the inactive layers, ``kl/00`` the top.
    """
    if not inactive:
        return []
    return [*_of_objective(config), *_of_likelihood(model), *_of_top(model, config, inactive)]


def _of_objective(config: ObjectiveConfig | None) -> Iterator[Remedy]:
    path = "--training.objective"
    if isinstance(config, LaggingConfig):
        config, path = config.evidence, f"{path}.evidence"
    if not isinstance(config, EvidenceConfig) or config.bound != "elbo":
        return
    if not config.warms_up:
        yield Remedy(f"{path}.kl_fraction 0.5", "the KL weight rises from 0 to 1 in the first half of the training")
    if not config.free_nats:
        switch = f"{path}.free_nats {_FREE:g} {path}.free_group layer"
        yield Remedy(switch, f"the first {_FREE:g} nats of every layer cost nothing")


def _of_likelihood(model: Network) -> Iterator[Remedy]:
    head = model.head if isinstance(model, PixelHierarchy) else None
    if not isinstance(head, AutoregressiveHead):
        return
    path = "--model.likelihood"
    if head.network.window is not None:
        for option in ("layers", "blocks"):
            count = getattr(head.network.config, option, 1)
            if count > 1:
                effect = "a smaller receptive field leaves more to the latents"
                yield Remedy(f"{path}.network.{option} {count // 2}", effect)
    if not head.likelihood.input_dropout:
        effect = f"in training {_HIDDEN:.0%} of the pixels are hidden from the decoder"
        yield Remedy(f"{path}.input_dropout {_HIDDEN:g}", effect)


def _of_top(model: Network, config: ObjectiveConfig | None, inactive: Collection[str]) -> Iterator[Remedy]:
    if "kl/00" not in inactive or not isinstance(model, PixelHierarchy):
        return
    options, posterior = model.config, ask(model).posteriors[0]
    chosen = (options.constant_rate, options.posterior_flow, options.prior)
    if chosen == (None, None, None) and isinstance(posterior, Normal) and posterior.mean[0].numel() > 1:
        wants_normal = isinstance(config, EvidenceConfig) and config.gradient == "doubly_reparameterized"
        kind = "fixed_normal" if wants_normal else "von_mises_fisher"
        yield Remedy(f"--model.constant_rate.name {kind}", "the KL divergence of the top layer is a positive constant")


def remedy(model: Network, config: ObjectiveConfig | None, inactive: Collection[str]) -> str:
    """The first of :func:`remedies` as a sentence without its full stop; empty if nothing is inactive or left."""
    found = remedies(model, config, inactive)
    return str(found[0]) if found else ""

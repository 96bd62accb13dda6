r"""What is minimized: one scalar made from a model's evidence. What is *reported* never passes through here.

The evidence lower bound of a hierarchy is a reconstruction term minus KL divergences. Training a deep hierarchy with it
from the first step tends to switch latent layers off before they carry anything, so the divergences may be weighted
with :math:`\beta`, which rises to 1:

.. math:: \mathcal L_\beta = \frac 1B \sum_b \Bigl( -\sum_{t \notin KL} \mathrm{term}_t(x_b)
          + \beta \sum_i KL_i(x_b) \Bigr) + \lambda \sum \mathrm{penalties}

At :math:`\beta = 1` and without penalties this is the negative evidence lower bound. The weight of the penalties may
go with the warm-up from another value, :math:`\lambda = \lambda_0^{1-\beta} \lambda_1^{\beta}`.

Three more things that papers of the family do to their training, and that no reported number knows of:

*Free bits* give a group of latents :math:`\lambda` nats for nothing, so that it need not be switched off to be cheap;
the group is a channel map of a layer or a whole layer, its divergence the mean over the batch or that of an image:

.. math:: \sum_g \max\bigl(\lambda, \tfrac 1B \sum_b KL_g(x_b)\bigr) \qquad \text{or} \qquad
          \frac 1B \sum_b \sum_g \max\bigl(\lambda, KL_g(x_b)\bigr)

Below :math:`\lambda` the gradient of a divergence is exactly zero, above it is that of the divergence itself.

*Balancing* divides the pressure among layers while :math:`\beta < 1`. With :math:`n_s` layers at the scale s of layer
i, counted from the coarsest (0),

.. math:: a_i = \frac{\tfrac 1B\sum_b |KL_i(x_b)| + 0.01}{\alpha_i}, \qquad
          \alpha_i \propto \frac{4^{s}}{n_s}, \; \min_i \alpha_i = 1, \qquad
          \gamma_i = \frac{a_i}{\tfrac 1L\sum_j a_j}

are weights of the divergences through which no gradient flows.

The *importance-weighted bound* of k draws replaces the whole sum,

.. math:: \mathcal L_k = -\frac 1B \sum_b \log \frac 1k \sum_{j=1}^k \exp w_{bj}, \qquad
          w_{bj} = \log p(x_b, z_{bj}) - \log q(z_{bj} \mid x_b)

and its *doubly reparameterized* gradient, in which the encoder's part is weighted by the square of the normalized
:math:`e^{w}`, does not lose its signal in the noise as k grows.

References:
    Ladder Variational Autoencoders, C. K. Sonderby, T. Raiko, L. Maaloe, S. K. Sonderby, O. Winther, NeurIPS 2016,
    https://arxiv.org/abs/1602.02282 (warm-up of the KL divergence)

    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij (the stepwise warm-up)

    Improving Variational Inference with Inverse Autoregressive Flow, D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen,
    I. Sutskever, M. Welling, NeurIPS 2016, https://arxiv.org/abs/1606.04934 (free bits)

    NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
    https://arxiv.org/abs/2007.03898 (balancing)

    Importance Weighted Autoencoders, Y. Burda, R. Grosse, R. Salakhutdinov, ICLR 2016, https://arxiv.org/abs/1509.00519

    Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, G. Tucker, D. Lawson, S. Gu, C. J. Maddison,
    ICLR 2019, https://arxiv.org/abs/1810.04152
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from davi.evidence import Evidence
from davi.objectives.base import ObjectiveConfig


@dataclass(frozen=True)
class EvidenceConfig(ObjectiveConfig):
    """The evidence itself, weighted and bounded as papers do.

    The weight of the KL divergences rises over at most one length; without any it is 1 from the start.

    Arguments:
        name: ``evidence``.
        kl_start: weight at the first step, 0 to 1.
        kl_steps: steps until the weight is 1; it rises at every step.
        kl_epochs: passes over the training images until the weight is 1; it rises between passes only, as in the paper
            (start 0.1 and 16 epochs: 0.1 + 0.9 epoch / 16).
        kl_fraction: share of the whole training budget until the weight is 1.
        penalty_weight: lambda, of the model's penalties.
        penalty_start: lambda at the first step of a warm-up; 0: the same throughout.
        kl_balance: weigh the layers' divergences against one another while the weight is below 1.
        free_nats: lambda, what each group's divergence may cost for nothing; 0: no free bits. The mean is that of the
            images computed together: of each part, where a batch is cut into parts. Shares of ``kl_balance`` likewise.
        free_group: what a group is, a channel map of a layer or a layer.
        free_average: what is compared with lambda, the mean over the images (``batch``) or every image's own divergence
            (``example``); where there are several draws, that of each.
        draws: k, draws of the latents for each image.
        bound: ``elbo``, the mean over the draws, or ``importance_weighted``, L_k.
        mutual_information_weight: of the lower bound on the mutual information of latents and images under the model
            (:mod:`davi.objectives.mutual_information`), which is maximized along with the evidence; 0: none.
        gradient: ``reparameterized``, or ``doubly_reparameterized`` for the importance-weighted bound of a model all of
            whose posteriors are Normal.
    """

    name: Literal["evidence"] = "evidence"
    kl_start: float = 0.0
    kl_steps: int = 0
    kl_epochs: int = 0
    kl_fraction: float = 0.0
    penalty_weight: float = 1.0
    penalty_start: float = 0.0
    kl_balance: bool = False
    free_nats: float = 0.0
    free_group: Literal["channel", "layer"] = "channel"
    free_average: Literal["batch", "example"] = "batch"
    draws: int = 1
    bound: Literal["elbo", "importance_weighted"] = "elbo"
    gradient: Literal["reparameterized", "doubly_reparameterized"] = "reparameterized"
    mutual_information_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.kl_start <= 1.0:
            raise ValueError(f"kl_start: got {self.kl_start}, expected 0 to 1")
        for name in ("kl_steps", "kl_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 (no warm-up) or more")
        if not 0.0 <= self.kl_fraction <= 1.0:
            raise ValueError(f"kl_fraction: got {self.kl_fraction}, expected 0 (no warm-up) to 1")
        if sum(map(bool, (self.kl_steps, self.kl_epochs, self.kl_fraction))) > 1:
            raise ValueError("kl_steps: got more than one warm-up, expected one of kl_steps, kl_epochs and kl_fraction")
        for name in ("penalty_weight", "penalty_start", "mutual_information_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a number >= 0")
        if self.penalty_start and not (self.warms_up and self.penalty_weight):
            raise ValueError(
                f"penalty_start: got {self.penalty_start}, expected 0 without a warm-up and a penalty_weight above 0"
            )
        self._check_bound()

    @property
    def warms_up(self) -> bool:
        return bool(self.kl_steps or self.kl_epochs or self.kl_fraction)

    def _check_bound(self) -> None:
        if not 0.0 <= self.free_nats < math.inf:
            raise ValueError(f"free_nats: got {self.free_nats}, expected a number >= 0")
        if self.draws < 1:
            raise ValueError(f"draws: got {self.draws}, expected at least 1")
        if self.kl_balance and not self.warms_up:
            raise ValueError("kl_balance: got true without a warm-up, expected kl_steps, kl_epochs or kl_fraction")
        if self.bound == "importance_weighted":
            if self.warms_up or self.free_nats:
                raise ValueError("bound: got importance_weighted with a warm-up or free bits, expected neither")
        elif self.gradient != "reparameterized":
            raise ValueError(f"gradient: got {self.gradient} for the bound elbo, expected bound importance_weighted")

    def kl_weight(self, step: int, epoch: int, fraction: float) -> float:
        """The weight beta of the KL divergences.

        Arguments:
            step: steps done so far.
            epoch: whole passes over the training images done so far.
            fraction: share of the training budget that is used up, 0 to 1.
        """
        progress = 1.0
        if self.kl_steps:
            progress = step / self.kl_steps
        elif self.kl_epochs:
            progress = epoch / self.kl_epochs
        elif self.kl_fraction:
            progress = fraction / self.kl_fraction
        return 1.0 if progress >= 1.0 else self.kl_start + (1.0 - self.kl_start) * progress

    def penalty_weight_at(self, kl_weight: float) -> float:
        """The weight lambda of the penalties where that of the divergences is ``kl_weight``."""
        if not self.penalty_start:
            return self.penalty_weight
        return self.penalty_start ** (1.0 - kl_weight) * self.penalty_weight**kl_weight


def objective(evidence: Evidence, config: EvidenceConfig, kl_weight: float = 1.0) -> Tensor:
    """The scalar to be minimized, in nats per image (module docstring).

    Arguments:
        evidence: what the model claims about every image ``config.draws`` times, side by side
            (:meth:`davi.model.Model.forward`); its terms named ``kl/...`` are minus the KL divergences.
        config: which objective.
        kl_weight: beta.

    Raises:
        ValueError: if the evidence has no terms, the weight is negative or not finite, or the evidence lacks what the
            objective needs (latents; Normal posteriors, if the gradient is to be doubly reparameterized).
    """
    if not (math.isfinite(kl_weight) and kl_weight >= 0.0):
        raise ValueError(f"kl_weight: got {kl_weight}, expected a finite number >= 0")
    if config.bound == "importance_weighted":
        loss = -_importance_weighted(evidence, config)
    elif config.kl_balance and kl_weight < 1.0:
        weights = balancing(evidence)
        loss = _negative_elbo(evidence, {name: kl_weight * weight for name, weight in weights.items()}, config)
    else:
        loss = _negative_elbo(evidence, dict.fromkeys(_kl_names(evidence), kl_weight), config)
    for penalty in evidence.penalties.values():
        loss = loss + config.penalty_weight_at(kl_weight) * penalty
    return loss


def negative_elbo(evidence: Evidence, kl_weight: float = 1.0) -> Tensor:
    """The objective without anything but the weight: value and gradient are those of ``-evidence.log_px.mean()`` bit
    for bit if it is 1 and there are no penalties."""
    return objective(evidence, _PLAIN, kl_weight)


def _negative_elbo(evidence: Evidence, weights: Mapping[str, Tensor | float], config: EvidenceConfig) -> Tensor:
    total: Tensor | None = None  # [B]
    free: Tensor | None = None  # scalar
    for name, term in evidence.terms.items():
        weight = weights.get(name, 1.0)
        if name in weights and config.free_nats:
            cost = weight * _free_cost(evidence.kl_maps[name], config)
            free = cost if free is None else free + cost
            continue
        weighted = term if isinstance(weight, float) and weight == 1.0 else term * weight
        total = weighted if total is None else total + weighted
    if total is None:
        raise ValueError("evidence: got no terms, expected at least one")
    loss = -total.mean()
    return loss if free is None else loss + free


def _kl_names(evidence: Evidence) -> list[str]:
    return [name for name in evidence.terms if name.startswith("kl/")]


def _free_cost(kl_map: Tensor, config: EvidenceConfig) -> Tensor:
    """Sum over the groups of a layer of max(lambda, divergence); the gradient below lambda is exactly zero."""
    per_channel = kl_map.sum(tuple(range(2, kl_map.ndim))) if kl_map.ndim > 2 else kl_map  # [B, C]
    if config.free_average == "example":
        each = per_channel if config.free_group == "channel" else per_channel.sum(1, keepdim=True)  # [B, groups]
        return each.clamp_min(config.free_nats).sum(1).mean()
    groups = per_channel.mean(0) if config.free_group == "channel" else per_channel.sum(1).mean(0, keepdim=True)
    return groups.clamp_min(config.free_nats).sum()


def balancing(evidence: Evidence) -> dict[str, Tensor]:
    """The weights gamma of the layers' divergences (module docstring), scalars without gradient."""
    names = _kl_names(evidence)
    sizes = [evidence.kl_maps[name].shape[2:].numel() for name in names]  # h * w
    scales = sorted(set(sizes))
    alpha = [4.0 ** scales.index(size) / sizes.count(size) for size in sizes]
    least = min(alpha)
    costs = torch.stack([evidence.terms[name].detach().abs().mean() for name in names]) + 0.01
    shares = costs / costs.new_tensor([value / least for value in alpha])
    return dict(zip(names, (shares / shares.mean()).unbind(), strict=True))


def _importance_weighted(evidence: Evidence, config: EvidenceConfig) -> Tensor:
    """Mean of L_k over the images; its gradient as the configuration says."""
    if evidence.log_weight_fn is None:
        raise ValueError("evidence: got no log weights, expected a model with latents")
    if config.gradient == "reparameterized":
        log_weights = evidence.log_weight_fn().unflatten(0, (-1, config.draws))  # [B, k]
        return (log_weights.logsumexp(1) - math.log(config.draws)).mean()
    return _doubly_reparameterized(evidence, config.draws)


def _doubly_reparameterized(evidence: Evidence, k: int) -> Tensor:
    """Mean of L_k over the images, with the other gradient (module docstring).

    To hold the latents fixed, what a gradient would say through them is subtracted: of log p(x, z) only what it says to
    the generative model is left, and the posterior learns from ``z`` alone. Latents that were drawn given others pass
    on what is theirs to pass on.
    """
    assert evidence.log_weight_fn is not None
    log_weights = evidence.log_weight_fn().unflatten(0, (-1, k))  # [B, k]
    value = (log_weights.logsumexp(1) - math.log(k)).mean().detach()
    if not any(z.requires_grad for z in evidence.draws):
        return value
    shares = log_weights.detach().softmax(1) / len(log_weights)
    joint = (shares * evidence.log_weight_fn(joint=True).unflatten(0, (-1, k))).sum()
    posterior = joint - (shares * log_weights).sum()  # of log q
    of_joint, of_posterior = (_partial(total, evidence.draws) for total in (joint, posterior))
    surrogate = joint
    for z, p, q in zip(evidence.draws, of_joint, of_posterior, strict=True):
        factor = (shares * len(log_weights)).flatten().view(-1, *[1] * (z.ndim - 1))
        surrogate = surrogate + ((factor * (p - q) - p) * z).sum()
    return surrogate + (value - surrogate.detach())


def _partial(total: Tensor, draws: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives of a scalar with respect to each draw while the others are held fixed; later draws may follow from
    earlier ones."""
    found = list(torch.autograd.grad(total, draws, retain_graph=True, materialize_grads=True))
    for i in reversed(range(len(draws) - 1)):
        through = torch.autograd.grad(
            draws[i + 1 :], draws[i], found[i + 1 :], retain_graph=True, materialize_grads=True
        )
        found[i] = found[i] - through[0]
    return found


_PLAIN = EvidenceConfig()

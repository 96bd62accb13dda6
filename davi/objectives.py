r"""What is minimised: one scalar made from a model's evidence. What is *reported* never passes through here.

The evidence lower bound of a hierarchy is a reconstruction term minus KL divergences. Training a deep hierarchy with it
from the first step tends to switch latent layers off before they carry anything, so the divergences may be weighted
with :math:`\beta`, which rises to 1:

.. math:: \mathcal L_\beta = \frac 1B \sum_b \Bigl( -\sum_{t \notin KL} \mathrm{term}_t(x_b)
          + \beta \sum_i KL_i(x_b) \Bigr) + \sum \mathrm{penalties}

At :math:`\beta = 1` and without penalties this is the negative evidence lower bound.

References:
    Ladder Variational Autoencoders, C. K. Sonderby, T. Raiko, L. Maaloe, S. K. Sonderby, O. Winther, NeurIPS 2016,
    https://arxiv.org/abs/1602.02282 (warm-up of the KL divergence)

    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij (the stepwise warm-up)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from davi.evidence import Evidence


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weight of the KL divergences during training.

    At most one length is given; without any, the weight is 1 from the start.

    Arguments:
        kl_start: weight at the first step, 0 to 1.
        kl_steps: steps until the weight is 1; it rises at every step.
        kl_epochs: passes over the training images until the weight is 1; it rises between passes only, as in the paper
            (start 0.1 and 16 epochs: 0.1 + 0.9 epoch / 16).
        kl_fraction: share of the whole training budget until the weight is 1.
    """

    kl_start: float = 0.0
    kl_steps: int = 0
    kl_epochs: int = 0
    kl_fraction: float = 0.0

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


def negative_elbo(evidence: Evidence, kl_weight: float = 1.0) -> Tensor:
    """The objective of the module's docstring: a scalar in nats per image, to be minimised.

    With ``kl_weight`` 1 and no penalties, value and gradient are those of ``-evidence.log_px.mean()`` bit for bit.

    Arguments:
        evidence: what the model claims; its terms named ``kl/...`` are minus the KL divergences.
        kl_weight: beta.

    Raises:
        ValueError: if the evidence has no terms, or the weight is negative or not finite.
    """
    if not (math.isfinite(kl_weight) and kl_weight >= 0.0):
        raise ValueError(f"kl_weight: got {kl_weight}, expected a finite number >= 0")
    total: Tensor | None = None  # [B]
    for name, term in evidence.terms.items():
        weighted = term * kl_weight if kl_weight != 1.0 and name.startswith("kl/") else term
        total = weighted if total is None else total + weighted
    if total is None:
        raise ValueError("evidence: got no terms, expected at least one")
    loss = -total.mean()
    for penalty in evidence.penalties.values():
        loss = loss + penalty
    return loss

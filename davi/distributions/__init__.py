"""Probability distributions over batches of images and latent maps.

All log-probabilities are in nats. ``log_prob`` sums over everything but the batch and returns ``[B]``;
``log_prob_map`` keeps the grain at which the distribution factorizes.
"""

from davi.distributions.base import Distribution, Latent, Pairwise, WithMean
from davi.distributions.codes import Codes, Point
from davi.distributions.discrete import Bernoulli, Categorical
from davi.distributions.logistic_mixture import DiscretizedLogisticMixture
from davi.distributions.normal import Normal, bounded_normal
from davi.distributions.posterior import Drawn, KnownDraws, TransformedNormal

__all__ = [
    "Bernoulli",
    "Categorical",
    "Codes",
    "DiscretizedLogisticMixture",
    "Distribution",
    "Drawn",
    "KnownDraws",
    "Latent",
    "Normal",
    "Pairwise",
    "Point",
    "TransformedNormal",
    "WithMean",
    "bounded_normal",
]

"""Probability distributions over batches of images and latent maps.

All log-probabilities are in nats. ``log_prob`` sums over everything but the batch and returns ``[B]``;
``log_prob_map`` keeps the grain at which the distribution factorizes.
"""

from davi.distributions.autoregressive_normal import AutoregressiveNormal
from davi.distributions.base import Distribution, Latent, Pairwise, WithMean
from davi.distributions.codes import Codes, Point
from davi.distributions.discrete import Bernoulli, Categorical
from davi.distributions.logistic_mixture import DiscretizedLogisticMixture
from davi.distributions.normal import Normal, bounded_normal
from davi.distributions.posterior import Drawn, TransformedNormal
from davi.distributions.sphere import UniformSphere, VonMisesFisher

__all__ = [
    "AutoregressiveNormal",
    "Bernoulli",
    "Categorical",
    "Codes",
    "DiscretizedLogisticMixture",
    "Distribution",
    "Drawn",
    "Latent",
    "Normal",
    "Pairwise",
    "Point",
    "TransformedNormal",
    "UniformSphere",
    "VonMisesFisher",
    "WithMean",
    "bounded_normal",
]

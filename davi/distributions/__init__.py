"""Probability distributions over batches of images and latent maps.

All log-probabilities are in nats. ``log_prob`` sums over everything but the batch and returns ``[B]``;
``log_prob_map`` keeps the grain at which the distribution factorizes.
"""

from davi.distributions.ar1 import AR1, committed_rate
from davi.distributions.autoregressive_normal import AutoregressiveNormal
from davi.distributions.base import Distribution, Latent, Pairwise, WithMean
from davi.distributions.codes import Codes, Point
from davi.distributions.discrete import Bernoulli, Categorical
from davi.distributions.logistic import Logistic
from davi.distributions.logistic_mixture import DiscretizedLogisticMixture
from davi.distributions.normal import ClosedDivergence, Normal, bounded_normal
from davi.distributions.normal_mixture import NormalMixture
from davi.distributions.posterior import Drawn, KnownDraws, TransformedNormal
from davi.distributions.sphere import UniformSphere, VonMisesFisher
from davi.distributions.transformed import Transformed

__all__ = [
    "AR1",
    "AutoregressiveNormal",
    "Bernoulli",
    "Categorical",
    "ClosedDivergence",
    "Codes",
    "DiscretizedLogisticMixture",
    "Distribution",
    "Drawn",
    "KnownDraws",
    "Latent",
    "Logistic",
    "Normal",
    "NormalMixture",
    "Pairwise",
    "Point",
    "Transformed",
    "TransformedNormal",
    "UniformSphere",
    "VonMisesFisher",
    "WithMean",
    "bounded_normal",
    "committed_rate",
]

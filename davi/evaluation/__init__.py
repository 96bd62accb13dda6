"""What is measured of a model: bounds on log p(x), their parts, and how much of the latent space is in use."""

from davi.evaluation.bounds import Progress, evaluate, importance_bound, measuring
from davi.evaluation.measure import LeftOut, Measure
from davi.evaluation.partition_estimate import PartitionEstimate, ReverseEstimate, estimate_partition
from davi.evaluation.raise_estimate import RaiseEstimate, raise_estimate
from davi.evaluation.record import KL, RECONSTRUCTION, Array, Evaluation
from davi.evaluation.streaming import LogMeanExp
from davi.evaluation.weights import Weights

__all__ = [
    "KL",
    "RECONSTRUCTION",
    "Array",
    "Evaluation",
    "LeftOut",
    "LogMeanExp",
    "Measure",
    "PartitionEstimate",
    "Progress",
    "RaiseEstimate",
    "ReverseEstimate",
    "Weights",
    "estimate_partition",
    "evaluate",
    "importance_bound",
    "measuring",
    "raise_estimate",
]

"""What is measured of a model: bounds on log p(x), their parts, and how much of the latent space is in use."""

from davi.evaluation.bounds import Progress, evaluate, importance_bound, measuring
from davi.evaluation.measure import LeftOut, Measure
from davi.evaluation.record import KL, RECONSTRUCTION, Array, Evaluation
from davi.evaluation.streaming import LogMeanExp

__all__ = [
    "KL",
    "RECONSTRUCTION",
    "Array",
    "Evaluation",
    "LeftOut",
    "LogMeanExp",
    "Measure",
    "Progress",
    "evaluate",
    "importance_bound",
    "measuring",
]

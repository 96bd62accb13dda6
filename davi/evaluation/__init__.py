"""What is measured of a model: bounds on log p(x), their parts, and how much of the latent space is in use."""

from davi.evaluation.bounds import (
    KL,
    RECONSTRUCTION,
    Array,
    Evaluation,
    Progress,
    evaluate,
    importance_bound,
    measuring,
)
from davi.evaluation.streaming import LogMeanExp

__all__ = [
    "KL",
    "RECONSTRUCTION",
    "Array",
    "Evaluation",
    "LogMeanExp",
    "Progress",
    "evaluate",
    "importance_bound",
    "measuring",
]

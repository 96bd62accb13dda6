"""What is minimized, one objective a file; a recipe names one under ``training.objective.name``."""

from __future__ import annotations

from davi.objectives.base import Loss, Objective, ObjectiveConfig, Outcome, Progress, Role
from davi.objectives.bounds import EvidenceConfig, balancing, negative_elbo, objective
from davi.objectives.contrastive import ContrastiveConfig, ContrastiveObjective
from davi.objectives.cross_entropy import CrossEntropyConfig, CrossEntropyObjective
from davi.objectives.evidence import EvidenceObjective
from davi.objectives.lagging import LaggingConfig, LaggingObjective
from davi.objectives.up_down import UpDownConfig, UpDownObjective
from davi.objectives.vector_quantized import VectorQuantizedConfig, VectorQuantizedObjective

_ALL: tuple[type[Objective], ...] = (
    ContrastiveObjective,
    CrossEntropyObjective,
    EvidenceObjective,
    LaggingObjective,
    UpDownObjective,
    VectorQuantizedObjective,
)

OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in _ALL}
"""Name in recipes -> class."""


def objective_configs() -> dict[str, type[ObjectiveConfig]]:
    """Name in recipes -> dataclass of the options."""
    return {name: cls.Config for name, cls in OBJECTIVES.items()}


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective of a configuration."""
    return OBJECTIVES[config.name](config)


__all__ = [
    "OBJECTIVES",
    "ContrastiveConfig",
    "ContrastiveObjective",
    "CrossEntropyConfig",
    "CrossEntropyObjective",
    "EvidenceConfig",
    "EvidenceObjective",
    "LaggingConfig",
    "LaggingObjective",
    "Loss",
    "Objective",
    "ObjectiveConfig",
    "Outcome",
    "Progress",
    "Role",
    "UpDownConfig",
    "UpDownObjective",
    "VectorQuantizedConfig",
    "VectorQuantizedObjective",
    "balancing",
    "make_objective",
    "negative_elbo",
    "objective",
    "objective_configs",
]

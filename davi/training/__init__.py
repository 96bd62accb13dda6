"""From a model, images and a recipe to a run folder. See :mod:`davi.training.loop`."""

from davi.training.config import TrainingConfig
from davi.training.loop import TrainingResult, train
from davi.training.sections import (
    CheckpointConfig,
    ComputeConfig,
    MonitorConfig,
    OptimizerConfig,
    ScheduleConfig,
    StepFilterConfig,
)
from davi.training.signals import Interrupted

__all__ = [
    "CheckpointConfig",
    "ComputeConfig",
    "Interrupted",
    "MonitorConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "StepFilterConfig",
    "TrainingConfig",
    "TrainingResult",
    "train",
]

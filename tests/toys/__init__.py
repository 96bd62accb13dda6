"""One small model of every kind that no model of the package has yet, each a file: what a new family has to write.

They are registered by :func:`register` for the length of a test and then are used like any other: by recipes, by the
program, by the contract tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from davi.models import MODELS
from davi.objectives import OBJECTIVES
from toys.belief_net import BeliefNet
from toys.boltzmann import Boltzmann
from toys.flow import TriangularFlow
from toys.halves import Halves
from toys.linear_classifier import LinearClassifier
from toys.persistent import PersistentContrastiveDivergence

TOYS = {cls.name: cls for cls in (BeliefNet, TriangularFlow, Boltzmann, Halves, LinearClassifier)}

TRAINING: dict[str, Any] = {
    "steps": 12,
    "batch_size": 16,
    "learning_rate": 0.05,
    "validate_every": 6,
    "log_every": 4,
    "checkpoints": {"minutes": 0, "steps": 5},
    "threads": 1,
}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let recipes know the toys, and the objective of one of them, until the test is over."""
    for name, cls in TOYS.items():
        monkeypatch.setitem(MODELS, name, cls)
    objective = PersistentContrastiveDivergence
    monkeypatch.setitem(OBJECTIVES, objective.name, objective)


def recipe(folder: Path, name: str, **sections: Any) -> Path:
    """A recipe for a toy on the digits that come with scikit-learn, 8x8 pixels.

    Arguments:
        folder: where the file is written.
        name: of the toy.
        sections: in place of what follows from the name.
    """
    binary = {"set": "digits", "binarization": "threshold", "validation": 100}
    gray = {"set": "digits", "validation": 100}
    chosen: dict[str, Any] = {
        "description": f"a toy: {name}",
        "model": {"name": name},
        "data": gray if name == TriangularFlow.name else binary,
        "training": TRAINING,
    }
    if name == Boltzmann.name:
        chosen["training"] = {**TRAINING, "objective": {"name": PersistentContrastiveDivergence.name}}
    if name == LinearClassifier.name:
        chosen["data"] = {**gray, "labels": True}
        chosen["training"] = {**TRAINING, "objective": {"name": "cross_entropy"}}
    if name == Halves.name:
        chosen["stages"] = [
            {"name": "first", "part": "top"},
            {"name": "second", "part": "bottom", "steps": 7, "batch_size": 12, "optimizer": {"name": "sgd"}},
        ]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**chosen, **sections}, sort_keys=False))
    return path

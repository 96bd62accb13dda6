"""Scores of a run's held-out images are measured once and kept beside its weights (:mod:`davi.derived`).

They depend on the weights, the images, K, the seed and the like. All of it is in their key, so that none is ever taken
for another. A file that is damaged or cannot be written is no error: the scores are measured anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import PIL
import torch

from davi import derived
from davi.config import to_dict
from davi.data import Images
from davi.data.protocol import digest as digest_of_images
from davi.errors import UserError
from davi.evaluation.record import Array
from davi.files import digest
from davi.model import Model, WithPartition

NAME = "calibration"
FORMAT = 1
"""Changes with everything that makes the numbers other ones."""


class Kept:
    """Where the scores of some images are kept.

    Arguments:
        folder: of the run.
        model: the model.
        images: those that are scored.
        options: k of each likelihood ratio, K, batch size and seed.
    """

    def __init__(self, folder: Path, model: Model, images: Images, options: Sequence[int]) -> None:
        self.folder, self.count = folder, len(images)
        self.weights = digest(model.state_dict())
        labels = None if images.labels is None else hashlib.sha256(images.labels.cpu().numpy().tobytes()).hexdigest()
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")
        told = [FORMAT, torch.__version__, PIL.__version__, device, model.name, to_dict(model.config), model.classes]
        told += [model.partition.log_z if isinstance(model, WithPartition) and model.partition else None]
        told += [digest_of_images(images), images.shape, images.levels, labels, list(options)]
        self.key = hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def read(self, names: Sequence[str]) -> dict[str, Array] | None:
        """The scores of these names, ``[N]`` each; None if they are not kept."""
        with suppress(UserError):
            found = derived.read(self.folder, NAME, self.weights, {"key": self.key})
            if found is not None and all(name in found and found[name].shape == (self.count,) for name in names):
                return {name: found[name].numpy() for name in names}
        return None

    def write(self, values: dict[str, Array]) -> None:
        """Keep scores, in place of those that were kept before."""
        with suppress(UserError):
            tensors = {name: torch.from_numpy(each) for name, each in values.items()}
            derived.write(self.folder, NAME, self.weights, {"key": self.key}, tensors)

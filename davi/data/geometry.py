"""Shape and number of levels of images before any of them is read: what an untrained model is built from."""

from __future__ import annotations

from davi.data.config import DataConfig
from davi.data.protocol import load
from davi.errors import UserError
from davi.sets import ELSEWHERE, GEOMETRY, Geometry


def geometry_of(config: DataConfig) -> Geometry:
    """Shape (C, H, W) and number of levels of the images as a model sees them.

    Named sets are known by heart; of a user's own array or folder the files are read. Where a set's images have to be
    given by their path, ``data.levels`` says of how many levels they will be.

    Raises:
        UserError: if these cannot be used, or have another number of levels than ``data.levels`` says.
    """
    if config.set in ELSEWHERE:
        shape, levels = ELSEWHERE[config.set]
        return shape, config.levels or levels
    if config.set not in GEOMETRY:
        sets = load(config)
        return sets.shape, sets.levels
    shape, levels = GEOMETRY[config.set]
    if config.levels not in (None, levels):
        raise UserError(f"data.levels: got {config.levels}, expected {levels}, which {config.set} has")
    return shape, levels if config.binarization == "none" else 2

"""Shape and number of levels of images before any of them is read: what an untrained model is built from."""

from __future__ import annotations

from davi.data.config import DataConfig
from davi.data.protocol import load
from davi.errors import UserError
from davi.kept import is_kept

Shape = tuple[int, int, int]
"""(C, H, W)"""

Geometry = tuple[Shape, int]
"""Shape and number of levels."""

GEOMETRY: dict[str, Geometry] = {
    "digits": ((1, 8, 8), 17),
    "photos": ((3, 32, 32), 256),
    "mnist": ((1, 28, 28), 256),
    "binarized_mnist": ((1, 28, 28), 2),
    "fashion_mnist": ((1, 28, 28), 256),
    "omniglot28": ((1, 28, 28), 256),
    "cifar10": ((3, 32, 32), 256),
}
"""Shape (C, H, W) and stored levels of the named sets: an untrained model can be built where the files are not."""

ELSEWHERE: dict[str, Geometry] = {
    "imagenet32": ((3, 32, 32), 256),
    "imagenet64": ((3, 64, 64), 256),
    "celeba64": ((3, 64, 64), 256),
    "celeba_hq256": ((3, 256, 256), 256),
    "ffhq256": ((3, 256, 256), 256),
    "ffhq1024": ((3, 1024, 1024), 256),
}
"""The same of sets that recipes of published models are for, and whose images have to be given by their path."""


def is_named(name: str) -> bool:
    """Whether a ``data.set`` is a name and no path: of a set whose geometry is known by heart, or of images in the
    folder of a run."""
    return name in GEOMETRY or name in ELSEWHERE or is_kept(name)


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

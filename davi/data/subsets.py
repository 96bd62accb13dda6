r"""Subsets: images spread evenly over the set, drawn at random, and always the same ones.

The first n images of a set stand for its first class or its first photograph, not for the set. Here a set of N images
is cut into n parts side by side, as equal as whole numbers allow, and one image of each part is drawn at random:

.. math:: e_k = \Bigl\lfloor \frac{kN + t}{n} \Bigr\rfloor, \qquad
          i_k \sim \mathrm{Uniform}\{e_k, \dots, e_{k+1} - 1\} \bmod N, \qquad k = 0, \dots, n - 1,

with one random t, uniform on :math:`\{0, \dots, N - 1\}`, so that every image is as likely as any other to be chosen,
n / N. Unlike images at equal distances, these cannot fall in step with an order that repeats itself, such as patches
row by row. The seed is fixed: all runs are asked about the same images, and their numbers can be compared in pairs.

References:
    W. G. Cochran, "Sampling Techniques", 3rd edition, Wiley 1977, chapter 8 (systematic and stratified samples)
"""

from __future__ import annotations

import random
from itertools import pairwise

import torch
from torch import Tensor

from davi.data.images import Images

SEED = 0
"""Of the choice of images; not that of any draw of a model."""


def positions(total: int, limit: int | None, seed: int = SEED) -> Tensor:
    """Which images are chosen (module docstring), in the order of the set.

    Arguments:
        total: N, images of the set.
        limit: n, images wanted; None, or as many as there are: all.
        seed: of the choice.

    Returns:
        ``[n]``, int64, rising.

    Raises:
        ValueError: if no image is wanted.

    Example:
        >>> positions(10_000, 5).tolist()
        [497, 3203, 4529, 6205, 8710]
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}, expected a whole number from 1")
    if limit is None or limit >= total:
        return torch.arange(total)
    # Python's own generator: what random() gives for a seed is promised not to change from version to version.
    source = random.Random(seed)
    offset = int(source.random() * total)
    edges = [(k * total + offset) // limit for k in range(limit + 1)]
    chosen = [(low + int(source.random() * (high - low))) % total for low, high in pairwise(edges)]
    return torch.tensor(sorted(chosen))


def evenly(images: Images, limit: int | None, seed: int = SEED) -> Images:
    """The images at :func:`davi.data.subsets.positions`; the set itself where these are all of it.

    Arguments:
        images: the set.
        limit: images wanted; None: all.
        seed: of the choice.

    Raises:
        ValueError: if no image is wanted.
    """
    chosen = positions(len(images), limit, seed)
    return images if len(chosen) == len(images) else images.subset(chosen)


def rule(total: int, limit: int | None, seed: int = SEED) -> str | None:
    """Which images :func:`davi.data.evenly` takes, in the words that go into a result; None where it takes all.

    Example:
        >>> rule(10_000, 1000)
        '1000 of 10000 images, spread evenly, seed 0'
    """
    return None if limit is None or limit >= total else f"{limit} of {total} images, spread evenly, seed {seed}"

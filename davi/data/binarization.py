r"""Black and white from gray: the three ways that the literature uses, which must never be compared with each other.

A gray value :math:`g \in \{0 .. L-1\}` is read as the probability :math:`g / (L - 1)` of a one.

- *static* (stochastic, once): every image is drawn once and then stays as it is.
- *dynamic*: a training image is drawn afresh whenever it is presented; validation and test images are drawn once.
- *threshold*: :math:`x = 1` where :math:`g / (L - 1) > 1/2`.

References:
    H. Larochelle, I. Murray, "The Neural Autoregressive Distribution Estimator", 2011 (static),
    https://proceedings.mlr.press/v15/larochelle11a.html

    Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", 2016 (dynamic),
    https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from davi.data.images import Images

Binarization = Literal["none", "static", "dynamic", "threshold"]


def stream(*key: int) -> Generator:
    """A random number generator on the CPU whose seed is derived from the key alone.

    Arguments:
        key: non-negative numbers such as (seed, epoch). Neighboring keys give unrelated streams.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return Generator().manual_seed(seed)


def draw(pixels: Tensor, levels: int, generator: Generator) -> Tensor:
    r"""Draw :math:`x \sim \mathrm{Bernoulli}(g / (L - 1))` for every value g.

    Arguments:
        pixels: integers of any shape in ``{0 .. levels - 1}``.
        levels: L, at least 3 (two levels are binary already).
        generator: source of the draws. They are made on its device and moved to that of the pixels.

    Returns:
        ``torch.uint8`` of the same shape with values 0 and 1.
    """
    # r is uniform over L - 1 whole numbers, so P(r < g) = g / (L - 1) exactly: no floating point, one byte a draw.
    r = torch.randint(levels - 1, pixels.shape, dtype=pixels.dtype, device=generator.device, generator=generator)
    return (r.to(pixels.device) < pixels).to(torch.uint8)


def threshold(pixels: Tensor, levels: int) -> Tensor:
    """One where the gray value is above half of the largest, else zero; ``torch.uint8`` of the same shape."""
    return (pixels > (levels - 1) // 2).to(torch.uint8)  # 2 g > L - 1 in whole numbers


def binarized(images: Images, binarization: Binarization, generator: Generator) -> Images:
    """The images as they are evaluated: unchanged, drawn once, or cut at one half.

    Arguments:
        images: gray images.
        binarization: ``static`` and ``dynamic`` both draw the whole set once, in order.
        generator: source of that draw.
    """
    if binarization == "none":
        return images
    if binarization == "threshold":
        pixels = threshold(images.pixels, images.levels)
    else:
        pixels = draw(images.pixels, images.levels, generator)
    return dataclasses.replace(images, pixels=pixels, levels=2, sha256=None, mapped=False)

"""Images from what a network makes of them, at several depths, and what lies between two images there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from davi.data import Images
from davi.inspection.names import name_of
from davi.inspection.strips import between_representations
from davi.inspection.views import Strip
from davi.model import Inverting
from davi.model.depths import depths_of

COUNT, SHOWN = 16, 4
"""Images that are taken back, and those of them that are shown."""


@dataclass(frozen=True, eq=False)
class Inversions:
    """Images that a network (:class:`davi.model.Inverting`) was given, and what its inverse makes of their
    representations.

    Arguments:
        names: of the images that are shown.
        originals: these, integers ``[n, C, H, W]``.
        depths: some of all, from the stem to the last block.
        variables: of a representation at each of these.
        images: what comes back from each of these, integers ``[len(depths), n, C, H, W]``.
        errors: the largest distance of what comes back from the integers that were given, in levels, at each of these.
        changed: how many images are others after rounding, at each of these.
        count: images over which this was found.
        apart: how far the last representation of what comes back from a point between two representations is from that
            point, as a share of the distance between the two: mean over the middles of pairs; None for a single image.

    References:
        i-RevNet: Deep Invertible Networks, J.-H. Jacobsen, A. Smeulders, E. Oyallon, ICLR 2018,
        https://arxiv.org/abs/1802.07088
    """

    names: tuple[str, ...]
    originals: Tensor
    depths: tuple[int, ...]
    variables: tuple[int, ...]
    images: Tensor
    errors: tuple[float, ...]
    changed: tuple[int, ...]
    count: int
    apart: float | None


def invert_all(
    model: Inverting, images: Images, places: Sequence[int], device: torch.device
) -> tuple[Inversions, tuple[Strip, ...]]:
    """Take images back from several depths, and decode lines between them.

    Arguments:
        model: in eval mode, without gradients.
        images: the set.
        places: of the images in it that are inspected; some are taken, at equal distances.
        device: of the model.
    """
    chosen = [places[i] for i in depths_of(len(places) - 1, COUNT)] if len(places) > 1 else list(places)
    x = images.pixels[chosen].to(device)
    found = model.at_depths(x)
    depths = depths_of(len(found) - 1)
    pictures, errors, changed = [], [], []
    for depth in depths:
        back = model.invert(found[depth], depth)
        whole = back.round().clamp(0, images.levels - 1).long()
        errors.append(float((back - x).abs().max()))
        changed.append(int((whole != x).flatten(1).any(1).sum()))
        pictures.append(whole[:SHOWN].cpu())
    names = tuple(name_of(images, place) for place in chosen[:SHOWN])
    view = Inversions(
        names=names,
        originals=x[:SHOWN].cpu(),
        depths=depths,
        variables=tuple(math.prod(found[depth].shape[1:]) for depth in depths),
        images=torch.stack(pictures),
        errors=tuple(errors),
        changed=tuple(changed),
        count=len(x),
        apart=_apart(model, found[-1]),
    )
    return view, between_representations(model, x[:SHOWN], names)


def _apart(model: Inverting, h: Tensor) -> float | None:
    """How far the middles of neighbors among representations ``[B, ...]`` move when they are decoded and represented
    anew."""
    if len(h) < 2:
        return None
    a, b = h[:-1], h[1:]
    middle = (a + b) / 2.0
    moved = model.at_depths(model.invert(middle))[-1] - middle
    return float((moved.flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1)).mean())

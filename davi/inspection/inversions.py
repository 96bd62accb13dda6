"""Images from what a network makes of them, at several depths, and what lies between two images there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from davi.data import Images
from davi.inspection.inversion_view import Inversions
from davi.inspection.names import name_of
from davi.inspection.strips import between_representations
from davi.inspection.views import Strip
from davi.model import Inverting
from davi.model.depths import depths_of

COUNT, SHOWN = 16, 4
"""Images that are taken back, and those of them that are shown."""


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
    chosen = _some(places, COUNT)
    shown = _some(range(len(chosen)), SHOWN)
    x = images.pixels[chosen].to(device)
    found = model.at_depths(x)
    depths = depths_of(len(found) - 1)
    pictures, errors, changed = [], [], []
    for depth in depths:
        back = model.invert(found[depth], depth)
        whole = back.round().clamp(0, images.levels - 1).long()
        errors.append(float((back - x).abs().max()))
        changed.append(int((whole != x).flatten(1).any(1).sum()))
        pictures.append(whole[shown].cpu())
    names = tuple(name_of(images, place) for place in (chosen[i] for i in shown))
    view = Inversions(
        names=names,
        originals=x[shown].cpu(),
        depths=depths,
        variables=tuple(math.prod(found[depth].shape[1:]) for depth in depths),
        images=torch.stack(pictures),
        errors=tuple(errors),
        changed=tuple(changed),
        count=len(x),
        apart=_apart(model, found[-1]),
    )
    return view, between_representations(model, x[shown], names)


def _some(values: Sequence[int], most: int) -> list[int]:
    """At equal distances, at most so many, the first and the last among them."""
    return [values[i] for i in depths_of(len(values) - 1, most)] if len(values) > 1 else list(values)


def _apart(model: Inverting, h: Tensor) -> float | None:
    """How far the middles of neighbors among representations ``[B, ...]`` move when they are decoded and represented
    anew."""
    if len(h) < 2:
        return None
    a, b = h[:-1], h[1:]
    middle = (a + b) / 2.0
    moved = model.at_depths(model.invert(middle))[-1] - middle
    return float((moved.flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1)).mean())

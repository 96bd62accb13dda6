"""What a network makes of the classes of images: which it takes for which, how sure it is, and where it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from davi.data import Images
from davi.evaluation.calibration import equal_mass, equal_width
from davi.evaluation.streaming import double
from davi.inspection.names import name_of
from davi.inspection.views import Classes, Mistake
from davi.model import Classifying

MISTAKES = 12
"""Images that are shown, at most."""


def classes_of(
    network: Classifying,
    images: Images,
    places: Sequence[int],
    batch_size: int,
    device: torch.device,
    done: Callable[[int], None] = lambda done: None,
) -> Classes | None:
    """What a network says of the classes of some images; None where their classes are not known.

    Arguments:
        network: in eval mode.
        images: the set.
        places: of the images in it that are looked at.
        batch_size: images per pass.
        device: of the network.
        done: told after every pass how many images are done.
    """
    if images.labels is None:
        return None
    labels = images.labels.cpu()[list(places)]
    found: list[Tensor] = []
    for start in range(0, len(places), batch_size):
        x = images.pixels[list(places[start : start + batch_size])].to(device)
        found.append(double(network.log_class_probabilities(x)).cpu())
        done(min(start + batch_size, len(places)))
    p = torch.cat(found).exp()  # [N, classes]
    named = p.argmax(1)
    surest = p.gather(1, named[:, None])[:, 0]
    right = named == labels
    count = p.shape[1]
    confusion = torch.bincount(labels * count + named, minlength=count**2).view(count, count)
    confidence, answers = surest.numpy(), right.numpy()
    wrong = np.flatnonzero(~answers)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    return Classes(
        names=images.classes,
        confusion=confusion,
        by_confidence=equal_width(confidence, answers),
        by_rank=equal_mass(confidence, answers),
        mistakes=tuple(
            Mistake(
                name_of(images, places[i]),
                images.pixels[places[i]].cpu(),
                images.classes[int(labels[i])],
                images.classes[int(named[i])],
                float(surest[i]),
                float(p[i, labels[i]]),
            )
            for i in worst.tolist()
        ),
    )

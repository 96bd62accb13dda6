r"""How far apart a network has brought the classes, depth by depth.

At each depth an image is the mean of its representation over space, f, and is put into the class whose mean is nearest,

.. math:: \hat y_i = \arg\min_c \lVert f_i - \mu_c^{(-i)} \rVert, \qquad
          \mu_c^{(-i)} = \text{the mean of } f_j \text{ over the images } j \ne i \text{ of class } c

No image helps to decide about itself, so the share of right answers is not flattered by small sets, and no training
images are needed. Nothing is fitted: what rises from depth to depth is the network's own work.

Reference:
    i-RevNet: Deep Invertible Networks, J.-H. Jacobsen, A. Smeulders, E. Oyallon, ICLR 2018,
    https://arxiv.org/abs/1802.07088 (progressive separation, there by nearest neighbors and linear SVMs on means over
    space)
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from davi.batch import Batch
from davi.evaluation.classification import wilson
from davi.evaluation.measure import Measure
from davi.evaluation.meter import Meter
from davi.evaluation.record import Evaluation
from davi.model import Claiming, WithDepths
from davi.model.depths import depths_of

SEPARATION = "nearest class mean"
"""Name of the measure."""


@final
class Separation(Meter):
    """The share of images nearest to the mean of their own class, at up to twelve depths (module docstring)."""

    name = SEPARATION
    wants = WithDepths

    def __init__(self, model: Claiming, images: int, seed: int, batch_size: int) -> None:
        assert isinstance(model, WithDepths)
        self._model: WithDepths = model
        self._classes = model.classes
        self._depths: tuple[int, ...] = ()
        self._features: list[list[Tensor]] = []  # of each batch, at each depth
        self._labels: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        if batch.y is None:
            return
        found = self._model.at_depths(batch.x)
        self._depths = depths_of(len(found) - 1)
        self._features.append([over_space(found[depth]).cpu() for depth in self._depths])
        self._labels.append(batch.y.cpu().long())

    def measure(self, evaluation: Evaluation) -> Measure | None:
        if not self._labels:
            return None
        y = torch.cat(self._labels)
        if len(y) < 2:
            return None  # there is no other image
        depths = [torch.cat(parts) for parts in zip(*self._features, strict=True)]
        right = [int((nearest_mean(features, y, self._classes) == y).sum()) for features in depths]
        n = len(y)
        low, high = wilson(right[-1], n)
        return Measure(
            self.name,
            "% right",
            100.0 * right[-1] / n,
            None,
            None,
            "images nearest to the mean of their own class, by the means over space of the last representation; each "
            "is compared with means of the other images",
            layers=tuple(100.0 * count / n for count in reversed(right)),
            images=n,
            interval=(100.0 * low, 100.0 * high),
            depths=self._depths[::-1],
        )


def over_space(h: Tensor) -> Tensor:
    """The mean of a representation ``[B, C, H, W]`` over space, ``[B, C]``."""
    return h.float().mean((2, 3))


def nearest_mean(features: Tensor, y: Tensor, classes: int) -> Tensor:
    r"""The class whose mean is nearest, the image itself left out.

    With n images of class c, :math:`f_i - \mu_c^{(-i)} = \frac{n}{n - 1} (f_i - \mu_c)` for an image of that class.

    Arguments:
        features: ``[N, C]``.
        y: the classes, ``[N]``, int64.
        classes: how many.

    Returns:
        ``[N]``. A class without an image is never the nearest; nor is that of an image which is the only one in it.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [10.0], [4.0]])
        >>> nearest_mean(features, torch.tensor([0, 0, 1, 1]), 2).tolist()
        [0, 0, 1, 0]
    """
    features = features.double()
    counts = torch.bincount(y, minlength=classes)
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, y, features)
    means = sums / counts.clamp_min(1)[:, None]
    distances = torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist")  # [N, classes]
    distances[:, counts == 0] = float("inf")
    own = counts[y].double()
    factor = torch.where(own > 1, own / (own - 1).clamp_min(1), float("inf"))
    alone = distances.gather(1, y[:, None])[:, 0]
    distances.scatter_(1, y[:, None], torch.where(own > 1, alone * factor, float("inf"))[:, None])
    return distances.argmin(1)

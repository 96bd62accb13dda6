r"""What lies between the ELBO and log p(x), and how it divides.

.. math:: \log p(x) - \mathrm{ELBO}(q) = \bigl(\log p(x) - \mathrm{ELBO}(q^*)\bigr)
          + \bigl(\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)\bigr)

q is the encoder's posterior and :math:`q^*` the best of its family for each single image
(:mod:`davi.evaluation.optimized`). The *family gap* (the approximation gap of the paper) is what no encoder can win
with such posteriors: a richer family can, such as one with a flow. The *amortization gap* is what the encoder loses
since one network serves all images: a larger encoder, or more training of it, can win it. The first is the
Kullback-Leibler divergence :math:`KL(q^* \| p(z \mid x))`.

For :math:`\log p(x)` stands the bound with the most importance samples, which is a lower bound itself. So are the kinds
of these numbers:

- the amortization gap is a lower bound of what it says, since the optimum may not have been found,
- the sum of both is a lower bound, since log p(x) is,
- the family gap is an estimate: the two errors have opposite signs in it.

All of them are means of log importance weights, of the same images.

References:
    Inference Suboptimality in Variational Autoencoders, C. Cremer, X. Li, D. Duvenaud, ICML 2018,
    https://arxiv.org/abs/1801.03558

    Importance Weighted Autoencoders, Y. Burda, R. Grosse, R. Salakhutdinov, ICLR 2016, https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from davi.data import Images, evenly
from davi.errors import UserError
from davi.evaluation.bounds import Progress, check_images, evaluate, measuring
from davi.evaluation.curve import BoundCurve
from davi.evaluation.optimized import STARTS, STEP_DRAWS, Optimized, optimize, why_not
from davi.evaluation.record import Array, Evaluation
from davi.model import Hierarchy, Invertible, Model

IMAGES, STEPS, SAMPLES = 100, 500, 5000
"""Defaults: images, steps of the optimization from each start, draws of each image."""

_BACKWARD = 3
"""A step with gradients takes about so many times as long as one without."""


@dataclass(frozen=True, eq=False)
class Gap:
    """What was measured, image by image.

    Arguments:
        evaluation: of these images, with the same draws; its ``bound`` is the end of the curve.
        sizes: K of the curve.
        groups: how many groups of draws of each image are behind each of them.
        curve: estimates of :math:`L_K`, ``[sizes, N]``, nats.
        steps: of the optimization, from each start.
        optimized: the best posteriors; None where they cannot be optimized.
        why_not: the reason for that, in words.
    """

    evaluation: Evaluation
    sizes: tuple[int, ...]
    groups: tuple[int, ...]
    curve: Array
    steps: int
    optimized: Optimized | None
    why_not: str = ""

    @property
    def amortization(self) -> Array | None:
        """ELBO(q*) - ELBO(q) of each image, ``[N]``, nats."""
        return None if self.optimized is None else self.optimized.elbo - self.curve[0]

    @property
    def family(self) -> Array | None:
        """The highest bound minus ELBO(q*), ``[N]``, nats."""
        return None if self.optimized is None else self.curve[-1] - self.optimized.elbo


def measure_gap(
    model: Model,
    images: Images,
    samples: int = SAMPLES,
    steps: int = STEPS,
    limit: int = IMAGES,
    batch_size: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Gap:
    """Measure the gap between the ELBO and log p(x) and divide it (module docstring).

    The model is not changed: neither its weights nor their gradients nor the modes of its modules.

    Arguments:
        model: with latents, or any other whose claim has importance weights.
        images: as they are evaluated.
        samples: the largest K; so many draws are made of each image, also for the value of the optimized posteriors.
        steps: of Adam, from each start.
        limit: use only so many images, spread evenly over the set.
        batch_size: images per pass. Draws depend on it.
        seed: of all draws.
        progress: told how much is done.

    Raises:
        UserError: if an option cannot be used, the images do not fit the model, or it has no importance weights.
    """
    wanted = {"samples": (samples, 2), "steps": (steps, 1), "limit": (limit, 1), "batch_size": (batch_size, 1)}
    for name, (value, least) in wanted.items():
        if value < least:
            raise UserError(f"{name}: got {value}, expected a whole number from {least}")
    check_images(model, images)
    check_weights(model, images)
    n = min(limit, len(images))
    chosen = evenly(images, limit)
    place = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    reason = _why_not(model, chosen.pixels[:1].to(place))
    told = _Told(progress, n, samples, 0 if reason else steps)
    curves: dict[int, BoundCurve] = {}

    def watch(first: int, log_weights: Tensor) -> None:
        curves.setdefault(first, BoundCurve(samples)).add(log_weights)

    evaluation = evaluate(model, images, samples, batch_size, seed, limit, told.drawn, watch)
    found = None if reason else _optimize_all(model, chosen, place, samples, steps, batch_size, seed, told)
    first = next(iter(curves.values()))
    parts = [curve.result().cpu().numpy() for _, curve in sorted(curves.items())]
    return Gap(evaluation, first.sizes, first.groups(), np.concatenate(parts, 1), steps, found, reason)


def check_weights(model: Model, images: Images) -> None:
    """Refuse a model whose claim has no importance weights.

    Raises:
        UserError: one line.
    """
    place = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    labels = images.labels if model.classes else None
    with measuring(model):
        generator = Generator(place).manual_seed(0)
        one = None if labels is None else labels[:1].to(place)
        evidence = model.evidence(images.pixels[:1].to(place), generator, one)
    if evidence.log_weight_fn is None:
        raise UserError(
            f"gap: got {type(model).__name__}, whose claim is {evidence.kind} without importance weights; expected a "
            "model with latents"
        )


def _why_not(model: Model, x: Tensor) -> str:
    if isinstance(model, Invertible):
        return f"{type(model).__name__} is a flow, all of whose gap is that of its noise"
    if not isinstance(model, Hierarchy):
        return f"{type(model).__name__} is no hierarchy, whose posteriors can be replaced layer by layer"
    return why_not(model, x)


def _optimize_all(
    model: Model,
    images: Images,
    place: torch.device,
    samples: int,
    steps: int,
    batch_size: int,
    seed: int,
    told: _Told,
) -> Optimized:
    """All images in groups, such that a step of the optimization takes at most ``batch_size`` draws at once."""
    assert isinstance(model, Hierarchy)
    generator = Generator(place).manual_seed((seed + 2**62) % 2**63)  # other noise than that of the curve
    together = max(1, batch_size // STEP_DRAWS)
    parts = []
    for start in range(0, len(images), together):
        x = images.pixels[start : start + together].to(place)
        parts.append(optimize(model, x, steps, samples, generator, batch_size, told.optimized(start, len(x))))
    elbo = np.concatenate([part.elbo for part in parts])
    if not np.isfinite(elbo).all():
        raise UserError(f"{images.name}: got an ELBO of {elbo[~np.isfinite(elbo)][0]}, expected finite numbers")
    return Optimized(elbo, np.concatenate([part.chosen for part in parts]))


class _Told:
    """Progress in images, of the curve and of the optimization together, by the passes that they take."""

    def __init__(self, progress: Progress | None, images: int, samples: int, steps: int) -> None:
        self._progress, self._images = progress, images
        starts = sum(start.optimized for start in STARTS)
        work = steps * starts * STEP_DRAWS * _BACKWARD + samples
        self._curve = samples / (samples + work) if steps else 1.0

    def drawn(self, done: int, total: int) -> None:
        self._tell(self._curve * done / total)

    def optimized(self, first: int, count: int) -> Callable[[float], None]:
        """For a group of images, the first of which has this number."""
        return lambda share: self._tell(self._curve + (1.0 - self._curve) * (first + share * count) / self._images)

    def _tell(self, share: float) -> None:
        if self._progress is not None:
            self._progress(round(share * _PARTS * self._images), _PARTS * self._images)


_PARTS = 1000
"""Progress is told in thousandths of an image."""

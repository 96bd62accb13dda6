r"""How much latents say about images: two mutual informations, in nats per image.

**Of the model,** under its own joint distribution :math:`p(z) p(x \mid z)`: how much an image tells about the latents
that it was made from. The posterior gives a lower bound,

.. math:: I_p(z; x) = H(z) - H(z \mid x)
          \ge E_{p(z) p(x \mid z)} \bigl[ \log q(z \mid x) - \log p(z) \bigr]

whose gap is :math:`E_{p(x)} KL(p(z \mid x) \| q(z \mid x))`. The draws are the model's; no image of a data set is
looked at. The entropy :math:`H(z)` is taken from the same draws, which is right for every prior and takes noise out.
The bound may be below zero, and is where latents and images are independent unless q is the prior.

**Of the posterior,** under :math:`p_{data}(x) q(z \mid x)`: how much the latents of the top layer tell about which
image they were inferred from. With the aggregated posterior :math:`q(z) = E_{p_{data}} q(z \mid x)`,

.. math:: I_q(x; z) = E_x KL(q(z \mid x) \| p(z)) - KL(q(z) \| p(z))
          \approx \frac 1N \sum_i \Bigl[ \log q(z_i \mid x_i) - \log \frac 1N \sum_j q(z_i \mid x_j) \Bigr],
          \qquad z_i \sim q(z \mid x_i)

over N images. It is right for a data set of these N images. Of more images it is too small in the mean: N images
cannot be told apart by more than :math:`\ln N`, and a number close to that (:attr:`~davi.evaluation.Measure.at_cap`)
says only that they can be. The rate :math:`E_x KL(q(z \mid x) \| p(z))` is an upper bound for any number of images.

References:
    The IM Algorithm: A Variational Approach to Information Maximization, D. Barber, F. Agakov, NeurIPS 2003,
    https://papers.nips.cc/paper/2410-information-maximization-in-noisy-channels-a-variational-approach

    ELBO Surgery: Yet Another Way to Carve up the Variational Evidence Lower Bound, M. D. Hoffman, M. J. Johnson,
    NeurIPS 2016 workshop, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf (the aggregated posterior)

    On Variational Bounds of Mutual Information, B. Poole, S. Ozair, A. van den Oord, A. A. Alemi, G. Tucker, ICML 2019,
    https://arxiv.org/abs/1905.06922 (why an estimate from N images is at most ln N, and too small in the mean)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import numpy as np
import torch
from torch import Generator, Tensor

from davi.batch import Batch
from davi.data.subsets import positions
from davi.distributions import Latent, Pairwise, Point
from davi.evaluation import clusters
from davi.evaluation.measure import Measure
from davi.evaluation.meter import Meter
from davi.evaluation.record import KL, Array, Evaluation
from davi.evaluation.streaming import LogMeanExp, double
from davi.evidence import Kind
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.model import Hierarchy, Model
from davi.model.joint import Asked, ask, draw_joint, posterior_log_prob

INFORMATION_OF_MODEL = "I(z; x) of the model"
INFORMATION_OF_TOP = "I(z; x) of the posterior"
RATE_OF_TOP = "rate of the top layer"
"""Names of the three measures."""

INFORMATION_IMAGES = 1000
"""At most so many images, spread evenly over those that are evaluated; and at most so many draws of the model."""

_OF_MODEL = "mean of log q(z | x) - log p(z) over draws of z and x from the model; below 0 it says nothing"
_OF_TOP = "how well latents of the top layer tell which of these images they are of; at most ln of their number"
_RATE = "mean of KL(q(z | x) || p(z)) over the same images, an upper bound of I(z; x) of the posterior"

_Reason = Callable[[Asked], str]
"""Says why something cannot be measured; empty where it can."""


class AggregatedPosterior:
    """The posteriors of some images and a draw of each, for the estimate of the module docstring.

    Memory is that of the parameters of the posteriors and of N densities for the images added together.
    """

    def __init__(self) -> None:
        self._posteriors: list[Pairwise] = []
        self._draws: list[Tensor] = []

    def add(self, posterior: Latent, generator: Generator | None = None) -> None:
        """Take in the posteriors of some more images.

        Arguments:
            posterior: one that is also :class:`~davi.distributions.Pairwise`.
            generator: source of the draws; torch's default when None.
        """
        assert isinstance(posterior, Pairwise)
        self._posteriors.append(posterior)
        self._draws.append(double(posterior.sample(generator)))

    def information(self) -> Tensor:
        r""":math:`\log q(z_i \mid x_i) - \log \frac 1N \sum_j q(z_i \mid x_j)` of each image, ``[N]``, float64."""
        draws = torch.cat(self._draws)  # [N, ...]
        aggregated, own, start = LogMeanExp(), [], 0
        for posterior, some in zip(self._posteriors, self._draws, strict=True):
            densities = posterior.log_prob_pairs(draws)  # [N, b]
            aggregated.add(densities.T)
            own.append(densities[start : start + len(some)].diagonal())
            start += len(some)
        return torch.cat(own) - aggregated.result()


def information_bound(model: Hierarchy, n: int, generator: Generator | None = None) -> Tensor:
    r""":math:`\log q(z \mid x) - \log p(z)` for n draws of the model, ``[n]``, float64, nats; their mean is the bound
    on :math:`I_p` of the module docstring.

    Arguments:
        model: in eval mode; all of its posteriors know their density anywhere.
        n: how many are drawn together.
        generator: source of the draws; torch's default when None.
    """
    drawn = draw_joint(model, n, generator)
    return double(posterior_log_prob(model, drawn.x, drawn.latents) - drawn.log_pz)


def no_bound(asked: Asked) -> str:
    """Why there is no bound on the mutual information of a model; empty where there is one."""
    for layer, posterior in enumerate(asked.posteriors):
        if not posterior.scores_anywhere:
            return f"the posterior of layer {layer} knows the density of its own draws only"
        if isinstance(posterior, Point):
            return f"the posterior of layer {layer} is certain, and rules out the model's own draws"
    return ""


def no_top(asked: Asked) -> str:
    """Why the top layer has no posterior given the image alone; empty where it has one."""
    return "the posterior of the top layer depends on draws of the layers below" if asked.early else ""


def no_estimate(asked: Asked) -> str:
    """Why there is no estimate of the mutual information of the top layer; empty where there is one."""
    if why := no_top(asked):
        return why
    if not isinstance(asked.posteriors[0], Pairwise):
        return "the density of the top layer's posterior at the latents of other images would take a pass for each"
    return ""


def _not_cheap(asked: Asked) -> str:
    """Why the bound is not measured along with everything else."""
    return no_bound(asked) or (
        "its images would be drawn pixel by pixel" if isinstance(asked.pixels, AutoregressivePixels) else ""
    )


class _Information(Meter):
    """Numbers of some images, or of as many draws."""

    wants = Hierarchy

    def __init__(self, model: Model, images: int, seed: int, batch_size: int) -> None:
        assert isinstance(model, Hierarchy)
        self._model, self._seed = model, seed
        self._counted = torch.zeros(images, dtype=torch.bool)
        self._counted[positions(images, INFORMATION_IMAGES)] = True
        self._seen = 0
        self._generator: Generator | None = None
        self._why: str | None = None
        """Why there is no number; None: it is not known yet."""

    def _begin(self, x: Tensor, reason: _Reason) -> Tensor:
        """Those of the next images that count: none where nothing can be measured."""
        if self._why is None:
            self._why = reason(ask(self._model))
            self._generator = Generator(x.device).manual_seed(self._seed)
        counted = self._counted[self._seen : self._seen + len(x)]
        self._seen += len(x)
        return x[:0] if self._why else x[counted.to(x.device)]

    def left_out(self) -> str:
        return self._why or ""


@final
class ModelInformation(_Information):
    """The bound on the mutual information of latents and images under the model: as many draws as images, at most
    :data:`INFORMATION_IMAGES`."""

    name = INFORMATION_OF_MODEL

    def __init__(self, model: Model, images: int, seed: int, batch_size: int) -> None:
        super().__init__(model, images, seed, batch_size)
        self._values: list[Tensor] = []
        self._kind = Kind.LOWER_BOUND

    def add(self, batch: Batch) -> None:
        n = len(self._begin(batch.x, self._reason))
        if n:
            self._values.append(information_bound(self._model, n, self._generator))

    def _reason(self, asked: Asked) -> str:
        parts = [latent.kind for latent in (*asked.priors, *asked.posteriors)]
        self._kind = Kind.weakest(self._kind, *parts)
        return _not_cheap(asked)

    def measure(self, evaluation: Evaluation) -> Measure | None:
        values = torch.cat(self._values) if self._values else torch.empty(0)
        n = len(values)
        if not bool(values.isfinite().all()):
            self._why = "the posterior has no finite density at some draws of the model"
        if n < 2 or self._why:
            return None
        error = float(values.std()) / math.sqrt(n)
        return Measure(self.name, "nats", float(values.mean()), error, self._kind, _OF_MODEL, draws=n)


@final
class TopInformation(_Information):
    """The estimate of the mutual information of images and the top layer under the posterior, from at most
    :data:`INFORMATION_IMAGES` images."""

    name = INFORMATION_OF_TOP

    def __init__(self, model: Model, images: int, seed: int, batch_size: int) -> None:
        super().__init__(model, images, seed, batch_size)
        self._aggregated = AggregatedPosterior()
        self._images = 0

    def add(self, batch: Batch) -> None:
        x = self._begin(batch.x, no_estimate)
        if len(x):
            self._aggregated.add(ask(self._model, x).posteriors[0], self._generator)
            self._images += len(x)

    def measure(self, evaluation: Evaluation) -> Measure | None:
        if not self._images:
            return None
        values = self._aggregated.information().cpu().numpy()
        if not np.isfinite(values).all():
            self._why = "the posteriors have no finite densities"
            return None
        return _of_images(self.name, values, Kind.ESTIMATE, _OF_TOP, evaluation, math.log(self._images))


@final
class TopRate(_Information):
    """The KL divergence of the top layer, mean over the images of :class:`TopInformation`: follows from the
    evidence."""

    name = RATE_OF_TOP

    def __init__(self, model: Model, images: int, seed: int, batch_size: int) -> None:
        super().__init__(model, images, seed, batch_size)
        self._kind = Kind.EXACT

    def add(self, batch: Batch) -> None:
        self._begin(batch.x, self._reason)

    def _reason(self, asked: Asked) -> str:
        posterior, prior = asked.posteriors[0], asked.priors[0]
        closed = posterior.kl_map(prior, posterior.center())[1]
        self._kind = Kind.weakest(posterior.kind, prior.kind, Kind.EXACT if closed else Kind.ESTIMATE)
        return no_top(asked)

    def measure(self, evaluation: Evaluation) -> Measure | None:
        if self._why:
            return None
        return _of_images(self.name, -evaluation.terms[f"{KL}00"][self._counted.numpy()], self._kind, _RATE, evaluation)


def _of_images(
    name: str, values: Array, kind: Kind, rule: str, evaluation: Evaluation, cap: float | None = None
) -> Measure | None:
    """The mean over the images that count; None where there are too few."""
    chosen = positions(len(evaluation), INFORMATION_IMAGES).numpy()
    groups = None if evaluation.groups is None else evaluation.groups[chosen]
    error = clusters.standard_error(values, groups) if len(values) > 1 else None
    if error is None:
        return None
    return Measure(name, "nats", float(values.mean()), error, kind, rule, images=len(values), cap=cap)

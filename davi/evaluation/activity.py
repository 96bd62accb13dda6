r"""How much of the latent space is in use: layers by their KL divergence, units by their posterior means.

**Layers.** One rule for the terminal, the page and the monitor (:data:`INACTIVE_RULE` in words): a layer is
*inactive* when its KL divergence, mean over the images, is below :data:`INACTIVE_NATS`. The term of latents drawn on
the way up (:class:`davi.distributions.Drawn`) is no KL divergence and says nothing about its layer alone, as the prior
depends on latents that were inferred from these. All terms together are one,

.. math:: \sum_i E_q[\log q(z_i \mid \ldots) - \log p(z_i \mid \ldots)] = KL(q(z \mid x) \| p(z)),

so in a model with such layers only the sum can tell that they are inactive, and then all layers are.

**Units.** A unit i is *active* when :math:`\mathrm{Var}_x(E_q[z_i \mid x]) > 0.01`. The mean is over all latents, also
over those of the layers above, on which the posterior of i depends. Given one draw of them, the unit's mean is an
unbiased estimate m of :math:`E_q[z_i \mid x]`; the variance of m over images counts the noise of that draw as well. The
covariance of two independent estimates does not,

.. math:: E\,\mathrm{Cov}_x(A, B) = \mathrm{Var}_x(E_q[z_i \mid x]),

where A and B are each the mean over half of :data:`ACTIVE_DRAWS` draws. These come in pairs of opposite noise, and the
noise is the same for all images: neither changes an expectation, and both remove noise. Where a posterior equals its
prior, whatever that depends on, nothing is left.

References:
    Importance Weighted Autoencoders, Y. Burda, R. Grosse, R. Salakhutdinov, ICLR 2016, https://arxiv.org/abs/1509.00519
    (active units, there over the first 500 images)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import final

import torch
from torch import Generator, Tensor

from davi.batch import Batch
from davi.data.subsets import positions
from davi.distributions import Drawn, Latent, Normal
from davi.evaluation.measure import Measure
from davi.evaluation.meter import Meter
from davi.evaluation.record import KL, Evaluation
from davi.evaluation.streaming import double
from davi.model import Hierarchy, LatentModel, Model
from davi.model.quantized import Quantized
from davi.repetition import repeat_images

ACTIVE_UNITS, INACTIVE_LAYERS = "active units", "inactive layers"
"""Names of the two measures."""

INACTIVE_NATS = 0.01
"""A latent layer whose mean KL divergence is below this many nats per image tells next to nothing about the image."""

INACTIVE_RULE = (
    f"inactive: the layer's KL divergence, mean over the images, is below {INACTIVE_NATS:g} nats; a layer whose term "
    "is no KL divergence is inactive only if the terms of all layers together are below it"
)
"""What an inactive layer is, in the words that go into every result."""

ACTIVE_VARIANCE = 0.01
ACTIVE_DRAWS = 16
"""Draws of the latents behind each posterior mean; a multiple of 4."""
ACTIVE_IMAGES = 500
"""At most so many images, spread evenly over those that are evaluated, count active units."""

ACTIVE_RULE = (
    f"active: the variance of the unit's posterior mean E_q[z | x] over the images exceeds {ACTIVE_VARIANCE:g}; noise "
    "of the draws is taken out (the covariance of two means, each over half of the draws of all latents)"
)
"""What an active unit is, in the words that go into every result."""


def inactive_layers(
    nats: Mapping[str, float], no_divergence: Collection[str] = (), least: float = INACTIVE_NATS
) -> list[str]:
    """Names of the inactive layers, by the one rule (module docstring).

    Arguments:
        nats: mean of each layer's term, with the sign of a divergence, nats per image.
        no_divergence: names of those that are no KL divergences.
        least: nats below which a divergence counts as nothing.

    Example:
        >>> inactive_layers({"kl/00": 3.0, "kl/01": -1.3, "kl/02": 0.001}, no_divergence=["kl/01"])
        ['kl/02']
    """
    if no_divergence and sum(nats.values()) < least:
        return list(nats)
    return [name for name, value in nats.items() if value < least and name not in no_divergence]


class RunningCovariance:
    """Streams the unbiased covariance of two quantities over the first dimension in float64.

    References:
        Algorithms for Computing the Sample Variance, T. F. Chan, G. H. Golub, R. J. LeVeque, The American Statistician
        1983, https://doi.org/10.1080/00031305.1983.10483115 (merging the moments of batches)
    """

    def __init__(self) -> None:
        self._means: tuple[Tensor, Tensor] | None = None
        self._products: Tensor | None = None
        self._count = 0

    def add(self, first: Tensor, second: Tensor) -> None:
        """Count in some more pairs of values, ``[n, ...]`` each."""
        first, second = double(first), double(second)
        means = first.mean(0), second.mean(0)
        products = ((first - means[0]) * (second - means[1])).sum(0)
        total = self._count + len(first)
        if self._means is None or self._products is None:
            self._means, self._products = means, products
        else:
            shifts = means[0] - self._means[0], means[1] - self._means[1]
            share = len(first) / total
            self._products = self._products + products + shifts[0] * shifts[1] * (self._count * share)
            self._means = self._means[0] + shifts[0] * share, self._means[1] + shifts[1] * share
        self._count = total

    def covariance(self) -> Tensor:
        """Unbiased (n - 1), float64.

        Raises:
            ValueError: if fewer than two pairs were added.
        """
        if self._products is None or self._count < 2:
            raise ValueError(f"covariance: got {self._count} values, expected at least 2")
        return self._products / (self._count - 1)


def inactivity(nats: Mapping[str, float], no_divergence: Collection[str] = ()) -> Measure:
    """The number of inactive layers, and of each layer whether it is one (1 or 0).

    Arguments:
        nats: as :func:`inactive_layers` takes them.
        no_divergence: likewise.
    """
    names = inactive_layers(nats, no_divergence)
    layers = tuple(float(name in names) for name in nats)
    return Measure(INACTIVE_LAYERS, "layers", float(len(names)), None, None, INACTIVE_RULE, layers)


def active_units(active: Sequence[int], units: Sequence[int], images: int, draws: int) -> Measure:
    """How many latent units respond to the image, by :data:`ACTIVE_RULE`.

    Arguments:
        active: number of active units of each layer, top first.
        units: number of units of each layer.
        images: over which the variance was taken.
        draws: of the latents, for each image.
    """
    layers, out_of = tuple(map(float, active)), tuple(map(float, units))
    return Measure(ACTIVE_UNITS, "units", sum(layers), None, None, ACTIVE_RULE, layers, out_of, images, draws)


@final
class InactiveLayers(Meter):
    """Which layers of a hierarchy are inactive: follows from the terms of the evidence."""

    name = INACTIVE_LAYERS
    wants = Hierarchy

    def measure(self, evaluation: Evaluation) -> Measure:
        names = [name for name in evaluation.terms if name.startswith(KL)]
        means = dict(zip(names, evaluation.kl.mean(0).tolist(), strict=True))
        return inactivity(means, evaluation.no_divergence)


@final
class ActiveUnits(Meter):
    """Active units of :data:`ACTIVE_IMAGES` of the images, or of all if they are fewer.

    Memory is that of a walk with ``batch_size`` images and of three numbers for each unit. Where fewer images are
    given, several draws of them are made together.
    """

    name = ACTIVE_UNITS
    wants = LatentModel

    def __init__(self, model: Model, images: int, seed: int, batch_size: int) -> None:
        assert isinstance(model, LatentModel)
        self._model = model
        self._seed = seed
        self._most = batch_size
        self._counted = torch.zeros(images, dtype=torch.bool)
        self._counted[positions(images, ACTIVE_IMAGES)] = True
        self._seen = 0
        self._layers: list[RunningCovariance] = []
        self._images = 0

    def add(self, batch: Batch) -> None:
        if isinstance(self._model, Quantized):
            return
        x = batch.x
        counted = self._counted[self._seen : self._seen + len(x)]
        self._seen += len(x)
        x = x[counted.to(x.device)]
        if not len(x):
            return
        if isinstance(self._model, Hierarchy):
            halves = self._halves(self._model, x)
        else:
            halves = [(mean, mean) for mean in self._model.latents(x)]
        self._layers = self._layers or [RunningCovariance() for _ in halves]
        for layer, (first, second) in zip(self._layers, halves, strict=True):
            layer.add(first, second)
        self._images += len(x)

    def left_out(self) -> str:
        return "codes are names, not numbers, and have no variance" if isinstance(self._model, Quantized) else ""

    def variances(self) -> list[Tensor]:
        """The estimates of Var_x(E_q[z | x]) of every unit, layer by layer, ``[...]`` each, float64; those of inactive
        units may be slightly negative. Empty for fewer than two images."""
        return [layer.covariance() for layer in self._layers] if self._images > 1 else []

    def measure(self, evaluation: Evaluation) -> Measure | None:
        return self.count()

    def count(self) -> Measure | None:
        """What was found so far; None for fewer than two images."""
        variances = self.variances()
        if not variances:
            return None
        active = [int((variance > ACTIVE_VARIANCE).sum()) for variance in variances]
        draws = ACTIVE_DRAWS if isinstance(self._model, Hierarchy) else 1
        return active_units(active, [variance.numel() for variance in variances], self._images, draws)

    def _halves(self, model: Hierarchy, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A and B of the module docstring for every layer, ``[n, ...]`` each."""
        half, n = ACTIVE_DRAWS // 2, len(x)
        copies = max(k for k in range(1, half + 1) if half % k == 0 and k * n <= max(self._most, n))
        context = repeat_images(model.encode(x), copies)
        means: list[list[Tensor]] = []
        for start in (0, half):
            sums: list[Tensor] = []
            for first in range(start, start + half, copies):
                found = self._walk(model, context, n, range(first, first + copies))
                sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
            means.append([total / half for total in sums])
        return list(zip(*means, strict=True))

    def _walk(self, model: Hierarchy, context: object, n: int, draws: range) -> list[Tensor]:
        """Means of every layer's units given those above, summed over some draws, ``[n, ...]``, float64."""
        generators: list[Generator] = []
        found: list[Tensor] = []

        def noise(like: Tensor) -> Tensor:
            if not generators:  # two draws have one generator, and opposite signs
                seeds = [(self._seed * ACTIVE_DRAWS + k // 2) % 2**63 for k in draws]  # no two runs share any
                generators.extend(Generator(like.device).manual_seed(seed) for seed in seeds)
            parts = [
                torch.randn(like.shape[1:], generator=g, dtype=like.dtype, device=like.device).mul_((-1) ** k)
                for g, k in zip(generators, draws, strict=True)
            ]
            return torch.stack(parts).repeat(n, *[1] * (like.ndim - 1))  # of each image all draws, side by side

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert posterior is not None
            z = posterior.sample_with(noise)
            if prior is not None:
                found.append(double(_mean(posterior, z)).unflatten(0, (n, len(draws))).sum(1))
            return z

        model.top_down(choose, context)
        return found


def _mean(posterior: Latent, z: Tensor) -> Tensor:
    """The mean where it is known, else the draw, whose expectation is the mean: a flow moves the mean of its base to
    another place than its own."""
    own = posterior.posterior if isinstance(posterior, Drawn) else posterior
    return own.mean if isinstance(own, Normal) else z

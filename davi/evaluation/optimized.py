r"""Posteriors that are optimized for each image, in place of the encoder's.

The encoder gives every image x a posterior :math:`q(z \mid x)` of some family. The best member of the family for this
very image,

.. math:: q^* = \arg\max_q \; E_q[\log p(x, z) - \log q(z)],

is found by gradient ascent on free parameters of each image, with the model as it is. The walk offers a posterior for
every latent, given the latents chosen before. Of each one the mean and the standard deviation get free parameters
:math:`a_i, b_i`,

.. math:: q^*(z_i) = N(\mu_i + a_i \sigma_i, \; \sigma_i^2 e^{2 b_i})

where :math:`N(\mu_i, \sigma_i^2)` is a Normal that the walk offers: the encoder's or the prior's. In a model with one
layer of latents this is any diagonal Normal. In a hierarchy :math:`\mu_i` and :math:`\sigma_i` depend on the latents
above, as the networks say, and the free parameters are added to that; the encoder's own posterior is the member with
a = b = 0, so the optimum is no worse. A posterior with a flow is a Normal that a flow transforms: the free parameters
are those of the Normal, and a number added to each value of the context from which the parameters of the flow follow.

The gradient of a Normal posterior leaves out the score of q, whose expectation is zero: what remains vanishes with each
single draw once q is the true posterior, so that small gaps can be told from noise (Roeder et al.).

Several starts are optimized, and for each image the best is kept, judged by draws that served no optimization; its
value is then estimated by draws that served no choice either.

References:
    Inference Suboptimality in Variational Autoencoders, C. Cremer, X. Li, D. Duvenaud, ICML 2018,
    https://arxiv.org/abs/1801.03558

    Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference, G. Roeder, Y. Wu,
    D. Duvenaud, NeurIPS 2017, https://arxiv.org/abs/1703.09194
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from davi.distributions import Drawn, Latent, Normal, TransformedNormal
from davi.evaluation.record import Array
from davi.evaluation.streaming import double
from davi.model import Hierarchy, PixelHierarchy
from davi.model.hierarchy import Step
from davi.model.joint import evaluating
from davi.repetition import repeat_images

STEP_DRAWS = 4
"""Draws of the latents of each image at a step of the optimization, in pairs of opposite noise."""
LEARNING_RATE = 0.1
"""Of Adam at the first step; it falls to zero along a cosine."""
JUDGING_DRAWS = 200
"""Draws of each image by which the best start is chosen, the same for all starts."""
PERTURBATION = (1.0, 0.5)
"""Standard deviations of the first a and b of the perturbed start."""

Draw = Callable[[Latent], Tensor]
"""How a latent is made from its posterior."""


class Start(NamedTuple):
    """Where the optimization begins.

    Arguments:
        name: in words.
        from_prior: the Normal of the module docstring is the prior's, not the encoder's.
        perturbed: a and b begin with noise, not with zero.
        optimized: whether they are optimized at all.
    """

    name: str
    from_prior: bool = False
    perturbed: bool = False
    optimized: bool = True


STARTS = (
    Start("the encoder's q, not optimized", optimized=False),
    Start("the encoder's q"),
    Start("the prior", from_prior=True),
    Start("the encoder's q, perturbed", perturbed=True),
)
"""All that is compared; the first is chosen where no optimization helps."""


@final
class FreePosterior:
    """A posterior with free parameters for each image (module docstring). They come into being at the first walk.

    Arguments:
        images: how many.
        start: where they begin.
        generator: of the noise of a perturbed start.
    """

    def __init__(self, images: int, start: Start, generator: Generator | None = None) -> None:
        self.images, self.start = images, start
        self._generator = generator
        self._free: dict[int, list[Tensor]] = {}

    def parameters(self) -> list[Tensor]:
        """The free parameters of all layers, ``[images, ...]`` each: a, b and, with a flow, those of the context."""
        return [tensor for tensors in self._free.values() for tensor in tensors]

    def of(self, chosen: Tensor) -> FreePosterior:
        """That of some of the images, by a mask or by their numbers."""
        part = FreePosterior(len(torch.arange(self.images)[chosen.cpu()]), self.start)
        part._free = {layer: [free.detach()[chosen] for free in tensors] for layer, tensors in self._free.items()}
        return part

    def __call__(self, layer: int, prior: Latent | None, posterior: Latent, held: bool = False) -> Latent:
        """The posterior of a layer in place of the one that the walk offers.

        Arguments:
            layer: which.
            prior: None where it is not known yet.
            posterior: what the walk offers; a batch may hold several draws of each image, side by side.
            held: without gradients in the free parameters.
        """
        own = posterior.base if isinstance(posterior, TransformedNormal) else posterior
        assert isinstance(own, Normal)
        base = _prior_like(own, prior) if self.start.from_prior else own
        context = posterior.context if isinstance(posterior, TransformedNormal) else None
        if layer not in self._free:
            self._free[layer] = self._begin(base.mean, context)
        kept = [tensor.detach() if held else tensor for tensor in self._free[layer]]
        free = [repeat_images(tensor, len(own.mean) // self.images) for tensor in kept]
        moved = Normal(base.mean + base.scale * free[0], base.scale * free[1].exp())
        if not isinstance(posterior, TransformedNormal):
            return moved
        context = None if context is None else context + free[2]
        return TransformedNormal(moved, posterior.transform, posterior.inverse, context)

    def _begin(self, mean: Tensor, context: Tensor | None) -> list[Tensor]:
        free = [mean.new_zeros(self.images, *mean.shape[1:]) for _ in range(2)]
        if self.start.perturbed:
            for tensor, deviation in zip(free, PERTURBATION, strict=True):
                tensor.normal_(0.0, deviation, generator=self._generator)
        if context is not None:
            free.append(context.new_zeros(self.images, *context.shape[1:]))
        return free


def _prior_like(own: Normal, prior: Latent | None) -> Normal:
    """The prior where it is a known Normal, else a standard one."""
    if isinstance(prior, Normal):
        return prior.expand(len(own.mean))
    return Normal(torch.zeros_like(own.mean), torch.ones_like(own.scale))


class Walk(NamedTuple):
    """One draw of all latents of each image from a posterior.

    Arguments:
        reconstruction: log p(x | z), ``[B]``, nats.
        steps: what happened at each layer.
        held: the posteriors of the layers without gradients in their free parameters, where they are Normal; else None.
    """

    reconstruction: Tensor
    steps: list[Step]
    held: list[Normal | None]

    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z), ``[B]``, nats: its expectation is the ELBO."""
        total = self.reconstruction
        for step in self.steps:
            total = total + step.prior.log_prob(step.z) - step.posterior.log_prob(step.z)
        return total

    def ascended(self) -> Tensor:
        """The same, but its gradient lacks the scores of the Normal posteriors, ``[B]``."""
        total = self.reconstruction
        for step, held in zip(self.steps, self.held, strict=True):
            total = total + step.prior.log_prob(step.z) - (held or step.posterior).log_prob(step.z)
        return total


def walk(model: Hierarchy, context: Any, x: Tensor, posterior: FreePosterior, draw: Draw) -> Walk:
    """The way down with another posterior than the encoder's.

    Arguments:
        model: the model.
        context: what it encodes the images into.
        x: the images, ``[B, C, H, W]``.
        posterior: in place of the encoder's.
        draw: makes the latents.
    """
    steps: list[Step] = []
    held: list[Normal | None] = []
    early: dict[int, tuple[Latent, Normal | None]] = {}

    def choose(layer: int, prior: Latent | None, offered: Latent | None) -> Tensor:
        assert offered is not None
        if isinstance(offered, Drawn):  # asked for on the way up, and answered by the other posterior then
            assert prior is not None
            q, still = early[layer]
            steps.append(Step.of(prior, q, offered.z))
            held.append(still)
            return offered.z
        q = posterior(layer, prior, offered)
        other = posterior(layer, prior, offered, held=True) if isinstance(q, Normal) else None
        still = other if isinstance(other, Normal) else None
        z = draw(q)
        if prior is None:
            early[layer] = q, still
        else:
            steps.append(Step.of(prior, q, z))
            held.append(still)
        return z

    pixels = model.top_down(choose, context)
    return Walk(pixels.log_prob(x), steps, held)


@torch.no_grad()
def why_not(model: Hierarchy, x: Tensor) -> str:
    """Why the posteriors of a model cannot be optimized, in words; empty where they can.

    Arguments:
        model: the model.
        x: any images of it.
    """
    if isinstance(model, PixelHierarchy) and model.rate_of_top is not None:
        return "the posterior of layer 0 has a constant rate, which a Normal with free parameters would leave"
    wrong: dict[int, str] = {}

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        own = posterior.posterior if isinstance(posterior, Drawn) else posterior
        if not isinstance(own, Normal | TransformedNormal):
            wrong[layer] = type(own).__name__
        return posterior.center()

    with evaluating(model):
        model.top_down(choose, model.encode(x))
    layer = min(wrong, default=None)
    if layer is None:
        return ""
    return f"the posterior of layer {layer} is a {wrong[layer]}, expected a Normal or a flow of one"


@dataclass(frozen=True, eq=False)
class Optimized:
    """What the optimization has reached.

    Arguments:
        elbo: of each image under its best posterior, ``[N]``, nats.
        chosen: which of :data:`STARTS` led there, ``[N]``.
    """

    elbo: Array
    chosen: NDArray[np.int64]


def optimize(
    model: Hierarchy,
    x: Tensor,
    steps: int,
    samples: int,
    generator: Generator,
    chunk: int,
    progress: Callable[[float], None],
) -> Optimized:
    """Optimize the posterior of each image, keep the best, and measure it (module docstring).

    The model stays as it is: gradients are those of the free parameters alone, in eval mode.

    Arguments:
        model: the model, whose posteriors :func:`why_not` has nothing against.
        x: integer images, ``[B, C, H, W]``; all are optimized together.
        steps: of Adam, from each start.
        samples: draws of each image for the final value.
        generator: source of all noise, on the device of the model.
        chunk: images a pass where nothing is optimized; a small batch is repeated to fill it.
        progress: told the share that is done.
    """
    with evaluating(model):
        with torch.no_grad():
            context = model.encode(x)
        tried = [FreePosterior(len(x), start, generator) for start in STARTS]
        wanted = [posterior for posterior in tried if posterior.start.optimized]
        for number, posterior in enumerate(wanted):
            fit(model, context, x, posterior, steps, generator, _part(progress, number, len(wanted)))
        with torch.no_grad():
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            judged = [
                mean_log_weight(model, x, posterior, JUDGING_DRAWS, Generator(x.device).manual_seed(seed), chunk)
                for posterior in tried
            ]
            best = torch.stack(judged).nan_to_num(nan=-math.inf).argmax(0)  # the first where none is better
            elbo = torch.empty_like(judged[0])
            for number in best.unique().tolist():
                those = best == number
                part = tried[number].of(those)
                elbo[those] = mean_log_weight(model, x[those.to(x.device)], part, samples, generator, chunk)
    progress(1.0)
    return Optimized(elbo.cpu().numpy(), best.cpu().numpy())


def fit(
    model: Hierarchy,
    context: Any,
    x: Tensor,
    posterior: FreePosterior,
    steps: int,
    generator: Generator,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Ascend the ELBO in the free parameters by Adam, all images at once.

    Every parameter has a step of its own in Adam and belongs to one image: no image has an influence on another one.

    Arguments:
        model: the model, in eval mode.
        context: what it encodes the images into.
        x: the images, ``[B, C, H, W]``.
        posterior: whose parameters are changed.
        steps: of Adam.
        generator: source of the noise.
        progress: told the share that is done.
    """
    draw = _in_pairs(len(x), generator)
    repeated, images = repeat_images(context, STEP_DRAWS), repeat_images(x, STEP_DRAWS)
    with torch.no_grad():
        walk(model, repeated, images, posterior, lambda q: q.center())  # brings the parameters into being
    parameters = [tensor.requires_grad_(True) for tensor in posterior.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, betas=(0.9, 0.99))
    with torch.enable_grad():
        for step in range(steps):
            loss = -walk(model, repeated, images, posterior, draw).ascended().sum() / STEP_DRAWS
            # Of these alone: the weights of the model get no gradients, whether they want some or not.
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.param_groups[0]["lr"] = 0.5 * LEARNING_RATE * (1.0 + math.cos(math.pi * step / steps))
            optimizer.step()
            progress((step + 1) / steps)
    for parameter in parameters:
        parameter.requires_grad_(False)


def mean_log_weight(
    model: Hierarchy, x: Tensor, posterior: FreePosterior, samples: int, generator: Generator, chunk: int
) -> Tensor:
    """Mean of log p(x, z) - log q(z) over draws, ``[B]``, float64, nats: an unbiased estimate of the ELBO.

    Arguments:
        model: the model, in eval mode.
        x: the images, ``[B, C, H, W]``.
        posterior: q.
        samples: draws of each image.
        generator: source of the draws.
        chunk: images a pass.
    """
    together = min(samples, max(1, chunk // len(x)))
    encoded = model.encode(x)
    context, images = repeat_images(encoded, together), repeat_images(x, together)
    total, left = torch.zeros(len(x), dtype=torch.float64), samples
    while left:
        if left < together:
            together = left
            context, images = repeat_images(encoded, together), repeat_images(x, together)
        found = walk(model, context, images, posterior, lambda q: q.sample(generator)).log_weight()
        total = total.to(found.device) if found.device.type != "mps" else total
        total = total + double(found).unflatten(0, (len(x), -1)).sum(1)
        left -= together
    return total / samples


def _in_pairs(images: int, generator: Generator) -> Draw:
    """Draws with noise in pairs of opposite signs, which leave expectations as they are and remove much variance."""

    def noise(like: Tensor) -> Tensor:
        shape = (images, STEP_DRAWS // 2, *like.shape[1:])
        half = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        return torch.cat([half, -half], 1).flatten(0, 1)  # of each image all draws, side by side

    return lambda q: q.sample_with(noise)


def _part(progress: Callable[[float], None], number: int, parts: int) -> Callable[[float], None]:
    """What is told about one of several equal parts, as a share of the whole optimization; judging takes the rest."""
    return lambda share: progress(0.9 * (number + share) / parts)

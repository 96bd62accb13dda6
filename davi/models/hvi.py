r"""Hamiltonian variational inference: a draw of the encoder's posterior that a few steps of Hamiltonian Monte Carlo
improve, with the bound that includes them.

The latents begin as :math:`z_0 \sim q(z_0 \mid x)`. Each of T iterations draws a momentum
:math:`v_t \sim q_t(v) = N(0, M_t)` and follows the Hamiltonian
:math:`H(z, v) = -\log p(x, z) + \frac{1}{2} v^\top M_t^{-1} v` for L leapfrog steps,

.. math:: v \leftarrow v + \tfrac{\epsilon_l}{2} \nabla_z \log p(x, z), \qquad
          z \leftarrow z + \epsilon_l M_t^{-1} v, \qquad
          v \leftarrow v + \tfrac{\epsilon_l}{2} \nabla_z \log p(x, z),

from :math:`(z_{t-1}, v_t)` to :math:`(z_t, v_t')`. Each line moves one of z and v by what depends on the other alone:
the map preserves volume, and its density needs no determinant. The momenta are variables of the inference as much as
z, so a reverse model :math:`r_t(v \mid x, z)` has to guess :math:`v_t'`:

.. math:: \log p(x) \ge E \Bigl[ \log p(x, z_T) - \log q(z_0 \mid x)
          + \sum_{t=1}^T \bigl( \log r_t(v_t' \mid x, z_t) - \log q_t(v_t) \bigr) \Bigr].

The exponential of what is in brackets has expectation p(x), so importance sampling works as ever. The bound is that of
the VAE, less the divergences of r from the distributions of :math:`v_t'` given :math:`z_t`, plus what the steps gain.
Nothing is rejected. The masses :math:`M_t` (diagonal), the step sizes :math:`\epsilon` and r are learned with the
networks, by gradients that pass through the leapfrog steps: they differentiate :math:`\log p(x, z)` twice.

This is the algorithm of the first paper (its Algorithm 2). The variant of the second, in which all the noise is in z_0
and v_0 and r is a tempered Normal, is not here.

References:
    Markov Chain Monte Carlo and Variational Inference: Bridging the Gap, T. Salimans, D. P. Kingma, M. Welling,
    ICML 2015, https://arxiv.org/abs/1410.6460

    Hamiltonian Variational Auto-Encoder, A. L. Caterini, A. Doucet, D. Sejdinovic, NeurIPS 2018,
    https://arxiv.org/abs/1805.11328
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Generator, Tensor, nn

from davi.distributions import Distribution, KnownDraws, Latent, Normal
from davi.distributions.base import Noise, twice_differentiable
from davi.evidence import Kind
from davi.model import Choose
from davi.models.vae import Inferred, VAEConfig, VAENetworks

LogJoint = Callable[[Tensor], Tensor]
"""``z -> log p(x, z)``: ``[B, ...] -> [B]``, nats."""
Slope = Callable[[Tensor], Tensor]
"""``z -> d log p(x, z) / dz``: ``[B, ...] -> [B, ...]``."""

_LARGEST_STEP = 100.0
"""Of the prior, leapfrog steps above 2 are unstable."""


@final
@dataclass(frozen=True)
class HVIConfig(VAEConfig):
    r"""Options of :class:`HVI`: those of the VAE with one stochastic layer, and these.

    Arguments:
        iterations: T, momenta that are drawn one after the other; 0: the VAE.
        leapfrog_steps: L, steps with each momentum. Each costs a pass through the decoder and back.
        step_size: the initial :math:`\epsilon`.
        reverse_width: hidden units of the reverse model.
    """

    iterations: int = 1
    leapfrog_steps: int = 4
    step_size: float = 0.05
    reverse_width: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.latents) > 1:
            raise ValueError(f"latents: got {len(self.latents)} stochastic layers, expected 1")
        if self.constant_rate is not None:
            raise ValueError(
                f"constant_rate: got {self.constant_rate.name}, expected null: a trajectory has no such rate"
            )
        if self.iterations < 0:
            raise ValueError(f"iterations: got {self.iterations}, expected 0 (a VAE) or more")
        for name in ("leapfrog_steps", "reverse_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0.0 < self.step_size <= _LARGEST_STEP:
            raise ValueError(f"step_size: got {self.step_size}, expected a number above 0, at most {_LARGEST_STEP:g}")


class State(NamedTuple):
    """Where a trajectory is, ``[B, ...]`` each.

    Arguments:
        z: the latents.
        v: the momentum.
        slope: the gradient of log p(x, z) at z, which the next step needs again.
    """

    z: Tensor
    v: Tensor
    slope: Tensor


def leapfrog(at: State, slope: Slope, step_sizes: Iterable[Tensor | float], mass: Tensor | float) -> State:
    """Leapfrog steps of these sizes (module docstring).

    The same steps in the opposite order, from the end with its momentum reversed, lead back to the beginning.

    Arguments:
        at: the beginning.
        slope: the gradient of log p(x, z).
        step_sizes: one for each step.
        mass: the diagonal of M, something that broadcasts to v.
    """
    z, v, force = at
    for step in step_sizes:
        v = v + 0.5 * step * force
        z = z + step * v / mass
        force = slope(z)
        v = v + 0.5 * step * force
    return State(z, v, force)


def slope_of(log_joint: LogJoint, learns: bool, z: Tensor) -> Tensor:
    """The gradient of log p(x, z) with respect to z, whatever mode the caller is in.

    Where the caller records gradients, it can be differentiated in turn.

    Arguments:
        log_joint: of every z of a batch by itself.
        learns: whether it has parameters that want gradients.
        z: ``[B, ...]``.
    """
    twice = torch.is_grad_enabled() and (learns or z.requires_grad)
    with torch.inference_mode(False), torch.enable_grad(), twice_differentiable():
        if not (twice and z.requires_grad):
            z = z.clone().detach().requires_grad_()  # a clone: autograd refuses tensors made in inference mode
        (slope,) = torch.autograd.grad(log_joint(z).sum(), z, create_graph=twice)
    return slope


@final
class Reverse(nn.Module):
    """r(v | x, z): a Normal distribution whose mean and scale are a network of z and of the encoder's features. At
    first it is that of a momentum that was just drawn.

    Arguments:
        latents: channels of z.
        features: of the encoder.
        width: hidden units at each position.
        kernel: of the convolutions; 1 if there is one position.
    """

    def __init__(self, latents: int, features: int, width: int, kernel: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(latents + features, width, kernel, padding=kernel // 2)
        self.last = nn.Conv2d(width, 2 * latents, kernel, padding=kernel // 2)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None  # a convolution has one unless it is told otherwise
        nn.init.zeros_(self.last.bias)

    def forward(self, z: Tensor, features: Tensor, mass: Tensor) -> Normal:
        """``[B, C, h, w]`` and ``[B, F, h, w]`` -> a Normal ``[B, C, h, w]``."""
        hidden = nn.functional.softplus(self.hidden(torch.cat([z, features.to(z.dtype)], 1)))
        mean, log_scale = self.last(hidden).chunk(2, 1)
        return Normal(mass.sqrt() * mean, mass.sqrt() * log_scale.exp())


@final
class Iteration(nn.Module):
    """What is learned of one iteration: the mass of its momentum, the sizes of its steps and its reverse model.

    Arguments:
        latents: channels of z.
        features: of the encoder.
        config: the options.
        kernel: of the reverse model.
    """

    def __init__(self, latents: int, features: int, config: HVIConfig, kernel: int) -> None:
        super().__init__()
        self.log_mass = nn.Parameter(torch.zeros(latents, 1, 1))
        self.log_steps = nn.Parameter(torch.full((config.leapfrog_steps,), math.log(config.step_size)))
        self.reverse = Reverse(latents, features, config.reverse_width, kernel)

    def momentum(self, z: Tensor) -> Normal:
        """q(v), for latents of the shape of z."""
        return Normal(torch.zeros_like(z), (0.5 * self.log_mass).exp().expand_as(z))

    def move(self, at: State, slope: Slope) -> State:
        """The leapfrog steps."""
        return leapfrog(at, slope, self.log_steps.exp(), self.log_mass.exp())

    def guess(self, z: Tensor, features: Tensor) -> Normal:
        """r(v | x, z)."""
        found: Normal = self.reverse(z, features, self.log_mass.exp())
        return found


@final
class HamiltonianPosterior(Latent):
    r"""The posterior of :class:`HVI`. It remembers its draws and knows the density of nothing else.

    Its log-density is :math:`\log q(z_0 \mid x) + \sum_t (\log q_t(v_t) - \log r_t(v_t' \mid x, z_t))`: not that of
    :math:`z_T`, which nobody knows, but what makes of :math:`\log p(x, z_T)` a lower bound, or a weight.

    Arguments:
        base: q(z_0 | x).
        iterations: the moves.
        slope: the gradient of log p(x, z) for the images of the batch.
        features: of the encoder, ``[B, F, h, w]``.
    """

    def __init__(self, base: Latent, iterations: Sequence[Iteration], slope: Slope, features: Tensor) -> None:
        self.base = base
        self.iterations = iterations
        self.slope = slope
        self.features = features
        self._known = KnownDraws()

    def __repr__(self) -> str:
        return f"HamiltonianPosterior(shape={tuple(self.shape)})"

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    @property
    def kind(self) -> Kind:
        return Kind.weakest(Kind.LOWER_BOUND, self.base.kind)

    @property
    def scores_anywhere(self) -> bool:
        return False

    def center(self) -> Tensor:
        """Where the mean of the base, at rest, is moved to."""
        return self._through(self.base.center(), lambda momentum: momentum.center())

    def expand(self, n: int) -> HamiltonianPosterior:
        features = self.features.expand(n, *self.features.shape[1:])
        return HamiltonianPosterior(self.base.expand(n), self.iterations, self.slope, features)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A reparameterized draw; ``temperature`` scales the noise of the base and of the momenta."""
        base = self.base.sample(generator, temperature)
        return self._through(base, lambda momentum: momentum.sample(generator, temperature))

    def sample_with(self, noise: Noise) -> Tensor:
        return self._through(self.base.sample_with(noise), lambda momentum: momentum.sample_with(noise))

    def mode(self) -> Tensor:
        """The same as :meth:`center`."""
        return self.center()

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Log-density of a draw.

        Raises:
            ValueError: if ``x`` is not (the very tensor of) a draw or the center of this distribution.
        """
        return self._known.log_prob_map(x)

    def _through(self, z: Tensor, draw: Callable[[Normal], Tensor]) -> Tensor:
        log_prob, force = self.base.log_prob_map(z), self.slope(z)
        for iteration in self.iterations:
            momentum = iteration.momentum(z)
            v = draw(momentum)
            log_prob = log_prob + momentum.log_prob_map(v)
            z, v, force = iteration.move(State(z, v, force), self.slope)
            log_prob = log_prob - iteration.guess(z, self.features).log_prob_map(v)
        return self._known.add(z, log_prob)


class Encoded(NamedTuple):
    """Integer images, ``[B, C, H, W]``, beside what the encoder makes of them."""

    images: Tensor
    normal: Normal
    features: Tensor


@final
class HVI(VAENetworks):
    """Hamiltonian variational inference for the VAE of one stochastic layer (module docstring). Its arguments are
    those of the VAE."""

    name = "hvi"
    Config = HVIConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: HVIConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        kernel = 1 if self.grid == (1, 1) else 3
        sizes = self.layer_sizes[0]
        self.iterations = nn.ModuleList(Iteration(*sizes, config, kernel) for _ in range(config.iterations))

    def blocks(self) -> Iterable[nn.Module]:
        """Those of the encoder: what is compiled cannot be differentiated twice, as the decoder is."""
        encoder = set(self.inference.modules())
        return [block for block in super().blocks() if block in encoder]

    def encode(self, x: Tensor) -> Encoded:
        """Bottom-up pass over integer images ``[B, C, H, W]``, which the leapfrog steps need once more."""
        return Encoded(x, *super().encode(x))

    def top_posterior(self, context: Inferred) -> Latent:
        """q(z_0 | x)."""
        return self.posterior(0, *context)

    def top_down(self, choose: Choose, context: Encoded | None = None) -> Distribution:
        posterior = None if context is None else self._moved(context)
        return self.pixels(choose(0, self.top_prior(self.own_prior()), posterior))

    def _moved(self, context: Encoded) -> Latent:
        base = self.top_posterior(Inferred(context.normal, context.features))
        if not self.config.iterations:
            return base
        learns = any(parameter.requires_grad for parameter in self.parameters())
        slope = partial(slope_of, partial(self._log_joint, context.images), learns)
        iterations = [iteration for iteration in self.iterations if isinstance(iteration, Iteration)]
        return HamiltonianPosterior(base, iterations, slope, context.features)

    def _log_joint(self, images: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), ``[B]``. The prior is made anew, in the mode of the one who differentiates it."""
        images = images.clone() if images.is_inference() else images
        prior = self.top_prior(self.own_prior()).expand(len(z))
        return prior.log_prob(z) + self.pixels(z).log_prob(images.expand(len(z), -1, -1, -1))

r"""From integer images to continuous ones, and back.

A density of continuous values makes no claim about integers. Noise u in [0, 1) does: each integer x owns the interval
[x, x + 1), scaled to

.. math:: y = a + (b - a) \frac{x + u}{n}, \qquad u \sim q(u \mid x)

for n levels and the range [a, b). For a density p(y) the probability of x is the integral over its interval, and

.. math:: \log P(x) = \log \int p(y) \, \mathrm{d}y
          \ge E_{q}\bigl[\log p(y) - \log q(y \mid x)\bigr], \qquad
          \log q(y \mid x) = \log q(u \mid x) + \log \frac{n}{b - a}

The second summand is the whole constant of the scaling: :math:`\log_2 n` bits for each value with the range [0, 1),
one less with [-1, 1). With uniform noise :math:`\log q(u \mid x) = 0`.

**Padding.** Images that a network cannot take in their own size get rows and columns of noise v below and to the right,
on the whole range, as if each were a pixel of one level. Of the density of pixels and noise together

.. math:: \log P(x) \ge E_{q(y, v \mid x)}\bigl[\log p(y, v) - \log q(y, v \mid x)\bigr]

is a bound on the probability of the real pixels alone: v is integrated out. Uniform v costs nothing where the model has
learned that it is uniform.

The other way round, noise may be drawn for more pixels than y has. What is dropped of it, w, is compared with uniform
noise, whose density is 1:

.. math:: \log P(x) \ge E_{q(y, w \mid x)}\bigl[\log p(y) - \log q(y, w \mid x)\bigr]

**Rounding.** u keeps away from 0 and 1, so that rounding takes no value into the interval of another integer. What is
drawn closer to an end is pressed into a part of the interval beside it, and its density counted as higher: q stays a
density, and the bound a bound. In float32 this costs about 0.0005 bits a value of 256 levels, in float64 nothing.

References:
    A note on the evaluation of generative models, L. Theis, A. van den Oord, M. Bethge, ICLR 2016,
    https://arxiv.org/abs/1511.01844

    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, J. Ho,
    X. Chen, A. Srinivas, Y. Duan, P. Abbeel, ICML 2019, https://arxiv.org/abs/1902.00275
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from davi.distributions import Distribution
from davi.distributions.base import spread, sum_per_image
from davi.evidence import Kind


class Dequantized(NamedTuple):
    """A continuous image and how densely it was drawn, ``[B, C, H, W]`` both."""

    y: Tensor
    log_q: Tensor
    """log q(y | x) of every value, nats, with the constant of the scaling in it."""
    kind: Kind
    """What log q is: that of the noise."""


@final
class Dequantization(nn.Module):
    """Adds noise to integers and scales them (module docstring).

    Arguments:
        levels: n.
        low, high: a and b.
        noise: x -> q(u | x), a distribution over ``[B, C, H, W]`` numbers in [0, 1); a module has its weights trained
            with the rest. It is given padded images, whose padding is 0; further rows and columns of what it draws are
            dropped (module docstring). None: uniform.
        padding: rows below and columns to the right that y has beside those of x.

    Raises:
        ValueError: if there are fewer than 2 levels, or the range is empty or not finite.

    Example:
        >>> uniform = Dequantization(256)
        >>> y, log_q, kind = uniform(torch.full((1, 1, 2, 2), 255))
        >>> bool((y >= 255 / 256).all() and (y < 1).all()), round(float(log_q.mean()), 4)  # log 256
        (True, 5.5452)
        >>> uniform.quantize(y).flatten().tolist()
        [255, 255, 255, 255]
    """

    def __init__(
        self,
        levels: int,
        low: float = 0.0,
        high: float = 1.0,
        noise: Callable[[Tensor], Distribution] | None = None,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels: got {levels}, expected at least 2")
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"high: got the range {low} to {high}, expected finite numbers, the second one larger")
        self.levels = levels
        self.low = low
        self.step = (high - low) / levels
        self.noise = noise
        self.padding = padding
        self.presses = True
        """Whether noise too close to 0 or 1 is pressed into what is left there, and not cut off (:func:`_pressed`)."""

    def forward(self, x: Tensor, generator: Generator | None = None, dtype: torch.dtype = torch.float32) -> Dequantized:
        """A draw of y for each image.

        Arguments:
            x: integers in ``{0 .. levels - 1}``, ``[B, C, H, W]``.
            generator: source of the noise.
            dtype: of y.

        Raises:
            ValueError: if the noise leaves the interval, or the type cannot tell the noise of so many levels.
        """
        x = self._padded(x)
        if self.noise is None:
            u = torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)
            log_q, kind = torch.zeros_like(u), Kind.EXACT
        else:
            q = self.noise(x)
            u = q.sample(generator)
            log_q, kind = q.log_prob_map(u), q.kind
            u, log_q = _dropped(u, log_q, x)
            if u.device.type == "cpu" and not bool(((u >= 0.0) & (u <= 1.0)).all()):  # elsewhere it would stall
                raise ValueError(f"noise: got {float(u.min()):.4g} to {float(u.max()):.4g}, expected numbers in [0, 1)")
        margin = self._margin(dtype)  # rounding must not take a value into the interval of another integer
        if self.presses:
            u, log_q = _pressed(u.to(dtype), log_q, margin)
        else:
            u = u.to(dtype).clamp(margin, 1.0 - margin)
        y, step = self._scaled(x, u)
        return Dequantized(y, log_q - step.log(), kind)

    def middle(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The y in the middle of each integer's interval, and of the range where there is padding."""
        x = self._padded(x)
        return self._scaled(x, torch.full(x.shape, 0.5, dtype=dtype, device=x.device))[0]

    def _padded(self, x: Tensor) -> Tensor:
        rows, columns = self.padding
        return F.pad(x, (0, columns, 0, rows)) if rows or columns else x

    def _scaled(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """y, and the length of the interval of each value."""
        step = torch.full(x.shape[2:], self.step, dtype=u.dtype, device=u.device)
        rows, columns = self.padding
        if rows:
            step[-rows:] = self.step * self.levels
        if columns:
            step[:, -columns:] = self.step * self.levels
        return self.low + step * (x.to(u.dtype) + u), step

    def quantize(self, y: Tensor) -> Tensor:
        """The integers whose intervals hold y, the first and the last one for what lies outside the range; int64.
        Padding is left out.

        Exact for what :meth:`forward` has drawn in the same type.
        """
        rows, columns = self.padding
        if rows or columns:
            y = y[..., : y.shape[-2] - rows, : y.shape[-1] - columns]
        return ((y - self.low) / self.step).floor().clamp(0, self.levels - 1).long()

    def _margin(self, dtype: torch.dtype) -> float:
        """More than rounding moves u: a few units in the last place of x + u and of y."""
        largest = max(1.0, abs(self.low) / (self.levels * self.step))
        margin = 4.0 * self.levels * largest * torch.finfo(dtype).eps
        if margin >= 0.25:
            raise ValueError(f"dtype: got {dtype} for {self.levels} levels, expected one of a higher precision")
        return margin


def _pressed(u: Tensor, log_q: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Noise that keeps a margin from 0 and 1: ends of twice the margin are pressed into half their length.

    Their density doubles. Were they cut off, all noise there would have one value, at which a model's density could be
    as high as it liked: the bound would be none.
    """
    below, above = u < 2.0 * margin, u > 1.0 - 2.0 * margin
    half = 0.5 * u
    u = torch.where(below, half + margin, torch.where(above, half + (0.5 - margin), u))
    return u, torch.where(below | above, log_q + math.log(2.0), log_q)


def _dropped(u: Tensor, log_q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Noise without the rows and columns beyond those of x, whose log-density is spread over the others."""
    if u.shape == x.shape:
        return u, log_q
    rows, columns = x.shape[2:]
    kept = log_q[..., :rows, :columns]
    return u[..., :rows, :columns], kept + spread(sum_per_image(log_q) - sum_per_image(kept), kept)

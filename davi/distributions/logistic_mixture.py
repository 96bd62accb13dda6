r"""Mixtures of discretized logistic distributions over integer pixels.

A pixel value :math:`v \in \{0 .. n-1\}` stands for the interval of width one around it, the first and the last value
for the open ends. With the logistic CDF :math:`\sigma((\cdot - \mu)/s)` of a component, in units of levels,

.. math:: P(v) = \sigma(a) - \sigma(b), \quad a = (v - \mu + 1/2)/s, \quad b = (v - \mu - 1/2)/s

and, because :math:`\sigma(a) - \sigma(b) = \sigma(a)\,\sigma(-b)\,(1 - e^{-(a-b)})`,

.. math:: \log P(v) = \log\sigma(a) + \log\sigma(-b) + \log(1 - e^{-1/s})

which neither underflows nor cancels. :math:`P(0) = \sigma(a)` and :math:`P(n-1) = \sigma(-b)`, so the probabilities sum
to one. Networks give means and scales in the units of data rescaled to [-1, 1]; half a level is
:math:`h = 1/(n-1)` there. Working in units of levels keeps :math:`v - \mu` accurate where the probability is.

With three autoregressive channels the means of green and blue are shifted by the *observed* red and green values,
:math:`\mu_G = m_G + c_0 x_R`, :math:`\mu_B = m_B + c_1 x_R + c_2 x_G`, per component.

Compatibility forms, for weights that others published and nowhere else:

* ``"openai"``: :math:`\log(\sigma(a) - \sigma(b))` where the difference exceeds 1e-5, else the density at the center.
* ``"openai_5bit"``: as openai for the 256 values 0, 8, .. 248 with levels 2/31 wide, though they are 8/127.5 apart and
  the highest is no open end: **not a likelihood**.
* ``"nvae"``: as openai (1e-10 inside the logarithm), but every value above 0.99 of [-1, 1] takes the open upper end. At
  256 levels that is 254 as well as 255, and the sum over levels exceeds one: **not a likelihood**.
* ``"attentive"``: as nvae with openai's 1e-12.

References:
    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications,
    T. Salimans, A. Karpathy, X. Chen, D. P. Kingma, ICLR 2017, https://arxiv.org/abs/1701.05517
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from davi.distributions.base import (
    Distribution,
    WithMean,
    at_least_float32,
    is_twice_differentiable,
    standard_gumbel_like,
    uniform_like,
)


@dataclass(frozen=True)
class _Form:
    """How a compatibility form deviates from the exact one."""

    upper_end: float
    """Values above this (in [-1, 1]) get the open upper end."""
    smallest_difference: float
    """Inside the logarithm the CDF difference is at least this."""
    half_level: float | None = None
    """Half the width of a level in [-1, 1], where it is not 1 / (levels - 1)."""


FORMS: dict[str, _Form | None] = {
    "exact": None,
    "openai": _Form(0.999, 1e-12),
    "openai_5bit": _Form(0.999, 1e-12, 1.0 / 31.0),
    "nvae": _Form(0.99, 1e-10),
    "attentive": _Form(0.99, 1e-12),
}


_SMALL = 1e-3


def log1mexp(log_t: Tensor) -> Tensor:
    r""":math:`\log(1 - e^{-t})` of :math:`\log t`, to an absolute error of a few units of rounding of log t.

    Values and gradients are finite for any log t, also where t itself underflows: below 1e-3 the series
    :math:`\log t - t/2 + t^2/24` is exact in float64 (the next term is :math:`t^4/2880`).
    """
    t = log_t.exp()
    # The branch not chosen must be finite, too: a NaN in it would still poison the gradient.
    near = torch.log(-torch.expm1(-t.clamp_min(_SMALL)))
    series = log_t + t * (t / 24.0 - 0.5)
    return torch.where(t < _SMALL, series, near)


ENUMERATED = 256
"""Up to so many levels :meth:`DiscretizedLogisticMixture.mode` looks at every one of them."""
_AT_ONCE = 2**19
"""Numbers that it holds at a time, a few times over: 2 MiB each in float32."""

_SURE = 1e4
"""The logistic CDF of this is 1, its derivative 0, in float32 and in float64."""
_STRAIGHT = 40.0
"""From here on log(1 + e^x) is x, in float64 as well."""


@final
class LogMass(torch.autograd.Function):
    r"""Log-probability of a level under one discretized logistic, with its derivatives (module docstring).

    Some thirty operations on every component of every channel of every pixel: written out, their results would all be
    kept for the backward pass. Here the two derivatives are computed on the way and nothing else is kept. With
    :math:`d = \mu - v`, both in units of levels, and :math:`l = -\log s`,

    .. math:: \partial_d = s^{-1} (\sigma(-u) - \sigma(-w)), \qquad
              \partial_l = w\,\sigma(-w) + u\,\sigma(-u) + \frac{s^{-1}}{e^{1/s} - 1}, \qquad
              w = (1/2 - d)/s, \; u = (1/2 + d)/s

    without the parts of an end that is open.

    Arguments of ``apply``:
        ahead: d, ``[B, K, C, H, W]``.
        log_inverse_scale: l, the same shape.
        first: whether the value is 0, ``[B, 1, C, H, W]``.
        last: whether it is the highest.
    """

    @staticmethod
    def forward(ctx: Any, ahead: Tensor, log_inverse_scale: Tensor, first: Tensor, last: Tensor) -> Tensor:
        inverse_scale = log_inverse_scale.exp()
        # -w and -u; an open end is certain. No logsigmoid: it would lay its result out anew.
        beyond = (ahead - 0.5).mul_(inverse_scale).masked_fill_(last, -_SURE)
        before = (-0.5 - ahead).mul_(inverse_scale).masked_fill_(first, -_SURE)
        inside = (~(first | last)).to(ahead.dtype)
        value = log1mexp(log_inverse_scale).mul_(inside)
        value.sub_(F.softplus(beyond, threshold=_STRAIGHT)).sub_(F.softplus(before, threshold=_STRAIGHT))
        if any(ctx.needs_input_grad):
            below, above = torch.sigmoid(beyond), torch.sigmoid(before)
            # t / (e^t - 1) = 1 - t/2 + t^2/12 - ..
            share = torch.where(
                inverse_scale < _SMALL,
                1.0 - inverse_scale * (0.5 - inverse_scale / 12.0),
                inverse_scale / inverse_scale.expm1().clamp_min(_SMALL),
            )
            by_log = share.mul_(inside).addcmul_(beyond, below, value=-1).addcmul_(before, above, value=-1)
            ctx.save_for_backward((above - below).mul_(inverse_scale), by_log)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_ahead, by_log = ctx.saved_tensors
        return by_ahead * gradient, by_log * gradient, None, None


def log_mass(ahead: Tensor, log_inverse_scale: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """:class:`LogMass`, written out: it can be differentiated any number of times. Its arguments are the same."""
    inverse_scale = log_inverse_scale.exp()
    beyond = ((ahead - 0.5) * inverse_scale).masked_fill(last, -_SURE)
    before = ((-0.5 - ahead) * inverse_scale).masked_fill(first, -_SURE)
    inside = log1mexp(log_inverse_scale).masked_fill(first | last, 0.0)
    return inside - F.softplus(beyond, threshold=_STRAIGHT) - F.softplus(before, threshold=_STRAIGHT)


def most_probable_level(weights: Tensor, center: Tensor, inverse_scale: Tensor, levels: int) -> Tensor:
    r"""The value v with the largest :math:`\sum_k w_k P_k(v)`, ``[B, H, W]``; of equal ones any.

    All levels are computed, in the form :math:`\sigma(a)\,\sigma(-b)\,(1 - e^{-1/s})` of the module docstring, whose
    relative error where the probability is largest is a few units of rounding. Some pixels at a time: memory does not
    depend on how many there are.

    Arguments:
        weights: of the components, ``[B, K, H, W]``.
        center: means in units of levels, the same shape.
        inverse_scale: 1 / s in the same units, the same shape.
        levels: n, at least 2.
    """
    batch, components, height, width = weights.shape
    w, c, t = (x.movedim(1, -1).reshape(-1, components, 1) for x in (weights, center, inverse_scale))  # [P, K, 1]
    edges = torch.arange(levels - 1, dtype=center.dtype, device=center.device) + 0.5  # between two levels
    size = max(1, _AT_ONCE // (components * levels))
    found = []
    for part_w, part_c, part_t in zip(w.split(size), c.split(size), t.split(size), strict=True):
        below = torch.sigmoid((edges - part_c).mul_(part_t))  # [p, K, n - 1]
        inner = (1.0 - below[..., :-1]).mul_(below[..., 1:])
        first, last = (part_w * below[..., :1]).sum(1), (part_w * (1.0 - below[..., -1:])).sum(1)  # [p, 1]
        between = torch.matmul((part_w * -torch.expm1(-part_t)).mT, inner).squeeze(1)  # [p, n - 2]
        found.append(torch.cat([first, between, last], 1).argmax(1))
    return torch.cat(found).view(batch, height, width)


@final
class DiscretizedLogisticMixture(Distribution, WithMean):
    """A mixture of K discretized logistics per pixel, over ``levels`` values per channel.

    Arguments:
        logits: mixture logits, ``[B, K, G, H, W]``: G = 1 when one mixture component covers all channels of a pixel
            (autoregressive channels), G = C when every channel has its own mixture.
        means: in units of [-1, 1], ``[B, K, C, H, W]``.
        log_scales: log standard scale in the same units, ``[B, K, C, H, W]``.
        levels: n, 2 to 65536.
        coefficients: c_0, c_1, c_2 for three autoregressive channels, ``[B, K, 3, H, W]``; None: independent channels.
        form: ``"exact"``, or a compatibility form of the module docstring.

    Raises:
        ValueError: if the form is unknown, or coefficients come with other than three channels.

    Example:
        >>> logits, means, log_scales = torch.randn(3, 1, 5, 1, 1, 1)  # one pixel, K = 5
        >>> pixel = DiscretizedLogisticMixture(logits, means, log_scales, levels=256)
        >>> every_value = torch.arange(256).view(256, 1, 1, 1)
        >>> round(pixel.log_prob(every_value).exp().sum().item(), 5)
        1.0
    """

    MIN_LOG_SCALE = -7.0
    """At 8 bits; finer levels may be resolved as finely, see :meth:`min_log_scale`."""

    def __init__(
        self,
        logits: Tensor,
        means: Tensor,
        log_scales: Tensor,
        levels: int,
        coefficients: Tensor | None = None,
        form: str = "exact",
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form: got {form!r}, expected one of {', '.join(FORMS)}")
        if coefficients is not None and means.shape[2] != 3:
            raise ValueError(f"coefficients: got {means.shape[2]} channels, expected 3 autoregressive ones")
        self.log_weights = at_least_float32(logits).log_softmax(1)
        self.means = at_least_float32(means)
        self.log_scales = at_least_float32(log_scales).clamp_min(self.min_log_scale(levels))
        self.coefficients = None if coefficients is None else at_least_float32(coefficients)
        self.levels = levels
        self.form = form

    def __repr__(self) -> str:
        return f"DiscretizedLogisticMixture(shape={tuple(self.means.shape)}, levels={self.levels}, form={self.form!r})"

    @property
    def normalized(self) -> bool:
        return self.form == "exact"

    @classmethod
    def min_log_scale(cls, levels: int) -> float:
        """Floor of the log-scale: -7 up to 256 levels; beyond, the same fraction of a level."""
        return cls.MIN_LOG_SCALE - max(0.0, math.log((levels - 1) / 255.0))

    @property
    def _levels_per_unit(self) -> float:
        return (self.levels - 1) / 2.0

    def _rescaled(self, x: Tensor) -> Tensor:
        return x.to(self.means.dtype) / self._levels_per_unit - 1.0

    def _shifted_means(self, x: Tensor) -> Tensor:
        """Means given the observed channels, ``[B, K, C, H, W]``; ``x`` is ``[B, C, H, W]`` integers."""
        if self.coefficients is None:
            return self.means
        red, green = self._rescaled(x[:, None, 0]), self._rescaled(x[:, None, 1])  # [B, 1, H, W]
        c = self.coefficients
        shift = torch.stack([torch.zeros_like(c[:, :, 0]), c[:, :, 0] * red, c[:, :, 1] * red + c[:, :, 2] * green], 2)
        return self.means + shift

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Nats of integers ``[B, C, H, W]``: ``[B, C, H, W]``, or ``[B, 1, H, W]`` with autoregressive channels."""
        values = x.unsqueeze(1)  # [B, 1, C, H, W]
        means = self._shifted_means(x)
        form = FORMS[self.form]
        per_channel = self._exact(values, means) if form is None else self._compatible(values, means, form)
        if self.log_weights.shape[2] == 1 and per_channel.shape[2] > 1:  # one component for the whole pixel
            per_channel = per_channel.sum(2, keepdim=True)
        return torch.logsumexp(per_channel + self.log_weights, 1)

    def _exact(self, values: Tensor, means: Tensor) -> Tensor:
        center = (means + 1.0) * self._levels_per_unit  # the mean in units of levels
        # As a logarithm it survives scales at which the number underflows: log-scales above 95.
        log_inverse_scale = -self.log_scales - math.log(self._levels_per_unit)
        ahead = center - values.to(means.dtype)  # in this order the result is laid out in memory as the parameters are
        first, last = values == 0, values == self.levels - 1
        if is_twice_differentiable():
            return log_mass(ahead, log_inverse_scale, first, last)
        result: Tensor = LogMass.apply(ahead, log_inverse_scale.expand_as(ahead), first, last)  # type: ignore[no-untyped-call]  # torch ships no annotation
        return result

    def _compatible(self, values: Tensor, means: Tensor, form: _Form) -> Tensor:
        x = self._rescaled(values)
        inverse_scale = torch.exp(-self.log_scales)
        half_level = form.half_level or 0.5 / self._levels_per_unit
        upper = inverse_scale * (x - means + half_level)
        lower = inverse_scale * (x - means - half_level)
        difference = torch.sigmoid(upper) - torch.sigmoid(lower)
        middle = inverse_scale * (x - means)
        density = middle - self.log_scales - 2.0 * F.softplus(middle)  # log density of the logistic
        inner = torch.where(
            difference > 1e-5,
            difference.clamp_min(form.smallest_difference).log(),
            density + math.log(2.0 * half_level),
        )
        return torch.where(x < -0.999, F.logsigmoid(upper), torch.where(x > form.upper_end, -F.softplus(lower), inner))

    def _pick(self, x: Tensor, component: Tensor) -> Tensor:
        """Entries of the chosen components: ``x`` [B, K, C, H, W], ``component`` [B, 1, G, H, W] -> [B, C, H, W]."""
        return x.gather(1, component.expand(-1, -1, x.shape[2], -1, -1)).squeeze(1)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Integers ``[B, C, H, W]``. Channels are drawn in order, each conditioned on *rounded* earlier ones."""
        if temperature == 0:
            return self.mode()
        noise = standard_gumbel_like(self.log_weights, generator)
        component = (self.log_weights / temperature + noise).argmax(1, keepdim=True)  # [B, 1, G, H, W]
        scales = self._pick(self.log_scales, component).exp() * temperature
        u = uniform_like(scales, generator, 1e-5)
        return self._channel_by_channel(component, scales * (u.log() - torch.log1p(-u)))

    @torch.no_grad()
    def mode(self) -> Tensor:
        """The most probable value of each sub-pixel given those before it, integers ``[B, C, H, W]``.

        Channels are chosen in order. Where one mixture covers the whole pixel, the values chosen so far say which of
        its components are likely, and the coefficients move the means of the channels to come. The result is the most
        probable image where channels are independent; where they are not, another color can be more probable as a
        whole. Probabilities are those of the exact form in every form, as for draws: by the sums of ``nvae`` and
        ``attentive`` no white would ever be white, but 254.

        Above 256 levels an approximation: the mean of the heaviest component, rounded, channel by channel.
        """
        if self.levels > ENUMERATED:
            component = self.log_weights.argmax(1, keepdim=True)
            return self._channel_by_channel(component, torch.zeros_like(self._pick(self.means, component)))
        batch, _, channels, height, width = self.means.shape
        groups = self.log_weights.shape[2]
        x = torch.zeros(batch, channels, height, width, dtype=torch.long, device=self.means.device)
        for i in range(channels):
            means = self._shifted_means(x)  # those of channel i depend on the channels before it alone
            log_weights = self.log_weights[:, :, i if groups > 1 else 0]
            if groups == 1:
                log_weights = log_weights + self._exact(x.unsqueeze(1), means)[:, :, :i].sum(2)
            center = (means[:, :, i] + 1.0) * self._levels_per_unit
            inverse_scale = torch.exp(-self.log_scales[:, :, i]) / self._levels_per_unit
            x[:, i] = most_probable_level(log_weights.softmax(1), center, inverse_scale, self.levels)
        return x

    def _channel_by_channel(self, component: Tensor, deviation: Tensor) -> Tensor:
        means = self._pick(self.means, component) + deviation
        if self.coefficients is None:
            return self._rounded(means)
        c = self._pick(self.coefficients, component)  # [B, 3, H, W]
        red = self._rounded(means[:, 0])
        green = self._rounded(means[:, 1] + c[:, 0] * self._rescaled(red))
        blue = self._rounded(means[:, 2] + c[:, 1] * self._rescaled(red) + c[:, 2] * self._rescaled(green))
        return torch.stack([red, green, blue], 1)

    def mean(self) -> Tensor:
        """The mean of every sub-pixel, ``[B, C, H, W]``, in units of levels.

        Of each component that of its logistic, held to the range of values; what of the tails lies beyond the ends is
        not counted, which moves the mean by a fraction of a component's scale there. In a component the means of green
        and blue follow linearly from those of the channels before them.
        """
        means = self.means.clamp(-1.0, 1.0)
        if self.coefficients is not None:
            c = self.coefficients
            red = means[:, :, 0]
            green = (self.means[:, :, 1] + c[:, :, 0] * red).clamp(-1.0, 1.0)
            blue = (self.means[:, :, 2] + c[:, :, 1] * red + c[:, :, 2] * green).clamp(-1.0, 1.0)
            means = torch.stack([red, green, blue], 2)
        return ((self.log_weights.exp() * means).sum(1) + 1.0) * self._levels_per_unit

    def _rounded(self, x: Tensor) -> Tensor:
        return ((x + 1.0) * self._levels_per_unit).round().clamp(0, self.levels - 1).long()

r"""A model's claim about the probability of an image, and the kind of claim.

Every model answers one question in one unit. For a batch of integer images :math:`x` of shape ``[B, C, H, W]`` it
returns named terms in **nats**, one number per image, that sum to the claim about :math:`\log p(x)`. Averages and bits
per dimension are a matter of presentation and appear only in reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property

from torch import Tensor


class Kind(IntEnum):
    """How the sum of the terms relates to log p(x). A composite claim has the weakest kind of its parts.

    Example:
        >>> print(Kind.weakest(Kind.EXACT, Kind.LOWER_BOUND))
        lower bound
    """

    EXACT = 0
    """The sum is log p(x)."""
    LOWER_BOUND = 1
    """The sum's expectation over the model's own randomness is at most log p(x)."""
    ESTIMATE = 2
    """The sum approximates log p(x); it may lie on either side."""

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")

    @staticmethod
    def weakest(*kinds: Kind) -> Kind:
        """The kind of a claim composed of claims of these kinds."""
        return max(kinds)


class About(StrEnum):
    """What a claim is about: the image x, its class y, or one of them given the other. Claims about different things
    cannot be compared."""

    X = "x"
    X_GIVEN_Y = "x|y"
    Y_GIVEN_X = "y|x"
    X_AND_Y = "x,y"


@dataclass(frozen=True, repr=False)
class Evidence:
    r"""Per-image terms of a claim about :math:`\log p(x)`, in nats.

    Arguments:
        terms: name -> ``[B]``, nats. They sum to :attr:`log_px`: ``"reconstruction"``, ``"kl/03"`` (minus the KL
            divergence of latent layer 3, but see ``no_divergence``), ``"log_det"``, ...
        kind: whether the sum is exact, a lower bound, or an estimate.
        log_weight_fn: computes :attr:`log_weight` when somebody asks; training with an analytic KL never does. With
            ``joint=True`` it is :math:`\log p(x, z)` alone.
        penalties: scalars that are *not* part of the claim. Only objectives may use them.
        kl_maps: the KL divergence of every latent variable (log q - log p where there is none), ``[B, ...]``, nats,
            under the name of its layer's term; the term is minus its sum. Only objectives may use them.
        draws: the latents behind the terms, one tensor per layer, in the order in which they were drawn. Only
            objectives may use them.
        no_divergence: names of the terms ``kl/..`` that are minus E[log q - log p] of latents drawn on the way up
            (:class:`davi.distributions.Drawn`). Their prior depends on latents that were inferred from them, and the
            expectation may have either sign. Only together all layers are the KL divergence of q(z | x) from p(z).
        about: log p(x), unless the model knows of classes: log p(x | y), log p(y | x) or log p(x, y).
        dims: values in one image, C * H * W, for :attr:`bits_per_dim`; None where that makes no sense.
        deterministic: nothing was drawn for the terms: asked again, the model says the same.

    Example:
        >>> import torch
        >>> terms = {"reconstruction": torch.tensor([-3.0, -4.0]), "kl/00": torch.tensor([-1.5, -0.5])}
        >>> evidence = Evidence(terms, Kind.LOWER_BOUND, dims=4)
        >>> evidence.log_px
        tensor([-4.5000, -4.5000])
        >>> evidence
        Evidence for 2 images: lower bound on log p(x)
          log p(x): mean -4.5 nats, from -4.5 to -4.5
          bits/dim: mean 1.623, from 1.623 to 1.623
          terms, mean nats: reconstruction -3.5, kl/00 -1
    """

    terms: Mapping[str, Tensor]
    kind: Kind
    log_weight_fn: Callable[..., Tensor] | None = None
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    kl_maps: Mapping[str, Tensor] = field(default_factory=dict)
    draws: tuple[Tensor, ...] = ()
    no_divergence: frozenset[str] = frozenset()
    about: About = About.X
    dims: int | None = None
    deterministic: bool = False

    @cached_property
    def log_px(self) -> Tensor:
        """The claim about log p(x): the sum of the terms, ``[B]``, nats."""
        total: Tensor | None = None
        for term in self.terms.values():
            total = term if total is None else total + term
        if total is None:
            raise ValueError("Evidence has no terms; a claim needs at least one")
        return total

    @cached_property
    def log_weight(self) -> Tensor | None:
        r""":math:`\log p(x, z) - \log q(z \mid x)` of the latents that were drawn, ``[B]``; None without latents.

        Its exponential has expectation :math:`p(x)` under :math:`q`, which is what importance sampling needs.
        """
        return None if self.log_weight_fn is None else self.log_weight_fn()

    @cached_property
    def bits_per_dim(self) -> Tensor:
        """Bits per dimension of each image, ``-log_px / (dims ln 2)``, ``[B]``. Of a lower bound they are an upper one.

        Raises:
            ValueError: if the number of dimensions of an image is not known.
        """
        if self.dims is None:
            raise ValueError("dims: got None, expected the number of values in one image")
        return self.log_px.detach() / (-self.dims * math.log(2.0))

    def __repr__(self) -> str:
        """At most four lines, however many images and layers there are."""
        if not self.terms:
            return "Evidence without terms"
        count, claim = len(self.log_px), f"log p({self.about})"
        link = {Kind.EXACT: "", Kind.LOWER_BOUND: "on ", Kind.ESTIMATE: "of "}[self.kind]
        lines = [f"Evidence for {count} image{'s' * (count != 1)}: {self.kind} {link}{claim}"]
        lines.append(f"  {claim}: {_spread(self.log_px, ' nats')}")
        if self.dims is not None:
            lines.append(f"  bits/dim: {_spread(self.bits_per_dim)}")
        lines.append(f"  terms, mean nats: {self._terms_in_words()}")
        return "\n".join(lines)

    def _terms_in_words(self) -> str:
        """The mean of each term; of many layers their sum."""
        means = {name: float(term.detach().double().mean()) for name, term in self.terms.items()}
        layers = [mean for name, mean in means.items() if name.startswith("kl/")]
        if len(layers) > _SHOWN:
            means = {name: mean for name, mean in means.items() if not name.startswith("kl/")}
            means[f"kl of {len(layers)} layers"] = sum(layers)
        more = [f"{len(means) - 2 * _SHOWN} more"] if len(means) > 2 * _SHOWN else []
        return ", ".join([*(f"{name} {mean:.4g}" for name, mean in list(means.items())[: 2 * _SHOWN]), *more])


_SHOWN = 4
"""Layers that the representation of a claim names one by one."""


def _spread(values: Tensor, unit: str = "") -> str:
    """Mean, smallest and largest of some numbers."""
    x = values.detach().double()
    if not x.numel():
        return "of no image"
    return f"mean {float(x.mean()):.4g}{unit}, from {float(x.min()):.4g} to {float(x.max()):.4g}"


def bits_per_dim(nats: float, dims: int) -> float:
    """Bits per dimension of a log-likelihood: ``-nats / (dims ln 2)``.

    Arguments:
        nats: log-likelihood of one image (or its mean over images), in nats.
        dims: number of values in one image, C * H * W.

    Example:
        >>> round(bits_per_dim(-100.0, dims=64), 3)
        2.254
    """
    return -nats / (dims * math.log(2.0))

"""What is seen of a flow (:class:`davi.model.Invertible`): plain records of numbers and tensors, all on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scale:
    """The latents that a flow lets go of together.

    Arguments:
        shape: of the latents of one image.
        nats: minus their log-density, mean over the inspected images.
        log_det: of the layers of this scale, nats, mean over the inspected images; None where layers do not belong to
            scales.

    References:
        Density estimation using Real NVP, L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017,
        https://arxiv.org/abs/1605.08803
    """

    shape: tuple[int, ...]
    nats: float
    log_det: float | None


@dataclass(frozen=True)
class Block:
    """A bijection of which a flow is made.

    Arguments:
        kind: in words, such as ``Squeeze``; a coupling is called after its function.
        scale: from 1; None outside of scales.
        number: of the bijection in its scale, or outside of scales, from 1.
        log_det: nats, mean over the inspected images.
        deviation: standard deviation over these images.
        silent: whether the log-determinant of every image is zero.
    """

    kind: str
    scale: int | None
    number: int
    log_det: float
    deviation: float
    silent: bool

    @property
    def name(self) -> str:
        """Such as ``scale 2: 3 Additive``."""
        return f"{'' if self.scale is None else f'scale {self.scale}: '}{self.number} {self.kind}"


@dataclass(frozen=True, eq=False)
class Noise:
    """Learned noise of dequantization, u in [0, 1).

    Arguments:
        means: of u, ``[n, C, H, W]``, of the images that are shown.
        deviations: standard deviations of u, the same shape; those of uniform noise are the square root of 1/12.
        draws: of each image, behind these two.
        shares: of u in equal parts of [0, 1), over all inspected images with one draw each, ``[bins]``.
        nats: E[log q(u | x)], mean over the inspected images; 0 for uniform noise.

    References:
        Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, J. Ho,
        X. Chen, A. Srinivas, Y. Duan, P. Abbeel, ICML 2019, https://arxiv.org/abs/1902.00275
    """

    means: Tensor
    deviations: Tensor
    draws: int
    shares: Tensor
    nats: float


@dataclass(frozen=True)
class RoundTrip:
    """How exactly images that a flow has encoded come back.

    Arguments:
        images: how many were taken there and back.
        error: the largest distance of any value from where it was, in units of a level's interval; infinite if one is
            not finite.
        changed: images whose integers do not come back.
    """

    images: int
    error: float
    changed: int


@dataclass(frozen=True, eq=False)
class FlowView:
    """A look into a flow. The costs of scales, ``outside`` and ``dequantization`` sum to minus the claim.

    Arguments:
        scales: finest first.
        outside: log-determinants of layers that belong to no scale, nats, mean over the inspected images.
        dequantization: minus log q(y | x), nats, the same mean.
        blocks: the bijections, in the order in which an image passes them; they sum to all log-determinants.
        round_trip: of all inspected images.
        originals: images whose latents are shown, integers ``[n, C, H, W]``.
        latents: of these, for each scale, ``[n, *shape]``.
        noise: where it is learned.
    """

    scales: tuple[Scale, ...]
    outside: float
    dequantization: float
    blocks: tuple[Block, ...]
    round_trip: RoundTrip
    originals: Tensor
    latents: tuple[Tensor, ...]
    noise: Noise | None

    @property
    def claim(self) -> float:
        """Mean of the bound on log p(x) over the inspected images, nats."""
        of_scales = sum((scale.log_det or 0.0) - scale.nats for scale in self.scales)
        return of_scales + self.outside + self.dequantization

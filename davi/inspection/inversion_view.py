"""What comes back from the representations of a network that has inverses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Inversions:
    """Images that a network (:class:`davi.model.Inverting`) was given, and what its inverse makes of their
    representations.

    Arguments:
        names: of the images that are shown.
        originals: these, integers ``[n, C, H, W]``.
        depths: some of all, from the stem to the last block.
        variables: of a representation at each of these.
        images: what comes back from each of these, integers ``[len(depths), n, C, H, W]``.
        errors: the largest distance of what comes back from the integers that were given, in levels, at each of these.
        changed: how many images are others after rounding, at each of these.
        count: images over which this was found.
        apart: how far the last representation of what comes back from a point between two representations is from that
            point, as a share of the distance between the two: mean over the middles of pairs; None for a single image.

    References:
        i-RevNet: Deep Invertible Networks, J.-H. Jacobsen, A. Smeulders, E. Oyallon, ICLR 2018,
        https://arxiv.org/abs/1802.07088
    """

    names: tuple[str, ...]
    originals: Tensor
    depths: tuple[int, ...]
    variables: tuple[int, ...]
    images: Tensor
    errors: tuple[float, ...]
    changed: tuple[int, ...]
    count: int
    apart: float | None

"""Networks whose representations give the image back."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from davi.model.depths import WithDepths


class Inverting(WithDepths, ABC):
    """A network that loses nothing of an image: each of its depths has an inverse.

    :meth:`~davi.model.WithDepths.at_depths` takes pixels between the integers as well, such as :meth:`invert` gives.

    Where depths have more variables than an image has, the inverse of a point that no image leads to is an image that
    leads to another point.
    """

    @abstractmethod
    def invert(self, h: Tensor, depth: int | None = None) -> Tensor:
        """The images that a representation is of.

        Arguments:
            h: a representation, as :meth:`~davi.model.WithDepths.at_depths` gives it at the depth.
            depth: 0: after the stem; l: after block l; None: after the last one.

        Returns:
            ``[B, C, H, W]``, floats in units of levels; of representations of images, rounding gives the integers.

        Raises:
            ValueError: if there is no such depth, or the shape is not that of its representations.
        """

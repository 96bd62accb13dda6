"""What recipes build and runs save: a network for images of one shape."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from davi.errors import OptionError

_BARE_TYPES = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch can hold and convert, but hardly compute with."""


class Network(nn.Module, ABC):
    """A network for integer images. Its subclasses are capabilities: what a network can be asked.

    Arguments:
        shape: (C, H, W) of one image.
        levels: number of values a channel can take; images hold integers in ``{0 .. levels - 1}``.
        config: the options, an instance of :attr:`Config`.
        classes: number of classes that images belong to, for a network that is :class:`Conditional`; 0: labels play no
            part.

    Raises:
        ValueError: if the shape or the number of levels is not positive, or the network has no use for classes.
    """

    name: str
    """The name recipes use."""
    Config: ClassVar[type]
    """The dataclass of the options."""
    config: Any
    """The options the network was built with, an instance of :attr:`Config`."""

    def __init__(self, shape: tuple[int, int, int], levels: int, config: Any, classes: int = 0) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape: got {tuple(shape)}, expected three positive numbers (channels, height, width)")
        if not 2 <= levels <= 65536:
            raise ValueError(f"levels: got {levels}, expected 2 to 65536")
        if classes < 0 or (classes and not isinstance(self, Conditional)):
            expected = "at least 0" if isinstance(self, Conditional) else f"0: {self.name} makes no use of labels"
            raise OptionError("classes", f"got {classes}, expected {expected}")
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.levels = int(levels)
        self.config = config
        self.classes = int(classes)

    @property
    def dims(self) -> int:
        """Number of values in one image, C * H * W."""
        channels, height, width = self.shape
        return channels * height * width

    def __repr__(self) -> str:
        """A few lines: images, parameters, latents, parts. PyTorch's tree of modules is
        ``torch.nn.Module.__repr__(model)``."""
        classes = f", {self.classes} classes" if self.classes else ""
        images = f"images {list(self.shape)} with {self.levels} levels{classes}"
        lines = [f"{type(self).__name__} for {images}: {_size(self):,} parameters", *self._facts()]
        parts = [f"{name} {_size(part):,}" for name, part in self.named_children() if _size(part)]
        if len(parts) > _PARTS:
            parts[_PARTS - 1 :] = [f"{len(parts) - _PARTS + 1} more"]
        if parts:
            lines.append(f"  parameters of its parts: {', '.join(parts)}")
        return "\n".join(lines)

    def _facts(self) -> list[str]:
        """Lines of the representation that only some kinds of networks have."""
        return []

    def blocks(self) -> Iterable[nn.Module]:
        """Modules that may be compiled one by one and whose activations may be recomputed in the backward pass."""
        return ()

    def check_images(self, x: Tensor) -> None:
        """Refuse anything that is not a batch of this network's images.

        Values are compared with the number of levels only on the CPU: on an accelerator the comparison would stall the
        device in every step, and images from ``davi.data`` were checked when they were loaded.

        Raises:
            TypeError: if ``x`` is not an integer tensor.
            ValueError: if its shape or its values do not fit.
        """
        check_integers("images", x, self.levels)
        self.check_shape(x)
        check_range("images", x, self.levels)

    def check_shape(self, x: Tensor) -> None:
        """Refuse images of another shape than this network's.

        Raises:
            ValueError: if ``x`` is not ``[B, C, H, W]`` with the shape of this network's images.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"images: got shape {tuple(x.shape)}, expected [B, {', '.join(map(str, self.shape))}]")

    def check_labels(self, y: Tensor | None, n: int) -> None:
        """Refuse anything that does not say the class of each of ``n`` images, and labels that are of no use here.

        Arguments:
            y: class numbers, integers ``[n]`` in ``{0 .. classes - 1}``; None exactly if there are no classes.
            n: number of images.

        Raises:
            TypeError: if ``y`` is not an integer tensor.
            ValueError: if it is missing, not wanted, or its shape or values do not fit.
        """
        if not self.classes:
            if y is not None:
                raise ValueError(f"labels: got some, expected None: {self.name} was built without classes")
            return
        if y is None:
            raise ValueError(f"labels: got None, expected {n} class numbers from 0 to {self.classes - 1}")
        check_integers("labels", y, self.classes)
        if tuple(y.shape) != (n,):
            raise ValueError(f"labels: got shape {tuple(y.shape)}, expected [{n}]")
        check_range("labels", y, self.classes)

    def classes_in_turn(self, n: int) -> Tensor | None:
        """A class for each of ``n`` images, one after the other; None without classes."""
        if not self.classes:
            return None
        return torch.arange(n, device=next(self.parameters()).device) % self.classes


_PARTS = 8
"""Parts that the representation of a network names."""


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Conditional:
    """A network whose answers may depend on the class of an image: it can be built with ``classes`` above 0."""


def check_integers(what: str, x: Tensor, count: int) -> None:
    """Refuse anything but a tensor of integers.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{what}: got {given}, expected an integer tensor with values 0 to {count - 1}")


def check_range(what: str, x: Tensor, count: int) -> None:
    """Refuse integers outside of ``{0 .. count - 1}``; on the CPU only (:meth:`Network.check_images`).

    Raises:
        ValueError: if there are some.
    """
    if x.device.type != "cpu" or not x.numel():
        return
    low, high = map(int, torch.aminmax(x.long() if x.dtype in _BARE_TYPES else x))
    if low < 0 or high >= count:
        raise ValueError(f"{what}: got values {low} to {high}, expected 0 to {count - 1}")

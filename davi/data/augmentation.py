"""Order and augmentation of the training images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from davi.data.binarization import Binarization, draw, stream
from davi.data.images import Images
from davi.errors import UserError

Flip = Literal["none", "horizontal", "both"]
LARGEST_SHIFT = 1024
"""Pixels that an image may be moved by."""


class Augmentation:
    """Turns stored training images into what the model sees: moved, mirrored and binarized anew each time.

    Arguments:
        images: training images as :func:`davi.data.load` gives them. Under ``static`` and ``threshold`` they are
            binary already; under ``dynamic`` they are gray.
        binarization: ``dynamic`` draws each pixel at each presentation; nothing is done under the others.
        flip: ``horizontal`` mirrors each image left to right with probability 1/2; ``both`` mirrors it top to bottom
            with probability 1/2 as well, independently.
        random_crop: pixels of zeros around each image, of which a part of its own size is taken, every place of it
            being as probable as any other; before it is mirrored.

    Raises:
        UserError: if a name is unknown, or if the levels of the images contradict the binarization.
    """

    def __init__(
        self, images: Images, binarization: Binarization = "none", flip: Flip = "none", random_crop: int = 0
    ) -> None:
        check_choice("binarization", binarization, get_args(Binarization))
        check_choice("flip", flip, get_args(Flip))
        if binarization == "dynamic" and images.levels == 2:
            raise UserError(f"binarization: got 'dynamic' for {images.name}, expected 'none': it is binary already")
        if binarization in ("static", "threshold") and images.levels != 2:
            raise UserError(f"{images.name}: got {images.levels} levels, expected images made binary when loaded")
        self.images = images
        self.binarization = binarization
        self.flip = flip
        self.random_crop = random_crop

    @property
    def levels(self) -> int:
        """Levels of what the model sees: 2 once binarized."""
        return 2 if self.binarization == "dynamic" else self.images.levels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, indices: Tensor, generator: Generator) -> Tensor:
        """Present some images.

        Arguments:
            indices: ``[B]``, which images.
            generator: source of the places, the mirroring and the draws. Where there is nothing to draw it is not
                touched.

        Returns:
            Integers ``[B, C, H, W]`` on the device of the stored images.
        """
        # Four times as fast as an index in brackets on a CPU.
        x = self.images.pixels.index_select(0, indices.to(self.images.pixels.device))  # [B, C, H, W]
        if self.random_crop:
            x = _moved(x, self.random_crop, generator)
        if self.flip in ("horizontal", "both"):
            x = _mirrored(x, -1, generator)
        if self.flip == "both":
            x = _mirrored(x, -2, generator)
        if self.binarization == "dynamic":
            x = draw(x, self.images.levels, generator)
        return x

    def labels(self, indices: Tensor) -> Tensor | None:
        """The classes of some images, which no presentation changes.

        Arguments:
            indices: ``[B]``, which images.

        Returns:
            ``[B]``, int64, on the device of the stored images; None where these have no labels.
        """
        labels = self.images.labels
        return None if labels is None else labels[indices.to(labels.device)]


def _moved(x: Tensor, most: int, generator: Generator) -> Tensor:
    """Each image moved by at most so many pixels down or up and to the right or left, zeros behind it."""
    n, channels, height, width = x.shape
    padded = F.pad(x, (most, most, most, most))
    first = torch.randint(2 * most + 1, (2, n, 1), device=generator.device, generator=generator).to(x.device)
    rows = first[0] + torch.arange(height, device=x.device)  # [B, H]
    columns = first[1] + torch.arange(width, device=x.device)  # [B, W]
    padded = padded.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width + 2 * most))
    return padded.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


def _mirrored(x: Tensor, axis: int, generator: Generator) -> Tensor:
    """Each image mirrored along the axis with probability 1/2."""
    coin = torch.randint(2, (x.shape[0], 1, 1, 1), device=generator.device, generator=generator).bool()
    return torch.where(coin.to(x.device), x.flip(axis), x)


class Sampler:
    """An endless shuffled order of training images that can be resumed anywhere.

    The permutation of a pass depends on (seed, epoch) alone, so two numbers restore the position, no matter how long
    the run was or how often it was interrupted. The images left over when ``n`` is no multiple of the batch size are
    dropped for this pass; the next pass leaves out others.

    Arguments:
        n: number of images.
        batch_size: images a batch; with fewer images than that, every batch is a whole pass.
        seed: not negative.

    Raises:
        UserError: if a number is out of range.

    Example:
        >>> order = Sampler(n=100, batch_size=32, seed=0)
        >>> next(order).shape, order.batches_per_epoch
        (torch.Size([32]), 3)
    """

    def __init__(self, n: int, batch_size: int, seed: int = 0) -> None:
        for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name}: got {value!r}, expected a whole number of at least {least}")
        self.n = n
        self.batch_size = min(batch_size, n)
        self.seed = seed
        self._epoch = 0
        self._offset = 0
        self._permutation: Tensor | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the images."""
        return self.n // self.batch_size

    @property
    def epoch(self) -> int:
        """Number of passes completed."""
        return self._epoch

    def __iter__(self) -> Sampler:
        return self

    def __next__(self) -> Tensor:
        """Indices of the next batch, ``[batch_size]``, int64, on the CPU."""
        if self._permutation is None:
            self._permutation = torch.randperm(self.n, generator=stream(self.seed, self._epoch))
        start = self._offset * self.batch_size
        batch = self._permutation[start : start + self.batch_size]
        self._offset += 1
        if self._offset == self.batches_per_epoch:
            self._epoch, self._offset, self._permutation = self._epoch + 1, 0, None
        return batch

    def state_dict(self) -> dict[str, int]:
        """The position, and what it is a position in; whole numbers only, so it can be written as JSON."""
        return {
            "epoch": self._epoch,
            "offset": self._offset,
            "n": self.n,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position that :meth:`state_dict` described.

        Raises:
            UserError: if it is a position in another order (other images, batch size or seed), or none at all.
        """
        for name, own in (("n", self.n), ("batch_size", self.batch_size), ("seed", self.seed)):
            if state.get(name) != own:
                raise UserError(
                    f"order: got a position with {name} {state.get(name)!r}, expected {name} {own} "
                    "(a run is resumed with the images, batch size and seed it was begun with)"
                )
        epoch, offset = state.get("epoch"), state.get("offset")
        if not (isinstance(epoch, int) and isinstance(offset, int)) or epoch < 0:
            raise UserError(f"order: got epoch {epoch!r} and offset {offset!r}, expected whole numbers from 0")
        if not 0 <= offset < self.batches_per_epoch:
            raise UserError(f"order: got offset {offset}, expected 0 to {self.batches_per_epoch - 1}")
        self._epoch, self._offset, self._permutation = epoch, offset, None


def check_choice(name: str, given: object, choices: tuple[str, ...]) -> None:
    """Refuse a name that is not among the choices, in one line.

    Raises:
        UserError: if ``given`` is not one of ``choices``.
    """
    if given not in choices:
        raise UserError(f"{name}: got {given!r}, expected one of {', '.join(choices)}")

"""A set of integer images, in memory or mapped into it, and what a source of images hands over."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor

from davi.errors import UserError

MAX_LEVELS = 65536
"""Sixteen bits a channel, the most an image file holds."""


def pixel_dtype(levels: int) -> torch.dtype:
    """The tensor type that holds this many levels: ``uint8`` up to 256, ``int32`` above."""
    return torch.uint8 if levels <= 256 else torch.int32


def check_levels(name: str, levels: object) -> int:
    """The number of levels, if it is one.

    Raises:
        UserError: if ``levels`` is not a whole number from 2 to 65536; ``name`` says whose it is.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= MAX_LEVELS:
        raise UserError(f"{name}: got {levels!r}, expected a whole number from 2 to {MAX_LEVELS}")
    return levels


@dataclass(frozen=True, eq=False)
class Images:
    """A set of integer images.

    Arguments:
        pixels: ``[N, C, H, W]`` with values ``{0 .. levels - 1}``; ``torch.uint8`` when ``levels`` is at most 256,
            ``torch.int32`` above.
        levels: number of values a channel can take, 2 to 65536.
        name: what the set is called in messages and results, such as ``mnist/train``.
        sha256: the hash of the values (:func:`davi.data.protocol.digest`) where it is known already.
        mapped: the pixels are read from a file as they are needed, and take no memory.
        groups: ``[N]``, int64: images with the same number are cut from the same file, so that they are no independent
            witnesses (:mod:`davi.evaluation.clusters`). The numbers mean nothing else, and are the same in all splits
            of a set. None: every image has a file of its own.
        labels: ``[N]``, int64, on the device of the pixels: the class of each image, 0 to ``len(classes) - 1``. None:
            they were not asked for (``data.labels``), or they are not known.
        classes: the name of each class; none without labels.
        files: ``[N]``: the file of each image, by its path in the folder; () where the images are of no folder.
        corners: ``[N, 2]``, int64: (top, left) of each image in its file, where images are patches of files.
        checked: the values are known to be within the levels and the labels within the classes, so that a large set
            need not be read for it.

    Raises:
        UserError: if there is no image, or if the type, the shape or a value does not fit. Values are compared with
            the levels here, once, so that nothing later has to stall a device for it.
    """

    pixels: Tensor
    levels: int
    name: str
    sha256: str | None = None
    mapped: bool = False
    groups: Tensor | None = None
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    corners: Tensor | None = None
    checked: InitVar[bool] = False

    def __post_init__(self, checked: bool) -> None:
        check_levels(f"{self.name}: levels", self.levels)
        dtype = pixel_dtype(self.levels)
        if self.pixels.dtype != dtype:
            raise UserError(f"{self.name}: got {self.pixels.dtype}, expected {dtype} for {self.levels} levels")
        if self.pixels.ndim != 4 or self.pixels.numel() == 0:
            shape = tuple(self.pixels.shape)
            raise UserError(f"{self.name}: got shape {shape}, expected [N, C, H, W] with at least one image")
        if self.groups is not None and (self.groups.dtype != torch.int64 or self.groups.shape != self.pixels.shape[:1]):
            got = f"{self.groups.dtype} {list(self.groups.shape)}"
            raise UserError(f"{self.name}: got groups {got}, expected torch.int64 [{len(self.pixels)}]")
        if self.files and len(self.files) != len(self.pixels):
            raise UserError(f"{self.name}: got {len(self.files)} names of files, expected {len(self.pixels)}")
        self._check_labels(checked)
        if checked or self.levels == 2 ** (8 * self.pixels.element_size()):
            return
        low, high = (int(value) for value in torch.aminmax(self.pixels))
        if low < 0 or high >= self.levels:
            raise UserError(f"{self.name}: got values {low} to {high}, expected 0 to {self.levels - 1}")

    def _check_labels(self, checked: bool) -> None:
        """Refuse labels that are not one class number for each image."""
        labels, count = self.labels, len(self.classes)
        if labels is None:
            if count:
                raise UserError(f"{self.name}: got {count} classes without labels, expected both or neither")
            return
        if labels.dtype != torch.int64 or labels.shape != self.pixels.shape[:1]:
            got = f"{labels.dtype} {list(labels.shape)}"
            raise UserError(f"{self.name}: got labels {got}, expected torch.int64 [{len(self.pixels)}]")
        if not count:
            raise UserError(f"{self.name}: got labels without classes, expected the name of each class")
        if twice := next((name for name, times in Counter(self.classes).items() if times > 1), None):
            raise UserError(f"{self.name}: got class {twice!r} twice, expected another name for each class")
        if checked:
            return
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= count:
            raise UserError(f"{self.name}: got labels {low} to {high}, expected 0 to {count - 1}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def subset(self, chosen: slice | Sequence[int] | Tensor, name: str | None = None) -> Images:
        """Some of the images, in the order asked for.

        Arguments:
            chosen: a slice (no pixel is copied), or indices (pixels are copied).
            name: name of the subset; this set's name when None.

        Raises:
            UserError: if an index does not exist, or if nothing is chosen.
        """
        if isinstance(chosen, slice):
            return self._chosen(chosen, name, self.mapped)
        indices = torch.as_tensor(chosen, dtype=torch.long, device=self.pixels.device)
        n = len(self)
        if indices.numel() and not (-n <= int(indices.min()) and int(indices.max()) < n):
            wrong = int(indices.min()) if int(indices.min()) < -n else int(indices.max())
            raise UserError(f"{self.name}: got index {wrong}, expected {-n} to {n - 1}")
        return self._chosen(indices, name, mapped=False)

    def _chosen(self, chosen: slice | Tensor, name: str | None, mapped: bool) -> Images:
        """The images at places that exist, with all that is known of each."""

        def part(known: Tensor | None) -> Tensor | None:
            if known is None:
                return None
            return known[chosen if isinstance(chosen, slice) else chosen.to(known.device)]

        return dataclasses.replace(
            self,
            pixels=self.pixels[chosen],
            name=name or self.name,
            sha256=None,
            mapped=mapped,
            groups=part(self.groups),
            labels=part(self.labels),
            files=self._files_of(chosen),
            corners=part(self.corners),
            checked=True,
        )

    def _files_of(self, chosen: slice | Tensor) -> tuple[str, ...]:
        if isinstance(chosen, slice) or not self.files:
            return self.files[chosen] if isinstance(chosen, slice) else ()
        return tuple(self.files[index] for index in chosen.tolist())

    def to(self, device: torch.device | str) -> Images:
        """The same images on another device, and their labels with them."""
        labels = None if self.labels is None else self.labels.to(device)
        return dataclasses.replace(self, pixels=self.pixels.to(device), mapped=False, labels=labels, checked=True)


@dataclass(frozen=True, eq=False)
class Source:
    """What a set consists of before validation images are kept out and before binarization.

    Arguments:
        train: the training images as stored.
        test: the test images as stored.
        split: in words, what was put into training and test.
        validation: the set's own validation images, where it has some.
        test_order: in words, the order of the test images.
        corners: ``[N, 3]`` (picture, top, left) of each training image, where training images are overlapping patches
            of pictures; a validation set must then not share pixels with what remains in training.
        details: what the protocol has to say of this source besides.
        notes: what the user should be told, a line each.
    """

    train: Images
    test: Images
    split: str
    validation: Images | None = None
    test_order: str = "as stored"
    corners: Tensor | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Whole:
    """A set without a split of its own.

    Arguments:
        images: all of them, as stored.
        path: where they are from, for messages.
        order: in words, the order of the images.
        details: what the protocol has to say of them besides.
        notes: what the user should be told, a line each.
    """

    images: Images
    path: str
    order: str = "file order"
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

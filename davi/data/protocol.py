"""From the ``data:`` section of a recipe to images and to the protocol of a result."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from davi.data.augmentation import Augmentation
from davi.data.binarization import Binarization, binarized, stream
from davi.data.config import DataConfig, check
from davi.data.decoded import Progress
from davi.data.embedded import share_pixels
from davi.data.images import Images, Source, Whole
from davi.data.labels import check_alike, described
from davi.data.sources import as_levels, source_of, whole_of
from davi.errors import UserError

_IDENTITY = (
    *(
        "fit",
        "test_fraction",
        "test_sha256",
        "train_sha256",
        "validation_sha256",
        "set",
        "binarization",
        "binarization_seed",
        "flip",
        "random_crop",
    ),
    *("shape", "levels", "source_levels", "counts"),
    *("labels", "classes", "classes_sha256", "train_labels_sha256", "validation_labels_sha256", "test_labels_sha256"),
)
"""What of a protocol says which images they are, the most telling first."""

_CONVERTED = ("background", "mode")
"""Options that change the values of files; without them a protocol is what it always was."""

_SPLITS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True, eq=False)
class DataSets:
    """Images ready for use.

    Arguments:
        train: training images as stored; under dynamic binarization they are still gray, and
            :class:`davi.data.Augmentation` draws them.
        validation: images kept out of training, as they are evaluated; None when there are none.
        test: test images as they are evaluated.
        protocol: what a number measured on these images depends on. Whole numbers, strings, lists and dictionaries
            only, so that it can be written as JSON: ``set``, ``split`` (in words), ``counts``, ``shape``, ``levels``
            (as evaluated), ``source_levels``, ``binarization``, ``binarization_seed`` (null where nothing is drawn
            once), ``evaluated`` (in words, how validation and test images were made), ``flip``, ``test_order``, and
            ``train_sha256`` (as stored), ``validation_sha256`` (null where there are none) and ``test_sha256`` (as
            evaluated), each of the values row by row, one byte each up to 256 levels, four with the lowest first above.
            Of a folder of images also ``fit`` (in words; null where the images have one size), ``test_fraction``
            (null where the folder says which are for test), ``files`` (used for each split) and ``unreadable`` (files
            that were left out). ``background``, ``mode`` and ``random_crop`` are there only if they were asked for.
            With labels also what :func:`davi.data.labels.described` says of them.
        notes: what the user should be told about the images, a line each.
        stored: training images before any binarization; None where that is not known.

    Raises:
        UserError: if the splits have different classes.
    """

    train: Images
    validation: Images | None
    test: Images
    protocol: dict[str, Any]
    notes: tuple[str, ...] = ()
    stored: Images | None = None

    def __post_init__(self) -> None:
        check_alike({"training": self.train, "validation": self.validation, "test": self.test})

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, the same in all splits; () where no labels were read."""
        return self.test.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.test.shape

    @property
    def levels(self) -> int:
        """Levels that the model sees and is evaluated on; 2 after any binarization."""
        return self.test.levels

    @property
    def told(self) -> str:
        """How many images are in each split, and by what rule."""
        counts = self.protocol["counts"]
        files = self.protocol.get("files")
        if files is not None and files != counts:
            parts = [part for part in _SPLITS if counts[part]]
            each, patches = ("/".join(f"{number[part]:,}" for part in parts) for number in (files, counts))
            names = "/".join(_SPLITS[part] for part in parts)
            return f"{each} files, {patches} patches ({names}): {self.protocol['split']}"
        named = [f"{counts[part]} {words}" for part, words in _SPLITS.items() if counts[part]]
        return f"{', '.join(named[:-1])} and {named[-1]} images: {self.protocol['split']}"


def load(config: DataConfig, progress: Progress | None = None) -> DataSets:
    """Read a set, split it, and binarize what is to be binarized once.

    The whole training file and the whole test file are drawn from streams of their own, (seed, 0) and (seed, 1), so
    that no drawn pixel depends on how many images are kept out for validation or evaluated later; a set's own
    validation images are drawn from (seed, 2).

    Arguments:
        config: which images.
        progress: told how many files of a folder are decoded, and of how many.

    Raises:
        UserError: if an option is out of range or contradicts the set, or if a file is missing or damaged.

    Example:
        >>> sets = load(DataConfig(set="digits", validation=100))
        >>> len(sets.train), len(sets.test), sets.shape, sets.levels
        (1300, 397, (1, 8, 8), 17)
    """
    check(config)
    source = source_of(config, progress)
    channels, height, width = source.train.shape
    if config.random_crop >= min(height, width):
        raise UserError(
            f"data.random_crop: got {config.random_crop} for images of {height} x {width} pixels, expected fewer than "
            f"{min(height, width)}, so that something of each image is left"
        )
    if channels > 1 and config.binarization != "none":
        raise UserError(
            f"data.binarization: got {config.binarization!r} for images of {channels} channels in {config.set}, "
            "expected none: --data.binarization none, and --model.likelihood.family logistic_mixture if that is "
            "bernoulli"
        )
    return _prepared(source, config)


def _prepared(source: Source, config: DataConfig) -> DataSets:
    """Validation images held out, and what is to be binarized once made binary."""
    _refuse_binary(source, config)
    seed, binarization = config.binarization_seed, config.binarization
    kept, out, rule = _held_out(source, config)
    test = binarized(source.test, binarization, stream(seed, 1))
    validation = source.validation and binarized(source.validation, binarization, stream(seed, 2))
    gray = _part(source.train, kept)
    train = gray
    if binarization != "none" and (binarization != "dynamic" or out is not None):
        evaluated = binarized(source.train, binarization, stream(seed, 0))
        train = gray if binarization == "dynamic" else _part(evaluated, kept)
    else:
        evaluated = source.train
    if out is not None:
        validation = evaluated.subset(out, f"{source.train.name.removesuffix('/train')}/validation")
    protocol = {
        "set": config.set,
        "split": source.split + rule,
        "counts": {"train": len(train), "validation": len(validation) if validation else 0, "test": len(test)},
        **_as_evaluated(test, source.train.levels, config),
        "flip": config.flip,
        **({"random_crop": config.random_crop} if config.random_crop else {}),
        "test_order": source.test_order,
        "train_sha256": digest(train),
        "validation_sha256": digest(validation) if validation else None,
        "test_sha256": digest(test),
        **described({"train_": train, "validation_": validation, "test_": test}),
        **source.details,
    }
    return DataSets(train, validation, test, protocol, source.notes, gray)


def _as_evaluated(images: Images, levels: int, config: DataConfig) -> dict[str, Any]:
    """What a protocol says about the values of images, of which ``levels`` are stored."""
    drawn = config.binarization in ("static", "dynamic")
    return {
        "shape": list(images.shape),
        "levels": images.levels,
        "source_levels": levels,
        "binarization": config.binarization,
        "binarization_seed": config.binarization_seed if drawn else None,
        "evaluated": _in_words(config.binarization, levels, config.binarization_seed),
        **{name: value for name in _CONVERTED if (value := getattr(config, name)) is not None},
    }


def _refuse_binary(found: Source | Whole, config: DataConfig) -> None:
    """Refuse to binarize what is binary: a 1 among 256 levels would be drawn as a one in 255 times."""
    if config.binarization == "none":
        return
    got = f"data.binarization: got {config.binarization!r}, expected 'none': {config.set}"
    if (found.images if isinstance(found, Whole) else found.train).levels == 2:
        raise UserError(f"{got} is binary already (--data.binarization none)")
    bits = _bits(found)
    if all(bits.values()):
        raise UserError(f"{got} holds only 0 and 1, which is binary already (--data.binarization none --data.levels 2)")
    for part, only in bits.items():
        if only:
            raise UserError(
                f"{got} has {part} images of only 0 and 1, which are binary already, beside gray ones; save them with "
                "0 and 255"
            )


def _bits(found: Source | Whole) -> dict[str, bool]:
    """Of each part of a set, whether it holds 0 and 1 alone; of a large one no more is read than it takes to tell."""
    if isinstance(found, Whole):
        parts: dict[str, Images | None] = {"all": found.images}
    else:
        parts = {"test": found.test, "validation": found.validation, "training": found.train}
    return {name: _only_bits(images) for name, images in parts.items() if images is not None}


def _only_bits(images: Images) -> bool:
    return all(int(part.max()) <= 1 for part in images.pixels.split(256))


@dataclass(frozen=True, eq=False)
class Selection:
    """Images that are looked at with a trained model.

    Arguments:
        images: as they are evaluated.
        split: ``test``, ``validation``, ``train``, or ``all``.
        stored: the same before any binarization.
        train: training images of the same set; None where all of it was taken.
        protocol: as in :class:`DataSets`; of all images of a set ``sha256`` in the place of those of the splits.
        told: how many images there are, and by what rule.
        notes: what the user should be told besides, a line each.
    """

    images: Images
    split: str
    stored: Images
    train: Images | None
    protocol: dict[str, Any]
    told: str
    notes: tuple[str, ...] = ()


def select(
    config: DataConfig, split: str | None = None, progress: Progress | None = None, binary: bool = False
) -> Selection:
    """The images of one split, or all images of a set, as they are evaluated.

    Arguments:
        config: which images.
        split: ``test``, ``validation`` or ``train``, as :func:`load` makes them; ``all``, without any split; None: the
            test images where the set itself says which these are, else all.
        progress: told how many files of a folder are decoded, and of how many.
        binary: take images that hold only 0 and 1 as binary, whatever levels and binarization are asked for.

    Raises:
        UserError: as :func:`load` does, or if there is no such split.

    Example:
        >>> chosen = select(DataConfig(set="digits"))
        >>> chosen.split, len(chosen.images)
        ('test', 397)
        >>> len(select(DataConfig(set="digits"), "all").images)
        1797
    """
    check(config)
    found: Source | Whole
    found = whole_of(config, split is None, progress) if split in (None, "all") else source_of(config, progress)
    if binary and all(_bits(found).values()):
        note = f"{config.set} holds only 0 and 1: taken as binary as it is"
        config = dataclasses.replace(config, binarization="none")
        found = as_levels(dataclasses.replace(found, notes=(*found.notes, note)), 2)
    return _all_of(found, config) if isinstance(found, Whole) else _one_of(found, config, split or "test")


def _one_of(source: Source, config: DataConfig, split: str) -> Selection:
    sets = _prepared(source, config)
    protocol, train = sets.protocol, sets.train
    images, stored = {
        "train": (train, sets.stored or train),
        "validation": (sets.validation, source.validation or sets.validation),
        "test": (sets.test, source.test),
    }[split]
    if images is None or stored is None:
        raise UserError(f"--split: got 'validation', but {config.set} has no validation images (data.validation is 0)")
    if split == "train" and images.levels != sets.levels:  # gray, and drawn afresh at each presentation
        generator = torch.Generator().manual_seed(config.binarization_seed)
        present = Augmentation(images, config.binarization, "none")
        drawn = present(torch.arange(len(images)), generator).to(sets.test.pixels.dtype)
        images = dataclasses.replace(images, pixels=drawn, levels=sets.levels, sha256=None)
        protocol = {**protocol, "evaluated": f"training images drawn once, seed {config.binarization_seed}"}
    return Selection(images, split, stored, train, protocol, sets.told, sets.notes)


def _all_of(whole: Whole, config: DataConfig) -> Selection:
    """Drawn as the test images of a file of its own would be."""
    _refuse_binary(whole, config)
    stored = whole.images
    images = binarized(stored, config.binarization, stream(config.binarization_seed, 1))
    n = len(images)
    words = f"all {n} images of {config.set}" if n > 1 else f"the only image of {config.set}"
    files = 0 if stored.groups is None else len(set(stored.files))
    if files:
        words = f"all {n:,} patches of {files:,} file{'s' * (files != 1)} of {config.set}"
    protocol = {
        "set": config.set,
        "split": words,
        "counts": {"all": n},
        **_as_evaluated(images, stored.levels, config),
        "test_order": whole.order,
        "sha256": digest(images),
        **described({"": images}),
        **whole.details,
    }
    return Selection(images, "all", stored, None, protocol, words, whole.notes)


def digest(images: Images) -> str:
    """SHA-256 of the values, row by row: one byte each up to 256 levels, four with the lowest first above."""
    if images.sha256 is not None:
        return images.sha256
    pixels = images.pixels.cpu().numpy()
    flat = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    return hashlib.sha256(flat.data).hexdigest()


def check_same(begun: Mapping[str, Any], now: Mapping[str, Any], remedy: str) -> None:
    """Refuse images that are not those of an earlier protocol. What it says in words alone is not compared.

    Arguments:
        begun: the earlier protocol; what an older version did not write is not compared.
        now: that of the images at hand.
        remedy: what the user can do, the end of the message.

    Raises:
        UserError: one line that names the first field that differs, and both values.
    """
    for name in _IDENTITY:
        if name in begun and begun[name] != now.get(name):
            got, expected = (_shortened(protocol.get(name)) for protocol in (now, begun))
            raise UserError(f"data: got {name} {got}, expected {expected} as when the run was begun; {remedy}")


def _shortened(value: Any) -> str:
    """A value of a protocol; of a hash the beginning."""
    text = "nothing" if value is None else " ".join(str(value).split())
    return text[:12] + "..." if len(text) == 64 else text[:100]


def _held_out(source: Source, config: DataConfig) -> tuple[slice | torch.Tensor, slice | None, str]:
    """Which training images remain and which are for validation, and the rule in words, added to that of the split."""
    if source.validation is not None:
        return slice(None), None, ""
    total, kept = len(source.train), config.validation
    n = max(1, round(kept * total)) if 0 < kept < 1 else int(kept)
    if n >= total:
        raise UserError(f"data.validation: got {kept} for {total} training images, expected to leave at least one")
    if n == 0:
        return slice(None), None, "; no validation images"
    last, rule = slice(total - n, None), f"; the last {n} of the {total} training images for validation"
    if source.corners is None:
        return slice(None, total - n), last, rule
    apart = (~share_pixels(source.corners[: total - n], source.corners[last])).nonzero().flatten()
    if not len(apart):
        raise UserError(f"data.validation: got {kept}, expected less: every other patch shares pixels with these")
    return apart, last, f"{rule}, and {total - n - len(apart)} that share pixels with them left out"


def _part(images: Images, chosen: slice | torch.Tensor) -> Images:
    """Some of the images; all of them stay what they are, with their hash."""
    unchanged = isinstance(chosen, slice) and chosen == slice(None)
    return images if unchanged else images.subset(chosen)


def _in_words(binarization: Binarization, levels: int, seed: int) -> str:
    """How the validation and test images came about."""
    if binarization == "none":
        return "values as stored"
    if binarization == "threshold":
        return f"1 where value / {levels - 1} > 0.5, else 0"
    return f"each image drawn once, x ~ Bernoulli(value / {levels - 1}), seed {seed}"

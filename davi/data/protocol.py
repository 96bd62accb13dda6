"""From the ``data:`` section of a recipe to images, and to the protocol that a result must carry."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from davi.data.arrays import read_images
from davi.data.binarization import Binarization, binarized, stream
from davi.data.embedded import digits, photos, share_pixels
from davi.data.images import Images, Source, check_levels
from davi.data.named import NAMES, named
from davi.data.presentation import Flip, check_choice
from davi.errors import UserError

SETS = ("digits", "photos", *NAMES)
"""Every set that has a name."""

_IDENTITY = (
    *("test_sha256", "train_sha256", "validation_sha256", "set", "binarization", "binarization_seed", "flip"),
    *("shape", "levels", "source_levels", "counts"),
)
"""What of a protocol says which images they are, the most telling first."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split, and what is done to them.

    Arguments:
        set: name of a set (digits, photos, mnist, binarized_mnist, fashion_mnist, omniglot28, cifar10), or the path of
            a .npy or .npz file that holds an array [N, H, W] or [N, H, W, C].
        root: directory with one folder for each named set; the environment variable DAVI_DATA when not given.
        binarization: none; static (all images drawn once); dynamic (training images drawn at each presentation,
            validation and test once); threshold (one where the grey value is above one half).
        binarization_seed: seed of everything that is drawn once.
        flip: mirror training images at random at each presentation: none, horizontal, or both ways.
        validation: training images kept out for validation, the last ones: a fraction below 1, or a number of images.
        levels: number of values a channel can take, for files whose type does not tell it (bool 2, uint8 256,
            uint16 65536).
        test: path of the test images when ``set`` is a path; without it the last tenth of the array is the test set.
    """

    set: str = "digits"
    root: str | None = None
    binarization: Literal["none", "static", "dynamic", "threshold"] = "none"
    binarization_seed: int = 0
    flip: Literal["none", "horizontal", "both"] = "none"
    validation: float | int = 0
    levels: int | None = None
    test: str | None = None


@dataclass(frozen=True, eq=False)
class DataSets:
    """Images ready for use.

    Arguments:
        train: training images as stored; under dynamic binarisation they are still grey, and
            :class:`davi.data.Presentation` draws them.
        validation: images kept out of training, as they are evaluated; None when there are none.
        test: test images as they are evaluated.
        protocol: what a number measured on these images depends on. Whole numbers, strings, lists and dictionaries
            only, so that it can be written as JSON: ``set``, ``split`` (in words), ``counts``, ``shape``, ``levels``
            (as evaluated), ``source_levels``, ``binarization``, ``binarization_seed`` (null where nothing is drawn
            once), ``evaluated`` (in words, how validation and test images were made), ``flip``, ``test_order``, and
            ``train_sha256`` (as stored), ``validation_sha256`` (null where there are none) and ``test_sha256`` (as
            evaluated), each of the values row by row, one byte each up to 256 levels, four with the lowest first above.
    """

    train: Images
    validation: Images | None
    test: Images
    protocol: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.test.shape

    @property
    def levels(self) -> int:
        """Levels that the model sees and is evaluated on; 2 after any binarisation."""
        return self.test.levels


def load(config: DataConfig) -> DataSets:
    """Read a set, split it, and binarise what is to be binarised once.

    The whole training file and the whole test file are drawn from streams of their own, (seed, 0) and (seed, 1), so
    that no drawn pixel depends on how many images are kept out for validation or evaluated later.

    Raises:
        UserError: if an option is out of range or contradicts the set, or if a file is missing or damaged.
    """
    _check(config)
    source = _source(config)
    levels, binarization = source.train.levels, config.binarization
    if levels == 2 and binarization != "none":
        raise UserError(f"data.binarization: got {binarization!r}, expected 'none': {config.set} is binary already")
    seed = config.binarization_seed
    test = binarized(source.test, binarization, stream(seed, 1))
    train, validation, rule = _hold_out(source, config)
    drawn = binarization in ("static", "dynamic")
    protocol = {
        "set": config.set,
        "split": source.split + rule,
        "counts": {"train": len(train), "validation": len(validation) if validation else 0, "test": len(test)},
        "shape": list(test.shape),
        "levels": test.levels,
        "source_levels": levels,
        "binarization": binarization,
        "binarization_seed": seed if drawn else None,
        "evaluated": _in_words(binarization, levels, seed),
        "flip": config.flip,
        "test_order": source.test_order,
        "train_sha256": digest(train),
        "validation_sha256": digest(validation) if validation else None,
        "test_sha256": digest(test),
    }
    return DataSets(train, validation, test, protocol)


def digest(images: Images) -> str:
    """SHA-256 of the values, row by row: one byte each up to 256 levels, four with the lowest first above."""
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


def _check(config: DataConfig) -> None:
    """Refuse options that no set could have."""
    check_choice("data.binarization", config.binarization, get_args(Binarization))
    check_choice("data.flip", config.flip, get_args(Flip))
    seed = config.binarization_seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"data.binarization_seed: got {seed!r}, expected a whole number from 0")
    kept = config.validation
    whole = isinstance(kept, int) or (isinstance(kept, float) and (kept < 1 or kept.is_integer()))
    if isinstance(kept, bool) or not whole or not 0 <= kept < math.inf:
        raise UserError(f"data.validation: got {kept!r}, expected a fraction below 1 or a number of images")
    if config.levels is not None:
        check_levels("data.levels", config.levels)


def _source(config: DataConfig) -> Source:
    """The stored images behind ``config.set``."""
    name = config.set
    if name not in SETS:
        if Path(name).suffix not in (".npy", ".npz"):
            near = difflib.get_close_matches(name, SETS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"data.set: got {name!r}{hint}, expected {', '.join(SETS)} or a path of a .npy or .npz file"
            )
        return _from_files(Path(name), config)
    if config.test is not None:
        raise UserError(f"data.test: got {config.test!r}, expected nothing: {name} has its own test images")
    if name == "binarized_mnist" and config.binarization != "none":
        raise UserError(f"data.binarization: got {config.binarization!r}, expected 'none': {name} is binary already")
    if name == "binarized_mnist" and config.validation:
        raise UserError(f"data.validation: got {config.validation}, expected 0: {name} has its own validation images")
    source = digits() if name == "digits" else photos() if name == "photos" else named(name, config.root)
    if config.levels not in (None, source.train.levels):
        raise UserError(f"data.levels: got {config.levels}, expected {source.train.levels}, which {name} has")
    return source


def _from_files(path: Path, config: DataConfig) -> Source:
    """Images from the user's own arrays."""
    train = read_images(path, config.levels, f"{path.name}/train")
    if config.test is not None:
        other = Path(config.test)
        test = read_images(other, config.levels, f"{other.name}/test")
        if (test.shape, test.levels) != (train.shape, train.levels):
            got, want = (f"[C, H, W] = {list(i.shape)} with {i.levels} levels" for i in (test, train))
            raise UserError(f"data.test: got {other} with images {got}, expected {want} as in {path}")
        words = f"{len(train)} images of {path.name} for training, {len(test)} of {other.name} for test"
        return Source(train, test, words, test_order="file order")
    if len(train) < 2:
        raise UserError(f"{path}: got one image, expected at least 2: one for training, one for test")
    n = max(1, len(train) // 10)
    words = f"{path.name} in file order: the last tenth ({n} images) for test, the {len(train) - n} before for training"
    test = train.subset(slice(-n, None), f"{path.name}/test")
    return Source(train.subset(slice(None, -n)), test, words, test_order="file order")


def _hold_out(source: Source, config: DataConfig) -> tuple[Images, Images | None, str]:
    """Training images, validation images, and the rule in words to be added to that of the split."""
    total, kept = len(source.train), config.validation
    n = max(1, round(kept * total)) if 0 < kept < 1 else int(kept)
    if n >= total:
        raise UserError(f"data.validation: got {kept} for {total} training images, expected to leave at least one")
    grey = config.binarization == "dynamic"
    if n == 0 and grey:
        return source.train, source.validation, "; no validation images"
    evaluated = binarized(source.train, config.binarization, stream(config.binarization_seed, 0))
    stored = source.train if grey else evaluated
    if n == 0:
        return stored, source.validation, "" if source.validation else "; no validation images"
    validation = evaluated.subset(slice(total - n, None), f"{stored.name.removesuffix('/train')}/validation")
    rule = f"; the last {n} of the {total} training images for validation"
    if source.corners is None:
        return stored.subset(slice(None, total - n)), validation, rule
    first, last = source.corners[: total - n], source.corners[total - n :]
    apart = (~share_pixels(first, last)).nonzero().flatten()
    if not len(apart):
        raise UserError(f"data.validation: got {kept}, expected less: every other patch shares pixels with these")
    rule += f", and {total - n - len(apart)} that share pixels with them left out"
    return stored.subset(apart), validation, rule


def _in_words(binarization: Binarization, levels: int, seed: int) -> str:
    """How the validation and test images came about."""
    if binarization == "none":
        return "values as stored"
    if binarization == "threshold":
        return f"1 where value / {levels - 1} > 0.5, else 0"
    return f"each image drawn once, x ~ Bernoulli(value / {levels - 1}), seed {seed}"

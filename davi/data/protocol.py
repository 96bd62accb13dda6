"""From the ``data:`` section of a recipe to images, and to the protocol that a result must carry."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from davi.data.arrays import OneLine, read_images
from davi.data.binarization import Binarization, binarized, stream
from davi.data.cache import location
from davi.data.embedded import digits, photos, share_pixels
from davi.data.fitting import Fit, How
from davi.data.folder import FolderOptions, Progress, read_folder
from davi.data.formats import is_distribution, read_distribution
from davi.data.images import Images, Source, check_levels
from davi.data.named import NAMES, named
from davi.data.presentation import Flip, check_choice
from davi.data.splitting import last_tenth, two_files
from davi.errors import UserError

SETS = ("digits", "photos", *NAMES)
"""Every set that has a name."""

HOW_READ = ("root", "cache", "memory", "skip_unreadable")
"""Options that say where and how images are read; which they are, their hashes say."""

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
    ),
    *("shape", "levels", "source_levels", "counts"),
)
"""What of a protocol says which images they are, the most telling first."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split, and what is done to them.

    Arguments:
        set: name of a set (digits, photos, mnist, binarized_mnist, fashion_mnist, omniglot28, cifar10), or the path of
            a folder of images (:mod:`davi.data.folder`), of the files of a distribution (:mod:`davi.data.formats`), or
            of a .npy or .npz file that holds an array [N, H, W] or [N, H, W, C]; or hub:NAME or hub:PATH
            (:mod:`davi.data.hub`).
        root: directory with one folder for each named set; the environment variable DAVI_DATA when not given.
        binarization: none; static (all images drawn once); dynamic (training images drawn at each presentation,
            validation and test once); threshold (one where the grey value is above one half).
        binarization_seed: seed of everything that is drawn once.
        flip: mirror training images at random at each presentation: none, horizontal, or both ways.
        validation: training images kept out for validation, the last ones: a fraction below 1, or a number of images.
            Of a folder of images it is a fraction, chosen by content.
        levels: number of values a channel can take, for files whose type does not tell it (bool 2, uint8 256,
            uint16 65536).
        test: path of the test images when ``set`` is a path, a folder if it is one; without it the last tenth of an
            array is the test set.
        test_fraction: of a folder of images, for test, chosen by content; not used where the folder has sub-folders
            train and test or ``test`` is given.
        crop: [H, W] in pixels: of each image of a folder the centre is taken.
        resize: [H, W] in pixels: of each image of a folder the largest centred part with these proportions is
            resampled to this size (Lanczos).
        patches: [H, W] in pixels: each image of a folder is cut into parts of this size side by side, from the top
            left; what is left over is not used. All parts are in the split of their image.
        skip_unreadable: leave out images of a folder that cannot be read, and say how many; else they are an error.
        cache: folder where decoded images are kept; the environment variable DAVI_CACHE when not given, else
            ~/.cache/davi.
        memory: GiB. Decoded images of a folder that take more are read from the cache as they are needed; but static
            and threshold binarisation make images anew, in memory, one byte a value.
    """

    set: str = "digits"
    root: str | None = None
    binarization: Literal["none", "static", "dynamic", "threshold"] = "none"
    binarization_seed: int = 0
    flip: Literal["none", "horizontal", "both"] = "none"
    validation: float | int = 0
    levels: int | None = None
    test: str | None = None
    test_fraction: float = 0.1
    crop: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    patches: tuple[int, int] | None = None
    skip_unreadable: bool = False
    cache: str | None = None
    memory: float = 1.0


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
            Of a folder of images also ``fit`` (in words; null where the images have one size), ``test_fraction``
            (null where the folder says which are for test), ``files`` (used for each split) and ``unreadable`` (files
            that were left out).
        notes: what the user should be told about the images, a line each.
    """

    train: Images
    validation: Images | None
    test: Images
    protocol: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.test.shape

    @property
    def levels(self) -> int:
        """Levels that the model sees and is evaluated on; 2 after any binarisation."""
        return self.test.levels


def load(config: DataConfig, progress: Progress | None = None) -> DataSets:
    """Read a set, split it, and binarise what is to be binarised once.

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
    _check(config)
    source = _source(config, progress)
    levels, binarization = source.train.levels, config.binarization
    if levels == 2 and binarization != "none":
        raise UserError(f"data.binarization: got {binarization!r}, expected 'none': {config.set} is binary already")
    if source.train.shape[0] > 1 and binarization != "none":
        raise UserError(
            f"data.binarization: got {binarization!r} for images of {source.train.shape[0]} channels in {config.set}, "
            "expected none: --data.binarization none, and --model.likelihood logistic_mixture if that is bernoulli"
        )
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
        **source.details,
    }
    return DataSets(train, validation, test, protocol, source.notes)


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


def which_images(section: Any) -> Any:
    """A ``data:`` section with all its options but those that say where and how images are read, not which.

    Sections written by an older version lack options: they get their defaults. What is no section is returned as it is.
    """
    if not isinstance(section, Mapping):
        return section
    whole = {**dataclasses.asdict(DataConfig()), **section}
    return {key: value for key, value in whole.items() if key not in HOW_READ}


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
    for name in ("root", "test", "cache"):
        if "\0" in (getattr(config, name) or ""):
            raise UserError(f"data.{name}: got {getattr(config, name)!r}, expected a path")
    if config.levels is not None:
        check_levels("data.levels", config.levels)
    if not 0 < config.test_fraction < 1:
        raise UserError(f"data.test_fraction: got {config.test_fraction}, expected a fraction between 0 and 1")
    if not config.memory >= 0:
        raise UserError(f"data.memory: got {config.memory}, expected a number of GiB from 0")


def _source(config: DataConfig, progress: Progress | None) -> Source:
    """The stored images behind ``config.set``."""
    name, fit = config.set, _fit(config)
    kind = kind_of(name)
    if fit is not None and kind != "folder":
        raise UserError(f"data.{fit.how}: got {list(fit.size)}, expected nothing: {name} is no folder of images")
    if kind == "folder":
        return _from_folder(config, fit, progress)
    if kind == "hub":
        return _from_hub(config)
    if kind != "name":
        test = Path(config.test) if config.test is not None else None
        source = (read_distribution if kind == "distribution" else _from_files)(Path(name), test, config.levels)
        _check_fits(config, source)
        return source
    if config.test is not None:
        raise UserError(f"data.test: got {config.test!r}, expected nothing: {name} has its own test images")
    if name == "binarized_mnist" and config.binarization != "none":
        raise UserError(f"data.binarization: got {config.binarization!r}, expected 'none': {name} is binary already")
    if name == "binarized_mnist" and config.validation:
        raise UserError(f"data.validation: got {config.validation}, expected 0: {name} has its own validation images")
    source = digits() if name == "digits" else photos() if name == "photos" else named(name, config.root)
    _check_fits(config, source)
    return source


def kind_of(name: str) -> Literal["name", "hub", "distribution", "folder", "array"]:
    """What the value of ``data.set`` speaks of.

    Raises:
        UserError: if it is none of these.
    """
    if name in SETS:
        return "name"
    if name.startswith("hub:"):
        return "hub"
    path = Path(name)
    with OneLine(path, "a set of images"):
        path = path.expanduser()
        if is_distribution(path):
            return "distribution"
        if path.is_dir():
            return "folder"
    if path.suffix in (".npy", ".npz"):
        return "array"
    if "/" in name and not path.exists():
        raise UserError(f"data.set: got {name!r}, which does not exist; expected a folder of images, an array or a set")
    near = difflib.get_close_matches(path.name, SETS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"data.set: got {name!r}{hint}, expected {', '.join(SETS)}, a folder of images or a path of a .npy or .npz file"
    )


def _fit(config: DataConfig) -> Fit | None:
    """How the images of a folder come to one size."""
    given = [name for name in get_args(How) if getattr(config, name) is not None]
    if len(given) > 1:
        raise UserError(f"data.{given[0]}: got data.{given[1]} as well, expected one of {', '.join(get_args(How))}")
    return Fit(given[0], getattr(config, given[0])) if given else None


def _from_folder(config: DataConfig, fit: Fit | None, progress: Progress | None) -> Source:
    """The images of the user's own folder."""
    if config.validation >= 1:
        raise UserError(
            f"data.validation: got {config.validation:g} for a folder of images, expected a fraction such as 0.05: a "
            "number of images would move some of them between training and validation when others are added"
        )
    options = FolderOptions(
        fit, config.test_fraction, config.validation, config.skip_unreadable, location(config.cache), config.memory
    )
    test = Path(config.test) if config.test is not None else None
    source = read_folder(Path(config.set), test, options, progress)
    _check_fits(dataclasses.replace(config, validation=0), source)  # its validation images are those asked for
    return source


def _from_hub(config: DataConfig) -> Source:
    """A set in the form of Hugging Face's datasets."""
    from davi.data.hub import read_hub

    if config.test is not None:
        raise UserError(f"data.test: got {config.test!r}, expected nothing: {config.set} has its own test images")
    source = read_hub(config.set, location(config.cache) / "hub")
    _check_fits(config, source)
    return source


def _check_fits(config: DataConfig, source: Source) -> None:
    """Refuse options that contradict what a set has."""
    if config.validation and source.validation is not None:
        raise UserError(
            f"data.validation: got {config.validation:g}, expected 0: {config.set} has its own validation images"
        )
    if config.levels not in (None, source.train.levels):
        raise UserError(f"data.levels: got {config.levels}, expected {source.train.levels}, which {config.set} has")


def _from_files(path: Path, test: Path | None, levels: int | None) -> Source:
    """Images from the user's own arrays."""
    train = read_images(path, levels, f"{path.name}/train")
    if test is None:
        return last_tenth(train, path)
    return two_files(train, path, read_images(test, levels, f"{test.name}/test"), test)


def _hold_out(source: Source, config: DataConfig) -> tuple[Images, Images | None, str]:
    """Training images, validation images, and the rule in words to be added to that of the split."""
    total, kept = len(source.train), config.validation
    n = max(1, round(kept * total)) if 0 < kept < 1 else int(kept)
    if n >= total:
        raise UserError(f"data.validation: got {kept} for {total} training images, expected to leave at least one")
    seed, grey = config.binarization_seed, config.binarization == "dynamic"
    own = source.validation and binarized(source.validation, config.binarization, stream(seed, 2))
    if own is not None:
        n = 0
    rule = "" if own else "; no validation images"
    if n == 0 and grey:
        return source.train, own, rule
    evaluated = binarized(source.train, config.binarization, stream(seed, 0))
    stored = source.train if grey else evaluated
    if n == 0:
        return stored, own, rule
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

"""What the value of ``data.set`` means, and its images: split as the options say, or all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from davi.data.arrays import OneLine, hints, length, read_classes, read_images, read_labels
from davi.data.cache import location
from davi.data.config import DataConfig, check
from davi.data.decoded import FolderOptions, Progress
from davi.data.decoding import SUFFIXES
from davi.data.embedded import digits, photos
from davi.data.fitting import Fit, How
from davi.data.folder import read_folder, read_whole
from davi.data.formats import is_distribution, read_distribution
from davi.data.images import Images, Source, Whole, pixel_dtype
from davi.data.labels import check_alike, labeled, require
from davi.data.named import NAMES, named
from davi.data.shipped import binarized_mnist
from davi.data.splitting import last_count, last_part, two_files
from davi.data.subfolders import has_test
from davi.errors import UserError
from davi.kept import PREFIX, is_kept
from davi.sets import ANY, GEOMETRY, refuse_unknown

SETS = tuple(GEOMETRY)
"""Every set that has a name."""

Kind = Literal["name", "hub", "distribution", "folder", "array"]

_FOR = {
    "root": ("name",),
    "test": ("distribution", "folder", "array"),
    "test_fraction": ("hub", "distribution", "folder", "array"),
    "crop": ("folder",),
    "resize": ("folder",),
    "patches": ("folder",),
    "background": ("folder", "hub"),
    "mode": ("folder", "hub"),
    "skip_unreadable": ("folder",),
    "max_pixels": ("folder", "hub"),
    "cache": ("folder", "hub"),
    "memory": ("folder",),
}
"""The kinds of sets that an option is for; those that are not listed are for all."""

_OWN_TEST = "{} has its own test images"
_WHY = {
    "root": "{} is not one of the named sets, which are looked for there",
    "test": _OWN_TEST,
    "test_fraction": _OWN_TEST,
    "cache": "nothing of {} is kept there",
}
_NO_FOLDER = "{} is no folder of images"


def kind_of(name: str) -> Kind:
    """What the value of ``data.set`` means.

    Raises:
        UserError: if it is none of these.
    """
    if name in SETS:
        return "name"
    if is_kept(name):
        return "array"
    if name.startswith("hub:"):
        return "hub"
    path = Path(name)
    with OneLine(path, "a set of images"):
        path = path.expanduser()
        if is_distribution(path):
            return "distribution"
        if path.is_dir() or (path.suffix.lower() in SUFFIXES and path.is_file()):
            return "folder"
    if path.suffix in (".npy", ".npz"):
        return "array"
    refuse_unknown(name)
    raise UserError(f"data.set: got {name!r}, expected {ANY}")


def unused(config: DataConfig) -> dict[str, str]:
    """Options that are given (they differ from their defaults) and that the set has no use for: name -> why not.

    Raises:
        UserError: if there is no such set.
    """
    kind, plain = kind_of(config.set), DataConfig()
    given = [name for name in _FOR if getattr(config, name) != getattr(plain, name)]
    found = {name: _WHY.get(name, _NO_FOLDER).format(config.set) for name in given if kind not in _FOR[name]}
    if is_kept(config.set):
        found.pop("root", None)  # of these it says in which run's folder they lie
    if "test_fraction" in given and config.test is not None and "test" not in found:
        found["test_fraction"] = f"data.test {config.test} is for test"
    elif "test_fraction" in given and kind == "folder" and has_test(Path(config.set).expanduser()):
        found["test_fraction"] = _OWN_TEST.format(config.set)
    return found


def source_of(config: DataConfig, progress: Progress | None = None) -> Source:
    """The images of ``config.set``, split but not binarized yet.

    Raises:
        UserError: one line: there is no such set, it is damaged, or an option contradicts it.
    """
    source = _split(config, progress)
    if config.labels:
        require(source.train, config.set)
    return source


def _split(config: DataConfig, progress: Progress | None) -> Source:
    _refuse_unused(config)
    if kind_of(config.set) == "folder":
        test = Path(config.test) if config.test is not None else None
        return _source_as(read_folder(Path(config.set), test, _folder_options(config), progress), config.levels)
    _refuse_binarized(config)
    found = _found(config.set, config)
    if isinstance(found, Whole):
        return two_files(found, _test_file(config)) if config.test else last_part(found, config.test_fraction)
    for name in ("test", "test_fraction"):
        if getattr(config, name) != getattr(DataConfig(), name):
            raise _not_for(config, name, _OWN_TEST.format(config.set))
    _check_fits(config, found)
    return found


def whole_of(config: DataConfig, own_test: bool, progress: Progress | None = None) -> Source | Whole:
    """All images behind ``config.set``.

    Arguments:
        config: which; how they would be split is not looked at.
        own_test: split a set that says itself which of its images are for test; else all of it is put together:
            training, validation and test images.
        progress: as :func:`davi.data.load`.

    Raises:
        UserError: as :func:`source_of` does.
    """
    plain = DataConfig()
    config = dataclasses.replace(config, test=plain.test, test_fraction=plain.test_fraction, validation=0)
    found = _unsplit(config, own_test, progress)
    if config.labels:
        require(found.images if isinstance(found, Whole) else found.train, config.set)
    return found


def _unsplit(config: DataConfig, own_test: bool, progress: Progress | None) -> Source | Whole:
    _refuse_unused(config)
    if kind_of(config.set) == "folder":
        path = Path(config.set)
        if own_test and has_test(path.expanduser()):
            return source_of(config, progress)
        return _whole_as(read_whole(path, _folder_options(config), progress), config.levels)
    found = _found(config.set, config)
    if isinstance(found, Whole):
        return found
    _check_fits(config, found)
    return found if own_test else _together(found, config.set)


def _found(name: str, config: DataConfig) -> Source | Whole:
    """The images of a name or file that is no folder, with the levels and the root of the options."""
    kind = kind_of(name)
    if kind == "array":
        return _array(_kept_file(name, config.root), config, True) if is_kept(name) else _array(Path(name), config)
    if kind == "distribution":
        return read_distribution(Path(name), config.levels, config.labels)
    if kind == "hub":
        from davi.data.hub import read_hub

        place = location(config.cache) / "hub"
        found = read_hub(name, place, config.max_pixels, config.labels, config.background, config.mode)
        return found if config.levels is None else as_levels(found, config.levels)
    if name in NAMES:
        return named(name, config.root, config.labels)
    if name == "binarized_mnist":
        source, home = binarized_mnist(), "DAVI"
    else:
        source, home = digits(config.labels) if name == "digits" else photos(), "scikit-learn"
    note = f"data.root is not needed: {name} comes with {home}"
    return dataclasses.replace(source, notes=(note,)) if config.root is not None else source


def training_images(config: DataConfig) -> int | None:
    """How many images of an array are for training or validation, by its header alone; None for what is no array."""
    if kind_of(config.set) != "array":
        return None
    total = length(_kept_file(config.set, config.root) if is_kept(config.set) else Path(config.set))
    return total if total is None or config.test else total - last_count(total, config.test_fraction)


def _kept_file(name: str, root: str | None) -> Path:
    """The file in the folder of a run that a ``data.set`` names."""
    file = Path(name.removeprefix(PREFIX))
    if root is None or file.name != str(file):
        raise UserError(f"data.set: got {name!r}, expected the path of images; only a run speaks so of its own")
    return Path(root) / file


def _array(path: Path, config: DataConfig, written_by_davi: bool = False) -> Whole:
    images = read_images(path, config.levels, path.name)
    notes = hints(path, images, config.levels, written_by_davi)
    if config.labels:
        classes = read_classes(path) if written_by_davi else None
        images = labeled(images, read_labels(path), classes, str(path))
    return Whole(images, str(path), notes=notes)


def _test_file(config: DataConfig) -> Whole:
    """The images of ``data.test`` beside those of a file."""
    path = Path(config.test or "")
    if kind_of(config.set) == "array":
        return _array(path, config)
    with OneLine(path, "a file of images"):
        known = path.expanduser().is_file() and is_distribution(path)
    found = read_distribution(path, config.levels, config.labels) if known else None
    if not isinstance(found, Whole):
        raise UserError(f"data.test: got {config.test!r}, expected a file in the form of {config.set}")
    return found


def check_options(config: DataConfig) -> None:
    """Refuse options that no set could have, or that this set has no use for; no image is read.

    Raises:
        UserError: one line, also if there is no such set.
    """
    check(config)
    _refuse_unused(config)
    _refuse_binarized(config)


def _refuse_binarized(config: DataConfig) -> None:
    if config.set != "binarized_mnist":
        return
    if config.binarization != "none":
        raise UserError(
            f"data.binarization: got {config.binarization!r}, expected 'none': {config.set} is binary already"
        )
    if config.validation:
        raise _own_validation(config)


def _refuse_unused(config: DataConfig) -> None:
    for name, why in unused(config).items():
        raise _not_for(config, name, why)


def _not_for(config: DataConfig, name: str, why: str) -> UserError:
    got, default = (getattr(c, name) for c in (config, DataConfig()))
    got = list(got) if isinstance(got, tuple) else got
    expected = "nothing" if default is None else f"{default} (the default)"
    return UserError(f"data.{name}: got {got!r}, expected {expected}: {why}")


def _folder_options(config: DataConfig) -> FolderOptions:
    if config.validation >= 1:
        raise UserError(
            f"data.validation: got {config.validation:g} for a folder of images, expected a fraction such as 0.05: a "
            "number of images would move some of them between training and validation when others are added"
        )
    return FolderOptions(
        _fit(config),
        config.test_fraction,
        config.validation,
        config.skip_unreadable,
        location(config.cache),
        config.memory,
        config.max_pixels,
        config.labels,
        config.background,
        config.mode,
    )


def _fit(config: DataConfig) -> Fit | None:
    """How the images of a folder come to one size."""
    given = [name for name in get_args(How) if getattr(config, name) is not None]
    if len(given) > 1:
        raise UserError(f"data.{given[0]}: got data.{given[1]} as well, expected one of {', '.join(get_args(How))}")
    return Fit(given[0], getattr(config, given[0])) if given else None


def _check_fits(config: DataConfig, source: Source) -> None:
    """Refuse options that contradict what a set has."""
    if config.validation and source.validation is not None:
        raise _own_validation(config)
    if config.levels not in (None, source.train.levels):
        raise UserError(f"data.levels: got {config.levels}, expected {source.train.levels}, which {config.set} has")


def _own_validation(config: DataConfig) -> UserError:
    return UserError(
        f"data.validation: got {config.validation:g}, expected 0: {config.set} has its own validation images"
    )


def as_levels(found: Source | Whole, levels: int) -> Source | Whole:
    """The same images with fewer levels than their files can hold, if the values fit.

    Raises:
        UserError: if a value is not within the levels; the message says what they are.
    """
    return _source_as(found, levels) if isinstance(found, Source) else _whole_as(found, levels)


def _source_as(source: Source, levels: int | None) -> Source:
    if levels is None:
        return source
    validation = source.validation and _releveled(source.validation, levels)
    train, test = _releveled(source.train, levels), _releveled(source.test, levels)
    return dataclasses.replace(source, train=train, validation=validation, test=test)


def _whole_as(whole: Whole, levels: int | None) -> Whole:
    return whole if levels is None else dataclasses.replace(whole, images=_releveled(whole.images, levels))


def _releveled(images: Images, levels: int) -> Images:
    """The same values among another number of levels."""
    if levels == images.levels:
        return images
    low, high = (int(value) for value in torch.aminmax(images.pixels))
    if high >= levels or levels > images.levels:
        wanted = f"{high + 1} to {images.levels}" if high + 1 < images.levels else str(images.levels)
        raise UserError(
            f"data.levels: got {levels}, expected {wanted}: {images.name} holds the values {low} "
            f"to {high} of {images.levels} levels"
        )
    dtype = pixel_dtype(levels)
    sha256 = images.sha256 if dtype == images.pixels.dtype else None
    return dataclasses.replace(images, pixels=images.pixels.to(dtype), levels=levels, sha256=sha256)


def _together(source: Source, name: str) -> Whole:
    """All splits of a set: training, validation and test images."""
    parts = [part for part in (source.train, source.validation, source.test) if part is not None]
    check_alike({"training": source.train, "validation": source.validation, "test": source.test})

    def joined(known: Sequence[Tensor | None]) -> Tensor | None:
        found = [each for each in known if each is not None]
        return torch.cat(found) if len(found) == len(parts) else None

    images = dataclasses.replace(
        source.train,
        pixels=torch.cat([part.pixels for part in parts]),
        name=Path(name).name,
        sha256=None,
        mapped=False,
        groups=joined([part.groups for part in parts]),
        labels=joined([part.labels for part in parts]),
        files=tuple(name for part in parts for name in part.files),
        corners=joined([part.corners for part in parts]),
        checked=True,
    )
    words = "training images, then " + ("validation images, then " if source.validation else "") + "test images"
    return Whole(images, name, words, source.details, source.notes)

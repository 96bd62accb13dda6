"""The original files of MNIST, Fashion-MNIST, OMNIGLOT and CIFAR: recognized, read, and split as distributed.

====================== ========================================================= ============================
set                    files                                                     images
====================== ========================================================= ============================
MNIST, Fashion-MNIST   ``train-images-idx3-ubyte[.gz]``,                         [1, H, W], 256 levels
and others of the form ``t10k-images-idx3-ubyte[.gz]``
binarized MNIST        ``binarized_mnist_train.amat``, ``_valid``, ``_test``     [1, 28, 28], 2 levels
OMNIGLOT as in IWAE    ``chardata.mat``                                          [1, 28, 28], 256 levels
CIFAR-10               ``data_batch_1.bin`` to ``_5``, ``test_batch.bin``;       [3, 32, 32], 256 levels
                       ``cifar-10-binary.tar.gz``
CIFAR-100              ``train.bin``, ``test.bin``; ``cifar-100-binary.tar.gz``  [3, 32, 32], 256 levels
====================== ========================================================= ============================

Where a folder holds both, unpacked files come before packed ones. A single file is a set too. Labels, where they are
asked for, are looked for beside the images (:mod:`davi.data.labels`).
The pickles of CIFAR's Python version are recognized only to be refused.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from davi.data.arrays import OneLine, to_images
from davi.data.images import Images, Source, Whole
from davi.data.labels import CIFAR10, CIFAR100, labeled, matched, unlabeled
from davi.data.originals import (
    IDX_IMAGES,
    read_amat,
    read_chardata,
    read_chardata_labels,
    read_cifar,
    read_idx,
    read_idx_labels,
    read_members,
    size_of,
    unpacked,
)
from davi.data.splitting import counted
from davi.errors import UserError

_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))


@dataclass(frozen=True)
class _Cifar:
    """How one of the two CIFAR sets is laid out: how many classes each label of a record has; names of the last."""

    name: str
    classes: tuple[int, ...]
    train: tuple[str, ...]
    test: str
    names: tuple[str, ...]


_CIFARS = (
    _Cifar("CIFAR-10", (10,), _BATCHES, "test_batch.bin", CIFAR10),
    _Cifar("CIFAR-100", (20, 100), ("train.bin",), "test.bin", CIFAR100),
)


class _Wanted(NamedTuple):
    """How a file is read: a number of levels or None, and whether labels are read."""

    levels: int | None
    labels: bool = False


@dataclass(frozen=True)
class _Form:
    """A form of distribution in a folder.

    Arguments:
        name: in words.
        marks: patterns of file names, each of which a folder of this form has.
        read: makes a source of the folder.
        places: sub-folders in which the files usually are, besides the folder itself.
    """

    name: str
    marks: tuple[str, ...]
    read: Callable[[Path, _Wanted], Source]
    places: tuple[str, ...] = ()


def is_distribution(path: Path) -> bool:
    """Whether a file or folder is in one of these forms, by its name or its first bytes; it may still be damaged."""
    path = path.expanduser()
    return bool(_forms(path)) if path.is_dir() else path.is_file() and _reader(path) is not None


def read_distribution(path: Path, levels: int | None, labels: bool = False) -> Source | Whole:
    """Read one of these forms; a single file that does not have test images of its own is a whole set.

    Arguments:
        path: a folder or a file for which :func:`is_distribution` holds.
        levels: number of levels, where the form does not tell it (IDX: 256 when None; ``chardata.mat``: as
            :func:`davi.data.originals.read_chardata` finds); else None or the one that it has.
        labels: read the labels as well, where the form has them.

    Raises:
        UserError: if a file is missing, damaged or of another kind, or an option contradicts it; one line.
    """
    path = path.expanduser()
    with OneLine(path, "the files of a set as they are distributed"):
        want = _Wanted(levels, labels)
        found = _read_folder(path, want) if path.is_dir() else _read_file(path, want)
    has = found.images.levels if isinstance(found, Whole) else found.train.levels
    if levels not in (None, has):
        raise UserError(f"data.levels: got {levels}, expected {has}, which {path} has")
    return found


def _forms(folder: Path) -> list[tuple[_Form, Path]]:
    """The forms found in a folder and where; packed ones only where there is nothing else."""
    places = {place for form in (*_UNPACKED, *_PACKED) for place in ("", *form.places)}
    held = {place: _names(folder / place) for place in places}  # once each: a folder may hold a million images

    def is_marked(place: str, mark: str) -> bool:
        return any((folder / place / name).is_file() for name in fnmatch.filter(held[place], mark))

    for forms in (_UNPACKED, _PACKED):
        found = [
            (form, folder / place)
            for form in forms
            for place in ("", *form.places)
            if all(is_marked(place, mark) for mark in form.marks)
        ]
        if found:
            return found
    return []


def _names(folder: Path) -> list[str]:
    """What is in a folder; nothing where there is no such folder."""
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _read_folder(folder: Path, want: _Wanted) -> Source:
    forms = _forms(folder)
    if len(forms) != 1:
        names = ", ".join(form.name for form, _ in forms) or "no set"
        raise UserError(f"{folder}: holds {names}, expected the files of one set; give the path of its folder or file")
    form, place = forms[0]
    return form.read(place, want)


def _read_file(path: Path, want: _Wanted) -> Source | Whole:
    size_of(path)
    reader = _reader(path)
    if reader is None:
        raise UserError(f"{path}: got a file of another kind, expected one in which a set is distributed")
    found = reader(path, want)
    return found if isinstance(found, Source) else Whole(found, str(path))


def _reader(path: Path) -> Callable[[Path, _Wanted], Images | Source] | None:
    """What reads a file, judged by its name and its first bytes."""
    name = path.name
    if fnmatch.fnmatchcase(name, "*[-.]idx[0-9]-ubyte*") or _first_bytes(path) == IDX_IMAGES.to_bytes(4, "big"):
        return _idx
    if path.suffix == ".amat":
        return _amat
    if path.suffix == ".mat":
        return _chardata
    if fnmatch.fnmatchcase(name, "cifar-10*-python*"):
        return _refuse_pickles
    if fnmatch.fnmatchcase(name, "cifar-10*.tar.gz"):
        return _archive
    for cifar in _CIFARS:
        if name in (*cifar.train, cifar.test):
            return functools.partial(_cifar_file, cifar)
    if f"{name}.bin" in (*_BATCHES, "test_batch.bin"):
        return _refuse_pickles
    return None


def _first_bytes(path: Path) -> bytes:
    """The first four bytes of a file, unpacked where it is packed; fewer where that cannot be."""
    try:
        with unpacked(path) as file:
            return file.read(4)
    except (OSError, EOFError, zlib.error):
        return b""


def _idx(path: Path, want: _Wanted) -> Images:
    images = _checked(to_images(read_idx(path), 256, path.name), want.levels, path)
    if not want.labels:
        return images
    beside = _labels_beside(path)
    return labeled(images, read_idx_labels(beside), None, str(beside))


def _labels_beside(path: Path) -> Path:
    """The file of the labels of an IDX file of images, by its name, packed or not."""
    name, unpacked_name = path.name, path.name.removesuffix(".gz")
    if "images" not in name or "idx3" not in name:
        raise unlabeled(f"no labels are known of {path}, which is not called ...-images-idx3-ubyte")
    stem = "labels".join(unpacked_name.rsplit("images", 1))
    stem = "idx1".join(stem.rsplit("idx3", 1))
    found = next((path.with_name(each) for each in (stem, f"{stem}.gz") if path.with_name(each).is_file()), None)
    if found is None:
        raise unlabeled(f"found neither {stem} nor {stem}.gz, which holds the labels, in {path.parent}")
    return found


def _checked(images: Images, levels: int | None, path: Path) -> Images:
    """The images with fewer levels than their file can hold, if the values fit."""
    if levels is None or levels == images.levels:
        return images
    largest = int(images.pixels.max())
    if levels > 256 or largest >= levels:
        raise UserError(f"data.levels: got {levels}, expected {largest + 1} to 256, as the values of {path} are")
    return dataclasses.replace(images, levels=levels)


def _idx_folder(folder: Path, want: _Wanted) -> Source:
    paths = []
    for stem in ("train", "t10k"):
        names = [f"{stem}-images{mark}idx3-ubyte{packed}" for mark in "-." for packed in ("", ".gz")]
        paths.append(next((folder / name for name in names if (folder / name).is_file()), folder / names[1]))
    train, test = matched(*(_idx(path, want) for path in paths))
    if test.shape != train.shape:
        got, expected = list(test.shape), list(train.shape)
        raise UserError(f"{paths[1]}: got images [C, H, W] = {got}, expected {expected} as in {paths[0]}")
    words = f"{len(train)} images of {paths[0].name} for training, {len(test)} of {paths[1].name} for test"
    return Source(train, test, words, test_order="file order")


def _amat(path: Path, _: _Wanted) -> Images:
    return to_images(read_amat(path), 2, path.name)


def _amat_folder(folder: Path, want: _Wanted) -> Source:
    paths = [folder / f"binarized_mnist_{part}.amat" for part in ("train", "valid", "test")]
    train, validation, test = (_amat(path, want) for path in paths)
    return Source(
        train=train,
        test=test,
        validation=validation,
        split=(
            f"the set's own: {paths[0].name} ({counted(train, 50000)}) for training, {paths[1].name} "
            f"({counted(validation, 10000)}) for validation, {paths[2].name} ({counted(test, 10000)}) for test"
        ),
        test_order="sorted by class",
    )


def _chardata(path: Path, want: _Wanted) -> Source:
    *arrays, levels = read_chardata(path, want.levels)
    train, test = (to_images(array, levels, path.name) for array in arrays)
    if want.labels:
        alphabets = read_chardata_labels(path)
        train, test = matched(*(labeled(*pair, None, str(path)) for pair in zip((train, test), alphabets, strict=True)))
    return Source(
        train=train,
        test=test,
        split=(
            f"the set's own: data ({counted(train, 24345)}) for training, testdata ({counted(test, 8070)}) for test; "
            f"gray values rounded to multiples of 1/{levels - 1}"
        ),
        test_order="file order",
    )


def _chardata_folder(folder: Path, want: _Wanted) -> Source:
    return _chardata(folder / "chardata.mat", want)


def _cifar_file(cifar: _Cifar, path: Path, want: _Wanted) -> Images:
    return _cifar_images(cifar, {str(path): path.read_bytes()}, path.name, want)


def _cifar_images(cifar: _Cifar, files: Mapping[str, bytes], name: str, want: _Wanted) -> Images:
    """The images of some files of a set, one file after the other."""
    arrays, labels = zip(*(read_cifar(files[path], cifar.classes, path) for path in files), strict=True)
    images = to_images(np.concatenate(arrays), 256, name)
    return labeled(images, np.concatenate(labels), cifar.names, name) if want.labels else images


def _cifar_folder(cifar: _Cifar, folder: Path, want: _Wanted) -> Source:
    test = folder / cifar.test
    if not test.is_file():
        raise UserError(f"{folder}: found no {cifar.test}, expected it beside {cifar.train[0]}")
    train = [name for name in cifar.train if (folder / name).is_file()]
    return _cifar(cifar, {name: (folder / name).read_bytes() for name in (*train, cifar.test)}, folder, want)


def _archive(path: Path, want: _Wanted) -> Source:
    names = {name: cifar for cifar in _CIFARS for name in (*cifar.train, cifar.test)}
    members = read_members(path, names)
    sets = {names[name].name: names[name] for name in members}
    if len(sets) != 1:
        found = ", ".join(sets) or "neither"
        raise UserError(f"{path}: holds {found}, expected the binary version of CIFAR-10 or CIFAR-100")
    cifar = next(iter(sets.values()))
    if cifar.test not in members or not any(name in members for name in cifar.train):
        raise UserError(f"{path}: holds only {', '.join(members)}, expected {cifar.train[0]} and {cifar.test}")
    return _cifar(cifar, members, path, want)


def _cifar(cifar: _Cifar, files: dict[str, bytes], path: Path, want: _Wanted) -> Source:
    """The set whose files have these contents."""
    given = [name for name in cifar.train if name in files]
    train, test = (
        _cifar_images(cifar, {f"{path}/{name}": files[name] for name in names}, f"{cifar.name}/{part}", want)
        for part, names in (("train", given), ("test", [cifar.test]))
    )
    return Source(
        train=train,
        test=test,
        split=(
            f"the set's own: {', '.join(given)} ({counted(train, 50000)}) for training, "
            f"{cifar.test} ({counted(test, 10000)}) for test"
        ),
        test_order="file order",
    )


def _packed_archive(folder: Path, want: _Wanted) -> Source:
    archives = sorted(folder.glob("cifar-10*-binary.tar.gz"))
    if len(archives) != 1:
        raise UserError(f"{folder}: holds {', '.join(path.name for path in archives)}, expected one of them")
    return _archive(archives[0], want)


def _refuse_pickles(path: Path, _: _Wanted) -> NoReturn:
    raise UserError(
        f"{path}: got the Python version of CIFAR, pickles, which are never opened; "
        "expected the binary version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz)"
    )


_UNPACKED = (
    _Form("IDX files", ("train-images[-.]idx3-ubyte*",), _idx_folder, ("raw", "MNIST/raw", "FashionMNIST/raw")),
    _Form("binarized MNIST", ("binarized_mnist_train.amat",), _amat_folder),
    _Form("OMNIGLOT", ("chardata.mat",), _chardata_folder),
    _Form(
        "CIFAR-10",
        ("data_batch_[1-5].bin",),
        functools.partial(_cifar_folder, _CIFARS[0]),
        ("cifar-10-batches-bin",),
    ),
    _Form(
        "CIFAR-100",
        ("train.bin", "test.bin"),
        functools.partial(_cifar_folder, _CIFARS[1]),
        ("cifar-100-binary",),
    ),
)
_PACKED = (
    _Form("CIFAR, packed", ("cifar-10*-binary.tar.gz",), _packed_archive),
    _Form("CIFAR-10 as pickles", ("data_batch_[1-5]",), _refuse_pickles, ("cifar-10-batches-py",)),
    _Form("CIFAR-100 as pickles", ("train", "test", "meta"), _refuse_pickles, ("cifar-100-python",)),
    _Form("CIFAR, packed pickles", ("cifar-10*-python.tar.gz",), _refuse_pickles),
)

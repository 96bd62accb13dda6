"""Labels: the class of each image, where a set knows it and ``data.labels`` asks for it.

====================================== ============================================== =============================
set                                    labels from                                    classes
====================================== ============================================== =============================
``digits``                             scikit-learn                                   0 to 9
``mnist``, ``fashion_mnist``           ``labels`` in ``train.npz``, ``test.npz``      10, by name
``omniglot28``                         ``labels`` in ``background.npz``,              1,623 characters, 0001 to 1623;
                                       ``evaluation.npz``                             none of test is in training
``cifar10``                            ``train``, ``test`` in ``labels.npz``          10, by name
IDX files (MNIST and its like)         ``train-labels-idx1-ubyte[.gz]``, ``t10k-...`` numbers, up to the largest
                                       beside the images
CIFAR-10, CIFAR-100, original files    the records themselves                         10; 100 (the fine ones), by name
``chardata.mat`` (OMNIGLOT)            ``target``, ``testtarget``                     the alphabets, by number
folder of images                       sub-folders, below ``train/``, ``test/`` where the sub-folders, sorted
                                       these are the splits
``.npz``                               an array ``labels`` or ``y`` beside ``images`` numbers, up to the largest
images given in Python                 the data set, or an array                      those of a ClassLabel by name,
                                                                                      others by number
``hub:``                               the column of type ClassLabel                  its names
``photos``, ``binarized_mnist``,       none                                           none
``.amat``, ``.npy``
====================================== ============================================== =============================

A set of the hub with several such columns gives the one called ``label``, or else ``fine_label``. Class numbers begin
at 0. All splits of a set have the same classes, also those of which a split has no image.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from davi.data.images import Images
from davi.errors import UserError

SOURCES = "MNIST, Fashion-MNIST, OMNIGLOT, CIFAR, digits, class folders, .npz files with labels and sets of the hub"
"""Which sets have labels, in the words of a message."""

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """
CIFAR100 = tuple(_CIFAR100.split())

_MOST = 65536
"""Classes where the labels are numbers: a damaged file must not ask for two thousand million names."""


def numbers(count: int) -> tuple[str, ...]:
    """The names of classes that have none: 0, 1, 2 ..."""
    return tuple(map(str, range(count)))


def labeled(
    images: Images, values: NDArray[Any], classes: tuple[str, ...] | None, where: str, first: int = 0
) -> Images:
    """The same images with their labels.

    Arguments:
        images: ``[N, C, H, W]``.
        values: ``[N]``, whole numbers.
        classes: the name of each class; None: their numbers, up to the largest label.
        where: the file that the labels are from.
        first: the label of the first class.

    Raises:
        UserError: if the labels are not as many as the images, or one is no class.
    """
    if values.shape != (len(images),):
        raise UserError(f"{where}: got labels {list(values.shape)}, expected [{len(images)}], one for each image")
    low, high = int(values.min()), int(values.max())
    last = first + (_MOST if classes is None else len(classes)) - 1
    if low < first or high > last:
        raise UserError(f"{where}: got label {low if low < first else high}, expected {first} to {last}")
    names = numbers(high + 1) if classes is None else classes
    labels = torch.from_numpy(values.astype(np.int64) - first).to(images.pixels.device)
    return dataclasses.replace(images, labels=labels, classes=names, checked=True)


def chosen_column(features: Mapping[str, Any]) -> str | None:
    """The column of a table of Hugging Face's ``datasets`` that is taken for the labels: the only one of type
    ClassLabel, or else ``label`` or ``fine_label``; None if there is none."""
    kinds = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    return kinds[0] if len(kinds) == 1 else next((name for name in ("label", "fine_label") if name in kinds), None)


def called(images: Images, classes: tuple[str, ...], where: str) -> Images:
    """The same images with names for classes that were numbers; without labels they stay as they are.

    Raises:
        UserError: if a label has no name.
    """
    if images.labels is None:
        return images
    if len(images.classes) > len(classes):
        raise UserError(f"{where}: got label {len(images.classes) - 1}, expected 0 to {len(classes) - 1}")
    return dataclasses.replace(images, classes=classes, checked=True)


class UnlabeledError(UserError):
    """Labels are asked for of a set that has none.

    Arguments:
        why: there are none.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"data.labels: got true, expected false: {why}")
        self.why = why


def unlabeled(why: str) -> UserError:
    """The error of a set that has no labels, which says why."""
    return UnlabeledError(why)


def require(images: Images, name: str) -> None:
    """Refuse a set whose form has no labels.

    Raises:
        UserError: one line that says which sets have them.
    """
    if images.labels is None:
        raise unlabeled(f"{name} has no labels; sets that have them are {SOURCES}")


def matched(*parts: Images) -> tuple[Images, ...]:
    """The splits of a set with the same classes, where those of one are the first of another's.

    Classes that are numbers up to the largest label come out shorter where a split lacks the last ones.
    """
    longest = max((part.classes for part in parts), key=len)
    return tuple(
        dataclasses.replace(part, classes=longest, checked=True)
        if part.labels is not None and part.classes == longest[: len(part.classes)]
        else part
        for part in parts
    )


def check_alike(parts: Mapping[str, Images | None]) -> None:
    """Refuse splits of different classes.

    Arguments:
        parts: name in messages -> images, or None for a split that there is not.

    Raises:
        UserError: one line that names the first class that only one of them has.
    """
    given = {name: part for name, part in parts.items() if part is not None}
    first, images = next(iter(given.items()))
    for name, part in given.items():
        if part.classes == images.classes:
            continue
        odd = [each for each in (*part.classes, *images.classes) if (each in part.classes) != (each in images.classes)]
        differ = f"{odd[0]!r} is of one alone" if odd else "their order differs"
        raise UserError(
            f"data.labels: {len(part.classes)} classes of {name} images, {len(images.classes)} of {first} images, "
            f"expected the same ({differ})"
        )


def described(parts: Mapping[str, Images | None]) -> dict[str, Any]:
    """The labels' entries in a protocol; empty without labels.

    Arguments:
        parts: beginning of a key of the protocol -> images.

    Returns:
        ``labels`` (true), ``classes`` (how many), ``classes_sha256`` (of their names in UTF-8, a line each), and for
        each part ``..labels_sha256``, of its labels, eight bytes each with the lowest first; null for no images.
    """
    classes = next((part.classes for part in parts.values() if part is not None), ())
    if not classes:
        return {}
    return {
        "labels": True,
        "classes": len(classes),
        "classes_sha256": classes_digest(classes),
        **{f"{key}labels_sha256": _digest(part) for key, part in parts.items()},
    }


def classes_digest(classes: Sequence[str]) -> str:
    """SHA-256 of the names of classes in UTF-8, a line each."""
    return hashlib.sha256("".join(f"{name}\n" for name in classes).encode()).hexdigest()


def _digest(images: Images | None) -> str | None:
    if images is None or images.labels is None:
        return None
    return hashlib.sha256(images.labels.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names of classes in a message; of many the first ones."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

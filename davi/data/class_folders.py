"""The classes of a folder of images: the names of its sub-folders, or of those of its splits, sorted.

Every image must then be in such a folder, however deep; the first one counts. The classes are those that have training
images. Files of other classes for validation or test are refused, not left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from davi.data.decoded import FILES, File
from davi.data.images import Images
from davi.data.labels import labeled, listed, unlabeled
from davi.errors import UserError

_LATER = ("validation", "test")


def class_of(name: str) -> str | None:
    """The first folder of a relative path; None for a file that is in none."""
    first, inside, _ = name.partition("/")
    return first if inside else None


def classes_of(files: Sequence[File]) -> tuple[str, ...]:
    """The classes of a set.

    Raises:
        UserError: if an image is in no class folder, or one for validation or test in a folder that no training image
            is in; the first of them is named.
    """
    for file in files:
        if file.below is None:
            raise unlabeled(f"{file.path} is in no class folder, expected {file.path.parent}/CLASS/{file.path.name}")
    classes = tuple(sorted({file.below for file in files if file.below is not None and file.part not in _LATER}))
    for file in files:
        if file.below not in classes:
            raise UserError(
                f"data.labels: {file.path} is of class {file.below!r}, which has no training images; expected one of "
                f"{listed(classes)}"
            )
    return classes


def with_classes(
    images: Mapping[str, Images], place: Path, files: Sequence[File]
) -> tuple[dict[str, Images], list[str]]:
    """The splits of a folder with their labels.

    Arguments:
        images: split -> images, as they are in the cache.
        place: their folder in the cache.
        files: of the set.

    Returns:
        The same with labels, and a note if files of several classes have the same content; these are kept.

    Raises:
        UserError: as :func:`classes_of` does.
    """
    classes = classes_of(files)
    number = {name: i for i, name in enumerate(classes)}
    # Where test images have a folder of their own, it may be called as the other, and so may its files.
    apart = any(file.part == "test" for file in files)
    known = {(file.part == "test", file.name): number[file.below] for file in files if file.below is not None}
    labels: dict[str, list[int]] = {part: [] for part in images}
    found: dict[str, set[int]] = {}
    contents = []
    for line in _lines(place / FILES):
        label = known[apart and line["part"] == "test", line["file"]]
        labels[line["part"]] += [label] * line["images"]
        found.setdefault(line["sha256"], set()).add(label)
        contents.append(line["sha256"])
    several = sum(len(found[content]) > 1 for content in contents)
    notes = [f"{several} images are in the folders of several classes: each is kept with its own label"]
    whole = {part: labeled(each, np.array(labels[part]), classes, str(place / FILES)) for part, each in images.items()}
    return whole, notes if several else []


def _lines(record: Path) -> Iterator[dict[str, Any]]:
    """What the cache has recorded of each file."""
    with record.open(encoding="utf-8") as file:
        yield from map(json.loads, file)

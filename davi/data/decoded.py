"""The files of a folder, decoded into arrays in the cache, one for each split.

While the cache is made there are at most two decoded images for each thread that decodes, and two more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from davi.data import cache
from davi.data.decoding import decode, strict
from davi.data.fitting import Fit
from davi.data.grouping import origins
from davi.data.images import Images, pixel_dtype
from davi.data.picture import in_words
from davi.data.splitting import by_count, content_digest, part_of
from davi.errors import UserError

Progress = Callable[[int, int], None]
"""``progress(done, total)``."""

FILES = "files.jsonl"
"""Beside the arrays in the cache: one line for each file that was used, in the order of the arrays."""

ALL = "all"
ORDER = (ALL, "test", "validation", "train", None)
"""Splits in the order in which they are decoded: a copy stays in the first one that has it."""

_LISTED = 3  # unreadable files that a message names
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is read; as in :class:`davi.data.DataConfig`.

    Arguments:
        fit: how images come to one size; None if they have one.
        test_fraction: of the images, for test.
        validation: fraction of the others, for validation.
        skip_unreadable: leave out what cannot be read.
        cache: folder of all caches.
        memory: GiB; a larger set is read from the cache as it is needed.
        max_pixels: that one image may have.
        labels: the sub-folders are classes; they are read from the names of the files, so that no cache depends on it.
        background, mode: as for :func:`davi.data.decoding.decode`.
    """

    fit: Fit | None
    test_fraction: float
    validation: float
    skip_unreadable: bool
    cache: Path
    memory: float
    max_pixels: int
    labels: bool = False
    background: str | None = None
    mode: str | None = None

    @property
    def converted(self) -> dict[str, str]:
        """The transformation of the files' values; none unless asked for."""
        given = {"background": self.background, "mode": self.mode}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class File:
    """A file found: its path, name, split where that is given, and what shows that it has changed.

    ``below`` is the name of the sub-folder that it is in, of its split where that has a folder: its class.
    """

    path: Path
    name: str
    part: str | None
    size: int
    times: tuple[int, int]
    below: str | None = None


@dataclass(frozen=True, eq=False)
class Image:
    """A file decoded: its images ``[N, C, H, W]`` after the fit, and what the whole file was."""

    images: NDArray[Any]
    levels: int
    size: tuple[int, int]
    digest: bytes


def _ordered(work: Callable[[File], Any], files: Iterable[File]) -> Iterator[tuple[File, Any]]:
    """``work`` on every file in threads (the decoders release Python's lock); results in order, few at a time."""
    rest = iter(files)
    waiting: deque[tuple[File, Future[Any]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for file in islice(rest, 2 * _THREADS):
                waiting.append((file, pool.submit(work, file)))
            while waiting:
                file, future = waiting.popleft()
                yield file, future.result()
                waiting.extend((following, pool.submit(work, following)) for following in islice(rest, 1))
        finally:
            pool.shutdown(cancel_futures=True)


class Building:
    """Decodes all files of a set into an empty folder of the cache."""

    place: Path

    def __init__(self, folder: Path, options: FolderOptions, test_fraction: float, validation: float) -> None:
        self.folder, self.options = folder, options
        self.test_fraction, self.validation = test_fraction, validation
        self.by_count: dict[bytes, str] = {}
        """Digest -> split, where the content alone would leave a split empty."""
        self._reset()

    def _reset(self) -> None:
        self.open = contextlib.ExitStack()
        self.writers: dict[str, cache.Writer] = {}
        self.first: tuple[str, Image] | None = None
        self.seen: dict[bytes, str] = {}
        self.counts = {"train": 0, "validation": 0, "test": 0}
        self.left_out = 0
        self.unreadable: dict[str, Any] = {"count": 0, "first": []}

    def build(self, place: Path, files: list[File], parts: set[str], progress: Progress | None) -> dict[str, Any]:
        """The index of the cache, whose folder is ``place``."""
        self.place = place
        arrays = self._decode(files, progress)
        if self.unreadable["count"] and (not self.options.skip_unreadable or self.first is None):
            raise _unreadable(self.folder, self.unreadable, len(files))
        if any(not self.counts.get(part) for part in parts):
            self.by_count = self._counted(parts)
            self._reset()
            arrays = self._decode(files, progress)
        assert self.first is not None
        return {
            "arrays": arrays,
            "levels": self.first[1].levels,
            "counts": self.counts,
            "left_out": self.left_out,
            "unreadable": self.unreadable,
            "by_count": bool(self.by_count),
        }

    def _decode(self, files: list[File], progress: Progress | None) -> dict[str, Any]:
        """All files, into one array for each split; what the index says of the arrays."""
        with strict(), contextlib.ExitStack() as self.open:
            record = self.open.enter_context((self.place / FILES).open("w", encoding="utf-8"))
            for done, (file, result) in enumerate(_ordered(self._read, files), start=1):
                if isinstance(result, Image):
                    if (part := self._add(file, result)) is not None:
                        line = {"file": file.name, "part": part, "images": len(result.images), "size": result.size}
                        record.write(json.dumps({**line, "sha256": result.digest.hex()}) + "\n")
                else:
                    self.unreadable["count"] += 1
                    if len(self.unreadable["first"]) < _LISTED:
                        self.unreadable["first"].append([str(file.path), str(result).removeprefix(f"{file.path}: ")])
                if progress is not None:
                    progress(done, len(files))
            return {part: writer.finish() for part, writer in self.writers.items()}

    def _read(self, file: File) -> Image | UserError:
        """In a thread: one file, or why it cannot be read."""
        try:
            options = self.options
            picture = decode(file.path, str(file.path), options.max_pixels, options.background, options.mode)
        except UserError as error:
            return error
        values, levels, fit = picture.values, picture.levels, self.options.fit
        images = fit(values, levels, str(file.path)) if fit else values[None]  # [N, H, W, C]
        stored = np.dtype(np.uint8 if pixel_dtype(levels) == torch.uint8 else np.int32)
        stacked = np.ascontiguousarray(images.transpose(0, 3, 1, 2), stored)  # [N, C, H, W]
        return Image(stacked, levels, (values.shape[0], values.shape[1]), content_digest(values, levels))

    def _add(self, file: File, image: Image) -> str | None:
        """Append an image to its split, which is returned; None for a copy of an image of a split before."""
        if self.first is None:
            self.first = (str(file.path), image)
        _check_alike(*self.first, str(file.path), image)
        part = file.part or "train"
        if file.part and self.seen.setdefault(image.digest, part) != part:  # by content, copies are in one split anyway
            self.left_out += 1
            return None
        if file.part is None or (part == "train" and self.validation):
            part = self.by_count.get(image.digest) or part_of(
                image.digest, 0.0 if file.part else self.test_fraction, self.validation
            )
        if part not in self.writers:
            _, channels, height, width = image.images.shape
            path = self.place / f"{part}.npy"
            writer = cache.Writer(path, (channels, height, width), image.images.dtype)
            self.writers[part] = self.open.enter_context(writer)
        self.writers[part].append(image.images)
        self.counts[part] = self.counts.get(part, 0) + 1
        return part

    def _counted(self, parts: set[str]) -> dict[bytes, str]:
        """The splits of a small folder by count (``by_count``)."""
        if self.left_out and not self.counts["train"]:
            raise UserError(
                f"data.test: got copies of all images that {self.folder} has for training, expected other images"
            )
        with (self.place / FILES).open(encoding="utf-8") as record:
            lines = [json.loads(line) for line in record]
        by_content = self.test_fraction > 0  # else only validation images are chosen, from those for training
        digests = [bytes.fromhex(line["sha256"]) for line in lines if by_content or line["part"] != "test"]
        try:
            return by_count(digests, self.test_fraction, self.validation if "validation" in parts else 0.0)
        except ValueError as error:
            names = [
                name for name in ("test", "validation", "train") if name in parts and (by_content or name != "test")
            ]
            wanted = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
            raise UserError(f"data.set: {self.folder}: {error}, one each for {wanted}") from None


def _check_alike(first: str, one: Image, name: str, other: Image) -> None:
    """Refuse a set whose images differ in channels, levels or size."""

    def kind(image: Image) -> str:
        color = "gray" if image.images.shape[1] == 1 else "color"
        return f"{color} of {image.levels} levels"

    if kind(one) != kind(other):
        remedy = "convert some: magick IN -colorspace Gray -depth 8 OUT.png; or move them elsewhere"
        if one.levels == other.levels:
            remedy = "--data.mode rgb or --data.mode gray makes them so"
        raise UserError(f"data.set: {first} is {kind(one)}, {name} is {kind(other)}, expected all alike ({remedy})")
    if one.images.shape[1:] != other.images.shape[1:]:
        sizes = [in_words(*image.size) for image in (one, other)]
        raise UserError(
            f"data.set: {first} is {sizes[0]}, {name} is {sizes[1]}, expected one size or a choice: data.crop, "
            "data.resize or data.patches, such as --data.resize 32"
        )


def _unreadable(folder: Path, found: dict[str, Any], total: int) -> UserError:
    """The error that names the first files which could not be read."""
    more = found["count"] - len(found["first"])
    listed = _said_once(found["first"]) + (f"; and {more} more" if more > 0 else "")
    if found["count"] == total:
        return UserError(f"data.set: none of {total} images in {folder} can be read: {listed}")
    return UserError(
        f"data.set: {found['count']} of {total} images in {folder} cannot be read (--skip-unreadable leaves them out): "
        f"{listed}"
    )


def _said_once(found: list[list[str]]) -> str:
    """Files and what is wrong with each, ``[name, message]``: a message and a remedy that several share, once."""
    files: dict[str, list[str]] = {}
    for name, why in found:
        files.setdefault(why, []).append(name)
    parts, remedies = [], set()
    for why, names in files.items():
        plain, _, remedy = why.rpartition(" (") if why.endswith(")") else (why, "", "")
        parts.append(f"{', '.join(names)}: {plain if remedy in remedies and plain else why}")
        remedies.add(remedy)
    return "; ".join(parts)


@dataclass(frozen=True, eq=False)
class Cached:
    """A set that is in the cache: where, its index, and how it is read."""

    place: Path
    index: dict[str, Any]
    folder: Path
    options: FolderOptions

    def images(self, part: str, name: str) -> Images:
        """Those of one split; mapped if those of all splits take more memory than they may."""
        records = self.index["arrays"]
        total = sum(int(np.prod(record["shape"])) * np.dtype(record["dtype"]).itemsize for record in records.values())
        mapped = total > self.options.memory * 2**30
        pixels = torch.from_numpy(cache.array(self.place, records[part], in_memory=not mapped))
        known, size = origins(self.place / FILES, part), self._patch_size
        return Images(
            pixels,
            self.index["levels"],
            name,
            records[part]["sha256"],
            mapped,
            groups=None if size is None else known.numbers,
            files=known.names,
            corners=None if size is None else known.corners(*size),
            checked=True,
        )

    @property
    def _patch_size(self) -> tuple[int, int] | None:
        """(H, W), where several images may be cut from one file."""
        fit = self.options.fit
        return fit.size if fit is not None and fit.how == "patches" else None

    @property
    def used(self) -> int:
        """Files in the arrays."""
        return sum(self.index["counts"].values())

    @property
    def order(self) -> str:
        """The order of the images, in words."""
        return "by relative path" + (", patches row by row" if self._patch_size else "")

    @property
    def details(self) -> dict[str, Any]:
        """What the protocol says of a folder besides."""
        fit, unreadable = self.options.fit, self.index["unreadable"]["count"]
        return {"fit": str(fit) if fit else None, "files": self.index["counts"], "unreadable": unreadable}

    @property
    def notes(self) -> list[str]:
        """What the user should be told: how many files there are, and which were left out."""
        skipped = self.index["unreadable"]["count"]
        found = self.used + self.index.get("left_out", 0) + skipped
        notes = [f"{found} image{'s' * (found != 1)} found in {self.folder}"]
        if skipped:
            first = _said_once(self.index["unreadable"]["first"])
            notes.append(f"{skipped} unreadable image{'s' * (skipped != 1)} left out: {first}")
        return notes


def cached(
    files: list[File], key: dict[str, Any], building: Building, parts: set[str], progress: Progress | None
) -> Cached:
    """The set in the cache, made if it is not there.

    Arguments:
        files: of the set.
        key: what the folder of the cache is for.
        building: makes it.
        parts: splits that must not be empty.
        progress: told about the files decoded.
    """
    listing = [[file.name, file.part, file.size, file.times] for file in files]
    stamp = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    folder, options = building.folder, building.options
    key = {**key, "max_pixels": options.max_pixels, **options.converted}  # which may tell what is unreadable
    if options.background is not None:
        key["transparent"] = "PNG, WebP, TIFF, BMP"  # formats that can be put on it; once it was the first two
    place, index = cache.fetch(options.cache, key, stamp, lambda place: building.build(place, files, parts, progress))
    if index["unreadable"]["count"] and not options.skip_unreadable:
        raise _unreadable(folder, index["unreadable"], len(files))
    return Cached(place, index, folder, options)

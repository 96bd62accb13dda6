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
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from davi.data import cache
from davi.data.decoding import decode, strict
from davi.data.fitting import Fit
from davi.data.grouping import files_of
from davi.data.images import Images, pixel_dtype
from davi.data.splitting import content_digest, part_of
from davi.errors import UserError

Progress = Callable[[int, int], None]
"""``progress(done, total)``."""

FILES = "files.jsonl"
"""Beside the arrays in the cache: one line for each file that was used, in the order of the arrays."""

ALL = "all"
ORDER = (ALL, "test", "validation", "train", None)
"""Splits in the order in which they are decoded: a copy stays in the first one that has it."""

_TRIED, _STEPS = 200, [i / 50 for i in range(1, 50)]  # images and fractions, when some are looked for that fit
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
    """

    fit: Fit | None
    test_fraction: float
    validation: float
    skip_unreadable: bool
    cache: Path
    memory: float
    max_pixels: int
    labels: bool = False


@dataclass(frozen=True)
class File:
    """A file found: where, what it is called, its split where that is given, and what tells that it was changed.

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
        with strict(), contextlib.ExitStack() as self.open:
            record = self.open.enter_context((self.place / FILES).open("w", encoding="utf-8"))
            for done, (file, result) in enumerate(_ordered(self._read, files), start=1):
                if isinstance(result, Image):
                    if (part := self._add(file, result)) is not None:
                        line = {"file": file.name, "part": part, "images": len(result.images)}
                        record.write(json.dumps({**line, "sha256": result.digest.hex()}) + "\n")
                else:
                    self.unreadable["count"] += 1
                    if len(self.unreadable["first"]) < _LISTED:
                        self.unreadable["first"].append(str(result))
                if progress is not None:
                    progress(done, len(files))
            arrays = {part: writer.finish() for part, writer in self.writers.items()}
        if self.unreadable["count"] and (not self.options.skip_unreadable or self.first is None):
            raise _unreadable(self.folder, self.unreadable, len(files))
        assert self.first is not None
        self._check_parts(parts)
        return {
            "arrays": arrays,
            "levels": self.first[1].levels,
            "counts": self.counts,
            "left_out": self.left_out,
            "unreadable": self.unreadable,
        }

    def _read(self, file: File) -> Image | UserError:
        """In a thread: one file, or why it cannot be read."""
        try:
            picture = decode(file.path, str(file.path), self.options.max_pixels)
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
            part = part_of(image.digest, 0.0 if file.part else self.test_fraction, self.validation)
        if part not in self.writers:
            _, channels, height, width = image.images.shape
            path = self.place / f"{part}.npy"
            writer = cache.Writer(path, (channels, height, width), image.images.dtype)
            self.writers[part] = self.open.enter_context(writer)
        self.writers[part].append(image.images)
        self.counts[part] = self.counts.get(part, 0) + 1
        return part

    def _check_parts(self, parts: set[str]) -> None:
        """Refuse an empty split."""
        empty = next((part for part in ORDER if part in parts and not self.counts.get(part)), None)
        if empty is None:
            return
        total = sum(self.counts.values())
        if self.left_out and not self.counts["train"]:
            raise UserError(
                f"data.test: got copies of all images that {self.folder} has for training, expected other images"
            )
        by_content = self.test_fraction > 0
        option = "data.test_fraction" if by_content and empty != "validation" else "data.validation"
        remedies = [*self._advice(parts), "more images", *(["sub-folders train/ and test/"] if by_content else [])]
        raise UserError(
            f"{option}: of {total} images in {self.folder} none is for {empty} by its content, expected at least one; "
            f"give {', or '.join(remedies)}"
        )

    def _advice(self, parts: set[str]) -> list[str]:
        """Fractions near to those asked for with which no split is empty, as options; nothing if there are none."""
        with (self.place / FILES).open(encoding="utf-8") as record:
            lines = [json.loads(line) for line in islice(record, _TRIED)]
        by_content = self.test_fraction > 0
        digests = [bytes.fromhex(line["sha256"]) for line in lines if by_content or line["part"] != "test"]
        asked = (self.test_fraction, self.validation)
        wanted = parts if by_content else parts - {"test"}

        def distance(pair: tuple[float, ...]) -> float:
            return abs(pair[0] - asked[0]) + abs(pair[1] - asked[1])

        for pair in sorted(product(*([*_STEPS, value] if value else [0.0] for value in asked)), key=distance):
            if {part_of(digest, *pair) for digest in digests} >= wanted:
                named = zip(("data.test_fraction", "data.validation"), pair, asked, strict=True)
                return [" ".join(f"--{name} {value:g}" for name, value, before in named if value != before)]
        return []


def _check_alike(first: str, one: Image, name: str, other: Image) -> None:
    """Refuse a set whose images differ in channels, levels or size."""

    def kind(image: Image) -> str:
        color = "gray" if image.images.shape[1] == 1 else "color"
        return f"{color} of {image.levels} levels"

    if kind(one) != kind(other):
        raise UserError(
            f"data.set: {first} is {kind(one)}, {name} is {kind(other)}, expected all alike (convert some: magick IN "
            "-colorspace Gray -depth 8 OUT.png, or -type TrueColor for color; or move them elsewhere)"
        )
    if one.images.shape[1:] != other.images.shape[1:]:
        sizes = ["x".join(map(str, image.size)) for image in (one, other)]
        raise UserError(
            f"data.set: {first} has {sizes[0]} pixels, {name} has {sizes[1]}, expected one size or a choice: data.crop "
            "[H, W], data.resize [H, W] or data.patches [H, W], such as --data.resize '[32, 32]'"
        )


def _unreadable(folder: Path, found: dict[str, Any], total: int) -> UserError:
    """The error that names the first files which could not be read."""
    more = found["count"] - len(found["first"])
    listed = "; ".join(found["first"]) + (f"; and {more} more" if more > 0 else "")
    if found["count"] == total:
        return UserError(f"data.set: none of {total} images in {folder} can be read: {listed}")
    return UserError(
        f"data.set: {found['count']} of {total} images in {folder} cannot be read (--skip-unreadable leaves them out): "
        f"{listed}"
    )


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
        groups = files_of(self.place / FILES, part) if self._patches else None
        return Images(pixels, self.index["levels"], name, records[part]["sha256"], mapped, groups=groups, checked=True)

    @property
    def _patches(self) -> bool:
        """Whether several images may be cut from one file."""
        return self.options.fit is not None and self.options.fit.how == "patches"

    @property
    def used(self) -> int:
        """Files in the arrays."""
        return sum(self.index["counts"].values())

    @property
    def order(self) -> str:
        """The order of the images, in words."""
        return "by relative path" + (", patches row by row" if self._patches else "")

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
            first = "; ".join(self.index["unreadable"]["first"])
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
    key = {**key, "max_pixels": options.max_pixels}  # which may tell what is unreadable
    place, index = cache.fetch(options.cache, key, stamp, lambda place: building.build(place, files, parts, progress))
    if index["unreadable"]["count"] and not options.skip_unreadable:
        raise _unreadable(folder, index["unreadable"], len(files))
    return Cached(place, index, folder, options)

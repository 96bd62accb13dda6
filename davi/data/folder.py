"""A folder of images as a set: found, decoded once into the cache, and split by content.

*Which files.* All below the folder whose ending is one of :data:`davi.data.decoding.SUFFIXES`, in the order of their
relative paths. Hidden files and folders are left out, linked folders are not entered.

*Which split.* Of each image the SHA-256 of its decoded values and size is taken, before it is cut or resampled; its
first 64 bits, read as a fraction u of 1, decide: test if u < test_fraction, validation if u is among the last
``validation`` of what remains above, else training. Nothing else is looked at, so no image changes sides when others
come, go or are renamed, equal images are on one side, and so are all patches of an image. The values of lossy files
(JPEG, WebP) depend on the decoding library; another version of it may split them anew, which the hashes of a
protocol reveal. Sub-folders ``train`` and ``test``, and ``validation``, ``valid`` or ``val``, are taken as the splits.

*Memory.* While the cache is made there are at most two decoded images for each thread that decodes, and two more.
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
from davi.data.arrays import OneLine
from davi.data.decoding import SUFFIXES, decode, strict
from davi.data.fitting import Fit
from davi.data.images import Images, Source, pixel_dtype
from davi.errors import UserError

Progress = Callable[[int, int], None]
"""``progress(done, total)``."""

FILES = "files.jsonl"
"""Beside the arrays in the cache: one line for each file that was used, in the order of the arrays."""

_VALIDATION = ("validation", "valid", "val")
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
    """

    fit: Fit | None
    test_fraction: float
    validation: float
    skip_unreadable: bool
    cache: Path
    memory: float


@dataclass(frozen=True)
class _File:
    """A file found: where, what it is called, its split where that is given, and what tells that it was changed."""

    folder: Path
    path: Path
    name: str
    part: str | None
    size: int
    times: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Image:
    """A file decoded: its images ``[N, C, H, W]`` after the fit, and what the whole file was."""

    images: NDArray[Any]
    levels: int
    size: tuple[int, int]
    digest: bytes


def read_folder(folder: Path, test: Path | None, options: FolderOptions, progress: Progress | None = None) -> Source:
    """The images of a folder.

    Arguments:
        folder: its path.
        test: another folder, whose images are the test set; those of ``folder`` are then for training.
        options: how.
        progress: told about the files decoded; a set that is in the cache is not decoded.

    Raises:
        UserError: one line: there are no images, some cannot be read, they do not agree in channels, levels or size,
            or a split would be empty.
    """
    folder = folder.expanduser().absolute()
    files = _found(folder, test.expanduser().absolute() if test is not None else None)
    given = {file.part for file in files}
    validation = 0.0 if "validation" in given else float(options.validation)
    if "validation" in given and options.validation:
        raise UserError(
            f"data.validation: got {options.validation}, expected 0: {folder} has its own validation images"
        )
    fraction = None if "test" in given else options.test_fraction
    key = {
        "folders": [str(path) for path in {file.folder: None for file in files}],
        "fit": str(options.fit) if options.fit else None,
        "test_fraction": fraction,
        "validation": validation,
    }
    listing = [[file.name, file.part, file.size, file.times] for file in files]
    stamp = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    parts = {"train", "test"} | ({"validation"} if validation or "validation" in given else set())

    def build(place: Path) -> dict[str, Any]:
        return _Building(place, folder, options, fraction or 0.0, validation).build(files, parts, progress)

    place, index = cache.fetch(options.cache, key, stamp, build)
    if index["unreadable"]["count"] and not options.skip_unreadable:
        raise _unreadable(folder, index["unreadable"], len(files))
    return _source(place, index, folder, options, (fraction, validation))


def has_validation(folder: Path) -> bool:
    """Whether a folder of images has a sub-folder with validation images of its own."""
    return all((folder / part).is_dir() for part in ("train", "test")) and any(
        (folder / part).is_dir() for part in _VALIDATION
    )


def part_of(digest: bytes, test_fraction: float, validation: float) -> str:
    """The split of an image by its content (module docstring): ``train``, ``validation`` or ``test``.

    Arguments:
        digest: SHA-256 of the decoded image.
        test_fraction: of all images, from 0 to 1.
        validation: of the others, from 0 to 1.
    """
    u = int.from_bytes(digest[:8], "big") / 2**64
    if u < test_fraction:
        return "test"
    return "validation" if u >= 1.0 - (1.0 - test_fraction) * validation else "train"


def content_digest(values: NDArray[Any], levels: int) -> bytes:
    """SHA-256 of an image ``[H, W, C]``: its size, channels and levels, then its values, the lowest byte first."""
    header = " ".join(map(str, (*values.shape, levels)))
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return hashlib.sha256(header.encode() + b"\n" + data.tobytes()).digest()


def _found(folder: Path, test: Path | None) -> list[_File]:
    """All files of the set, in order."""
    if test is not None:
        if not test.is_dir():
            raise UserError(f"data.test: got {test}, expected another folder of images, as {folder} is one")
        return [*_listed(folder, "train", f"{folder.name}/"), *_listed(test, "test", f"{test.name}/")]
    files = _listed(folder, None, "")
    own = [part for part in ("train", "test", *_VALIDATION) if (folder / part).is_dir()]
    others = [file.name for file in files if file.name.partition("/")[0] not in own]
    if {"train", "test"} <= set(own):
        if others or len(own) > 3:
            what = others[0] if others else f"{own[2]}/ and {own[3]}/"
            raise UserError(f"data.set: {folder} has {what} beside train/ and test/, expected only validation/")
        return [file for part in own for file in _listed(folder / part, _part(part), f"{part}/")]
    if "train" in own and len(own) > 1 and not others:  # and not the name of one class among others
        raise UserError(
            f"data.set: {folder} has {own[0]}/ and {own[1]}/ but no test/, expected the test images there or by "
            "data.test, another folder"
        )
    return files


def _part(name: str) -> str:
    return "validation" if name in _VALIDATION else name


def _listed(folder: Path, part: str | None, prefix: str) -> list[_File]:
    """The images below a folder, by relative path."""
    found = []
    with OneLine(folder, "a folder of images"):
        for path in _walk(folder):
            status = path.stat() if path.exists() else path.lstat()  # a broken link is found unreadable later
            name = prefix + path.relative_to(folder).as_posix()
            # The second time is no user's to set: it tells of a copy with the old date, and of a permission given.
            times = (status.st_mtime_ns, status.st_ctime_ns)
            found.append(_File(folder, path, name, part, status.st_size, times))
    if not found:
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(f"data.set: found no images in {folder}, expected files with the endings {endings}")
    return sorted(found, key=lambda file: file.name)


def _walk(folder: Path) -> Iterator[Path]:
    """What has the name of an image, in no order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            elif Path(entry.name).suffix.lower() in SUFFIXES and not Path(entry.path).is_dir():
                yield Path(entry.path)


def _ordered(work: Callable[[_File], Any], files: Iterable[_File]) -> Iterator[tuple[_File, Any]]:
    """``work`` on every file in threads (the decoders release Python's lock); results in order, few at a time."""
    rest = iter(files)
    waiting: deque[tuple[_File, Future[Any]]] = deque()
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


class _Building:
    """Decodes all files of a set into an empty folder of the cache."""

    def __init__(
        self, place: Path, folder: Path, options: FolderOptions, test_fraction: float, validation: float
    ) -> None:
        self.place, self.folder, self.options = place, folder, options
        self.test_fraction, self.validation = test_fraction, validation
        self.open = contextlib.ExitStack()
        self.writers: dict[str, cache.Writer] = {}
        self.first: tuple[str, _Image] | None = None
        self.seen: dict[str, set[bytes]] = {"train": set(), "validation": set(), "test": set()}
        self.counts = dict.fromkeys(self.seen, 0)
        self.unreadable: dict[str, Any] = {"count": 0, "first": []}

    def build(self, files: list[_File], parts: set[str], progress: Progress | None) -> dict[str, Any]:
        """The index of the cache."""
        with strict(), contextlib.ExitStack() as self.open:
            record = self.open.enter_context((self.place / FILES).open("w", encoding="utf-8"))
            for done, (file, result) in enumerate(_ordered(self._read, files), start=1):
                if isinstance(result, _Image):
                    part = self._add(file, result)
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
            "shared": len(self.seen["test"] & (self.seen["train"] | self.seen["validation"])),
            "unreadable": self.unreadable,
        }

    def _read(self, file: _File) -> _Image | UserError:
        """In a thread: one file, or why it cannot be read."""
        try:
            picture = decode(file.path, str(file.path))
        except UserError as error:
            return error
        values, levels, fit = picture.values, picture.levels, self.options.fit
        images = fit(values, levels, str(file.path)) if fit else values[None]  # [N, H, W, C]
        stored = np.dtype(np.uint8 if pixel_dtype(levels) == torch.uint8 else np.int32)
        stacked = np.ascontiguousarray(images.transpose(0, 3, 1, 2), stored)  # [N, C, H, W]
        return _Image(stacked, levels, (values.shape[0], values.shape[1]), content_digest(values, levels))

    def _add(self, file: _File, image: _Image) -> str:
        """Append an image to its split, which is returned."""
        if self.first is None:
            self.first = (str(file.path), image)
        _check_alike(*self.first, str(file.path), image)
        part = file.part or "train"
        if file.part is None or (part == "train" and self.validation):
            part = part_of(image.digest, 0.0 if file.part else self.test_fraction, self.validation)
        if part not in self.writers:
            _, channels, height, width = image.images.shape
            path = self.place / f"{part}.npy"
            writer = cache.Writer(path, (channels, height, width), image.images.dtype)
            self.writers[part] = self.open.enter_context(writer)
        self.writers[part].append(image.images)
        self.counts[part] += 1
        if file.part:  # by content, equal images are in one split anyway
            self.seen[part].add(image.digest)
        return part

    def _check_parts(self, parts: set[str]) -> None:
        """Refuse an empty split."""
        for part in ("train", "validation", "test"):
            if part in parts and not self.counts[part]:
                total = sum(self.counts.values())
                option = "data.test_fraction" if part == "test" else "data.validation"
                other = "another" if part == "test" else "another (or 0)"
                raise UserError(
                    f"{option}: of {total} images in {self.folder} none is for {part} by its content, expected at "
                    f"least one; give {other} {option}, more images, or sub-folders train/ and test/"
                )


def _check_alike(first: str, one: _Image, name: str, other: _Image) -> None:
    """Refuse a set whose images differ in channels, levels or size."""

    def kind(image: _Image) -> str:
        colour = "grey" if image.images.shape[1] == 1 else "colour"
        return f"{colour} of {image.levels} levels"

    if kind(one) != kind(other):
        raise UserError(
            f"data.set: {first} is {kind(one)}, {name} is {kind(other)}, expected all alike (convert some: magick IN "
            "-colorspace Gray -depth 8 OUT.png, or -type TrueColor for colour; or move them elsewhere)"
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


def _source(
    place: Path, index: dict[str, Any], folder: Path, options: FolderOptions, fractions: tuple[float | None, float]
) -> Source:
    """The source of a set that is in the cache."""
    records = index["arrays"]
    total = sum(int(np.prod(record["shape"])) * np.dtype(record["dtype"]).itemsize for record in records.values())
    images, mapped = {}, total > options.memory * 2**30
    for part, record in records.items():
        pixels = torch.from_numpy(cache.array(place, record, in_memory=not mapped))
        images[part] = Images(pixels, index["levels"], f"{folder.name}/{part}", record["sha256"], mapped, checked=True)
    fraction, validation = fractions
    used, skipped = sum(index["counts"].values()), index["unreadable"]["count"]
    split = f"{used} images of {folder.name}, "
    split += "sub-folders or folders as given" if fraction is None else f"by SHA-256 of each: {fraction:g} for test"
    split += f", {validation:g} of the others for validation by SHA-256" if validation else ""
    split += f"; {index['shared']} test images are training images as well" if index["shared"] else ""
    details = {
        "fit": str(options.fit) if options.fit else None,
        "test_fraction": fraction,
        "files": index["counts"],
        "unreadable": skipped,
    }
    notes = [f"{used + skipped} images found in {folder}"]
    if skipped:
        first = "; ".join(index["unreadable"]["first"])
        notes.append(f"{skipped} unreadable image{'s' * (skipped != 1)} left out: {first}")
    order = "by relative path" + (", patches row by row" if options.fit and options.fit.how == "patches" else "")
    return Source(
        images["train"], images["test"], split, images.get("validation"), order, details=details, notes=tuple(notes)
    )

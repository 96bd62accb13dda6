"""A folder of images as a set: found, decoded once into the cache, and split by content.

*Which files.* All below the folder whose ending is one of :data:`davi.data.decoding.SUFFIXES`, in the order of their
relative paths; the path of one file is that file alone. Hidden files and folders, and folders in which other programs
keep thumbnails or deleted files (:data:`davi.data.listing.LEFT_BEHIND`), are left out; linked folders are not entered.

*Which split.* Of each image the SHA-256 of its decoded values and size is taken, before it is cut or resampled; its
first 64 bits, read as a fraction u of 1, decide: test if u < test_fraction, validation if u is among the last
``validation`` of what remains above, else training. Nothing else is looked at, so no image changes sides when others
come, go or are renamed, equal images are on one side, and so are all patches of an image. The values of lossy files
(JPEG, WebP) depend on the decoding library; another version of it may split them anew, which the hashes of a
protocol reveal.

Sub-folders whose names say it (:mod:`davi.data.subfolders`) are taken as the splits, and another folder may be given
for test. Then copies (equal SHA-256) of test images are left out of validation and training, copies of validation
images out of training.

Where one of the splits would be empty, as of a folder with few images, the images are taken in the order of the same
hashes, but by count (``davi.data.splitting.by_count``); then an image may change sides when others come.

*Which class*, where labels are asked for: :mod:`davi.data.class_folders`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from pathlib import Path

from davi.data.arrays import OneLine
from davi.data.class_folders import class_of, with_classes
from davi.data.decoded import ALL, ORDER, Building, File, FolderOptions, Progress, cached
from davi.data.decoding import SUFFIXES
from davi.data.images import Source, Whole
from davi.data.listing import images_below, left_behind
from davi.data.subfolders import Rule, inside, rule_of, splits_among
from davi.errors import UserError


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
    test = test.expanduser().absolute() if test is not None else None
    files, rule = _ruled(folder, test)
    given = {file.part for file in files}
    validation = 0.0 if "validation" in given else float(options.validation)
    if "validation" in given and options.validation:
        raise UserError(
            f"data.validation: got {options.validation}, expected 0: {folder} has its own validation images"
        )
    fraction = None if rule.words else options.test_fraction
    key = {
        "folders": [str(path) for path in (folder, test) if path is not None],
        "fit": str(options.fit) if options.fit else None,
        "test_fraction": fraction,
        "validation": validation,
        **({"rule": rule.words} if rule.words else {}),
    }
    parts = {"train", "test"} | ({"validation"} if validation or "validation" in given else set())
    found = cached(files, key, Building(folder, options, fraction or 0.0, validation), parts, progress)
    names = {"test": test.name} if test is not None else {}
    images = {part: found.images(part, f"{names.get(part, folder.name)}/{part}") for part in found.index["arrays"]}
    split = f"{found.used} images of {folder.name}, "
    if found.index["by_count"]:
        split += _by_count(found.index["counts"], rule)
    else:
        split += rule.words or f"by SHA-256 of each: {fraction:g} for test"
        split += f", {validation:g} of the others for validation by SHA-256" if validation else ""
    notes = [*found.notes, *rule.notes, *_left_behind(folder, test)]
    if options.labels:
        images, note = with_classes(images, found.place, files)
        notes += note
    if left_out := found.index.get("left_out"):
        split += f"; {left_out} copies of images of another split left out"
        notes.append(f"{left_out} copies of test or validation images are left out of training")
    return Source(
        images["train"],
        images["test"],
        split,
        images.get("validation"),
        found.order,
        details={**found.details, "test_fraction": fraction},
        notes=tuple(notes),
    )


def read_whole(folder: Path, options: FolderOptions, progress: Progress | None = None) -> Whole:
    """All images of a folder, whatever its sub-folders are called.

    Arguments:
        folder: its path.
        options: how; fractions are not looked at.
        progress: as for :func:`read_folder`.

    Raises:
        UserError: as :func:`read_folder` does, but for splits.
    """
    folder = folder.expanduser().absolute()
    listed = _some(folder)
    splits = splits_among(folder, [file.name for file in listed])
    files = [dataclasses.replace(file, part=ALL, below=_class(file, splits)) for file in listed]
    key = {"folders": [str(folder)], "fit": str(options.fit) if options.fit else None, "whole": True}
    found = cached(files, key, Building(folder, options, 0.0, 0.0), {ALL}, progress)
    images, notes = {ALL: found.images(ALL, folder.name)}, [*found.notes, *_left_behind(folder)]
    if options.labels:
        images, note = with_classes(images, found.place, files)
        notes += note
    return Whole(images[ALL], str(folder), found.order, found.details, tuple(notes))


def _by_count(counts: Mapping[str, int], rule: Rule) -> str:
    """The rule of a split by count, in words."""
    chosen = [f"the first {counts['test']} for test"] if rule.words is None else []
    chosen += [f"the last {counts['validation']} for validation"] if counts["validation"] else []
    said = f"{rule.words}; " if rule.words else ""
    return f"{said}in the order of their SHA-256 {', '.join(chosen)}; so few that they are split by count"


def _ruled(folder: Path, test: Path | None) -> tuple[list[File], Rule]:
    """All files of the set with their splits, those for test first and those for training last."""
    files, tests, place = _listed(folder), [], None
    if test is not None:
        if not test.is_dir():
            raise UserError(f"data.test: got {test}, expected another folder of images, as {folder} is one")
        place = inside(folder, test)
        files = [file for file in files if place is None or not file.name.startswith(f"{place}/")]
        tests = [dataclasses.replace(file, part="test") for file in _some(test, f"{test.name}/")]
    rule = rule_of(folder, [file.name for file in files], test, place)
    linked = [name for name, part in rule.parts.items() if part is not None and (folder / name).is_symlink()]
    files += [file for name in linked for file in _listed(folder / name, f"{name}/")]
    found = []
    for file in files:
        part = rule.parts.get(file.name.partition("/")[0], rule.rest)
        if part is not None or rule.words is None:
            name = file.name if test is None else f"{folder.name}/{file.name}"
            found.append(dataclasses.replace(file, part=part, name=name, below=_class(file, rule.parts)))
    for name, part in rule.parts.items():
        if part is not None and not any(file.part == part for file in found):
            raise _no_images(folder / name)
    if not found:
        raise _no_images(folder, "" if test is None else f" beside those in {test}")
    return sorted([*tests, *found], key=lambda file: ORDER.index(file.part)), rule


def _class(file: File, splits: Container[str]) -> str | None:
    """The class folder that a file is in, below that of its split where there is one."""
    top, _, rest = file.name.partition("/")
    return class_of(rest if top in splits else file.name)


def _some(folder: Path, prefix: str = "") -> list[File]:
    """The images below a folder that must have some."""
    files = _listed(folder, prefix)
    if not files:
        raise _no_images(folder)
    return files


def _listed(folder: Path, prefix: str = "") -> list[File]:
    """The images below a folder, by relative path."""
    found = []
    with OneLine(folder, "a folder of images"):
        for path in [folder] if folder.is_file() else images_below(folder):
            status = path.stat() if path.exists() else path.lstat()  # a broken link is found unreadable later
            name = prefix + (path.name if path == folder else path.relative_to(folder).as_posix())
            # The second time is no user's to set: it tells of a copy with the old date, and of a permission given.
            times = (status.st_mtime_ns, status.st_ctime_ns)
            found.append(File(path, name, None, status.st_size, times, class_of(name.removeprefix(prefix))))
    return sorted(found, key=lambda file: file.name)


def _left_behind(*folders: Path | None) -> list[str]:
    """Notes on images that are not used because of the folder that they are in."""
    given = [folder for folder in folders if folder is not None and folder.is_dir()]
    return [note for folder in given if (note := left_behind(folder))]


def _no_images(folder: Path, where: str = "") -> UserError:
    endings = ", ".join(sorted(SUFFIXES))
    aside = "".join(f"; {note}" for note in _left_behind(folder))
    return UserError(f"data.set: found no images in {folder}{where}, expected files with the endings {endings}{aside}")

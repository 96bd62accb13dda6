"""Which files below a folder are images, and which are leftovers of other programs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from davi.data.decoding import SUFFIXES

LEFT_BEHIND = frozenset(
    {
        *("thumbnails", "thumbs"),
        *("@eadir", "#recycle", "#snapshot"),  # Synology: thumbnails, deleted and older files
        *("@__thumb", "@recycle", "@recently-snapshot"),  # QNAP: likewise
        *("__macosx", "$recycle.bin", "system volume information", "lost+found"),
    }
)
"""Names, in lower case, of folders with thumbnails, deleted files and the like. The folder that is asked for may have
any name."""


def images_below(folder: Path) -> Iterator[Path]:
    """What has the name of an image, in no order.

    Hidden files and folders and those of :data:`LEFT_BEHIND` are left out, linked folders are not entered.
    """
    for path, place in _walk(folder, None):
        if place is None:
            yield path


def left_behind(folder: Path) -> str | None:
    """How many images are left out because of the folder that they are in, in words; None if there are none."""
    places = Counter(place for _, place in _walk(folder, None) if place is not None)
    if not places:
        return None
    number = sum(places.values())
    named = ", ".join(f"{place} ({count})" for place, count in sorted(places.items()))
    return f"{number} image{'s' * (number != 1)} in folders for thumbnails or deleted files left out: {named}"


def _walk(folder: Path, place: str | None) -> Iterator[tuple[Path, str | None]]:
    """What has the name of an image, and the name of the folder for which it is left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                aside = place or (entry.name if entry.name.lower() in LEFT_BEHIND else None)
                yield from _walk(Path(entry.path), aside)
            elif Path(entry.name).suffix.lower() in SUFFIXES and not Path(entry.path).is_dir():
                yield Path(entry.path), place

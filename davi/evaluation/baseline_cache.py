"""Baselines are measured once: they depend on nothing but the images, and every evaluation asks for the same ones.

One small JSON file for each pair of training and test images, named by their SHA-256, in the folder ``baselines`` of
the cache (``davi.data.cache.location``). What cannot be read or written there is no error: it is measured anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import suppress
from pathlib import Path

import PIL

from davi import records
from davi.data import Images
from davi.data.protocol import digest
from davi.evaluation.baselines import Baseline, Progress, baselines
from davi.files import replace_text

FORMAT = 1
"""Changes with everything that makes the numbers or their notes other ones."""

_LARGEST_FILE = 2**16


def cached_baselines(
    train: Images | None, test: Images, root: Path, progress: Progress | None = None
) -> list[Baseline]:
    """:func:`davi.evaluation.baselines.baselines`, measured only if that has not been done for these images.

    Arguments:
        train, test, progress: as there.
        root: folder of all caches.

    Raises:
        UserError: as there.
    """
    path = root / "baselines" / f"{_key(train, test)}.json"
    known = _read(path)
    if known is not None:
        return known
    found = baselines(train, test, progress)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps([dataclasses.asdict(baseline) for baseline in found], allow_nan=False))
    return found


def _key(train: Images | None, test: Images) -> str:
    """A name for everything that the numbers depend on."""
    groups = None if test.groups is None else hashlib.sha256(test.groups.cpu().numpy().tobytes()).hexdigest()
    parts = [None if images is None else [digest(images), *images.shape, images.levels] for images in (train, test)]
    told = json.dumps([FORMAT, PIL.__version__, *parts, groups])
    return hashlib.sha256(told.encode()).hexdigest()


def _read(path: Path) -> list[Baseline] | None:
    """What was kept; None where that is nothing, or no longer whole."""
    with suppress(OSError, ValueError, RecursionError):  # JSON may be too deep
        if path.stat().st_size <= _LARGEST_FILE:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, list) and content:
                return [records.read(Baseline, each, str(path)) for each in content]
    return None

"""Image sets in the form of Hugging Face's ``datasets``: from the hub by name, or from parquet files on this machine.

Only tables are read, never a set's own program: versions of ``datasets`` from 4.0 on run none. A set on this machine
needs no network.

References:
    Q. Lhoest et al., "Datasets: A Community Library for Natural Language Processing", 2021,
    https://arxiv.org/abs/2109.02846
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from davi.data.arrays import to_images
from davi.data.decoding import decode, strict
from davi.data.images import Images, Source, Whole
from davi.data.labels import chosen_column, labeled, unlabeled
from davi.data.picture import MAX_PIXELS, Picture
from davi.data.splitting import counted
from davi.data.subfolders import NAMES
from davi.errors import UserError

PREFIX = "hub:"
"""What the name of such a set begins with."""


def read_hub(
    spec: str,
    cache: Path,
    max_pixels: int = MAX_PIXELS,
    labels: bool = False,
    background: str | None = None,
    mode: str | None = None,
) -> Source | Whole:
    """Read a set of images.

    The splits ``train`` and ``test`` (and ``validation``) are used where the set has them. A set that has only one is a
    whole.

    Arguments:
        spec: ``hub:NAME`` or ``hub:NAME:CONFIG`` for a set of the hub; ``hub:PATH`` for a ``.parquet`` file, or a
            folder of such files whose names tell their splits (``train-00000-of-00001.parquet``, ``test/0.parquet``).
            What exists on this machine comes before what the hub has.
        cache: folder for what is downloaded and unpacked.
        max_pixels: that an image may have.
        labels: read the labels as well.
        background, mode: as for :func:`davi.data.decoding.decode`.

    Raises:
        UserError: if ``datasets`` is not installed, if there is no such set, if it does not have exactly one column of
            images, or if these cannot be decoded or differ in size, channels or levels.
    """
    try:
        import datasets  # takes a second to import, and only these sets need it
    except ImportError:
        raise UserError(f"{spec}: needs the package datasets; in DAVI's folder: pip install -e '.[hub]'") from None
    with _quiet(datasets):
        splits = _opened(datasets, spec, cache)
        column = _image_column(datasets, spec, next(iter(splits.values())).features)
        decoder = partial(decode, max_pixels=max_pixels, background=background, mode=mode)
        sets = {name: _decoded(datasets, table, column, f"{spec}/{name}", decoder) for name, table in splits.items()}
        if labels:
            sets = {name: _labeled(splits[name], sets[name]) for name in splits}
    return _source(spec, sets)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """A block without the library's progress bars and messages: an error is reported once, in one line."""
    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _opened(datasets: Any, spec: str, cache: Path) -> dict[str, Any]:
    """The tables that are used, by the names train, validation and test, or the only one by its own name."""
    try:
        tables = datasets.load_dataset(**_request(spec), cache_dir=str(cache.expanduser()))
    except UserError:
        raise
    except Exception as error:  # of every type: of the network, of the hub, of pyarrow and of the library itself
        reason = " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
        raise UserError(f"{spec}: cannot be read ({reason}), expected a set of the hub or parquet files") from error
    validation = next((name for name in NAMES["validation"] if name in tables), None)
    if "train" in tables and "test" in tables:
        used = {"train": tables["train"], "test": tables["test"]}
        return used if validation is None else {**used, "validation": tables[validation]}
    if len(tables) == 1:
        return dict(tables)
    raise UserError(f"{spec}: got the splits {', '.join(tables)}, expected train and test, or just one")


def _request(spec: str) -> dict[str, Any]:
    """What to ask of ``datasets.load_dataset``."""
    text = spec.removeprefix(PREFIX)
    path = Path(text).expanduser()
    if text and path.is_dir():
        if not any(path.rglob("*.parquet")):
            raise UserError(f"{spec}: found no .parquet file in this folder, expected one at least")
        return {"path": "parquet", "data_dir": str(path)}
    if path.is_file() and path.suffix == ".parquet":
        return {"path": "parquet", "data_files": str(path)}
    if not text or path.exists() or path.suffix == ".parquet" or text[0] in "./~":
        found = "something else" if text and path.exists() else "nothing"
        raise UserError(f"{spec}: found {found}, expected hub:NAME, a .parquet file or a folder of them")
    name, _, config = text.partition(":")
    return {"path": name, "name": config or None}


def _image_column(datasets: Any, spec: str, features: Mapping[str, Any]) -> str:
    """The only column that holds images."""
    names = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(names) != 1:
        held = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        raise UserError(f"{spec}: got columns {held}, expected exactly one of type Image")
    return names[0]


def _decoded(datasets: Any, table: Any, column: str, name: str, decoder: Callable[[BinaryIO, str], Picture]) -> Images:
    """The images of a table, row after row."""
    rows = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    values = None
    with strict():
        for i, row in enumerate(rows):
            content = (row[column] or {}).get("bytes")
            if content is None:  # a path may point anywhere
                raise UserError(f"{name}: row {i}: got no bytes of an image, expected them in the table itself")
            picture = decoder(io.BytesIO(content), f"{name}: row {i}")
            if values is None:
                first = picture
                values = np.empty((len(rows), *first.values.shape), first.values.dtype)
            if (picture.values.shape, picture.levels) != (first.values.shape, first.levels):
                got, want = (f"[H, W, C] = {list(p.values.shape)} with {p.levels} levels" for p in (picture, first))
                raise UserError(
                    f"{name}: row {i}: got {got}, expected {want} as in row 0; "
                    "write the images to a folder, which can be cropped or resized"
                )
            values[i] = picture.values
    if values is None:
        raise UserError(f"{name}: got no images, expected one at least")
    return to_images(values, first.levels, name)


def _labeled(table: Any, images: Images) -> Images:
    """The images of a table with the labels in its column of classes."""
    chosen = chosen_column(table.features)
    if chosen is None:
        held = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in table.features.items())
        raise unlabeled(f"{images.name} has the columns {held}, of which one had to be of type ClassLabel")
    values = list(table[chosen])
    if (missing := next((i for i, value in enumerate(values) if value is None), None)) is not None:
        raise UserError(f"{images.name}: row {missing}: got no label, expected one of {chosen}")
    return labeled(images, np.array(values), tuple(table.features[chosen].names), images.name)


def _source(spec: str, sets: Mapping[str, Images]) -> Source | Whole:
    if len(sets) == 1:
        return Whole(next(iter(sets.values())).subset(slice(None), Path(spec).name), spec, "row order")
    kinds = {name: (images.shape, images.levels) for name, images in sets.items()}
    if len(set(kinds.values())) != 1:
        each = "; ".join(f"{name} {list(shape)} with {levels} levels" for name, (shape, levels) in kinds.items())
        raise UserError(f"{spec}: got {each}, expected the same in every split")
    words = ", ".join(f"{name} ({counted(images)})" for name, images in sets.items())
    return Source(
        sets["train"], sets["test"], f"the set's own: {words}", sets.get("validation"), test_order="row order"
    )

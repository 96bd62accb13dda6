"""Scores of files: what is measured of each image, its mean over the patches of a file, and where that stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from davi.data import Images
from davi.data.splitting import digests
from davi.data.subsets import positions
from davi.evaluation.conformal import Ranks, conformal
from davi.evaluation.record import Array
from davi.evaluation.scores import RAW, Progress, Score, draws_weights, measure, ratios, scores_of
from davi.model import Model
from davi.scoring.kept import Kept

Order = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Files:
    """The files that images are from; each image is one of its own unless it is a patch.

    Arguments:
        names: of each file, in the order in which they come; the number of an image that is of no file.
        place: which file each image is of, ``[N]``.
        digests: of all that was taken from each file; files of the same pixels have the same one.
    """

    names: tuple[str, ...]
    place: NDArray[np.int64]
    digests: tuple[bytes, ...]

    @classmethod
    def of(cls, images: Images) -> Files:
        """Those of a set."""
        count = len(images)
        keys = np.arange(count) if images.groups is None else images.groups.cpu().numpy()
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(first)  # as they come, not by their numbers
        place = np.argsort(order)[place]
        first = first[order]
        called = images.files or tuple(f"{images.name}/{key}" for key in keys)
        hashes = [hashlib.blake2b(digest_size=16) for _ in first]
        for where, digest in zip(place, digests(images), strict=True):
            hashes[where].update(digest)
        return cls(tuple(called[i] for i in first), place, tuple(found.digest() for found in hashes))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images of each file."""
        return np.bincount(self.place, minlength=len(self))

    def mean(self, values: Array) -> Array:
        """Mean over the images of each file: ``[N]`` -> ``[files]``."""
        return np.bincount(self.place, weights=values, minlength=len(self)) / self.counts


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of held-out files of the distribution that the model was trained on.

    Arguments:
        files: the held-out files.
        values: name of the score -> of each file, ``[n]``.
        words: which files they are.
    """

    files: Files
    values: dict[str, Array]
    words: str


@dataclass(frozen=True, eq=False)
class Column:
    """One score of all files.

    Arguments:
        score: which.
        values: of each file, ``[F]``, bits per dimension.
        ranked: among the held-out files; None without any.
    """

    score: Score
    values: Array
    ranked: Ranks | None


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of all files of a set.

    Arguments:
        images: what was scored.
        files: of which they are.
        columns: name of a score -> its values, the raw likelihood first.
        patches: name of a score -> of each image, ``[N]``.
        samples: K; None for a model whose claims are no better with more draws.
        seed: of all draws.
        calibration: held-out files that the others are ranked among; None: there are none.
    """

    images: Images
    files: Files
    columns: dict[str, Column]
    patches: dict[str, Array]
    samples: int | None
    seed: int
    calibration: Calibration | None

    def order(self, by: str) -> Order:
        """Indices of the files, the oddest first, by a score.

        Where both ends are odd: those in the rarer tail of the held-out files first, equal ones by their distance from
        the median of these. Without held-out files the highest values come first.
        """
        column = self.columns[by]
        values = column.values
        if not column.score.two_sided or self.calibration is None or column.ranked is None:
            return np.lexsort((np.arange(len(values)), -values))
        distance = np.abs(values - np.median(self.calibration.values[by]))
        return np.lexsort((-distance, column.ranked.ranks))

    def oddest_image(self, file: int, by: str) -> int:
        """The image (patch) of a file with the highest score."""
        own = np.flatnonzero(self.files.place == file)
        return int(own[np.argmax(self.patches[by][own])])


def held_out(
    model: Model,
    images: Images,
    dropped: Sequence[int] | None = None,
    samples: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Calibration:
    """Score held-out images, so that others can be ranked among them.

    Arguments:
        model: the model.
        images: of the distribution that it was trained on, none of which was trained on and on which nothing was
            chosen.
        dropped, samples, batch_size, seed: as for :func:`davi.evaluation.scores.measure`; the same as for the others.
        limit: only so many files, spread evenly (:mod:`davi.data.subsets`).
        progress: told how many images are done.
        folder: of the run; what is measured is kept there (:mod:`davi.scoring.kept`). None: it is not.
    """
    files = Files.of(images) if limit is None or images.groups is not None else None
    total = len(images) if files is None else len(files)
    chosen = positions(total, limit)
    words = (
        f"{len(chosen)} of {total} files" if len(chosen) < total else f"all {total} files" if total > 1 else "the file"
    )
    if len(chosen) < total:
        kept = chosen if files is None else torch.from_numpy(np.flatnonzero(np.isin(files.place, chosen.numpy())))
        images = images.subset(kept)
    dropped = ratios(model) if dropped is None else dropped
    known = None if folder is None else Kept(folder, model, images, [*dropped, samples, batch_size, seed])
    values = None if known is None else known.read([each.name for each in scores_of(model, images, dropped)])
    if values is None:
        values = measure(model, images, dropped, samples, batch_size, seed, progress)
        if known is not None:
            known.write(values)
    files = Files.of(images)
    by_file = {name: files.mean(each) for name, each in values.items()}
    return Calibration(files, by_file, f"{words} of {images.name}")


def score(
    model: Model,
    images: Images,
    calibration: Calibration | None = None,
    dropped: Sequence[int] | None = None,
    samples: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Score all files of a set, and rank them among held-out ones.

    Arguments:
        model: the model.
        images: the set.
        calibration: of :func:`held_out`, with the same options; None: values without ranks.
        dropped: k of each likelihood ratio; None: :func:`davi.evaluation.scores.ratios`.
        samples, batch_size, seed: as for :func:`davi.evaluation.scores.measure`.
        progress: told how many images are done.

    Raises:
        UserError: as :func:`davi.evaluation.scores.measure` does.

    Example:
        >>> import davi
        >>> from davi.data import DataConfig, load
        >>> model, sets = davi.build("attentive_digits_tiny"), load(DataConfig(set="digits"))  # not trained
        >>> known = held_out(model, sets.test, limit=19)
        >>> found = score(model, sets.train.subset(slice(3)), known)
        >>> list(found.columns), float(found.columns["llr_1"].ranked.p.min()) >= 0.05
        (['bits_per_dim', 'llr_1', 'llr_2', 'complexity'], True)
    """
    dropped = ratios(model) if dropped is None else dropped
    files = Files.of(images)
    patches = measure(model, images, dropped, samples, batch_size, seed, progress)
    same = None if calibration is None else list(_same(files, calibration.files))
    columns = {}
    for each in scores_of(model, images, dropped):
        values, ranked = files.mean(patches[each.name]), None
        if calibration is not None:
            ranked = conformal(values, calibration.values[each.name], each.two_sided, same)
        columns[each.name] = Column(each, values, ranked)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    drawn = samples if draws_weights(model, images, device) else None
    return Scores(images, files, columns, patches, drawn, seed, calibration)


def _same(files: Files, among: Files) -> Iterator[list[int]]:
    """Of each file the held-out one that it is, if any: of copies the first is the first of these, and so on.

    The other copies count: what is common among held-out files is not odd.
    """
    known: dict[bytes, list[int]] = {}
    for i, digest in enumerate(among.digests):
        known.setdefault(digest, []).append(i)
    met = dict[bytes, int]()
    for digest in files.digests:
        copies, number = known.get(digest, []), met.get(digest, 0)
        met[digest] = number + 1
        yield [copies[number % len(copies)]] if copies else []


def best_of(columns: dict[str, Column]) -> str:
    """The score that files are ordered by if nothing else is asked for."""
    ratio = [name for name in columns if name.startswith("llr_")]
    return "complexity" if "complexity" in columns else ratio[0] if ratio else RAW

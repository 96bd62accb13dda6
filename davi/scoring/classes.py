"""What a classifier says of files: the class of each, how sure it is, and log p(y | x) where the class is known.

A file that is cut into patches has the mean of their probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from davi.data import Images
from davi.errors import UserError
from davi.evaluation.bounds import measuring
from davi.evaluation.record import Array
from davi.evaluation.scores import Progress
from davi.model import Classifier
from davi.scoring.pictures import enlarged, sheet
from davi.scoring.result import Files
from davi.scoring.tables import patch_rows, safe, shortened, written


@dataclass(frozen=True, eq=False)
class Predictions:
    """Classes of all files of a set.

    Arguments:
        images: what was looked at.
        files: of which they are.
        names: of the classes.
        patches: probability of each class of each image, ``[N, K]``.
        probabilities: the same of each file, ``[F, K]``.
        labels: class of each file, ``[F]``; None where it is not known.
    """

    images: Images
    files: Files
    names: tuple[str, ...]
    patches: Array
    probabilities: Array
    labels: NDArray[np.int64] | None

    @property
    def named(self) -> NDArray[np.int64]:
        """The most probable class of each file, ``[F]``."""
        found: NDArray[np.int64] = self.probabilities.argmax(1)
        return found

    @property
    def log_p(self) -> Array | None:
        """log p(y | x) of the class of each file, ``[F]``, nats."""
        if self.labels is None:
            return None
        own = self.probabilities[np.arange(len(self.labels)), self.labels]
        return np.log(np.maximum(own, np.finfo(np.float64).tiny))

    def order(self) -> NDArray[np.int64]:
        """Indices of the files: those whose own class is least probable first; where it is not known, those whose most
        probable class is."""
        values = self.probabilities.max(1) if self.log_p is None else self.log_p
        return np.argsort(values, kind="stable")


def predict(
    model: Classifier,
    images: Images,
    names: tuple[str, ...],
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Predictions:
    """Ask a classifier about all files of a set, without gradients, in eval mode, on its device.

    Arguments:
        model: the classifier.
        images: the set, with labels or without.
        names: of the classes.
        batch_size: images per pass.
        progress: told how many images are done.

    Raises:
        UserError: if the images are not of its shape and levels, or an image gets no finite number.
    """
    if images.shape != model.shape or images.levels != model.levels:
        raise UserError(
            f"{images.name}: got images {list(images.shape)} with {images.levels} levels, expected {list(model.shape)} "
            f"with {model.levels}"
        )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found = []
    with measuring(model):
        for start in range(0, len(images), batch_size):
            x = images.pixels[start : start + batch_size].to(device)
            found.append(model.log_class_probabilities(x).double().exp().cpu())
            if progress is not None:
                progress(start + len(x), len(images))
    patches = torch.cat(found).numpy()
    if len(wrong := np.flatnonzero(~np.isfinite(patches).all(1))):
        raise UserError(
            f"{images.name}: image {wrong[0]} has no finite probabilities, expected some; the weights are unusable"
        )
    files = Files.of(images)
    probabilities = np.stack([files.mean(column) for column in patches.T], 1)
    labels = None if images.labels is None else _of_files(images.labels.cpu().numpy(), files)
    return Predictions(images, files, names, patches, probabilities, labels)


def _of_files(labels: NDArray[np.int64], files: Files) -> NDArray[np.int64]:
    """The class of each file; patches of one have the same."""
    _, first = np.unique(files.place, return_index=True)
    return labels[first]


def to_csv(found: Predictions) -> str:
    """One row for each file in the order of :meth:`Predictions.order`: ``file``, ``images`` (patches), ``class``,
    ``probability``, and where classes are known ``label`` and ``log_p`` (of that class, nats)."""
    log_p, counts = found.log_p, found.files.counts
    rows: list[list[object]] = [["file", "images", "class", "probability", *([] if log_p is None else _KNOWN)]]
    for i in found.order().tolist():
        row = [safe(found.files.names[i]), int(counts[i]), *_said(found, found.probabilities[i])]
        if log_p is not None and found.labels is not None:
            row += [safe(found.names[found.labels[i]]), f"{log_p[i]:.6f}"]
        rows.append(row)
    return written(rows)


_KNOWN = ("label", "log_p")


def patches_csv(found: Predictions) -> str:
    """One row for each image, in the order of the set: ``file``, ``patch``, ``top``, ``left``, ``class`` and
    ``probability``."""
    rows: list[list[object]] = [["file", "patch", "top", "left", "class", "probability"]]
    for i, place in enumerate(patch_rows(found.images, found.files)):
        rows.append([*place, *_said(found, found.patches[i])])
    return written(rows)


def _said(found: Predictions, probabilities: Array) -> tuple[str, str]:
    best = int(probabilities.argmax())
    return safe(found.names[best]), f"{probabilities[best]:.6f}"


def to_terminal(found: Predictions, top: int) -> str:
    """The first files as a table, and how many there are of each class."""
    shown, log_p = found.order()[:top].tolist(), found.log_p
    heads = ["file", "class", "p", *([] if log_p is None else ["label", "log p"])]
    rows = [heads]
    for i in shown:
        best = int(found.named[i])
        row = [shortened(found.files.names[i]), shortened(found.names[best], 20), f"{found.probabilities[i, best]:.4f}"]
        if log_p is not None and found.labels is not None:
            row += [shortened(found.names[found.labels[i]], 20), f"{log_p[i]:.4f}"]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = np.bincount(found.named, minlength=len(found.names))
    most = np.argsort(-counts, kind="stable")[:_LISTED]
    told = ", ".join(f"{shortened(found.names[k], 20)} {counts[k]}" for k in most.tolist() if counts[k])
    more = f" and {int((counts > 0).sum()) - _LISTED} more" if (counts > 0).sum() > _LISTED else ""
    lines += ["", f"files by class: {told}{more}"]
    if found.labels is not None and log_p is not None:
        wrong = int((found.named != found.labels).sum())
        lines.append(f"{wrong} of {len(found.files)} files are put into a class other than their own; log p is in nats")
    return "\n".join(lines)


_LISTED = 20
"""Classes that are counted one by one."""


def contact_sheet(found: Predictions, top: int) -> Image.Image:
    """The first files in order: the image, its name, what it is taken for, and what it is. Of a file that is cut into
    patches its first one is shown."""
    tiles = []
    for i in found.order()[:top].tolist():
        best = int(found.named[i])
        lines = [
            shortened(found.files.names[i], 21),
            f"{shortened(found.names[best], 13)} {found.probabilities[i, best]:.3f}",
        ]
        if found.labels is not None:
            lines.append(f"is {shortened(found.names[found.labels[i]], 18)}")
        first = int(np.flatnonzero(found.files.place == i)[0])
        tiles.append((enlarged(found.images, first), lines))
    return sheet(tiles)

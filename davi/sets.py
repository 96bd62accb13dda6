"""The sets of images that go by a name, and what else ``data.set`` can be: known without torch, for quick answers."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from davi.errors import UserError
from davi.kept import is_kept

Shape = tuple[int, int, int]
"""(C, H, W)"""

Geometry = tuple[Shape, int]
"""Shape and number of levels."""

GEOMETRY: dict[str, Geometry] = {
    "digits": ((1, 8, 8), 17),
    "photos": ((3, 32, 32), 256),
    "binarized_mnist": ((1, 28, 28), 2),
    "mnist": ((1, 28, 28), 256),
    "fashion_mnist": ((1, 28, 28), 256),
    "omniglot28": ((1, 28, 28), 256),
    "cifar10": ((3, 32, 32), 256),
}
"""Shape (C, H, W) and stored levels of the named sets: an untrained model can be built where the files are not."""

ELSEWHERE: dict[str, Geometry] = {
    "imagenet32": ((3, 32, 32), 256),
    "imagenet64": ((3, 64, 64), 256),
    "imagenet128": ((3, 128, 128), 256),
    "imagenet224": ((3, 224, 224), 256),
    "imagenet256": ((3, 256, 256), 256),
    "celeba64": ((3, 64, 64), 256),
    "celeba_hq256": ((3, 256, 256), 256),
    "ffhq256": ((3, 256, 256), 256),
    "ffhq1024": ((3, 1024, 1024), 256),
}
"""The same of sets that recipes of published models are for, and whose images have to be given by their path."""

_IDX = "train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz"

FILES: dict[str, str] = {
    "mnist": f"{_IDX} from https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": f"{_IDX} from https://github.com/zalandoresearch/fashion-mnist",
    "omniglot28": "background.npz and evaluation.npz, each with an array images [N, 28, 28] of uint8; the OMNIGLOT of "
    "the papers is --data chardata.mat, from https://github.com/yburda/iwae",
    "cifar10": "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
}
"""What the folder of a named set holds, and where it can be had. Other named sets come with DAVI or scikit-learn."""

ANY = f"{', '.join(GEOMETRY)}, a folder of images or a path of a .npy or .npz file"
"""What a ``data.set`` can be, in words."""


def is_named(name: str) -> bool:
    """Whether a ``data.set`` is a name and no path: of a set whose geometry is known by heart, or of images in the
    folder of a run."""
    return name in GEOMETRY or name in ELSEWHERE or is_kept(name)


def refuse_unknown(name: str) -> None:
    """Refuse a ``data.set`` that is no name of a set and no path of anything; what is there may still be unusable.

    Raises:
        UserError: one line, with the nearest name.
    """
    if is_named(name) or name.startswith("hub:"):
        return
    try:
        path = Path(name).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, of no user, with a null: its reader says so in its words
        return
    if exists:
        return
    nearest = _nearest(name, path)
    hint = f" (did you mean {nearest}?)" if nearest else ""
    if "/" in name or path.suffix in (".npy", ".npz"):
        raise UserError(
            f"data.set: got {name!r}, which does not exist{hint}; expected a folder of images, an array or a set"
        )
    raise UserError(f"data.set: got {name!r}{hint}, expected {ANY}")


def _nearest(name: str, path: Path) -> str:
    """The name of a set, or else of something that lies where the path leads, that is most like it; empty for none."""
    sets = [] if "/" in name else difflib.get_close_matches(name, GEOMETRY, n=1)
    try:
        beside = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        beside = []
    files = difflib.get_close_matches(path.name, beside, n=1)
    candidates = {**{file: str(Path(name).parent / file) for file in files}, **{found: found for found in sets}}
    best = difflib.get_close_matches(path.name, candidates, n=1)
    return candidates[best[0]] if best else ""


def folder_of(name: str, root: str | None) -> Path:
    """The folder with the files of a named set.

    Arguments:
        name: a key of :data:`FILES`.
        root: the directory with the folders of the sets; None takes it from the environment variable ``DAVI_DATA``.

    Raises:
        UserError: if there is no such folder; the message says what would have to be in it.
    """
    given, origin = (root, "data.root") if root is not None else (os.environ.get("DAVI_DATA"), "DAVI_DATA")
    if not given:
        raise UserError(
            f"data.root: not given, expected a directory with {name}/ (--data.root DIR or DAVI_DATA); put there "
            f"{FILES[name]}. Sets that need no files: digits, photos, binarized_mnist"
        )
    folder = Path(given).expanduser() / name
    if not folder.is_dir():
        raise UserError(
            f"{origin}: got {given}, found no folder {folder}, expected the set's files there: {FILES[name]}"
        )
    return folder


def refuse_elsewhere(name: str, levels: int | None) -> None:
    """Refuse to load a set that goes by a name but whose images have to be given by their path.

    Arguments:
        name: as ``data.set`` has it.
        levels: as ``data.levels`` has it.

    Raises:
        UserError: one line with the remedy.
    """
    if name in ELSEWHERE:
        shape, usual = ELSEWHERE[name]
        raise UserError(
            f"data.set: got {name}, which cannot be loaded by name, expected --data PATH, a folder of its images "
            f"or an array in a .npy or .npz file ({'x'.join(map(str, shape))}, {levels or usual} levels)"
        )

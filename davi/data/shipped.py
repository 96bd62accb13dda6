"""The static binarized MNIST, whose files come with DAVI: a benchmark of the field that needs no folder.

Each pixel of MNIST was drawn once, 1 with the probability of its gray value, and these drawings are the set: every
published number for "static" or "fixed binary" MNIST is about them. The folder ``binarized_mnist`` beside this module
holds 50,000 training, 10,000 validation and 10,000 test images, eight pixels a byte, and a notice that says where they
are from and under which license. A file is used only if its SHA-256 is that of the file that was published with DAVI.

References:
    H. Larochelle, I. Murray, "The Neural Autoregressive Distribution Estimator", 2011,
    https://proceedings.mlr.press/v15/larochelle11a.html

    R. Salakhutdinov, I. Murray, "On the Quantitative Analysis of Deep Belief Networks", 2008 (the test images),
    https://doi.org/10.1145/1390156.1390266

    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998, http://yann.lecun.com/exdb/mnist/
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from davi.data.arrays import to_images
from davi.data.images import Images, Source
from davi.errors import UserError

FOLDER = Path(__file__).with_name("binarized_mnist")
"""Where the files and their notice are."""

SHA256 = {
    "train.npz": "4332add34945d3d505d1a7bfc51f03d25af0121b81eceaace2ba4b426b576626",
    "valid.npz": "166721831ebb49ced79f32f26b783d7783ff90e047016f2e664be19d8b80429a",
    "test.npz": "e26d2c4900f9c54da18270c5184d3fcddd2394f0bdd0a2e898788ff94eeb42a5",
}
"""Of each file."""

_SIDE = 28


def binarized_mnist(folder: Path = FOLDER) -> Source:
    """The static binarized MNIST, ``[1, 28, 28]``, 2 levels. It has no labels; test images are sorted by class.

    Arguments:
        folder: of the files.

    Raises:
        UserError: if a file is missing or is not the one that came with DAVI.
    """
    return Source(
        train=_part(folder / "train.npz", "binarized_mnist/train"),
        test=_part(folder / "test.npz", "binarized_mnist/test"),
        validation=_part(folder / "valid.npz", "binarized_mnist/validation"),
        split=(
            "the set's own: train.npz (50000 images) for training, valid.npz (10000 images) for validation, test.npz "
            "(10000 images) for test"
        ),
        test_order="sorted by class",
    )


def _part(path: Path, name: str) -> Images:
    if not path.is_file():
        raise UserError(f"{path}: found no such file, expected it with DAVI; reinstall DAVI")
    content = path.read_bytes()
    found, wanted = hashlib.sha256(content).hexdigest(), SHA256[path.name]
    if found != wanted:
        raise UserError(
            f"{path}: got SHA-256 {found[:12]}..., expected {wanted[:12]}..., that of the file that comes with DAVI; "
            "reinstall DAVI"
        )
    packed = np.load(io.BytesIO(content), allow_pickle=False)["images_packed"]  # [N, 98]
    return to_images(np.unpackbits(packed, axis=1).reshape(-1, _SIDE, _SIDE), 2, name)

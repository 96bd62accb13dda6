"""What is seen of a quantized model: plain records of numbers and tensors, all on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class CodeLayer:
    """The codes of a layer.

    Arguments:
        grid: height and width.
        counts: how often each code occurs in the inspected images, ``[C, K]``: of C lists of K codes each.
        training: the share of each code in the last steps of training, ``[C, K]``, float64.
        perplexity: of the counts (:mod:`davi.evaluation.codes`).
        colors: of each code, ``[C, K, 3]``, uint8: codes with similar vectors have similar colors.
    """

    grid: tuple[int, int]
    counts: Tensor
    training: Tensor
    perplexity: float
    colors: Tensor

    @property
    def books(self) -> int:
        """Codes at each position."""
        return self.counts.shape[0]

    @property
    def size(self) -> int:
        """Codes to choose from."""
        return self.counts.shape[1]


@dataclass(frozen=True, eq=False)
class Coded:
    """Images and their codes.

    Arguments:
        images: ``[n, C, H, W]``, integers or means in units of levels.
        codes: of each layer, the top first, ``[n, C, h, w]``.
    """

    images: Tensor
    codes: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Nearest:
    """Samples and the training images nearest to them.

    Arguments:
        samples: integers ``[n, C, H, W]``.
        neighbors: for each sample the training image with the smallest distance, as the model sees it.
        distances: root mean square of the differences of all values, in levels, ``[n]``, float64.
        images: the same distances of the inspected images, ``[N]``, float64, to compare with.
        training: how many images were looked through.
    """

    samples: Tensor
    neighbors: Tensor
    distances: Tensor
    images: Tensor
    training: int


@dataclass(frozen=True, eq=False)
class CodeView:
    """What is seen of a quantized model.

    Arguments:
        layers: of codes, the top first.
        trained: whether the prior was trained; else it is uniform.
        shown: originals and their codes.
        reconstructions: of these, as ``Inspection.pixels`` says.
        drawn: samples of the prior, and what p(x | z) shows of them.
        kept: for each number of top layers from 1 on, but not all: more samples of the prior that begin with the codes
            of the first of ``drawn``, ``[layers - 1, n, C, H, W]``.
        nearest: None where the training images are not known.
    """

    layers: tuple[CodeLayer, ...]
    trained: bool
    shown: Coded
    reconstructions: Tensor
    drawn: Coded
    kept: Tensor
    nearest: Nearest | None

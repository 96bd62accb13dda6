r"""Moving averages of what the vectors of a codebook replace.

Vector k of a list has a count N and a sum m. In a step in which it replaces n vectors that sum to s,

.. math:: N \leftarrow \gamma N + (1 - \gamma)\, n, \qquad m \leftarrow \gamma m + (1 - \gamma)\, s, \qquad
          e = m / \hat N \ \text{if}\ n > 0

At the beginning N = 1 and m = e, or as the clusters of k-means are. Where n = 0 both decay alike, and e stays exactly
what it is. With smoothing :math:`\epsilon` (none by default)

.. math:: \hat N = \frac{N + \epsilon}{\sum_j N_j + K \epsilon} \sum_j N_j

*Without bias* (as in Sonnet), N and m begin at 0 and are divided by :math:`1 - \gamma^t` after t steps. The beginning
is forgotten, and every vector is set in every step: one that has replaced nothing becomes 0.

A vector is *dead* if its N is below a share of the mean N of its list. It is replaced by a vector of the batch; with it
N becomes the mean, and m that times the vector.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937 (appendix A.1)

    Theory and Experiments on Vector Quantized Autoencoders, A. Roy, A. Vaswani, A. Neelakantan, N. Parmar, 2018,
    https://arxiv.org/abs/1805.11063 (averages as soft assignments)

    Jukebox: A Generative Model for Music, P. Dhariwal, H. Jun, C. Payne, J. W. Kim, A. Radford, I. Sutskever, 2020,
    https://arxiv.org/abs/2005.00341 (dead codes revived)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from davi.layers.nearest import totals
from davi.layers.quantizer import Assigned, Codebook


@dataclass(frozen=True)
class AverageOptions:
    """How averages are kept.

    Arguments:
        decay: gamma.
        debias: without bias.
        smoothing: epsilon.
        revive_below: share of the mean N below which a vector is dead; 0: none ever is.
    """

    decay: float = 0.99
    debias: bool = False
    smoothing: float = 0.0
    revive_below: float = 0.0


class Place(NamedTuple):
    """Where a part lies in its batch.

    Arguments:
        start: images before it.
        images: of the part.
        batch_size: images of the batch.
    """

    start: int
    images: int
    batch_size: int


class VectorAverages:
    """Averages of all lists of a codebook, in double precision (module docstring).

    Arguments:
        quantizer: whose; it is not changed.
        options: how.
        positions: of codes in a batch, for counts that begin as k-means has left them.
    """

    def __init__(self, quantizer: Codebook, options: AverageOptions, positions: int) -> None:
        self.options = options
        vectors = quantizer.vectors.detach()
        lists, size, _ = vectors.shape
        self.counts = torch.ones(lists, size, dtype=torch.float64, device=vectors.device)
        if options.debias:
            self.counts.zero_()
        elif quantizer.initialized_from_data:
            each = quantizer.books // lists * positions
            self.counts = quantizer.frequencies[:lists].double() * each
        self.sums = vectors.double() * self.counts.unsqueeze(2)
        self.updates = torch.zeros((), dtype=torch.float64, device=vectors.device)
        self.hits = torch.zeros_like(self.counts)
        """n of this step, so far."""
        self.added = torch.zeros_like(self.sums)
        """s of this step, so far."""
        self.candidates = torch.zeros_like(vectors)
        """For each vector one of this batch that takes its place if it is dead."""

    @torch.no_grad()
    def add(self, quantizer: Codebook, assigned: Assigned, place: Place) -> None:
        """Take in a part of a batch. Candidates are drawn with torch's default generator."""
        x, codes = quantizer.replaced(assigned)
        for own, answers, hits, added in zip(x, codes, self.hits, self.added, strict=True):
            counts, sums = totals(own, answers, len(hits))
            hits += counts
            added += sums
        if self.options.revive_below:
            self._choose_candidates(x, assigned.codes[0, 0].numel(), place)

    def _choose_candidates(self, x: Tensor, positions: int, place: Place) -> None:
        """Each vector has its candidate from one image of the batch: no two parts choose for the same vector.

        Arguments:
            x: what the lists have replaced, ``[L, n, d]``, perhaps several times all images of the part.
            positions: in an image.
            place: of the part.
        """
        size, per_part = self.candidates.shape[1], place.images * positions
        first, last = (-(-images * size // place.batch_size) for images in (place.start, place.start + place.images))
        image = torch.arange(first, last, device=x.device) * place.batch_size // size - place.start
        for own, candidates in zip(x, self.candidates, strict=True):
            position = torch.randint(positions, image.shape, device=x.device)
            repeat = torch.randint(len(own) // per_part, image.shape, device=x.device)
            candidates[first:last] = own[repeat * per_part + image * positions + position]

    @torch.no_grad()
    def end_step(self, quantizer: Codebook) -> None:
        """Move the averages, and with them the vectors, unless these are learned by gradient."""
        decay = self.options.decay
        self.counts.mul_(decay).add_(self.hits, alpha=1.0 - decay)
        self.sums.mul_(decay).add_(self.added, alpha=1.0 - decay)
        self.updates += 1.0
        if not quantizer.has_gradient:
            quantizer.vectors.copy_(self._vectors(quantizer.vectors))
        if self.options.revive_below:
            self._revive(quantizer.vectors)
        for tensor in (self.hits, self.added, self.candidates):
            tensor.zero_()

    def _vectors(self, old: Tensor) -> Tensor:
        """What the vectors become, ``[L, K, d]``."""
        counts, sums = self.counts, self.sums
        if self.options.debias:
            known = 1.0 - self.options.decay**self.updates
            counts, sums = counts / known, sums / known
        if self.options.smoothing:
            total, size = counts.sum(1, keepdim=True), counts.shape[1]
            counts = (counts + self.options.smoothing) / (total + size * self.options.smoothing) * total
        means = sums / counts.clamp_min(torch.finfo(counts.dtype).tiny).unsqueeze(2)
        return means if self.options.debias else torch.where(self.hits.unsqueeze(2) > 0, means, old.double())

    def _revive(self, vectors: Tensor) -> None:
        mean = self.counts.mean(1, keepdim=True)
        dead = self.counts < self.options.revive_below * mean
        vectors.copy_(torch.where(dead.unsqueeze(2), self.candidates, vectors))
        self.counts.copy_(torch.where(dead, mean, self.counts))
        revived = self.candidates.double() * mean.unsqueeze(2)
        self.sums.copy_(torch.where(dead.unsqueeze(2), revived, self.sums))

    def state(self) -> dict[str, Tensor]:
        """All that a step moves."""
        found = {"counts": self.counts, "sums": self.sums, "updates": self.updates}
        found |= {"hits": self.hits, "added": self.added}
        return found | ({"candidates": self.candidates} if self.options.revive_below else {})

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`state`."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])

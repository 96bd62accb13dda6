r"""The sum of the largest singular values of many matrices, estimated as training goes along.

A left and a right vector per matrix are kept from step to step. Power iteration turns them towards the singular
vectors,

.. math:: v \leftarrow W^\top u / \|W^\top u\|, \qquad u \leftarrow W v / \|W v\|, \qquad
          \hat\sigma = u^\top W v \le \sigma_{\max}(W)

a few times a step, since weights move slowly. No gradient flows through the vectors:
:math:`\partial \hat\sigma / \partial W = u v^\top`, which is that of :math:`\sigma_{\max}` once they have converged.

References:
    Spectral Norm Regularization for Improving the Generalizability of Deep Learning, Y. Yoshida, T. Miyato, 2017,
    https://arxiv.org/abs/1705.10941

    NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
    https://arxiv.org/abs/2007.03898
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALLEST = 1e-3
"""A vector is divided by its length, or by this if that is smaller."""


@final
class SpectralNorms(nn.Module):
    """The vectors of all matrices. Matrices of one shape are treated together.

    Arguments:
        shapes: (rows, columns) of each matrix.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> norms = SpectralNorms([(2, 2), (2, 3)])
        >>> matrices = [torch.diag(torch.tensor([3.0, 1.0])), torch.ones(2, 3)]
        >>> norms.iterate(matrices, times=40)
        >>> round(norms.total(matrices).item(), 4)  # 3 and the root of 6
        5.4495
    """

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.members = [[i for i, own in enumerate(shapes) if own == shape] for shape in dict.fromkeys(shapes)]
        for number, (indices, (rows, columns)) in enumerate(zip(self.members, dict.fromkeys(shapes), strict=True)):
            self.register_buffer(f"left_{number}", _unit(torch.randn(len(indices), rows)))
            self.register_buffer(f"right_{number}", _unit(torch.randn(len(indices), columns)))

    @torch.no_grad()
    def iterate(self, matrices: Sequence[Tensor], times: int) -> None:
        """Turn the vectors towards the singular vectors of the matrices.

        Arguments:
            matrices: in the order of ``shapes``.
            times: iterations.
        """
        for number, batch in enumerate(self._batches(matrices)):
            self._iterate(number, batch, times)

    def total(self, matrices: Sequence[Tensor], times: int = 0) -> Tensor:
        """The sum of the estimates after ``times`` more iterations, a scalar."""
        total = matrices[0].new_zeros(())
        for number, batch in enumerate(self._batches(matrices)):
            left, right = self._iterate(number, batch.detach(), times)
            total = total + torch.einsum("nr,nrc,nc->", left, batch, right)
        return total

    def _batches(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack([matrices[i] for i in indices]) for indices in self.members]  # [n, rows, columns] each

    @torch.no_grad()
    def _iterate(self, number: int, batch: Tensor, times: int) -> tuple[Tensor, Tensor]:
        """The vectors of one batch after some iterations: tensors of their own, which the next call leaves alone."""
        own_left, own_right = self.get_buffer(f"left_{number}"), self.get_buffer(f"right_{number}")
        left, right = own_left.clone(), own_right.clone()
        for _ in range(times):
            right = _unit(torch.bmm(left.unsqueeze(1), batch).squeeze(1))
            left = _unit(torch.bmm(batch, right.unsqueeze(2)).squeeze(2))
        own_left.copy_(left)
        own_right.copy_(right)
        return left, right


def _unit(x: Tensor) -> Tensor:
    return x if x.is_meta else F.normalize(x, dim=1, eps=_SMALLEST)

r"""Matrices with orthonormal columns from matrices that have none.

**The nearest one** (:func:`nearest_orthonormal`): the orthonormal factor of the polar decomposition A = Q S, with S
symmetric and positive definite, by the iteration

.. math:: Q_0 = A / \lVert A \rVert_F, \qquad Q_{i+1} = Q_i \left( I + \tfrac{1}{2} (I - Q_i^\top Q_i) \right)

whose error :math:`\lVert Q^\top Q - I \rVert_F` is squared by each iteration once it is small. Each matrix of a batch
is iterated until its own error is below the root of the machine precision, and once more. Its derivative is that of
the polar factor, which needs no memory of the iterations: a change dA moves Q by

.. math:: dQ = Q X + (I - Q Q^\top)\, dA\, S^{-1}, \qquad S X + X S = Q^\top dA - dA^\top Q

**Reflections** (:func:`product_of_reflections`): a product of Householder reflections is a square orthogonal matrix.

References:
    An Iterative Algorithm for Computing the Best Estimate of an Orthogonal Matrix, A. Bjorck, C. Bowie, SIAM Journal on
    Numerical Analysis 8 (2), 1971, https://doi.org/10.1137/0708036

    Sylvester Normalizing Flows for Variational Inference, R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling,
    UAI 2018, https://arxiv.org/abs/1803.05649
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from davi.flows.householder import unit_vectors

_MOST_ITERATIONS = 120
"""Each makes a small singular value half as large again: enough from the precision of float64."""
_PUBLISHED_ITERATIONS = 100


def nearest_orthonormal(a: Tensor) -> Tensor:
    """The matrix with orthonormal columns nearest to A, to machine precision.

    Arguments:
        a: ``[..., rows, columns]`` with no more columns than rows.
    """
    nearest: Tensor = _PolarFactor.apply(a)  # type: ignore[no-untyped-call]  # torch ships no annotation
    return nearest


class _PolarFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        eps = torch.finfo(a.dtype).eps
        # Columns that depend on each other would stay so: what is added is below the precision of the others.
        q = _scaled(a) + eps * torch.eye(*a.shape[-2:], dtype=a.dtype, device=a.device)
        enough = math.sqrt(eps)
        for _ in range(_MOST_ITERATIONS):
            converged = _error(q) <= enough
            if bool(converged.all()):
                break
            q = torch.where(converged[..., None, None], q, _iterated(q))
        q = _iterated(q)
        ctx.save_for_backward(a, q)
        return q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        a, q = ctx.saved_tensors
        inner = q.mT @ gradient
        symmetric = q.mT @ a
        values, vectors = torch.linalg.eigh((symmetric + symmetric.mT) / 2)  # S
        number = torch.finfo(values.dtype)
        values = values.clamp_min((number.eps * values[..., -1:]).clamp_min(math.sqrt(number.tiny)))
        skew = vectors.mT @ (inner - inner.mT) @ vectors / (values[..., None] + values[..., None, :])
        across = (gradient - q @ inner) @ (vectors / values[..., None, :]) @ vectors.mT
        return q @ (vectors @ skew @ vectors.mT) + across


def published_orthonormal(a: Tensor) -> Tensor:
    """The same iteration with the stopping rule of the authors' program of Sylvester flows.

    It stops when the largest error of *all* matrices is at most 1e-6 (1e-5 for square ones), or after 100 iterations,
    so that a result depends on what else is in the batch: for comparisons with that program only.

    Arguments:
        a: as in :func:`nearest_orthonormal`.
    """
    enough = 1e-5 if a.shape[-1] == a.shape[-2] else 1e-6
    q = _scaled(a)
    for _ in range(_PUBLISHED_ITERATIONS):
        q = _iterated(q)
        if float(_error(q.detach()).max()) <= enough:
            break
    return q


def product_of_reflections(v: Tensor) -> Tensor:
    """The orthogonal matrices H_n ... H_1 of reflections.

    Arguments:
        v: their vectors, ``[..., n, C]``, of any length.

    Returns:
        ``[..., C, C]``.
    """
    v = unit_vectors(v)
    q = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    for own in v.unbind(-2):
        q = q - 2 * own[..., None] * (own[..., None, :] @ q)
    return q


def _scaled(a: Tensor) -> Tensor:
    """A divided by its Frobenius norm, so that no singular value is above one; a matrix of zeros becomes the first
    columns of the identity, since there is no nearest."""
    norm = torch.linalg.matrix_norm(a, keepdim=True)
    vanishes = norm < math.sqrt(torch.finfo(a.dtype).tiny)
    identity = torch.eye(*a.shape[-2:], dtype=a.dtype, device=a.device)
    return torch.where(vanishes, identity, a / torch.where(vanishes, 1, norm))


def _iterated(q: Tensor) -> Tensor:
    return 1.5 * q - 0.5 * q @ (q.mT @ q)


def _error(q: Tensor) -> Tensor:
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    return torch.linalg.matrix_norm(q.mT @ q - identity)

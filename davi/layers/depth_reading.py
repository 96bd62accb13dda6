"""The arithmetic of depth-wise attention, with backward passes that need nothing but the inputs of the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from davi.layers.depth_approximation import from_cells, in_cells, scores_in_cells


class Attended(NamedTuple):
    """Result of an attention: the mixture of values ``[B, M, H, W]`` and the weights ``[B, layers, H, W]``."""

    result: Tensor
    weights: Tensor


def _weights(query: Tensor, keys: Sequence[Tensor]) -> Tensor:
    scores = torch.einsum("bdhw,bjdhw->bjhw", query, torch.stack(list(keys), 1))
    return scores.softmax(1)


def _mixture(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    result = weights[:, :1] * values[0]
    for j in range(1, len(values)):  # one pass over each map; a stacked product would first copy all of them
        result.addcmul_(weights[:, j : j + 1], values[j])
    return result


def _of_scores(grad: Tensor, weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Gradient of the scores ``[B, n, H, W]``, given that of the mixture; autocast may have made that more precise than
    the scores are."""
    grad_weights = torch.stack([(grad * value).sum(1) for value in values], 1)  # [B, n, H, W]
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(1, keepdim=True))
    return grad_scores.to(weights.dtype)


class _Read(torch.autograd.Function):
    """The exact reading."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, n: int, *entries: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = entries[:n], entries[n:]
        weights = _weights(query, keys)
        result = _mixture(weights, values)
        ctx.save_for_backward(query, *entries)
        ctx.mark_non_differentiable(weights)
        ctx.set_materialize_grads(False)
        return result, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        query, *entries = ctx.saved_tensors
        n = len(entries) // 2
        if grad is None:
            return (None,) * (2 + 2 * n)
        keys, values = entries[:n], entries[n:]
        weights = _weights(query, keys)
        grad_scores = _of_scores(grad, weights, values)
        grad_query = torch.einsum("bjhw,bjdhw->bdhw", grad_scores, torch.stack(keys, 1))
        grad_keys = [grad_scores[:, j : j + 1] * query for j in range(n)]
        grad_values = [weights[:, j : j + 1] * grad for j in range(n)]
        return (grad_query, None, *grad_keys, *grad_values)


def _over(scores: Tensor, chosen: Tensor | None) -> Tensor:
    """Softmax over the layers ``chosen``, ``[B, k, H, W]``; None: over all."""
    among = scores if chosen is None else scores.gather(1, chosen.long())
    weights = among.softmax(1)
    if chosen is None:
        return weights
    # Autocast may have changed the precision.
    return torch.zeros_like(scores, dtype=weights.dtype).scatter(1, chosen.long(), weights)


class _ReadApproximately(torch.autograd.Function):
    """The reading with keys for cells of pixels, over the ``top_k`` layers of each pixel (0: over all)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, n: int, cell: tuple[int, int], top_k: int, *entries: Tensor
    ) -> tuple[Tensor, Tensor]:
        keys, values = entries[:n], entries[n:]
        scores = scores_in_cells(query, torch.stack(keys, 1), cell)
        # Kept: under autocast the backward pass has scores of another precision, and could choose differently.
        chosen = scores.topk(top_k, 1, sorted=False).indices.short() if top_k else None
        weights = _over(scores, chosen)
        result = _mixture(weights, values)
        ctx.save_for_backward(query, chosen, *entries)
        ctx.cell = cell
        ctx.mark_non_differentiable(weights)
        ctx.set_materialize_grads(False)
        return result, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        query, chosen, *entries = ctx.saved_tensors
        n = len(entries) // 2
        if grad is None:
            return (None,) * (4 + 2 * n)
        keys, values = torch.stack(entries[:n], 1), entries[n:]
        weights = _over(scores_in_cells(query, keys, ctx.cell), chosen)
        in_each = in_cells(_of_scores(grad, weights, values), ctx.cell)  # [B, n, h, p, w, q]
        grad_query = torch.einsum("bjhpwq,bjdhw->bdhpwq", in_each, keys)
        grad_keys = torch.einsum("bjhpwq,bdhpwq->bjdhw", in_each, in_cells(query, ctx.cell))
        grad_values = [weights[:, j : j + 1] * grad for j in range(n)]
        of_query = from_cells(grad_query, (query.shape[2], query.shape[3]))
        return (of_query, None, None, None, *grad_keys.unbind(1), *grad_values)


def read(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Attended:
    """Exact reading; queries and keys ``[B, d, H, W]``, values ``[B, M, H, W]``, all of one precision."""
    return Attended(*_Read.apply(query, len(keys), *keys, *values))  # type: ignore[no-untyped-call]  # torch ships no annotation


def read_approximately(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], cell: tuple[int, int], top_k: int
) -> Attended:
    """As :func:`read`, over the ``top_k`` layers of each pixel (0: all). Keys are ``[B, d, rows, columns]``, for
    cells of pixels."""
    found = _ReadApproximately.apply(query, len(keys), cell, top_k, *keys, *values)  # type: ignore[no-untyped-call]  # torch ships no annotation
    return Attended(*found)

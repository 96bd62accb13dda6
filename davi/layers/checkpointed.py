"""Blocks that can recompute their activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module, ABC):
    """A block that keeps its activations for the backward pass, or computes them again there if ``recompute`` is set.

    Running statistics move once, whichever is the case.
    """

    recompute: bool = False

    @abstractmethod
    def compute(self, *inputs: Any) -> Any:
        """What the block does."""

    def forward(self, *inputs: Any) -> Any:
        if self.recompute and self.training and torch.is_grad_enabled():
            if torch.compiler.is_compiling():
                # The compiler moves running statistics once by itself, and cannot trace the contexts.
                return checkpoint(self.compute, *inputs, use_reentrant=False)
            return checkpoint(self.compute, *inputs, use_reentrant=False, context_fn=self._contexts)
        return self.compute(*inputs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(self)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms normalize as ever but leave their running statistics alone: they have seen this batch already."""
    norms = [m for m in module.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count

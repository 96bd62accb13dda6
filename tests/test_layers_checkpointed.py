"""Blocks that forget their activations compute what they compute with them, compiled or not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from davi.layers.checkpointed import Checkpointed


class Block(Checkpointed):
    """With all that a second computation could change: draws, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.dropout = nn.Dropout(0.5)

    def compute(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.norm(self.conv(x)).sigmoid())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_and_running_statistics_are_those_of_activations_kept(compiled: bool) -> None:
    kept = Block()
    forgetful = copy.deepcopy(kept)
    forgetful.recompute = True
    if compiled:
        forgetful.compile(backend="aot_eager")
    x = torch.randn(4, 2, 5, 5, requires_grad=True)
    found = []
    for block in (kept, forgetful):
        torch.manual_seed(1)
        gradients = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
        found.append([*gradients, block.norm.running_mean, block.norm.running_var, block.norm.num_batches_tracked])
    for one, other in zip(*found, strict=True):
        # float32; the compiler may decompose an operation into others that round differently.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

"""How often each code occurs: in recent steps, and in a pass over the training images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from davi.layers.quantizer import Quantizer, perplexity, usage

RECENT = 0.99
"""Weight of the old shares in their moving average."""


class CodeUsage:
    """Counts of the codes of one layer.

    Arguments:
        quantizer: of the layer; it is not changed.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        device = quantizer.frequencies.device
        self.hits = torch.zeros(quantizer.books, quantizer.size, dtype=torch.int64, device=device)
        """Of this step, so far."""
        self.epoch = torch.zeros((), dtype=torch.int64, device=device)
        """Whole passes over the training images."""
        self.current, self.latest = torch.zeros_like(self.hits), torch.zeros_like(self.hits)
        """Of this pass, so far, and of the latest whole one."""

    @torch.no_grad()
    def add(self, codes: Tensor) -> None:
        """Take in the codes of a part of a batch, ``[B, C, h, w]``."""
        codes = codes.transpose(0, 1).flatten(1)
        self.hits.scatter_add_(1, codes, torch.ones_like(codes))

    @torch.no_grad()
    def end_step(self, quantizer: Quantizer, epoch: int) -> None:
        """Count a step and set the shares of recent steps.

        Arguments:
            quantizer: of the layer.
            epoch: whole passes over the training images done after the step.
        """
        shares = self.hits / self.hits.sum(1, keepdim=True)
        quantizer.frequencies.lerp_(shares.to(quantizer.frequencies.dtype), 1.0 - RECENT)
        self.current += self.hits
        whole = self.epoch < epoch
        self.latest.copy_(torch.where(whole, self.current, self.latest))
        self.current.masked_fill_(whole, 0)
        self.epoch.clamp_(min=epoch)
        self.hits.zero_()

    def reports(self) -> dict[str, float]:
        """Perplexity of a code and share of the codes in use, over the latest whole pass; before there is one, over
        what there is. With several codes at a position, the geometric mean of their perplexities."""
        counts = torch.where(self.epoch > 0, self.latest, self.current)
        found = perplexity(counts).log().mean().exp()
        return {"code_perplexity": float(found), "code_usage": float(usage(counts).mean())}

    def state(self) -> dict[str, Tensor]:
        """All counts."""
        return {"usage": self.hits, "epoch": self.epoch, "current": self.current, "latest": self.latest}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`state`."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])

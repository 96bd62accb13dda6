"""Numbers of ours beside numbers of others, with tolerances and a verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """One tensor or list of numbers, ours and theirs.

    Arguments:
        name: what is compared.
        ours, theirs: same shape.
        tolerance: largest difference accepted; infinite: shown and not judged.
        relative: ``"scale"``: in units of the largest magnitude of theirs; ``"each"``: of each number of theirs;
            ``"absolute"``: in the unit of the numbers.
        slack: known absolute error of ``theirs``, added to what is accepted.
    """

    name: str
    ours: Tensor
    theirs: Tensor
    tolerance: float
    relative: str = "scale"
    slack: float = 0.0

    @property
    def difference(self) -> float:
        """The largest difference, in the unit of the tolerance; infinite when the shapes differ."""
        if self.ours.shape != self.theirs.shape:
            return float("inf")
        if self.theirs.numel() == 0:
            return 0.0
        ours, theirs = self.ours.detach().double(), self.theirs.double()
        gap = ((ours - theirs).abs() - self.slack).clamp_min(0.0)
        tiny = torch.finfo(torch.float64).tiny
        if self.relative == "scale":
            gap = gap / theirs.abs().max().clamp_min(tiny)
        elif self.relative == "each":
            gap = gap / theirs.abs().clamp_min(tiny)
        largest = gap.max()
        return float("inf") if torch.isnan(largest) else float(largest)

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance

    def line(self) -> str:
        """One line of the table."""
        unit = {"scale": "of scale", "each": "relative", "absolute": "absolute"}[self.relative]
        verdict = "ok" if self.agrees else "DIFFERS"
        if self.tolerance == float("inf"):
            verdict = "not judged"
        numbers = f"{_show(self.ours):>15} {_show(self.theirs):>15} {self.difference:9.1e}"
        return f"{self.name:<52} {numbers} {unit:<9} {verdict}"


def _show(x: Tensor) -> str:
    """A number, or the root mean square of a tensor."""
    if x.numel() == 1:
        return f"{float(x):.6f}"
    return f"~{float(x.detach().double().square().mean().sqrt()):.7g}"


def report(comparisons: Iterable[Comparison]) -> str | None:
    """Print every comparison; return the name of the first that differs, in order, or None."""
    first = None
    print(f"{'':<52} {'ours':>15} {'theirs':>15} {'largest difference':>9}   (~: root mean square)")
    for comparison in comparisons:
        print(comparison.line())
        if first is None and not comparison.agrees:
            first = comparison.name
    return first

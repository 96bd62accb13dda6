"""What a page is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from davi.evaluation.gap_result import GapResult
from davi.evaluation.result import Result
from davi.inspection import Inspection
from davi.model import Claiming, Partition
from davi.page.units import Unit


@dataclass(frozen=True, eq=False)
class Contents:
    """What a page is made from.

    Arguments:
        title: name of the run.
        facts: names and values at its top: the model, its data, and when and how long it was trained.
        result: of an evaluation; None where the model has no likelihood, for want of a partition function.
        measured: a sentence that says who measured it.
        inspection: what was seen inside of the model.
        model: that all this is about, or a classifier; parts of the page ask what it can do.
        levels: of a pixel.
        records: the lines of ``metrics.jsonl``; none if there are none.
        recipe: the recipe as YAML; None if the run has none.
        remedy: what to try where layers are inactive (:mod:`davi.objectives.remedies`); empty if there is nothing.
        gap: what lies between the ELBO and log p(x), where it was measured.
        no_gap: otherwise, why it is not shown and what to do about that.
        no_result: where there is no result, why, and what to do about that.
        estimates: of the partition function of these weights, by numbers of temperatures.
        no_estimates: where there are none, how they are made.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    result: Result | None
    measured: str
    inspection: Inspection
    model: Claiming
    levels: int
    records: Sequence[Mapping[str, Any]]
    recipe: str | None
    remedy: str = ""
    gap: GapResult | None = None
    no_gap: str = ""
    no_result: str = ""
    estimates: Sequence[Partition] = ()
    no_estimates: str = ""

    @property
    def unit(self) -> Unit:
        """Of all costs on the page."""
        return Unit.usual(self.levels, self.model.dims) if self.result is None else Unit.of(self.result)

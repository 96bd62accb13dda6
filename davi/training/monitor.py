"""A monitor of silent failures: inactive latent layers, and a bound that no longer improves.

It looks at the validations, or at the log's lines in a run without any, and changes nothing about the training. What it
says follows from the records alone, so a resumed run reads them and goes on as if it had never stopped.

References:
    Generating Sentences from a Continuous Space, S. R. Bowman et al., CoNLL 2016, https://arxiv.org/abs/1511.06349
    (posteriors that collapse to the prior: the layers that are called inactive here)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from davi.evaluation.activity import inactive_layers
from davi.training.sections import MonitorConfig

IMPROVEMENT = 1e-3
"""Share of the best bound, in nats, by which another one must be better to count."""


class Monitor:
    """Says when a run's state changes, once each time.

    - *Collapse*: latent layers are inactive by the rule of :mod:`davi.evaluation.activity`, with the threshold
      ``collapse_nats``, although the weight of the divergences has reached 1. Of layers whose terms are no KL
      divergences only the sum with all others is judged.
    - *Plateau*: the bound has not improved by :data:`IMPROVEMENT` for ``plateau_validations`` validations.

    Arguments:
        config: the two thresholds.
        settled: step, seconds -> whether the objective has its final form, with all weights at 1.
        kind: of the records to look at, ``validation`` or ``train``.
        stage: name of the stage whose records are looked at; empty in a run of one.
        remedy: names of the inactive layers -> what to try (:mod:`davi.objectives.remedies`).
    """

    def __init__(
        self,
        config: MonitorConfig,
        settled: Callable[[int, float], bool],
        kind: str,
        stage: str = "",
        remedy: Callable[[list[str]], str] = lambda layers: "",
    ) -> None:
        self.remedy = remedy
        self.config, self.settled, self.kind, self.stage = config, settled, kind, stage
        self.inactive: list[str] = []
        self.advice = ""
        """The remedy that was named last: a layer near the threshold would have it named at every other record."""
        self.best: tuple[float, int] | None = None
        """The bound in nats, or the loss of what makes no claim, that later ones must beat, and its step."""
        self.since = 0
        """Records since then."""

    def see(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Take in a record, in the order of the steps.

        Arguments:
            record: of ``metrics.jsonl``.

        Returns:
            What has changed: ``what`` (``collapse`` or ``plateau``), ``active``, ``layers`` and a ``message``; where
            layers are inactive and something is left to try that was not the last to be named, ``remedy`` says what.
        """
        if record.get("kind") != self.kind or record.get("stage", "") != self.stage or not _whole(record):
            return []
        if not self.settled(record["step"], record["seconds"]):
            return []
        return [*self._collapse(record), *self._plateau(record)]

    def _collapse(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        least = self.config.collapse_nats
        terms = {name: -term for name, term in record["terms"].items() if name.startswith("kl/") and _number(term)}
        told = record.get("no_divergence")
        no_divergence = [name for name in terms if isinstance(told, list) and name in told]
        layers = inactive_layers(terms, no_divergence, least) if least else []
        if layers == self.inactive:
            return []
        self.inactive = layers
        of = f"of {len(terms)} latent layers"
        if not layers:
            message = f"no latent layer is inactive any more: KL divergences are at least {least:g} nats per image"
        elif set(layers) & set(no_divergence):
            message = f"all {len(terms)} latent layers are inactive: together below {least:g} nats per image"
        else:
            are = "is" if len(layers) == 1 else "are"
            message = f"{len(layers)} {of} {are} inactive, KL divergence below {least:g} nats: {', '.join(layers)}"
        change = {"what": "collapse", "active": bool(layers), "layers": layers, "message": message}
        remedy = self.remedy(layers) if layers else ""
        if remedy in ("", self.advice):
            return [change]
        self.advice = remedy
        return [{**change, "remedy": remedy}]

    def _plateau(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        patience = self.config.plateau_validations
        if not patience:
            return []
        value, was_flat = record.get("nats", record.get("loss")), self.since >= patience
        if self.best is None or value < self.best[0] - IMPROVEMENT * abs(self.best[0]):
            self.best, self.since = (value, record["step"]), 0
        else:
            self.since += 1
        flat = self.since >= patience
        if flat == was_flat:
            return []
        best, step = self.best
        what, number = ("bound", f"{best:.2f} nats") if "nats" in record else ("loss", f"{best:.4g}")
        if flat:
            message = (
                f"plateau: no better {self.kind} {what} than {number} (step {step}) in the last {patience} records"
            )
        else:
            message = f"plateau is over: the {self.kind} {what} is {number} (step {step})"
        return [{"what": "plateau", "active": flat, "layers": [], "message": message}]


def _whole(record: Mapping[str, Any]) -> bool:
    """Whether a record holds what is looked at: numbers that were not finite are null, and a file can be damaged."""
    return (
        _number(record.get("nats", record.get("loss")))
        and _number(record.get("seconds"))
        and isinstance(record.get("terms"), dict)
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""Learning curves of classifiers: cross entropy and error rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from davi.objectives.cross_entropy import ERROR
from davi.page import charts
from davi.page.blocks import Chart, Figure
from davi.page.charts import Curve, Mark
from davi.page.energy_curves import number

Records = Sequence[Mapping[str, Any]]


def class_figures(train: Records, validation: Records, marks: Sequence[Mark]) -> Iterator[Figure]:
    """Both, of a stage whose objective reports an error rate beside a loss in nats.

    Arguments:
        train, validation: records of one stage.
        marks: events, as they are drawn into all curves.
    """
    if not train or train[0].get("unit") != "nats" or ERROR not in _terms(train[0]):
        return
    reading = (
        "Training is the mean over the steps since the last point, in training mode, on augmented images and with the "
        "weights of the moment; validation is on held-out images, with averaged weights. Where validation turns up "
        "while training goes down, the network overfits: it becomes surer than it is right, often long before its "
        "error rate grows."
    )
    loss = _pair(train, validation, lambda record: record.get("loss"))
    yield Figure(
        "curve-loss",
        (Chart(charts.lines(loss, "cross entropy, nats", "step", marks, cut=True), _told(loss, "nats")),),
        "Cross entropy, minus log p(y | x), in nats; lower is better.",
        f"{reading} With label smoothing the training loss is that of the smoothed labels.",
        "",
    )
    wrong = _pair(train, validation, lambda record: _terms(record).get(ERROR), 100.0)
    yield Figure(
        "curve-error",
        (Chart(charts.lines(wrong, "error rate, %", "step", marks, cut=True), _told(wrong, "%")),),
        "Share of images that are put into a class other than their own.",
        reading,
        "The kind of figure shown in Deep Residual Learning for Image Recognition (He et al., CVPR 2016).",
    )


def _terms(record: Mapping[str, Any]) -> Mapping[str, Any]:
    terms = record.get("terms")
    return terms if isinstance(terms, Mapping) else {}


def _pair(train: Records, validation: Records, of: Any, factor: float = 1.0) -> list[Curve]:
    curves = []
    for label, records in (("training", train), ("validation", validation)):
        points = [(float(record["step"]), factor * of(record)) for record in records if number(of(record))]
        if points:
            curves.append(Curve(label, [x for x, _ in points], [y for _, y in points]))
    return curves


def _told(curves: Sequence[Curve], unit: str) -> str:
    parts = [f"{curve.label} goes from {curve.y[0]:.4g} to {curve.y[-1]:.4g}" for curve in curves]
    return f"Line chart over steps: {'; '.join(parts)} ({unit})."

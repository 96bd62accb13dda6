"""Learning curves: the metrics that the run recorded in training, and its rollbacks and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from davi.page import charts
from davi.page.blocks import Block, Chart, Figure, Fold, Prose, Section, Table
from davi.page.charts import PURPLE, VERMILION, Curve, Mark
from davi.page.class_curves import class_figures
from davi.page.code_curves import code_figures
from davi.page.contents import Contents
from davi.page.energy_curves import energy_figures
from davi.page.units import Unit

_MOST_EVENTS = 50
"""Rows: of more events the first and the last are shown."""

_WHAT = {"collapse": "inactive layers"}
"""Events by the names that the page gives them."""

Records = Sequence[Mapping[str, Any]]


def curves(contents: Contents, _: int) -> Section:
    """The cost of images (or the loss of an objective that makes no claim), KL divergence and, folded away, learning
    rate and events over steps; in a run of stages for each of them. What is no number in the records is left out.
    """
    records, title = contents.records, "Learning curves"
    train = [record for record in records if record.get("kind") == "train"]
    if not train:
        text = "Left out: the run has written no metrics; it was imported, or ended before its first line."
        return Section("curves", title, (Prose(text),))
    validation = [record for record in records if record.get("kind") == "validation"]
    events = [record for record in records if record.get("kind") in ("rollback", "watch")]
    shown: list[Block] = []
    rates: list[Block] = []
    stages = list(dict.fromkeys(str(record.get("stage", "")) for record in train))
    for number, stage in enumerate(stages, 1):
        of_train, of_validation, of_events = (_of_stage(found, stage) for found in (train, validation, events))
        marks = _marks(of_events)
        suffix, heading = (f"-{number}", f"Stage {stage}") if stage else ("", "")
        for figures, where in (
            (_figures(of_train, of_validation, marks, contents.unit), shown),
            (_rate(of_train, marks), rates),
        ):
            where += (replace(figure, name=figure.name + suffix, title=heading) for figure in figures)
    if rates:
        shown.append(Fold("Learning rate", tuple(rates)))
    if events:
        table = Table("Events", ("step", "event", "details"), tuple(_rows(events)))
        shown.append(Fold(f"Events during training: {_counted(events)}", (table,)))
    return Section("curves", title, tuple(shown))


def _of_stage(records: Records, stage: str) -> list[Mapping[str, Any]]:
    return [record for record in records if str(record.get("stage", "")) == stage]


def _marks(events: Records) -> list[Mark]:
    return [
        Mark("rollback", float(event["step"]), VERMILION)
        if event["kind"] == "rollback"
        else Mark("warning", float(event["step"]), PURPLE, short=True)
        for event in events
        if abs(event["step"]) < 2**53
    ]


def _counted(events: Records) -> str:
    rollbacks = sum(event["kind"] == "rollback" for event in events)
    parts = [(rollbacks, "rollback"), (len(events) - rollbacks, "warning")]
    return ", ".join(f"{n} {name}{'s' if n > 1 else ''}" for n, name in parts if n)


def _marked(marks: Sequence[Mark]) -> str:
    return " Vertical lines mark rollbacks, short ticks warnings; both are listed below." if marks else ""


def _figures(train: Records, validation: Records, marks: Sequence[Mark], unit: Unit) -> Iterator[Figure]:
    marked = _marked(marks)
    cost = [_scaled(curve, unit.of_bits) for curve in _pair(train, validation, "bits_per_dim")]
    energy = list(energy_figures(train, validation, marks, unit))
    yield from energy
    classes = list(class_figures(train, validation, marks))
    yield from classes
    loss = [] if cost or energy or classes else _pair(train, validation, "loss")
    if loss:
        yield Figure(
            "curve-loss",
            (Chart(charts.lines(loss, "loss", "step", marks, cut=True), _told(loss, "")),),
            "What the objective minimizes.",
            "This loss is not a likelihood; compare it only with itself over the steps." + marked,
            "",
        )
    if cost:
        yield _bound(cost, _is_of_codes(train), unit, marks)
    yield from code_figures(train, marks)
    kl = [_scaled(curve, unit.of_nats) for curve in _pair(train, validation, "kl")]
    if kl and _varies([value for curve in kl for value in curve.y]):
        label = f"KL divergence, {unit.name}"
        yield Figure(
            "curve-kl",
            (Chart(charts.lines(kl, label, "step", marks, cut=True), _told(kl, unit.name)),),
            "The part of it that the latents cost: KL divergence of all layers.",
            "The latents carry at most this much information about an image. Where the curve falls to zero all layers "
            "are inactive: posterior collapse." + marked,
            "The effect of warm-up that such a curve shows is discussed in Ladder Variational Autoencoders (Sønderby "
            "et al., NeurIPS 2016).",
        )


def _bound(cost: Sequence[Curve], of_codes: bool, unit: Unit, marks: Sequence[Mark]) -> Figure:
    """The curve of what is claimed."""
    whose = "Cost of the codes of an image, without its pixels," if of_codes else "Cost of an image"
    claim = (
        "What the codes take under their prior."
        if of_codes
        else "The claim of the model with one draw of its latents (for a variational autoencoder the ELBO)."
    )
    return Figure(
        "curve-bits",
        (Chart(charts.lines(cost, unit.name, "step", marks, cut=True), _told(cost, unit.name)),),
        f"{whose} in {unit.name}; lower is better.",
        f"{claim} Training is "
        "the mean over the steps since the last point, with the weights of the moment; validation is on held-out "
        "images, with averaged weights. Where validation turns up while training goes down, the model overfits. "
        "Values of the first tenth of the steps may lie above the frame." + _marked(marks),
        "Papers about such models show such curves, or the number at their end.",
    )


def _is_of_codes(train: Records) -> bool:
    """Whether the prior of a quantized model is trained, which sees codes and no pixels."""
    terms = train[-1].get("terms")
    return isinstance(terms, Mapping) and bool(terms) and all(str(name).startswith("codes/") for name in terms)


def _rate(train: Records, marks: Sequence[Mark]) -> Iterator[Figure]:
    rate = [Curve("learning rate", *_series(train, "learning_rate"))]
    if rate[0].x:
        yield Figure(
            "curve-rate",
            (Chart(charts.lines(rate, "learning rate", "step", marks), _told(rate, "")),),
            "Learning rate, as the schedule of the recipe sets it.",
            "After a rollback training goes on with a smaller learning rate.",
            "",
        )


def _varies(values: Sequence[float]) -> bool:
    """Whether there is a curve to see: codes cost the same for all weights while all are equally probable."""
    return any(values) and max(values) - min(values) > 1e-5 * max(map(abs, values))


def _scaled(curve: Curve, to: Callable[[float], float]) -> Curve:
    return replace(curve, y=[to(value) for value in curve.y])


def _pair(train: Records, validation: Records, key: str) -> list[Curve]:
    both = [Curve("training", *_series(train, key)), Curve("validation", *_series(validation, key))]
    return [curve for curve in both if curve.x]


def _series(records: Records, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records in which both are numbers that can be drawn."""
    points = [
        (float(record["step"]), float(record[key]))
        for record in records
        if _drawable(record["step"]) and _drawable(record.get(key))
    ]
    return [x for x, _ in points], [y for _, y in points]


def _drawable(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < 1e15 and math.isfinite(value)


def _told(curves: Sequence[Curve], unit: str) -> str:
    parts = [
        f"{curve.label} goes from {curve.y[0]:.4g} at step {curve.x[0]:.0f} to {curve.y[-1]:.4g} at step "
        f"{curve.x[-1]:.0f}"
        for curve in curves
    ]
    return "Line chart over steps: " + "; ".join(parts) + (f" ({unit})." if unit else ".")


def _rows(events: Records) -> Iterator[tuple[str, str, str]]:
    shown: list[Mapping[str, Any] | None] = list(events)
    if len(events) > _MOST_EVENTS:
        half = _MOST_EVENTS // 2
        shown = [*events[:half], None, *events[-half:]]
    for event in shown:
        if event is None:
            yield "", f"{len(events) - 2 * (_MOST_EVENTS // 2)} more", ""
            continue
        if event["kind"] == "rollback":
            details = (
                f"failed at step {event.get('failed_step')} in {event.get('where')}; went back to step {event['step']} "
                f"and on with the learning rate times {event.get('learning_rate_factor')}"
            )
            yield str(event["step"]), "rollback", details
        else:
            what = str(event.get("what", "warning"))
            yield str(event["step"]), _WHAT.get(what, what), str(event.get("message", ""))

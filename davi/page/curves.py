"""Learning curves: what the run wrote down while it was trained, and what happened on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from davi.page import charts
from davi.page.blocks import Block, Chart, Figure, Prose, Section, Table
from davi.page.charts import PURPLE, VERMILION, Curve, Mark

_MOST_EVENTS = 50
"""Rows: a run in which more happened is told by its first and last."""

_WHAT = {"collapse": "inactive layers"}
"""What the records call otherwise."""

Records = Sequence[Mapping[str, Any]]


def curves(records: Records) -> Section:
    """Bits per dimension (or the loss of an objective that makes no claim), KL divergence and learning rate over steps,
    with rollbacks and warnings; in a run of stages for each of them.

    Arguments:
        records: the lines of ``metrics.jsonl``; what is no number in them is left out.
    """
    title = "Learning curves"
    train = [record for record in records if record.get("kind") == "train"]
    if not train:
        text = "Left out: the run has written no metrics; it was imported, or ended before its first line."
        return Section("curves", title, (Prose(text),))
    validation = [record for record in records if record.get("kind") == "validation"]
    events = [record for record in records if record.get("kind") in ("rollback", "watch")]
    blocks: list[Block] = []
    stages = list(dict.fromkeys(str(record.get("stage", "")) for record in train))
    for number, stage in enumerate(stages, 1):
        own = (_of_stage(found, stage) for found in (train, validation, events))
        suffix, title = (f"-{number}", f"Stage {stage}") if stage else ("", "")
        blocks += (replace(figure, name=figure.name + suffix, title=title) for figure in _figures(*own))
    if events:
        blocks.append(Table("What happened on the way", ("step", "event", "details"), tuple(_rows(events))))
    else:
        text = "No rollback, no inactive layer, no plateau."
        blocks.append(Prose(text))
    return Section("curves", title, tuple(blocks))


def _of_stage(records: Records, stage: str) -> list[Mapping[str, Any]]:
    return [record for record in records if str(record.get("stage", "")) == stage]


def _figures(train: Records, validation: Records, events: Records) -> Iterator[Figure]:
    marks = [
        Mark("rollback", float(event["step"]), VERMILION)
        if event["kind"] == "rollback"
        else Mark("warning of the monitor", float(event["step"]), PURPLE)
        for event in events
        if abs(event["step"]) < 2**53
    ]
    marked = " Upright lines are rollbacks and warnings; the table below tells of each." if marks else ""
    bits = _pair(train, validation, "bits_per_dim")
    loss = [] if bits else _pair(train, validation, "loss")
    if loss:
        yield Figure(
            "curve-loss",
            (Chart(charts.lines(loss, "loss", "step", marks, cut=True), _told(loss, "")),),
            "How to read it: what the objective minimizes. It is no probability of images, and can be compared with "
            "itself over the steps alone." + marked,
            "What the loss is, the paper of the objective says.",
        )
    if bits:
        yield Figure(
            "curve-bits",
            (Chart(charts.lines(bits, "bits/dim", "step", marks, cut=True), _told(bits, "bits/dim")),),
            "How to read it: lower is better. Both are the claim of the model with one draw of its latents (for a "
            "variational autoencoder the ELBO, a lower bound). Training is the mean over the steps since the last "
            "point, with the weights of the moment; validation is on images kept apart, with averaged weights. Where "
            "validation turns up while training goes down, the model learns its images by heart. Values of the first "
            "tenth of the steps may lie above the frame." + marked,
            "Every paper of the family shows such curves, or the number at their end.",
        )
    kl = _pair(train, validation, "kl")
    if kl and any(value for curve in kl for value in curve.y):
        yield Figure(
            "curve-kl",
            (Chart(charts.lines(kl, "KL divergence, nats per image", "step", marks, cut=True), _told(kl, "nats")),),
            "How to read it: what the latents of all layers together cost; they say no more than that about an image. "
            "Where the curve falls to zero all layers are inactive (posterior collapse): the model has given its "
            "latents up." + marked,
            "The effect of warm-up that such a curve shows is discussed in Ladder Variational Autoencoders (Sønderby "
            "et al., NeurIPS 2016).",
        )
    rate = [Curve("learning rate", *_series(train, "learning_rate"))]
    if rate[0].x:
        yield Figure(
            "curve-rate",
            (Chart(charts.lines(rate, "learning rate", "step", marks), _told(rate, "")),),
            "How to read it: the step size of the optimizer, as the schedule of the recipe sets it. A rollback "
            "continues with a smaller one." + marked,
            "The papers give the schedule in words.",
        )


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

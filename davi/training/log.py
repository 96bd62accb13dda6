"""The log of a run: lines in ``metrics.jsonl``, and a bar on a terminal or plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from davi.evidence import Kind, bits_per_dim
from davi.formatting import duration
from davi.metrics import Metrics
from davi.progress import Bar
from davi.runs import PrintFunction
from davi.training.tensorboard import Board


def summary(
    terms: Mapping[str, float], dims: int, no_divergence: Collection[str] = (), claim: Kind | None = Kind.LOWER_BOUND
) -> dict[str, Any]:
    """Means of an objective's terms as the log reports them.

    Arguments:
        terms: mean of each term over images, nats.
        dims: values in one image.
        no_divergence: names of the terms ``kl/..`` that are no KL divergences
            (``Evidence.no_divergence``).
        claim: None if the terms are not about log p(x): then they are all that is reported.

    Returns:
        ``nats`` (minus the sum of the terms: the negative bound, per image), ``bits_per_dim`` of the same,
        ``kl`` (minus the sum of all terms ``kl/..``: the KL divergence of all latents together, nats), the ``terms``,
        and ``no_divergence``, if there are any.
    """
    if claim is None:
        return {"terms": dict(terms)}
    total = sum(terms.values())
    kl = -sum(value for name, value in terms.items() if name.startswith("kl/"))
    told = {"no_divergence": sorted(no_divergence)} if no_divergence else {}
    return {"nats": -total, "bits_per_dim": bits_per_dim(total, dims), "kl": kl, "terms": dict(terms), **told}


_WORDS = {
    "log_likelihood": "log p(x)",
    "gap": "gap to training images",
    "log_z": "log Z",
    "effective_samples": "effective chains",
    "swap_acceptance": "swaps accepted",
    "levels": "levels",
}
"""Records of objectives without a claim that the user is told, by the names that they get."""


def _step(record: Mapping[str, Any]) -> str:
    stage = f"{record['stage']}: " if record.get("stage") else ""
    return f"{stage}step {record['step']}" + (f"/{record['total_steps']}" if record.get("total_steps") else "")


def _numbers(record: Mapping[str, Any], gap: str = "  ") -> str:
    """The claim in both units; of an objective that makes none its loss, its terms, and what else it reports."""
    if "nats" in record:
        return f"{record['nats']:.2f} nats{gap}{record['bits_per_dim']:.3f} bits/dim"
    terms = {name.replace("_", " "): value for name, value in record["terms"].items()}
    more = {words: record[name] for name, words in _WORDS.items() if name in record}
    if record.get("stage") and "log p(x)" in more:  # a stage may train a layer, whose input is no image
        more = {"log p(its input)" if words == "log p(x)" else words: value for words, value in more.items()}
    told = {name: f"{value:.4g}" for name, value in (terms | more).items()}
    loss = f"{record['loss']:.4g}"
    if loss not in [told[name] for name in terms]:  # as they are shown: means are taken in another order
        told = {"loss": f"{loss} {record['unit']}" if record.get("unit") else loss, **told}
    return gap.join(f"{name} {text}" for name, text in told.items())


def _divergence(record: Mapping[str, Any]) -> str:
    has_latents = any(name.startswith("kl/") for name in record["terms"])
    return f"  kl {record['kl']:.2f}" if has_latents else ""


def train_line(record: Mapping[str, Any]) -> str:
    """One plain line for a record of the kind ``train``."""
    return (
        f"{_step(record)}  epoch {record['epoch']}  {_numbers(record)}{_divergence(record)}  "
        f"lr {record['learning_rate']:.2e}  {record['images_per_second']:.0f} images/s  "
        f"{duration(record['seconds_left'])} left" + (f"  {record['skipped']} skipped" if record["skipped"] else "")
    )


def pace_line(record: Mapping[str, Any]) -> str:
    """How fast it goes and how long it will take, before there is anything else to tell."""
    return f"{_step(record)}  {record['images_per_second']:.3g} images/s  {duration(record['seconds_left'])} left"


def bar_line(record: Mapping[str, Any]) -> str:
    """The same, short enough to stand beside a bar."""
    rate = f"{record['images_per_second']:.0f} im/s"
    return f"{_step(record)} {_numbers(record, ' ')} {rate} {duration(record['seconds_left'])} left"


def validation_line(record: Mapping[str, Any]) -> str:
    """One plain line for a record of the kind ``validation``."""
    stage = f"{record['stage']}: " if record.get("stage") else ""
    return (
        f"{stage}validation at step {record['step']}: {_numbers(record)}{_divergence(record)}  "
        f"({record['images']} image{'s' * (record['images'] != 1)}, averaged weights)"
    )


class Log(AbstractContextManager["Log"]):
    """Writes records and tells the user; on a terminal with a bar that shows the share of the budget used.

    Arguments:
        metrics: where records go.
        print_fn: takes plain lines. The bar appears only when lines go to ``print`` and standard output is a terminal.
        board: where records go as well.
    """

    def __init__(self, metrics: Metrics, print_fn: PrintFunction, board: Board | None = None) -> None:
        self.metrics = metrics
        self.board = board
        self._print_fn = print_fn
        text = TextColumn("{task.percentage:>3.0f}% {task.description}", markup=False)
        columns = (BarColumn(bar_width=12), text, TimeElapsedColumn())
        self._bar = Bar(*columns, words="starting", wanted=print_fn is print)
        self._last: dict[str, Any] | None = None
        """The last record of the kind ``train``; or, in a pipe, that the pace was told before there was one."""

    def __enter__(self) -> Log:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
        try:
            self.metrics.close()
        finally:
            if self.board is not None:
                self.board.close()

    def say(self, line: str) -> None:
        """A line for the user alone."""
        if self._bar.shown:
            self._bar.print(line)
        else:
            self._print_fn(line)

    def advance(self, fraction: float) -> None:
        """Move the bar; costs nothing in a pipe."""
        self._bar.update(fraction)

    def pace(self, step: int, **values: Any) -> None:
        """How fast it goes, for the user alone: beside the bar, in a pipe only until there is a record to print."""
        now = {"step": step, **values}
        if self._bar.shown:
            self._bar.update(words=pace_line(now) if self._last is None else bar_line({**self._last, **now}))
        elif self._last is None:
            self._last = now
            self._print_fn(pace_line(now))

    def train(self, step: int, **values: Any) -> None:
        """Means since the last such record; on a terminal they stand beside the bar."""
        self.event("train", step, **values)
        record = self._last = {"step": step, **values}
        if self._bar.shown:
            self._bar.update(words=bar_line(record))
        else:
            self._print_fn(train_line(record))

    def validation(self, step: int, **values: Any) -> None:
        """A result on the validation images."""
        self.event("validation", step, **values)
        self.say(validation_line({"step": step, **values}))

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Anything else, for the records alone."""
        self.metrics.write(kind, step, **values)
        if self.board is not None:
            self.board.write(kind, step, values)

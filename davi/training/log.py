"""What a run says while it works: lines in ``metrics.jsonl``, and a bar on a terminal or plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from davi.evidence import bits_per_dim
from davi.formatting import duration
from davi.progress import Bar
from davi.runs import Metrics, PrintFunction
from davi.training.tensorboard import Board


def summary(terms: Mapping[str, float], dims: int, no_divergence: Collection[str] = ()) -> dict[str, Any]:
    """Means of an evidence's terms as the log reports them.

    Arguments:
        terms: mean of each term over images, nats.
        dims: values in one image.
        no_divergence: names of the terms ``kl/..`` that are no KL divergences
            (``Evidence.no_divergence``).

    Returns:
        ``nats`` (minus the sum of the terms: the negative bound, per image), ``bits_per_dim`` of the same,
        ``kl`` (minus the sum of all terms ``kl/..``: the KL divergence of all latents together, nats), the ``terms``,
        and ``no_divergence``, if there are any.
    """
    total = sum(terms.values())
    kl = -sum(value for name, value in terms.items() if name.startswith("kl/"))
    told = {"no_divergence": sorted(no_divergence)} if no_divergence else {}
    return {"nats": -total, "bits_per_dim": bits_per_dim(total, dims), "kl": kl, "terms": dict(terms), **told}


def train_line(record: Mapping[str, Any]) -> str:
    """One plain line for a record of the kind ``train``."""
    step = f"step {record['step']}" + (f"/{record['total_steps']}" if record["total_steps"] else "")
    return (
        f"{step}  epoch {record['epoch']}  {record['nats']:.2f} nats  {record['bits_per_dim']:.3f} bits/dim  "
        f"kl {record['kl']:.2f}  lr {record['learning_rate']:.2e}  {record['images_per_second']:.0f} images/s  "
        f"{duration(record['seconds_left'])} left" + (f"  {record['skipped']} skipped" if record["skipped"] else "")
    )


def bar_line(record: Mapping[str, Any]) -> str:
    """The same, short enough to stand beside a bar."""
    step = f"step {record['step']}" + (f"/{record['total_steps']}" if record["total_steps"] else "")
    numbers = f"{record['nats']:.2f} nats {record['bits_per_dim']:.3f} bits/dim {record['images_per_second']:.0f} im/s"
    return f"{step} {numbers} {duration(record['seconds_left'])} left"


def validation_line(record: Mapping[str, Any]) -> str:
    """One plain line for a record of the kind ``validation``."""
    return (
        f"validation at step {record['step']}: {record['nats']:.2f} nats  {record['bits_per_dim']:.3f} bits/dim  "
        f"kl {record['kl']:.2f}  ({record['images']} image{'s' * (record['images'] != 1)}, averaged weights)"
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

    def train(self, step: int, **values: Any) -> None:
        """Means since the last such record; on a terminal they stand beside the bar."""
        self.event("train", step, **values)
        record = {"step": step, **values}
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

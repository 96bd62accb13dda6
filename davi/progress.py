"""Progress of long work: a bar on a terminal, and for the verbs of the program a line now and then in a pipe."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

_QUIET_SECONDS = 5.0
"""In a pipe there is a line of progress no more often than this, and none for quick work."""


class Bar(AbstractContextManager["Bar"]):
    """A bar with words beside it while a ``with`` block lasts; none where the stream is no terminal.

    Arguments:
        columns: what stands in the line; the words are ``task.description``.
        words: at first.
        stderr: the stream is standard error, else standard output.
        wanted: whether there may be a bar at all.
        transient: the bar goes when the block ends.
    """

    def __init__(
        self,
        *columns: ProgressColumn,
        words: str = "",
        stderr: bool = False,
        wanted: bool = True,
        transient: bool = False,
    ) -> None:
        self._progress: Progress | None = None
        if wanted and (sys.stderr if stderr else sys.stdout).isatty():
            self._progress = Progress(*columns, console=Console(stderr=stderr), transient=transient)
            self._task = self._progress.add_task(words, total=1.0)

    @property
    def shown(self) -> bool:
        """Whether there is a bar."""
        return self._progress is not None

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, share: float | None = None, words: str | None = None) -> None:
        """Move the bar to a share of the whole, and change the words; costs nothing without a bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=share, description=words)

    def print(self, line: str) -> None:
        """A line above the bar, as it is."""
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """Progress of long work on standard error: a bar on a terminal, else a line now and then.

    Arguments:
        what: a word for the work.
        images: number of images, for the rate; None where the total of the work is that number.
    """

    def __init__(self, what: str, images: int | None = None) -> None:
        self._what, self._images = what, images
        self._began = self._said = time.monotonic()
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Bar(*columns, stderr=True, transient=True)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def __call__(self, done: int, total: int) -> None:
        """So much of the whole is done."""
        now = time.monotonic()
        share, seconds = done / total, max(now - self._began, 1e-9)
        rate = f"{share * (self._images or total) / seconds:.3g} images/s"
        if self._bar.shown:
            self._bar.update(share, rate)
        elif now - self._said >= _QUIET_SECONDS and done:
            self._said = now
            left = seconds * (1.0 - share) / share
            print(f"{self._what}: {100 * share:.0f} %, {rate}, {left:.0f} s left", file=sys.stderr)

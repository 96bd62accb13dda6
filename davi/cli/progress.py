"""Progress of long work, for all verbs."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_QUIET_SECONDS = 5.0
"""In a pipe there is a line of progress no more often than this, and none for quick work."""


class ProgressBar:
    """Progress of long work on standard error: a bar on a terminal, else a line now and then.

    Arguments:
        what: a word for the work.
        images: number of images, for the rate; None where the total of the work is that number.
    """

    def __init__(self, what: str, images: int | None = None) -> None:
        self._what, self._images = what, images
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=1.0, rate="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """So much of the whole is done."""
        now = time.monotonic()
        share, seconds = done / total, max(now - self._began, 1e-9)
        rate = f"{share * (self._images or total) / seconds:.3g} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=share, rate=rate)
        elif now - self._said >= _QUIET_SECONDS and done:
            self._said = now
            left = seconds * (1.0 - share) / share
            print(f"{self._what}: {100 * share:.0f} %, {rate}, {left:.0f} s left", file=sys.stderr)

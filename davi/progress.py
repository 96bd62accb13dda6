"""Progress of long work: a bar on a terminal or in a notebook, and for the verbs of the program a line now and then in
a pipe."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from html import escape
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

_QUIET_SECONDS = 5.0
"""In a pipe there is a line of progress no more often than this, and none for quick work."""


_REDRAWN_SECONDS = 0.2
"""A notebook gets a new picture of its bar no more often than this."""


def _display() -> Callable[..., Any] | None:
    """What shows a thing below a notebook's cell, as IPython has it; None elsewhere."""
    ipython = sys.modules.get("IPython")  # a notebook has imported it
    shell = None if ipython is None else ipython.get_ipython()
    return ipython.display.display if ipython is not None and hasattr(shell, "kernel") else None


class NotebookBar:
    """A bar below the cell of a notebook. It needs no widgets, so that it is seen in every front end and in what is
    exported.

    Arguments:
        display: IPython's function of that name.
        words: beside the bar at first.
        transient: the bar goes when it is finished.
    """

    def __init__(self, display: Callable[..., Any], words: str, transient: bool) -> None:
        self._display, self._words, self._transient = display, words, transient
        self._share, self._drawn = 0.0, -_REDRAWN_SECONDS
        self._id = uuid.uuid4().hex

    def start(self) -> None:
        """Show the bar."""
        self._draw(self._content(), update=False)

    def update(self, share: float | None, words: str | None) -> None:
        """Move the bar to a share of the whole, and change the words."""
        self._share = self._share if share is None else share
        self._words = self._words if words is None else words
        if time.monotonic() - self._drawn >= _REDRAWN_SECONDS:
            self._draw(self._content())

    def stop(self) -> None:
        """Draw the bar for the last time, or remove it."""
        self._draw({"text/plain": "", "text/html": ""} if self._transient else self._content())

    def _content(self) -> dict[str, str]:
        """The bar for front ends that know HTML, and for those that do not."""
        text = f"{100 * self._share:.0f}% {self._words}"
        bar = f'<progress value="{self._share:.4f}" max="1"></progress> <code>{escape(text)}</code>'
        return {"text/plain": text, "text/html": bar}

    def _draw(self, content: dict[str, str], update: bool = True) -> None:
        self._drawn = time.monotonic()
        self._display(content, raw=True, display_id=self._id, update=update)


class Bar(AbstractContextManager["Bar"]):
    """A bar with words beside it while a ``with`` block lasts; none where the stream is no terminal and no notebook.

    Arguments:
        columns: what stands in the line on a terminal; the words are ``task.description``.
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
        self._notebook: NotebookBar | None = None
        if wanted and (display := _display()) is not None:
            self._notebook = NotebookBar(display, words, transient)
        elif wanted and (sys.stderr if stderr else sys.stdout).isatty():
            self._progress = Progress(*columns, console=Console(stderr=stderr), transient=transient)
            self._task = self._progress.add_task(words, total=1.0)

    @property
    def shown(self) -> bool:
        """Whether there is a bar."""
        return self._progress is not None or self._notebook is not None

    @property
    def in_notebook(self) -> bool:
        """Whether the bar is one in a notebook, which has no columns but its words."""
        return self._notebook is not None

    def __enter__(self) -> Self:
        if (bar := self._progress or self._notebook) is not None:
            bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if (bar := self._progress or self._notebook) is not None:
            bar.stop()

    def update(self, share: float | None = None, words: str | None = None) -> None:
        """Move the bar to a share of the whole, and change the words; costs nothing without a bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=share, description=words)
        elif self._notebook is not None:
            self._notebook.update(share, words)

    def print(self, line: str) -> None:
        """A line above the bar, as it is."""
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        elif self._notebook is not None:
            print(line)


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """Progress of long work on standard error: a bar on a terminal or in a notebook, else a line now and then.

    Arguments:
        what: a word for the work.
        images: number of images, for the rate; None where the total of the work is that number.
        unit: that the rate counts.
    """

    def __init__(self, what: str, images: int | None = None, unit: str = "images") -> None:
        self._what, self._images, self._unit = what, images, unit
        self._began = self._said = time.monotonic()
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Bar(*columns, words="" if _display() is None else what, stderr=True, transient=True)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def __call__(self, done: int, total: int) -> None:
        """So much of the whole is done."""
        now = time.monotonic()
        share, seconds = done / total, max(now - self._began, 1e-9)
        rate = f"{share * (self._images or total) / seconds:.3g} {self._unit}/s"
        left = f"{seconds * (1.0 - share) / share:.0f} s left" if done else ""
        if self._bar.in_notebook:
            self._bar.update(share, f"{self._what}, {rate}, {left}")
        elif self._bar.shown:
            self._bar.update(share, rate)
        elif now - self._said >= _QUIET_SECONDS and done:
            self._said = now
            print(f"{self._what}: {100 * share:.0f} %, {rate}, {left}", file=sys.stderr)


def part_of(progress: Callable[[int, int], None], part: int, parts: int) -> Callable[[int, int], None]:
    """What is told about one of several equal parts of some work, as progress of the whole."""
    return lambda done, total: progress(part * total + done, parts * total)

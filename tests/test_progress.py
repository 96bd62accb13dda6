"""The bar on a terminal and the lines in a pipe."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from davi import progress
from davi.progress import ProgressBar


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def work(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    """What is said about 40 images, a quarter of which takes 4 seconds."""
    now = 100.0
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with ProgressBar("evaluating", 40) as bar:
        for quarter in range(1, 5):
            now += 4.0
            bar(quarter, 4)
    monkeypatch.undo()
    return stream.getvalue()


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = work(monkeypatch, io.StringIO()).splitlines()
    # After 4 and 12 s, fewer than 5 have gone by since something was said.
    expected = ["evaluating: 50 %, 2.5 images/s, 8 s left", "evaluating: 100 %, 2.5 images/s, 0 s left"]
    assert lines == expected


def test_a_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = work(monkeypatch, Terminal())
    assert "evaluating" in text
    assert "2.5 images/s" in text
    assert "0:00:00" in text  # of the last picture: nothing is left
    assert "s left" not in text


def test_a_notebook_gets_a_bar_without_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[dict[str, str], bool]] = []
    ids = set()

    def display(content: dict[str, str], raw: bool, display_id: str, update: bool) -> None:
        assert raw
        ids.add(display_id)
        shown.append((content, update))

    shell = SimpleNamespace(kernel=object())
    ipython = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert work(monkeypatch, io.StringIO()) == ""  # no lines beside it
    assert len(ids) == 1
    assert [update for _, update in shown] == [False, True, True, True, True, True]
    texts = [content["text/plain"] for content, _ in shown]
    assert texts[2] == "50% evaluating, 2.5 images/s, 8 s left"
    assert texts[-1] == ""  # it goes when the work is done
    assert '<progress value="0.5000"' in shown[2][0]["text/html"]


def test_a_console_of_ipython_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=SimpleNamespace))
    assert "2.5 images/s" in work(monkeypatch, Terminal())

"""The program as a process of a study: it ends when its standard input is closed (:mod:`davi.study.turns`).

python -m davi.cli.child VERB ...
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from davi.cli import main

PATIENCE = 60.0
"""Seconds for which a training may load its images, or save its state if it has been asked to end before."""


def run(words: Sequence[str], pipe: int) -> int:
    """Run the program; the exit status.

    Arguments:
        words: after ``davi``.
        pipe: descriptor that is read until it is closed. Then a training saves its state and ends, and whatever else is
            done ends at once.
    """
    threading.Thread(target=_watch, args=(pipe, words[:1] == ["train"]), daemon=True).start()
    return main(words)


def _watch(pipe: int, trains: bool) -> None:
    while os.read(pipe, 4096):
        pass
    end = time.monotonic() + PATIENCE
    # A training that has no handler of signals has not begun to step, or has had one and saves its state: a second
    # signal would end it at once.
    while trains and not callable(signal.getsignal(signal.SIGTERM)) and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], sys.stdin.fileno()))

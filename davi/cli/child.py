"""The program as a process of a study: it ends when its standard input is closed (:mod:`davi.study.turns`).

python -m davi.cli.child VERB ...
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

from davi.cli import main


def run(words: Sequence[str], pipe: int) -> int:
    """Run the program; the exit status.

    Arguments:
        words: after ``davi``.
        pipe: descriptor that is read until it is closed. Then a training saves its state and ends, and whatever else is
            done ends at once.
    """
    threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
    return main(words)


def _watch(pipe: int) -> None:
    while os.read(pipe, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], sys.stdin.fileno()))

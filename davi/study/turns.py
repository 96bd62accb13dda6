"""Turns: the program at work on one arm, in a process of its own.

A process of its own gives back all of its memory, its peak and its time can be told, and what goes wrong in one arm
does not stop the others. It ends with the process that began it: its standard input is a pipe, and when that is closed,
by whatever end of the other process, a training saves its state and ends (``davi.cli.child``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_BYTES = 1 if sys.platform == "darwin" else 1024
"""What the system counts a peak of memory in."""


@dataclass(frozen=True)
class Ended:
    """How a turn ended.

    Arguments:
        status: of the process; negative: the signal that killed it.
        seconds: on the clock.
        cpu_seconds: of all its threads.
        peak_mib: the most memory that it held.
    """

    status: int
    seconds: float
    cpu_seconds: float
    peak_mib: float


class Child:
    """A process that works on an arm.

    Arguments:
        process: its number.
        pipe: the end of the pipe that it waits on; closed, it ends.
    """

    def __init__(self, process: int, pipe: IO[bytes]) -> None:
        self.process, self.pipe = process, pipe
        self._began = time.monotonic()
        self._ended: Ended | None = None

    def ended(self, wait: bool = False) -> Ended | None:
        """How it ended; None while it works.

        Arguments:
            wait: until it has ended.
        """
        if self._ended is None:
            found, status, usage = os.wait4(self.process, 0 if wait else os.WNOHANG)
            if found:
                cpu = usage.ru_utime + usage.ru_stime
                seconds = time.monotonic() - self._began
                peak = usage.ru_maxrss * _BYTES / 2**20
                self._ended = Ended(os.waitstatus_to_exitcode(status), seconds, cpu, peak)
        return self._ended

    def stop(self) -> None:
        """Ask it to save its state and end."""
        os.kill(self.process, signal.SIGTERM)

    def close(self) -> None:
        """Close the pipe, and wait for its end."""
        self.pipe.close()
        self.ended(wait=True)


def start(words: Sequence[str], log: Path) -> Child:
    """Begin a process of ``davi``.

    Arguments:
        words: after ``davi``.
        log: the file to which it appends what it says.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "davi.cli.child", *words]
    with log.open("ab") as file:
        # In a session of its own, an interruption from the keyboard reaches it once, by the pipe.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    assert process.stdin is not None
    process.returncode = 0  # it is waited for by its number, as other processes are
    return Child(process.pid, process.stdin)


def last_words(log: Path, start: int = 0) -> str:
    """The message of an error, or else the last line that was said.

    Another process may have begun to work on the same arm, and write into the same log.

    Arguments:
        log: of the arm.
        start: bytes of it that are older.
    """
    text = log.read_bytes()[start:].decode("utf-8", errors="replace") if log.is_file() else ""
    said = [line for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("davi: ") for line in said if line.startswith("davi: ")]
    return (errors or said or ["ended without a message"])[-1]

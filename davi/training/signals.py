"""SIGINT and SIGTERM: a run finishes its step, saves and ends."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):  # noqa: N818  # not an error: somebody asked for it, and all is saved
    """Training was asked to end, and its state is saved.

    Arguments:
        number: the signal.
        step: steps done.
        checkpoint: where the state is.
    """

    def __init__(self, number: int, step: int, checkpoint: Path) -> None:
        name = signal.Signals(number).name
        super().__init__(f"{name}: saved {checkpoint} after step {step}; go on with --resume")
        self.number = number
        self.step = step
        self.checkpoint = checkpoint

    @property
    def exit_code(self) -> int:
        """The exit status of the program, by convention: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class Signals(AbstractContextManager["Signals"]):
    """Records that a signal came. A second one has its usual effect.

    Only the main thread of a program may handle signals; in another thread nothing is changed.

    Arguments:
        patient: remember further signals, too. One Ctrl-C reaches a launched process from the terminal and once more
            from its launcher.
    """

    def __init__(self, patient: bool = False) -> None:
        self.received: int | None = None
        self._patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

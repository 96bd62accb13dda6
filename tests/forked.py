"""The program, or a function, in a process of its own, forked from one that has imported everything and done nothing.

A start of the interpreter and the imports take seconds, a fork milliseconds; and what the test process has done before
(threads, gradients, captured streams) is not inherited.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

VERBS = ("compare", "evaluate", "import_", "inspect", "recipes", "reconstruct", "sample", "train")
MODULES = [
    *(f"davi.cli.{verb}" for verb in VERBS),
    "davi.published.attentive.files",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "torch.fx.experimental.symbolic_shapes",  # torch imports these two and sympy at the first use of its meta device
    "torch._dynamo",
]
assert all(map(find_spec, MODULES))  # those that are not there would be left out in silence, and imported in each fork
SECONDS = 10.0
"""No malformed input may keep the program longer than this."""


@dataclass(frozen=True)
class Ended:
    """How the program ended: its exit status (None: it had to be killed), what it wrote, and the seconds it took."""

    status: int | None
    out: str
    err: str
    seconds: float


def davi(words: list[str], folder: Path) -> Ended:
    """Run ``davi`` with these words, in this folder, for :data:`SECONDS` at most."""
    return ended(*begin(_davi, words, folder=folder), SECONDS)


def call(function: Callable[..., int | None], *given: Any, folder: Path, seconds: float = 300.0) -> Ended:
    """Call a function of a module, whose result is the exit status, in this folder, for so long at most."""
    return ended(*begin(function, *given, folder=folder), seconds)


def begin(function: Callable[..., int | None], *given: Any, folder: Path) -> tuple[BaseProcess, list[Path]]:
    """The process that calls a function in a folder, and the files of what it writes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    paths = [folder / f".{name}" for name in ("out", "err")]
    process = context.Process(target=_child, args=(function, given, folder, *paths, dict(os.environ)))
    process.start()  # returns when the process is there; the first time the imports come before
    return process, paths


def ended(process: BaseProcess, paths: list[Path], limit: float) -> Ended:
    """Wait for the end."""
    begun = time.monotonic()
    process.join(limit)
    seconds = time.monotonic() - begun
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    texts = [path.read_text(encoding="utf-8", errors="replace") if path.exists() else "" for path in paths]
    for path in paths:
        path.unlink(missing_ok=True)
    return Ended(status, texts[0], texts[1], seconds)


def _child(
    function: Callable[..., int | None],
    given: tuple[Any, ...],
    folder: Path,
    out: Path,
    err: Path,
    environment: dict[str, str],
) -> None:
    os.chdir(folder)
    os.environ.clear()  # that of the first test
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, descriptor)
        os.close(target)
    # Those of the first process know whether the files that it had begun with can be sought in. By lines: a process
    # that is killed has said what it has said.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, encoding="utf-8", closefd=False) for number in (1, 2))
    import torch

    torch.set_num_threads(1)
    sys.exit(function(*given))


def _davi(words: list[str]) -> int:
    from davi.cli import main

    return main(words)

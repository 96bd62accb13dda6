"""Faults put into the mathematics on purpose: do the tests that should notice one notice it?

Run by hand, some minutes:

::

    python tests/mutants.py                      all of them
    python tests/mutants.py NAME ...             some of them
    python tests/mutants.py --list               their names, files and tests
    python tests/mutants.py --jobs 2             two at a time

The package and its tests are copied to a temporary folder; this tree is never changed. There the named tests are run
once without any fault, and must pass. Then each fault is put in on its own and the tests that it names are run.

``killed``: one of the tests failed. ``survived``: all of them passed, so that the fault could come in unnoticed.
``broken``: nothing was learned about the tests, because the text is no longer in the file, the tests fail without the
fault, or the changed program could not be run at all. The exit status is 0 if every fault was killed.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import queue
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from mutants_codes import CODES
from mutants_kinds import KINDS
from mutants_networks import NETWORKS
from mutants_numbers import NUMBERS, Mutant

MUTANTS = (*NUMBERS, *NETWORKS, *KINDS, *CODES)
ROOT = Path(__file__).resolve().parents[1]
COPIED = ("davi", "tests", "pyproject.toml")
LONGEST = 180
"""Seconds that the tests of one fault may take; they need a few."""

Fate = Literal["killed", "survived", "broken"]

_NO_ANSWER = ("NameError", "ImportError", "ModuleNotFoundError", "SyntaxError", "AttributeError", "UnboundLocalError")
"""What a test fails with when the changed program makes no sense, rather than computes something else."""


class Outcome(NamedTuple):
    """What became of a fault.

    Arguments:
        fate: see the module docstring.
        why: the test that failed, or what is broken.
        seconds: for its tests.
    """

    fate: Fate
    why: str
    seconds: float


_SERVER = multiprocessing.get_context("forkserver")
_IMPORTED = ["accelerate", "jsonargparse", "PIL.Image", "rich", "safetensors.torch", "scipy.stats", "sklearn", "torch"]
"""Every pytest is forked from a process that has imported these, which takes seconds, and nothing of ours."""


def _pytest(root: Path, output: Path, words: list[str]) -> None:
    """Run pytest on a copy, in this process, and exit with its status."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    # Plugins of other packages, which none of these tests needs, take longer to import than most of the tests to run.
    os.environ |= {"PYTHONPATH": str(root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.environ["COLUMNS"] = "500"  # no name of an error shall be cut off
    sys.dont_write_bytecode = False  # or else the whole package is compiled for every fault
    sys.path[:] = [str(root), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests"))]
    found = importlib.util.find_spec("davi")
    if found is None or not Path(str(found.origin)).is_relative_to(root):
        sys.exit(f"tests in {root} would test {found}")
    status = int(pytest.main(words))
    sys.stdout.flush()
    sys.exit(status)


class Copy:
    """A copy of the package and its tests, in which faults can be put.

    Arguments:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in COPIED:
            source, target = ROOT / name, root / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy2(source, target)

    def test(self, nodes: Sequence[str], to_the_end: bool = False) -> tuple[int | None, str]:
        """Status and output of pytest, which stops at the first failure and after :data:`LONGEST` (no status then), or
        runs to the end."""
        words = ["-p", "no:cacheprovider", "-rf", "--tb=no", *([] if to_the_end else ["-x"])]
        output = self.root / "output.txt"
        process = _SERVER.Process(
            target=_pytest, args=(self.root, output, [*words, *(f"tests/{node}" for node in nodes)])
        )
        process.start()
        process.join(None if to_the_end else LONGEST)
        if process.is_alive():
            process.kill()
            process.join()
            return None, ""
        return process.exitcode, output.read_text(encoding="utf-8", errors="replace")

    def put(self, path: str, text: str) -> None:
        """Write a module, and forget what Python has compiled of it: two texts of one second and length look alike."""
        file = self.root / path
        file.write_text(text, encoding="utf-8")
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
            compiled.unlink()

    def examine(self, mutant: Mutant) -> Outcome:
        """Put a fault in, run its tests, take it out again."""
        text = (self.root / mutant.file).read_text(encoding="utf-8")
        count = text.count(mutant.old)
        if count != 1:
            return Outcome("broken", f"its text is {count} times in {mutant.file}, expected once", 0.0)
        began = time.monotonic()
        self.put(mutant.file, text.replace(mutant.old, mutant.new))
        try:
            status, output = self.test(mutant.tests)
        finally:
            self.put(mutant.file, text)
        return Outcome(*judge(status, output), time.monotonic() - began)


def judge(status: int | None, output: str) -> tuple[Fate, str]:
    """What pytest's exit status and output say about a fault."""
    if status is None:
        return "broken", f"its tests took more than {LONGEST} s"
    if status == 0:
        return "survived", "all its tests passed" if "passed" in output else "all its tests were skipped"
    failed = re.search(r"^FAILED (?:tests/)?(.+?)(?: - (\w*).*)?$", output, re.MULTILINE)
    if status != 1 or failed is None:
        last = output.strip().splitlines()[-1:] or ["no output"]
        return "broken", f"pytest ended with {status}: {last[0][:80]}"
    if failed[2] in _NO_ANSWER:
        return "broken", f"{failed[1]}: {failed[2]}, the changed program cannot be run"
    return "killed", failed[1]


def failing(output: str) -> set[str]:
    """The tests, without their parameters, that a run without any fault has reported."""
    return {name.partition("[")[0] for name in re.findall(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", output, re.MULTILINE)}


def run(mutants: Sequence[Mutant], jobs: int) -> dict[str, Outcome]:
    """Name -> outcome, in the order given."""
    outcomes: dict[str, Outcome] = {}
    with ExitStack() as stack:
        folders = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="davi-"))).resolve() for _ in range(jobs)
        ]
        copies = [Copy(folder) for folder in folders]
        nodes = sorted({node for mutant in mutants for node in mutant.tests})
        print(f"{len(mutants)} faults; their {len(nodes)} tests without any fault ...", flush=True)
        status, output = copies[0].test(nodes, to_the_end=True)
        unfit = failing(output)
        if status != 0 and not unfit:
            print(output)
            sys.exit("the tests could not be run")
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in copies:
            free.put(copy)

        def examine(mutant: Mutant) -> Outcome:
            bad = [node for node in mutant.tests if node in unfit or node.partition("::")[0] in unfit]
            if bad:
                return Outcome("broken", f"{bad[0]} fails without it", 0.0)
            copy = free.get()
            try:
                return copy.examine(mutant)
            finally:
                free.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            for mutant, outcome in zip(mutants, pool.map(examine, mutants), strict=True):
                outcomes[mutant.name] = outcome
                print(f"{outcome.fate:<9}{mutant.name:<46}{outcome.seconds:5.1f} s  {outcome.why}", flush=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description="Put faults into a copy of the package and see whether tests notice.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the faults; all when none is given")
    parser.add_argument("--list", action="store_true", help="only name the faults, their files and their tests")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - {mutant.name for mutant in MUTANTS})
    if unknown:
        parser.error(f"names: got {', '.join(unknown)}, expected some of those that --list gives")
    if options.jobs < 1:
        parser.error(f"--jobs: got {options.jobs}, expected at least 1")
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:<46}{mutant.file}  {' '.join(mutant.tests)}")
        return 0
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        os.environ.setdefault("DAVI_SHARED", str(shared))
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    _SERVER.set_forkserver_preload(_IMPORTED)
    began = time.monotonic()
    outcomes = run(chosen, options.jobs)
    fates = [outcome.fate for outcome in outcomes.values()]
    counts = ", ".join(f"{fates.count(fate)} {fate}" for fate in ("killed", "survived", "broken"))
    print(f"\n{len(chosen)} faults: {counts}; {time.monotonic() - began:.0f} s")
    for fate in ("survived", "broken"):
        for name, outcome in outcomes.items():
            if outcome.fate == fate:
                print(f"  {fate}: {name}: {outcome.why}")
    return 0 if fates.count("killed") == len(fates) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The program ``davi``: its verbs, and how errors are reported.

Everything a user can get wrong ends in one line on standard error and the exit status 2. The statuses 130 and 143 mean
that SIGINT or SIGTERM ended the program, 141 that the reader of its output went away. A traceback is a fault of ours.

Nothing here loads torch: the module of a verb is imported when its options have been understood and its paths found.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from davi.cli import paths
from davi.cli.options import parse
from davi.errors import UserError, one_line, out_of_memory

_MODULES = {
    "recipes": "davi.cli.recipes",
    "train": "davi.cli.train",
    "evaluate": "davi.cli.evaluate",
    "compare": "davi.cli.compare",
    "sample": "davi.cli.sample",
    "reconstruct": "davi.cli.reconstruct",
    "inspect": "davi.cli.inspect",
    "score": "davi.cli.score",
    "encode": "davi.cli.encode",
    "decode": "davi.cli.decode",
    "import": "davi.cli.import_",
    "study": "davi.cli.study",
}
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Arguments:
        argv: the words after ``davi``; those of the process when None.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # In a pipe a line shall arrive when it is said, and no character shall be a reason to fail.
            stream.reconfigure(line_buffering=True, errors="replace")
    try:
        status = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return 141
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except UserError as error:
        return _complain(str(error))
    except OSError as error:
        if error.filename is not None:
            return _complain(f"{error.filename}: {error.strerror}")
        if error.errno not in _FULL_DISK:  # not about a file, so not about one that the user chose
            raise
        _discard_output()  # where output that could not be written is still waiting
        return _complain(f"output: cannot be written ({error.strerror})")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _complain("memory: too little for this model and batch; expected smaller ones")
    return status


def _run(argv: list[str]) -> int:
    try:
        request = parse(argv)
    except SystemExit:  # argparse has shown a help text or the version; its errors never come this way
        return 0
    paths.check(request)
    status: int = importlib.import_module(_MODULES[request.verb]).run(request)
    return status


def _complain(message: str, status: int = 2) -> int:
    if os.environ.get("RANK", "0") == "0":  # launched processes end together, and the first one speaks for them
        print("davi:", one_line(message), file=sys.stderr)
    return status


def _discard_output() -> None:
    """Redirect standard output to the null device, so that the interpreter's last flush does not fail again."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # not a stream of the operating system: nothing will be flushed to a pipe
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)

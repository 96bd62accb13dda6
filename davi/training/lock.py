"""One process at a time trains in a folder: two would write over each other's checkpoints and records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from davi.errors import UserError
from davi.files import writing
from davi.runs import LOCK, in_use

try:
    import fcntl
except ImportError:  # not a Unix system: nothing there is freed by the kernel when its holder is killed
    fcntl = None  # type: ignore[assignment]  # a module or nothing


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep all others from training in a run's folder while the block lasts.

    The lock (``flock``) is on the file ``.lock`` in the folder, which is made if need be, and goes when the block ends.
    The kernel frees the lock of a process that is killed: a file that is left over is no obstacle. Where the file
    system knows no locks, nothing is locked.

    Arguments:
        run: the folder.

    Raises:
        UserError: if another process has locked it, or the folder cannot be made.
    """
    in_use(run)  # refuses what is no folder
    descriptor = None
    with writing(f"{run}"):
        run.mkdir(parents=True, exist_ok=True)
        while descriptor is None:
            descriptor = _lock(run / LOCK, run)
    try:
        yield
    finally:
        (run / LOCK).unlink(missing_ok=True)  # while it is locked: who opens it meanwhile finds that it has gone
        os.close(descriptor)


def _lock(path: Path, run: Path) -> int | None:
    """The descriptor of the locked file; None if its last holder removed it before it was locked here."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"run: {run} is in use by another process; wait for its end or choose another folder") from None
    except OSError:  # the file system knows no locks
        return descriptor
    os.close(descriptor)
    return None

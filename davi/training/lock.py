"""One process at a time trains in a folder: two would write over each other's checkpoints and records."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from davi.errors import UserError
from davi.files import writing
from davi.runs import LOCK, in_use

_SECONDS = 0.2
"""For the holder that is just going: it removes the file, and who has opened that meanwhile has to try again."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep all others from training in a run's folder while the block lasts.

    The lock is on the file ``.lock`` in the folder, which is made if need be, and goes when the block ends. The kernel
    frees the lock of a process that is killed: a file that is left over is no obstacle. Where the file system knows no
    locks, nothing is locked.

    Arguments:
        run: the folder.

    Raises:
        UserError: if another process has locked it, or the folder cannot be made.
    """
    in_use(run)  # refuses what is no folder
    path = run / LOCK
    # Not soft: a file whose mere existence locks would outlive its holder.
    lock = FileLock(path, timeout=_SECONDS, poll_interval=_SECONDS / 10, fallback_to_soft=False)
    with writing(f"{run}"):
        run.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            message = f"run: {run} is in use by another process; wait for its end or choose another folder"
            raise UserError(message) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file; a file that is left over is no obstacle
            path.unlink()  # while it is locked: who opens it meanwhile finds that it has gone
        lock.release()

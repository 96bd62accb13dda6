"""Two processes never train in the same folder, and a lock never outlives its holder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest
from tiny import RECIPE, sets, vae

from davi.errors import UserError
from davi.runs import LOCK, load_model
from davi.training import TrainingConfig, train
from davi.training.lock import locked

REFUSED = r"^run: \S+ is in use by another process; wait for its end or choose another folder$"


def go(run: Path, resume: bool = False) -> None:
    train(vae(), sets(), TrainingConfig(steps=1, batch_size=8), run, RECIPE, resume=resume, print_fn=[].append)


def held_elsewhere(run: Path) -> int:
    """A process that has locked the folder and keeps it until it is killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        assert os.read(reader, 1) == b"."
        os.close(reader)
        return child
    with locked(run):
        os.write(writer, b".")
        signal.pause()
    os._exit(0)


# Newer Pythons warn of forks while other threads run; this child does nothing but lock and wait.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path, resume: bool) -> None:
    run = tmp_path / "run"
    child = held_elsewhere(run)
    try:
        with pytest.raises(UserError, match=REFUSED):
            go(run, resume)
        assert [path.name for path in run.iterdir()] == [LOCK]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (run / LOCK).exists()  # left over: no obstacle, also not for a new run
    go(run, resume)
    assert load_model(run)[1]["step"] == 1
    assert not (run / LOCK).exists()


def test_the_lock_is_held_while_training(tmp_path: Path) -> None:
    run, lines = tmp_path / "run", []

    def print_fn(line: str) -> None:
        lines.append(line)
        with pytest.raises(UserError, match=REFUSED), locked(run):
            pass

    train(vae(), sets(), TrainingConfig(steps=1, batch_size=8), run, RECIPE, print_fn=print_fn)
    assert lines


def test_the_lock_goes_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        pass


def test_a_file_that_its_last_holder_removes_is_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking, the holder ends and removes the file: who locks it then has locked nothing."""
    flock, path = fcntl.flock, tmp_path / LOCK
    calls: list[int] = []

    def late(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert len(calls) == 2
        assert path.exists()
        with pytest.raises(UserError, match=REFUSED), locked(tmp_path):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locked(tmp_path), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / LOCK).touch()  # of a process that was killed
    with locked(tmp_path):
        pass


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(UserError, match="which is a file; expected a folder"), locked(path):
        pass
    with pytest.raises(UserError, match="cannot be written"), locked(path / "below"):
        pass

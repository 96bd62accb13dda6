"""The records of a run for TensorBoard, in ``RUN/tensorboard``; needs the extra ``tensorboard``.

What it shows is what ``metrics.jsonl`` holds: the numbers of the records ``train`` and ``validation`` are scalars such
as ``train/bits_per_dim`` and ``validation/kl/03`` (nats, of layer 3), in a run of stages ``train/STAGE/bits_per_dim``;
all other records are text. ::

    tensorboard --logdir runs
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from davi.errors import UserError
from davi.files import writing

FOLDER = "tensorboard"


def check_installed() -> None:
    """Refuse a recipe with ``tensorboard: true`` where the package is missing.

    Raises:
        UserError: naming the extra.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "training.tensorboard: got true without the package tensorboard, expected it to be installed "
            "(in DAVI's folder: pip install -e '.[tensorboard]')"
        )


class Board:
    """Writes the records of a run where TensorBoard finds them.

    Every record is on its way to the disk before training goes on, so that whatever precedes a checkpoint is there when
    the run is resumed after a kill.

    Arguments:
        run: the run's folder.
        step: points of later steps, which a killed run has left, are declared void.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # TensorBoard and its protocol take a while to import

        self._path = str(run / FOLDER)
        with writing(self._path):
            self._writer = SummaryWriter(self._path, purge_step=step + 1)
        self._hook, threading.excepthook = threading.excepthook, self._failed

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Take in one record, as :meth:`davi.runs.Metrics.write` does."""
        with writing(self._path):
            if kind in ("train", "validation"):
                group = f"{kind}/{values['stage']}" if values.get("stage") else kind
                for name, value in scalars(values).items():
                    self._writer.add_scalar(f"{group}/{name}", value, step)
            else:
                self._writer.add_text(f"events/{kind}", f"`{json.dumps(values)}`", step)
            self._writer.flush()

    def close(self) -> None:
        try:
            with writing(self._path):
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _failed(self, failure: threading.ExceptHookArgs) -> None:
        """What the thread that writes cannot write is raised by :meth:`write`; a traceback of it would be one more."""
        if not isinstance(failure.exc_value, OSError):
            self._hook(failure)


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record; of its ``terms``, the divergences with their own sign and the others as they are."""
    terms = values.get("terms", {})
    named = {**values, **{name: -term if name.startswith("kl/") else term for name, term in terms.items()}}
    return {name: value for name, value in named.items() if isinstance(value, (int, float))}

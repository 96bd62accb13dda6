"""What happened in a run: ``metrics.jsonl``, one JSON object per line, in the order of the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from davi.files import replace_text, writing
from davi.run_folder import METRICS


class Metrics:
    """``metrics.jsonl``: appended line by line and flushed, so that a killed run loses at most the line being written.

    Arguments:
        run: the run's folder.
        step: lines about later steps are removed, and what is no whole line; None: go on after whatever is there.
    """

    def __init__(self, run: Path, step: int | None = None) -> None:
        self.path = run / METRICS
        with writing(str(self.path)):
            if step is not None and self.path.exists():
                kept = [json.dumps(record) for record in read_metrics(run) if record["step"] <= step]
                replace_text(self.path, "".join(line + "\n" for line in kept))
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one record. Numbers that are not finite become null: JSON has none."""
        record = {"kind": kind, "step": step, **values}
        with writing(str(self.path)):
            self._file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        with writing(str(self.path)):  # once more what could not be written before
            self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a line cut off by a kill, or that no run has written, is left out."""
    records = []
    with (run / METRICS).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                ours = isinstance(record, dict) and type(record.get("step")) is int and type(record.get("kind")) is str
                if ours and line.endswith("\n"):
                    records.append(record)
    return records


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0.0 else value

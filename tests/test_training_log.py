"""What a run says while it works: how fast it goes before there is anything else to tell, and beside the bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from davi.metrics import Metrics, read_metrics
from davi.training.log import Log, validation_line

RECORD: dict[str, Any] = {
    "total_steps": 100,
    "epoch": 0,
    "nats": 90.0,
    "bits_per_dim": 0.165,
    "kl": 30.0,
    "terms": {"kl/00": -30.0},
    "learning_rate": 0.01,
    "images_per_second": 200.0,
    "seconds_left": 60.0,
    "skipped": 0,
}
PACE = {"total_steps": 100, "images_per_second": 123.4, "seconds_left": 90.0}


def test_a_pipe_is_told_the_pace_once_and_before_the_first_record(tmp_path: Path) -> None:
    lines: list[str] = []
    with Log(Metrics(tmp_path), lines.append) as log:
        log.pace(3, **PACE)
        log.pace(4, **PACE)
        log.train(5, **RECORD)
        log.pace(6, **PACE)
    assert lines[0] == "step 3/100  123 images/s  1m30s left"
    assert [line.split()[:2] for line in lines] == [["step", "3/100"], ["step", "5/100"]]
    assert [record["step"] for record in read_metrics(tmp_path)] == [5]  # for the user alone


def test_beside_a_bar_the_pace_moves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, told = Log(Metrics(tmp_path), print), list[str]()
    monkeypatch.setattr(type(log._bar), "shown", True)
    monkeypatch.setattr(log._bar, "update", lambda share=None, words=None: told.append(words))
    log.pace(3, **PACE)
    log.train(5, **RECORD)
    log.pace(6, **PACE)
    assert told == [
        "step 3/100  123 images/s  1m30s left",
        "step 5/100 90.00 nats 0.165 bits/dim 200 im/s 1m00s left",
        "step 6/100 90.00 nats 0.165 bits/dim 123 im/s 1m30s left",
    ]
    log.metrics.close()


def test_a_loss_that_is_a_term_is_told_once() -> None:
    """Though their means were taken in another order, and differ in the last digits."""
    record = {"step": 4, "loss": -9.6100001, "terms": {"free_energy": -9.61}, "gap": 1.026, "images": 200}
    line = validation_line(record)
    assert line.startswith("validation at step 4: free energy -9.61  gap to training images 1.026")
    assert "loss -9.5  free energy -9.61" in validation_line({**record, "loss": -9.5})


def test_the_likelihood_of_a_layer_is_not_called_that_of_images() -> None:
    record = {"step": 4, "loss": 0.5, "terms": {"free_energy": -9.6}, "log_likelihood": -24.0, "images": 200}
    assert "free energy -9.6  log p(x) -24  (" in validation_line(record)
    assert "free energy -9.6  log p(its input) -24  (" in validation_line({**record, "stage": "second"})

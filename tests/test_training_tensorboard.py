"""What TensorBoard shows is what ``metrics.jsonl`` holds, each point once, also after a kill."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from tiny import RECIPE, sets, vae

from davi.errors import UserError
from davi.metrics import read_metrics
from davi.training import CheckpointConfig, TrainingConfig, train

CONFIG = TrainingConfig(
    steps=8,
    batch_size=8,
    log_every=2,
    validate_every=4,
    checkpoints=CheckpointConfig(steps=3),
    tensorboard=True,
    threads=1,
)


def go(run: Path, resume: bool = False, **changes: Any) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    train(vae(), sets(), config, run, RECIPE, resume=resume, print_fn=[].append)


def shown(run: Path) -> dict[str, list[tuple[int, Any]]]:
    """Tag -> (step, value) of all points in the order in which TensorBoard reads them."""
    accumulator = EventAccumulator(str(run / "tensorboard")).Reload()
    return {
        tag: [(event.step, make_ndarray(event.tensor_proto).item()) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


def value(record: Mapping[str, Any], name: str) -> float:
    """A number of a record by the name of its scalar."""
    terms = record["terms"]
    return -terms[name] if name.startswith("kl/") else terms[name] if name in terms else record[name]


def check(run: Path) -> None:
    """Every scalar has the points of the records, no more and no less, in float32; the rest is there as text."""
    points, records = shown(run), read_metrics(run)
    names = ("nats", "bits_per_dim", "kl", "kl/00", "kl/01", "reconstruction", "seconds")
    for kind, more in (("train", ("loss", "learning_rate", "images_per_second", "gradient_norm")), ("validation", ())):
        of_kind = [record for record in records if record["kind"] == kind]
        assert of_kind
        for name in (*names, *more):
            steps, values = zip(*points[f"{kind}/{name}"], strict=True)
            assert list(steps) == [record["step"] for record in of_kind]
            assert values == pytest.approx([value(record, name) for record in of_kind], rel=2e-7)  # float32
    texts = [(tag.split("/")[1], step) for tag, at in points.items() if tag.startswith("events/") for step, _ in at]
    others = [(record["kind"], record["step"]) for record in records if record["kind"] not in ("train", "validation")]
    assert sorted(texts) == sorted(others) != []


def test_every_record_once(tmp_path: Path) -> None:
    go(tmp_path / "run")
    check(tmp_path / "run")


def test_a_resumption_repeats_no_point(tmp_path: Path) -> None:
    """As after a kill at step 8 that lost the last checkpoint: the run goes back to step 6 and does 7 and 8 again."""
    run = tmp_path / "run"
    go(run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    (run / "model.safetensors").unlink()
    go(run, resume=True, steps=10)
    assert [step for step, _ in shown(run)["train/nats"]] == [2, 4, 6, 8, 10]
    check(run)


def test_without_it_nothing_is_written(tmp_path: Path) -> None:
    go(tmp_path / "run", tensorboard=False)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_missing_package_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^training.tensorboard: got true .* pip install -e '\.\[tensorboard\]'\)$"):
        go(tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""Validation counts every image once, and the same images each time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import RECIPE, Logistic, sets

from davi.data import Images, evenly
from davi.files import read_tensors
from davi.metrics import read_metrics
from davi.training import CheckpointConfig, TrainingConfig, train
from davi.training.validation import validate


def gray(images: Images | None) -> Images:
    assert images is not None
    return images


@pytest.mark.parametrize("batch_size", [12, 8, 5, 1, 20])
def test_a_last_batch_that_is_not_full_counts_like_the_others(batch_size: int) -> None:
    """Twelve images, whose mean is that of the claims about each of them; the model draws nothing."""
    images = gray(sets(binarization="none").validation)
    model = Logistic(images.shape, images.levels).eval()
    with torch.no_grad():
        each = torch.cat([model.evidence(x).log_px for x in images.pixels.split(1)]).double()
    assert len(set(each.tolist())) == 12  # or else leaving some out might not show
    found = validate(model, images, batch_size, seed=0)
    # Sums of float32 claims in float64, in another order.
    assert found["nats"] == pytest.approx(-float(each.mean()), rel=1e-12)
    assert found["images"] == 12


def test_a_part_of_the_images_is_spread_over_all_of_them(tmp_path: Path) -> None:
    """The second half differs from the first, which the first four images know nothing of."""
    whole = sets(binarization="none")
    images = gray(whole.validation)
    pixels = images.pixels.clone()
    pixels[:6], pixels[6:] = 3, 12
    data = dataclasses.replace(whole, validation=Images(pixels, images.levels, images.name))
    config = TrainingConfig(
        steps=2, batch_size=4, validate_every=1, validation_images=4, checkpoints=CheckpointConfig(steps=2)
    )
    run = tmp_path / "run"
    result = train(Logistic(images.shape, images.levels), data, config, run, RECIPE, print_fn=lambda line: None)
    record = result.validation
    assert record is not None
    assert record["images"] == 4
    model = Logistic(images.shape, images.levels).eval()
    model.load_state_dict(read_tensors(result.model)[0])
    again = validate(model, evenly(gray(data.validation), 4), 4, seed=0)
    assert record["nats"] == again["nats"]
    assert again["nats"] != pytest.approx(validate(model, gray(data.validation).subset(slice(4)), 4, seed=0)["nats"])
    records = [record for record in read_metrics(run) if record["kind"] == "validation"]
    assert all(record["images_per_second"] > 0 for record in records)

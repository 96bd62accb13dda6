"""Ten kills that a run must survive bit for bit while it streams its images from the disk.

In play: a folder of pictures decoded into a cache and read through a memory map, dynamic binarization, mirroring,
gradient accumulation, skipped steps, the moving average; kills within the making of the cache, between the parts of a
batch, before and after the weights move, within the writing and the renaming of checkpoints, and twice in one run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import forked
import killed_runs
import numpy as np
import torch
from killed_runs import CONFIG, images
from PIL import Image
from tiny import same_files

POINTS = (
    *("decode:20", "flush:2", "part:9", "verdict:5", "average:6", "tensors:2", "flush:12+tensors:3"),
    *("rename:9", "record:3", "remove:1"),
)


def draw_pictures(folder: Path) -> None:
    """Fifty gray pictures [4, 4] of random levels, all different."""
    folder.mkdir()
    levels = np.random.default_rng(3).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    for i, picture in enumerate(levels):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")


def test_ten_kill_points_with_streamed_images(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "images")
    done = forked.call(killed_runs.main, tmp_path, [*POINTS], folder=tmp_path)
    assert done.status == 0, done.out + done.err
    assert done.out.splitlines() == [f"{point}: killed {1 + point.count('+')}" for point in POINTS]
    whole = tmp_path / "whole"
    digests = {
        run.name: hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
        for run in (whole, *(tmp_path / point.replace(":", "-") for point in POINTS))
    }
    assert len(digests) == 11
    assert set(digests.values()) == {digests["whole"]}
    for point in POINTS:  # and weights, moments and random states of the last checkpoints
        assert same_files(whole, tmp_path / point.replace(":", "-")), point


def test_all_of_it_is_in_play(tmp_path: Path) -> None:
    """What the test above promises: without this it could lose its meaning unnoticed."""
    draw_pictures(tmp_path / "images")
    sets = images(tmp_path / "run")
    assert sets.train.mapped
    assert sets.train.levels == 256
    assert (sets.levels, sets.protocol["binarization"], sets.protocol["flip"]) == (2, "dynamic", "horizontal")
    assert len(sets.train) > CONFIG.batch_size > CONFIG.accumulate > 1
    assert CONFIG.ema_decay > 0
    assert torch.equal(sets.train.pixels[:2], images(tmp_path / "run").train.pixels[:2])

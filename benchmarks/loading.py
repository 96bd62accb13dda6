"""Images per second from a folder, from its cache and from memory, and the share of a training step spent waiting.

Patches of scikit-learn's two photographs are written as PNG files, 32x32 and 256x256. Then, in the same process,

- *folder*: the first loading, which decodes the files, hashes and splits them and writes the cache;
- *cache*: one pass in random order, batch by batch as in training, through the memory map of the cache; *cold* after
  the system was asked to forget the file's pages, *warm* while it still has them;
- *array*: the same pass with all images in memory;
- *waiting*: the time of the next batch from the warm or cold cache as a share of that of the whole step, in which a
  small Deep Attentive VAE is trained.

Medians over repeats, every repeat takes one of each.

    python benchmarks/loading.py [--repeats 5] [--steps 12]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write
from PIL import Image
from sklearn.datasets import load_sample_images

from davi import recipes
from davi.data import DataConfig, DataSets, load
from davi.objectives import negative_elbo
from davi.training import TrainingConfig
from davi.training.stages import single
from davi.training.state import BatchLoader, State

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Case:
    """A set of images and a model to train on it.

    Arguments:
        size: height and width.
        count: images in the folder.
        batch_size: of the passes and of the training.
        changes: what differs from the recipe attentive_photos.
    """

    size: int
    count: int
    batch_size: int
    changes: tuple[str, ...] = ()


CASES = (
    Case(32, 2000, 32),
    # One latent layer of a quarter of the width, on maps of 32x32: as little work for each pixel as makes sense.
    Case(
        256, 200, 8, ("model.layers=[1]", "model.width=4", "model.preprocess=[-2,-2,-2]", "model.postprocess=[2,2,2]")
    ),
)


def write_pictures(folder: Path, case: Case) -> None:
    """Patches at random places of the photographs, as PNG files."""
    random = np.random.default_rng(0)
    photographs = np.stack(load_sample_images().images)  # [2, 427, 640, 3]
    _, height, width, _ = photographs.shape
    folder.mkdir(parents=True)
    for i in range(case.count):
        top, left = random.integers(height - case.size + 1), random.integers(width - case.size + 1)
        patch = photographs[i % 2, top : top + case.size, left : left + case.size]
        Image.fromarray(patch).save(folder / f"{i:05d}.png")


def forget(cache: Path) -> None:
    """Ask the system to drop the pages of the cache's files, which are not mapped."""
    for path in cache.rglob("*.npy"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pass_rate(sets: DataSets, case: Case) -> float:
    """Images per second of one pass in random order."""
    loader = BatchLoader(sets, TrainingConfig(steps=1, batch_size=case.batch_size), CPU)
    began = time.perf_counter()
    for _ in range(loader.sampler.batches_per_epoch):
        next(loader)
    return loader.sampler.batches_per_epoch * loader.sampler.batch_size / (time.perf_counter() - began)


def rates(folder: Path, cache: Path, case: Case) -> dict[str, float]:
    """Images per second of one repeat."""
    data = DataConfig(str(folder), flip="horizontal", cache=str(cache), memory=0.0)
    shutil.rmtree(cache, ignore_errors=True)
    began = time.perf_counter()
    load(data)
    found = {"folder": case.count / (time.perf_counter() - began)}
    forget(cache)
    sets = load(data)
    found["cache_cold"] = pass_rate(sets, case)
    found["cache_warm"] = pass_rate(sets, case)
    found["array"] = pass_rate(load(dataclasses.replace(data, memory=4.0)), case)
    return found


def steps(sets: DataSets, case: Case, count: int) -> Iterator[tuple[float, float]]:
    """Seconds of waiting for the batch, and of the rest, of each step."""
    recipe = recipes.load("attentive_photos", case.changes)
    assert recipe.training is not None
    config = dataclasses.replace(recipe.training, batch_size=case.batch_size)
    torch.manual_seed(0)
    model = recipes.build(recipe, sets.shape, sets.levels).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    state = State(model, sets, single(config), CPU)
    for _ in range(count):
        began = time.perf_counter()
        batch = next(state.loader)
        waited = time.perf_counter()
        negative_elbo(model(batch.x)).backward()
        state.optimizer.step()
        state.average.update(model)
        state.optimizer.zero_grad()
        yield waited - began, time.perf_counter() - waited


def waiting(folder: Path, cache: Path, case: Case, count: int) -> dict[str, float]:
    """Medians over the steps, the first of which warms up, and the share of waiting in all of them together."""
    found: dict[str, float] = {}
    for state in ("cold", "warm"):
        if state == "cold":
            forget(cache)
        sets = load(DataConfig(str(folder), flip="horizontal", cache=str(cache), memory=0.0))
        waits, works = zip(*list(steps(sets, case, count + 1))[1:], strict=True)
        found[f"step_seconds_{state}"] = statistics.median(map(sum, zip(waits, works, strict=True)))
        found[f"waiting_seconds_{state}"] = statistics.median(waits)
        found[f"waiting_share_{state}"] = sum(waits) / (sum(waits) + sum(works))
    return found


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for case in CASES:
            folder, cache = Path(place, f"images{case.size}"), Path(place, f"cache{case.size}")
            write_pictures(folder, case)
            seconds = medians([rates(folder, cache, case) for _ in range(options.repeats)])
            name = f"{case.size}x{case.size}"
            measured[name] = {
                "images": case.count,
                "batch_size": case.batch_size,
                "images_per_second": seconds,
                "training": {
                    "recipe": " ".join(("attentive_photos", *case.changes)),
                    **waiting(folder, cache, case, options.steps),
                },
            }
            print(name, measured[name])
    print(write("loading", {"repeats": options.repeats, "steps": options.steps, **measured}))


if __name__ == "__main__":
    main()

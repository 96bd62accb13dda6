"""Other programs' restricted Boltzmann machines, trained for so many seconds: the processes that ``rbm.py`` starts.

python benchmarks/rbm_peers.py NAME ARRAYS.npz FACTS.json SECONDS SEED RATE HIDDEN

Each is used as its own loop uses it, one batch after the other, with everything in float32 on one thread; the clock
runs from the first batch. scikit-learn's ``fit`` takes batches in the order of the images; the loop of rbms draws each
from a new permutation (it also opens a file at every update to note the learning rate, which is left out here), and its
gradient is the centered one unless told otherwise.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from davi.data.shipped import binarized_mnist

BATCH, CHAINS = 100, 100
Arrays = dict[str, NDArray[np.float32]]
Step = Callable[[], None]


@dataclass(frozen=True)
class Peer:
    """Another program.

    Arguments:
        package: as it is imported.
        distribution: as it is installed.
        prepare: images ``[N, V]``, learning rate, hidden units and seed -> what one update is, and the arrays so far.
    """

    package: str
    distribution: str
    prepare: Callable[[NDArray[np.float32], float, int, int], tuple[Step, Callable[[], Arrays]]]

    def version(self) -> str:
        """That is installed."""
        return version(self.distribution)


def scikit_learn(images: NDArray[np.float32], rate: float, hidden: int, seed: int) -> tuple[Step, Callable[[], Arrays]]:
    """BernoulliRBM: what ``fit`` does with a batch, one after the other in the order of the images.

    ``partial_fit`` begins like ``fit``, but checks every batch and turns it into float64, which takes a third longer.
    """
    from sklearn.neural_network import BernoulliRBM

    model = BernoulliRBM(hidden, learning_rate=rate, batch_size=BATCH, random_state=seed)
    starts = itertools.cycle(range(0, len(images) - BATCH + 1, BATCH))
    model.partial_fit(images[:BATCH])
    for name in ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_"):
        # partial_fit begins in float64; fit, given float32, does not.
        setattr(model, name, getattr(model, name).astype(np.float32))

    def step() -> None:
        first = next(starts)
        model._fit(images[first : first + BATCH], model.random_state_)

    def arrays() -> Arrays:
        return {"W": model.components_.T, "b": model.intercept_visible_, "c": model.intercept_hidden_}

    return step, arrays


def rbms(images: NDArray[np.float32], rate: float, hidden: int, seed: int) -> tuple[Step, Callable[[], Arrays]]:
    """The package rbms: what its loop does for an update of a Bernoulli-Bernoulli machine."""
    from types import SimpleNamespace

    # A package that only this comparison needs: who runs it installs it.
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.training.pcd import fit_batch_pcd

    torch.manual_seed(seed)
    data, weights = torch.from_numpy(images), torch.ones(BATCH)
    model = BBRBM.init_parameters(hidden, SimpleNamespace(data=data), torch.device("cpu"), torch.float32)
    model.init_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, maximize=True)
    chains = model.sample_state(chains=model.init_chains(CHAINS), n_steps=1)

    @torch.no_grad()
    def step() -> None:
        nonlocal chains
        chosen = torch.randperm(len(data))[:BATCH]
        optimizer.zero_grad(set_to_none=False)
        chains, _ = fit_batch_pcd((data[chosen], weights), chains, model, gibbs_steps=1, beta=1.0)
        optimizer.step()

    def arrays() -> Arrays:
        return {"W": model.weight_matrix.numpy(), "b": model.vbias.numpy(), "c": model.hbias.numpy()}

    return step, arrays


PEERS = {
    "scikit_learn": Peer("sklearn", "scikit-learn", scikit_learn),
    "rbms": Peer("rbms", "rbms", rbms),
}


def main() -> None:
    name, arrays_file, facts_file, seconds, seed, rate, hidden = sys.argv[1:]
    torch.set_num_threads(1)
    pixels = binarized_mnist().train.pixels
    images = pixels.flatten(1).numpy().astype(np.float32)
    step, arrays = PEERS[name].prepare(images, float(rate), int(hidden), int(seed))
    updates, began = 0, time.monotonic()
    while time.monotonic() - began < float(seconds):
        step()
        updates += 1
    elapsed = time.monotonic() - began
    found: dict[str, Any] = {**arrays(), "shape": np.array([1, 28, 28])}
    np.savez(arrays_file, **found)
    facts = {
        "steps": updates,
        "training_seconds": round(elapsed, 1),
        "updates_per_second": round(updates / elapsed, 2),
        "images_per_second": round(updates * BATCH / elapsed, 1),
    }
    beside = Path(facts_file).with_suffix(".new")
    beside.write_text(json.dumps(facts))
    beside.replace(facts_file)


if __name__ == "__main__":
    main()

"""What the contract tests share: the models they run over, weights that are neutral nowhere, and all images of a shape.

They run over every ``_tiny`` recipe and every toy: a new model is tested by adding its recipe. Each file of tests asks
for one capability, and a model is tested by all files whose capabilities it has.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
from typing import Any, TypeVar

import pytest
import torch
import toys
from torch import Generator, Tensor, nn

from davi import recipes
from davi.data import geometry_of
from davi.evidence import Kind
from davi.model import Classifier, Energy, Model, Network, Partition, Quantized, Summable, Unnormalized
from davi.models import MODELS

TINY = [name for name in recipes.names() if name.endswith("_tiny")]
CLASSES = 3
"""Of the images of a classifier, which cannot do without; other networks have none unless a test gives them some."""

LEVELS = {"toy_flow": 5}
"""Levels of a toy's images; those of the others are binary."""

M = TypeVar("M", bound=nn.Module)


recipe = functools.cache(recipes.load)
"""A recipe by its name: every file of tests asks for all of them, and they cannot be changed."""


def class_of(name: str) -> type[Network]:
    """The class of a recipe's or a toy's network."""
    return toys.TOYS[name] if name in toys.TOYS else MODELS[recipe(name).model_name]


def classes_of(name: str) -> int:
    """Classes that a recipe's or a toy's network is built with where a test does not say."""
    return CLASSES if issubclass(class_of(name), Classifier) else 0


def names(kind: type) -> list[str]:
    """The ``_tiny`` recipes and the toys whose networks have a capability."""
    return [name for name in (*TINY, *toys.TOYS) if issubclass(class_of(name), kind)]


def energies_that_claim(kind: Kind) -> list[str]:
    """The ``_tiny`` recipes and the toys whose free energies say so much of integer images."""
    return [name for name in names(Energy) if _energy(name).claim is kind]


def _energy(name: str) -> Energy:
    network = shaken(name)
    assert isinstance(network, Energy)
    return network


def shake(network: M) -> M:
    """Move every weight, so that no gate or bias is at its neutral value; a prior over codes takes part."""
    if isinstance(network, Quantized):
        network.begin_part("prior")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def shaken(name: str) -> Network:
    """The network of a recipe, for its own images, or of a toy; shaken, in eval mode: a copy for the caller alone.

    It is always the same, and the default generator stays where it is. Copying is much quicker than building.
    """
    return _shaken(name).copy()


@functools.cache
def _shaken(name: str) -> _Original:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # not a test's own seed: its images should have nothing to do with the weights
        return _Original(_build(name))


class _Keeping(pickle.Pickler):
    """Leaves tensors, and options of a class that no module has, out of what it pickles."""

    def __init__(self, file: io.BytesIO, kept: dict[int, object]) -> None:
        super().__init__(file)
        self.kept = kept

    def persistent_id(self, obj: object) -> int | None:
        if type(obj).__module__ != "types" and not isinstance(obj, Tensor):
            return None
        self.kept[id(obj)] = obj
        return id(obj)


class _Copying(pickle.Unpickler):
    """Puts copies of what was left out in its place."""

    def __init__(self, file: io.BytesIO, kept: dict[int, object], copies: dict[int, Any]) -> None:
        super().__init__(file)
        self.kept, self.copies = kept, copies

    def persistent_load(self, pid: int) -> object:
        return copy.deepcopy(self.kept[pid], self.copies)


class _Original:
    """What is copied often: pickled once, but for its tensors. A deep copy of so many modules takes long."""

    def __init__(self, network: Network) -> None:
        self.kept: dict[int, object] = {}
        self.pickled = io.BytesIO()
        _Keeping(self.pickled, self.kept).dump(network)

    def copy(self) -> Network:
        copies: dict[int, Any] = {}  # a tensor that is in two places is so in the copy
        self.pickled.seek(0)
        unpickler = _Copying(self.pickled, self.kept, copies)
        network: Network = unpickler.load()
        return network


def _build(name: str) -> Network:
    if name in toys.TOYS:
        return small(name, (1, 4, 4), LEVELS.get(name, 2), classes_of(name))
    found = recipe(name)
    assert found.data is not None
    return shake(recipes.build(found, *geometry_of(found.data), classes_of(name)))


def small(name: str, shape: tuple[int, int, int], levels: int, classes: int = 0) -> Network:
    """The network of a recipe or a toy for other images, so few that all can be listed; shaken, in eval mode."""
    if name in toys.TOYS:
        cls: type[Network] = toys.TOYS[name]
        return shake(cls(shape, levels, cls.Config(), classes))
    return shake(recipes.build(recipe(name), shape, levels, classes))


def model_of(network: Network) -> Model:
    """What gives images a probability: the network itself, or an energy, or a network that has one at its top, with
    the partition function."""
    if isinstance(network, Unnormalized):
        energy = network.energy
        assert isinstance(energy, Summable)
        with torch.no_grad():
            return network.normalized(Partition(float(energy.log_partition()), Kind.EXACT)).eval()
    assert isinstance(network, Model)
    return network


def some_images(model: Network, n: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Images drawn evenly, ``[n, C, H, W]``."""
    return torch.randint(model.levels, (n, *model.shape)).to(dtype)


def all_images(model: Network) -> Tensor:
    """Every image of the model's shape and levels once, ``[levels ** dims, C, H, W]``, the last pixel changing
    first."""
    values = list(itertools.product(range(model.levels), repeat=model.dims))
    return torch.tensor(values).view(-1, *model.shape)


def place(x: Tensor, levels: int) -> Tensor:
    """Where each of some images stands among :func:`all_images`, ``[B]``."""
    found = torch.zeros(len(x), dtype=torch.int64)
    for pixel in x.flatten(1).T:
        found = levels * found + pixel
    return found


def seeded(seed: int = 5) -> Generator:
    return Generator().manual_seed(seed)


def assert_frequencies(found: Tensor, log_p: Tensor) -> None:
    """Draws of k things have the probabilities that they should have.

    If they have, Pearson's statistic has mean k - 1 and variance close to 2 (k - 1), as long as each thing is expected
    at least five times. Five standard deviations above its mean it is less than once in a thousand seeds, its right
    tail being heavier than a Normal's; the seeds are fixed.

    Arguments:
        found: draws, numbers of the things, ``[B]``.
        log_p: the log-probability of each, ``[k]``.
    """
    expected = len(found) * log_p.double().exp()
    assert float(expected.sum()) == pytest.approx(len(found), rel=1e-6)
    assert float(expected.min()) >= 5.0
    counts = torch.bincount(found, minlength=len(log_p)).double()
    freedom = len(log_p) - 1
    statistic = float(((counts - expected).square() / expected).sum())
    assert statistic < freedom + 5.0 * (2.0 * freedom) ** 0.5

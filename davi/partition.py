"""Partition functions of a run's energies, which turn them into models: summed, or estimated by annealed importance
sampling, and kept in ``RUN/derived/partition.safetensors``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from davi import derived, estimates
from davi.batch import Batch
from davi.data import Images, evenly
from davi.data.binarization import binarized
from davi.errors import UserError, out_of_memory
from davi.evaluation.annealing import STANDARD_TEMPERATURES
from davi.evaluation.partition_estimate import CHAINS, estimate_partition
from davi.evidence import Kind
from davi.files import digest
from davi.model import Harmonium, Model, Partition, Summable, Unnormalized
from davi.model.joint import evaluating

NAME = "partition"
MOST_STATES = 24
"""Base-2 logarithm of the longest sum that is made without being asked."""

BASE_IMAGES = 10_000
"""Training images whose mean an estimate begins with, at most."""

DATA, UNIFORM = "data", "uniform"
"""What an estimate begins with: independent units with the mean of training images, or uniform noise."""

_NUMBERS = tuple(field.name for field in dataclasses.fields(Partition) if field.name != "kind")


@dataclass(frozen=True)
class Annealing:
    """How a partition function is to be estimated; None: as it was, or else the default.

    Arguments:
        temperatures: how many, from 2 (default: 14,501, the schedule of Salakhutdinov and Murray).
        chains: how many (default: 100).
        base: ``"data"``, the mean of training images (default, where there are some), or ``"uniform"``.
        reverse: whether chains walk the other way as well.
    """

    temperatures: int | None = None
    chains: int | None = None
    base: str | None = None
    reverse: bool = False

    def fits(self, partition: Partition) -> bool:
        """Whether an estimate was made in this way."""
        base = UNIFORM if partition.base_images == 0 else DATA
        wanted = (self.temperatures, self.chains, self.base)
        made = (partition.temperatures, partition.chains, base)
        same = all(want in (None, have) for want, have in zip(wanted, made, strict=True))
        return same and (not self.reverse or partition.reverse is not None)

    def like(self, partition: Partition) -> Annealing:
        """The same, and what it leaves open as an earlier estimate was made."""
        return Annealing(
            self.temperatures or partition.temperatures,
            self.chains or partition.chains,
            self.base or (UNIFORM if partition.base_images == 0 else None),
            self.reverse or partition.reverse is not None,
        )


def normalized(network: Unnormalized, run: Path) -> Model:
    """The model that an energy and its partition function are.

    The partition function is that of the run's folder (:mod:`davi.derived`), if it is of these weights; else it is
    summed, and left there if that can be done, where the energy allows it (:class:`davi.model.Summable`, with at most
    2^24 terms). If it is not known, the model can be drawn from, and says so when it is asked for a likelihood.

    Raises:
        UserError: if the partition function is not finite, or its file holds something else.
    """
    energy = network.energy
    weights = digest(energy.state_dict())
    for kind in (Kind.EXACT, Kind.ESTIMATE):
        found = derived.read(run, NAME, weights, {"kind": kind.name})
        if found is not None:
            return network.normalized(_partition(found, kind, run)).eval()
    if not isinstance(energy, Summable) or energy.log2_states > MOST_STATES:
        return network.normalized(None).eval()
    with torch.no_grad():
        log_z = float(energy.log_partition())
    if not math.isfinite(log_z):
        raise UserError(f"{run}: got the partition function exp({log_z}), expected a finite one")
    partition = Partition(log_z, Kind.EXACT)
    with suppress(UserError):  # a run may be read-only, and then it is summed every time
        write(network, run, partition)
    return network.normalized(partition).eval()


def estimate(
    network: Unnormalized,
    images: Images | None,
    how: Annealing,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Partition:
    """Estimate the partition function of an energy by annealed importance sampling, on its device, without gradients.

    Arguments:
        network: an energy, or what has one.
        images: for training, to begin with their mean; None: there are none.
        how: it is estimated.
        seed: of all draws.
        progress: told how many temperatures are done.

    Raises:
        UserError: if the energy has no path from independent units (:class:`davi.model.Harmonium`), there are no images
            although their mean is asked for, the memory is too small for the chains, or the estimate is not finite.
    """
    energy = network.energy
    if not isinstance(energy, Harmonium):
        raise UserError(
            f"{network.name}: got a partition function that can be neither summed, with at most 2^{MOST_STATES} terms, "
            "nor estimated, expected visible and hidden units (a Harmonium)"
        )
    if how.base == DATA and images is None:
        raise UserError(f"--ais-base: got {DATA}, expected {UNIFORM}: the run has no training images")
    place = energy.visible_field().device
    generator = Generator(place).manual_seed(seed)
    begin, count = None, 0
    with evaluating(network), torch.inference_mode():
        if images is not None and how.base != UNIFORM:
            chosen = evenly(images, min(BASE_IMAGES, len(images)))
            if chosen.levels != network.levels:  # drawn anew at each presentation, and kept gray
                chosen = binarized(chosen, "dynamic", Generator().manual_seed(seed))
            begin, count = _seen(network, chosen, place, generator), len(chosen)
        temperatures, chains = how.temperatures or STANDARD_TEMPERATURES, how.chains or CHAINS
        try:
            found = estimate_partition(energy, begin, temperatures, chains, generator, progress, how.reverse)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(f"--ais-chains: got {chains}, too many for the memory, expected fewer") from None
    return dataclasses.replace(found.partition(), base_images=count, seed=seed)


def _seen(network: Unnormalized, images: Images, place: torch.device, generator: Generator) -> Tensor:
    """What the energy sees of images, on the CPU."""
    labels = images.labels if network.classes else None
    batch = Batch(images.pixels, labels)
    parts = batch.parts(max(1, -(-len(images) // _PASS)))
    moved = (Batch(part.x.to(place), None if part.y is None else part.y.to(place)) for part in parts)
    return torch.cat([network.energy_images(part, generator).cpu() for part in moved])


_PASS = 1000
"""Images a pass."""


def write(network: Unnormalized, run: Path, partition: Partition) -> Path:
    """Keep a partition function in the folder of a run, an estimate also among those of other numbers of temperatures
    (:mod:`davi.estimates`); its file.

    Raises:
        UserError: if it cannot be written.
    """
    if partition.temperatures is not None:
        estimates.keep(network, run, partition)
    numbers = {name: getattr(partition, name) for name in _NUMBERS}
    tensors = {name: torch.tensor(float(x), dtype=torch.float64) for name, x in numbers.items() if x is not None}
    return derived.write(run, NAME, digest(network.energy.state_dict()), {"kind": partition.kind.name}, tensors)


def _partition(tensors: Mapping[str, Tensor], kind: Kind, run: Path) -> Partition:
    """A partition function, as a file gives it."""
    path = derived.path_of(run, NAME)
    own = {name: tensors[name] for name in _NUMBERS if name in tensors}
    for name, tensor in own.items():
        if tensor.ndim or tensor.dtype != torch.float64:
            got = f"{tensor.tolist()}"[:50]
            raise UserError(f"{path}: got {name} {got}, expected one number in float64; delete it")
    return estimates.partition_of({name: float(tensor) for name, tensor in own.items()}, kind, path)

"""The partition function of a run: found once, kept beside the weights, never taken for that of others."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest
import torch
import toys
from contract import shaken
from golden_rbm import SHAPE, golden
from torch import Generator, Tensor, nn
from toys.boltzmann import Boltzmann

import davi
from davi import derived, estimates, partition
from davi.data import Images
from davi.errors import UserError
from davi.evaluation.partition_estimate import PartitionEstimate, estimate_partition
from davi.evidence import Kind
from davi.files import digest, read_tensors
from davi.model import Energy, Network, Normalized, Partition, Summable
from davi.models import MODELS
from davi.models.rbm import RBM
from davi.partition import NAME, Annealing
from davi.runs import load_model, load_network, save_model


@dataclass(frozen=True)
class FieldsConfig:
    """No options."""


class Fields(Energy):
    """Independent pixels, F(v) = -b v; nobody has found out how to sum them."""

    name = "fields"
    Config = FieldsConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: FieldsConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.b = nn.Parameter(torch.linspace(-1.0, 1.0, self.dims))

    def free_energy(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return -(x.flatten(1) * self.b).sum(1)

    def gibbs(self, x: Tensor, steps: int = 1, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return torch.bernoulli((self.b / temperature).sigmoid().expand(len(x), -1), generator=generator).view_as(x)


@final
class Overflowing(Fields, Summable):
    """One whose sum is beyond all numbers."""

    name = "overflowing"

    log2_states = 6.0

    def log_partition(self) -> Tensor:
        return torch.tensor(math.inf, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)
    for cls in (Fields, Overflowing):
        monkeypatch.setitem(MODELS, cls.name, cls)


def run_of(network: Network, folder: Path) -> Path:
    """A folder with a model in it."""
    folder.mkdir()
    save_model(folder / "model.safetensors", network)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_of(shaken(Boltzmann.name), tmp_path / "run")


def loaded(run: Path) -> Normalized:
    model = davi.load(run)
    assert isinstance(model, Normalized)
    assert not model.training
    assert not model.energy.training
    return model


def known(model: Normalized) -> Partition:
    """What is known of the partition function of a model."""
    assert model.partition is not None
    return model.partition


def keep(run: Path, log_z: float, kind: Kind = Kind.EXACT) -> None:
    """Leave a partition function of the run's weights in its folder."""
    weights = digest(load_network(run)[0].state_dict())
    derived.write(run, NAME, weights, {"kind": kind.name}, {"log_z": torch.tensor(log_z, dtype=torch.float64)})


def test_it_is_summed_and_kept(run: Path) -> None:
    model = loaded(run)
    assert isinstance(model.energy, Boltzmann)
    log_z = float(model.energy.log_partition().detach())
    assert (known(model).log_z, known(model).kind) == (log_z, Kind.EXACT)
    tensors, info = read_tensors(run / "derived" / "partition.safetensors")
    assert {name: (float(x), x.dtype) for name, x in tensors.items()} == {"log_z": (log_z, torch.float64)}
    assert info == {"weights": digest(load_network(run)[0].state_dict()), "options": {"kind": "EXACT"}}


def test_what_is_kept_is_used(run: Path) -> None:
    keep(run, 1.25)
    written = (run / "derived" / "partition.safetensors").read_bytes()
    for source in (run, run / "model.safetensors"):
        model = loaded(source)
        assert (known(model).log_z, known(model).kind) == (1.25, Kind.EXACT)
    assert (run / "derived" / "partition.safetensors").read_bytes() == written


def test_where_nothing_can_be_written_it_is_summed_every_time(run: Path) -> None:
    (run / "derived").write_bytes(b"a file where a folder should be")
    assert known(loaded(run)).kind is Kind.EXACT
    assert (run / "derived").is_file()


def test_an_estimate_stays_an_estimate(run: Path) -> None:
    keep(run, 1.25, Kind.ESTIMATE)
    model = loaded(run)
    assert (known(model).log_z, known(model).kind) == (1.25, Kind.ESTIMATE)
    assert model.evidence(torch.zeros(2, *model.shape, dtype=torch.int64)).kind is Kind.ESTIMATE


def test_that_of_other_weights_is_never_used(run: Path) -> None:
    before = known(loaded(run)).log_z
    network, _ = load_network(run)
    with torch.no_grad():
        next(network.parameters()).add_(0.5)
    save_model(run / "model.safetensors", network)
    after = known(loaded(run)).log_z
    assert isinstance(network, Boltzmann)
    assert after == float(network.log_partition().detach()) != before
    assert known(loaded(run)).log_z == after


@pytest.mark.parametrize("tensors", [{}, {"log_z": torch.zeros(2)}, {"log_z": torch.tensor(math.nan)}])
def test_what_is_no_number_is_named_in_one_line(run: Path, tensors: dict[str, Tensor]) -> None:
    weights = digest(load_network(run)[0].state_dict())
    path = derived.write(run, NAME, weights, {"kind": "EXACT"}, tensors)
    match = r"got log_z (nothing|\[0\.0, 0\.0\]|nan), expected one (finite )?number"
    with pytest.raises(UserError, match=match) as caught:
        loaded(run)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_damaged_file_is_named_in_one_line(run: Path) -> None:
    loaded(run)
    path = run / "derived" / "partition.safetensors"
    whole = path.read_bytes()
    for damaged in (b"nothing", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"partition\.safetensors: .*; delete it, it will be made again$") as caught:
            davi.load(run)
        assert "\n" not in str(caught.value)
    path.unlink()
    assert known(loaded(run)).kind is Kind.EXACT


def test_without_one_there_is_no_probability(tmp_path: Path) -> None:
    run = run_of(Fields((1, 2, 2), 2, FieldsConfig()), tmp_path / "run")
    unknown = loaded(run)
    x = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(
        UserError, match=r"^fields: got no partition function, expected one: .* davi evaluate "
    ) as caught:
        unknown.evidence(x)
    assert "\n" not in str(caught.value)
    assert unknown.sample(3, seed=1).shape == (3, 1, 2, 2)  # which takes none
    assert not (run / "derived").exists()
    keep(run, 2.5, Kind.ESTIMATE)
    assert known(loaded(run)).log_z == 2.5
    network, _ = load_network(run)
    with torch.no_grad():
        next(network.parameters()).add_(0.5)
    save_model(run / "model.safetensors", network)
    assert loaded(run).partition is None


def test_one_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    run = run_of(Overflowing((1, 2, 2), 2, FieldsConfig()), tmp_path / "run")
    with pytest.raises(UserError, match=r"got the partition function exp\(inf\), expected a finite one$"):
        load_model(run)
    assert not (run / "derived").exists()


def test_a_normalized_model_is_saved_as_its_energy(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_model(again, loaded(run))
    assert again.read_bytes() == (run / "model.safetensors").read_bytes()


def test_what_can_be_neither_summed_nor_estimated_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^fields: got a partition function that can be neither summed, .* estimated, "
    ):
        partition.estimate(Fields((1, 2, 2), 2, FieldsConfig()), None, Annealing())


def random_images(levels: int) -> Images:
    pixels = torch.randint(levels, (50, *SHAPE), generator=Generator().manual_seed(0), dtype=torch.uint8)
    return Images(pixels, levels, "random/train")


QUICK = Annealing(temperatures=5, chains=4)


def test_an_estimate_begins_with_the_mean_of_training_images_where_there_are_some() -> None:
    energy = golden().float()
    assert partition.estimate(energy, random_images(2), QUICK).base_images == 50
    uniform = partition.estimate(energy, None, QUICK)
    assert uniform.base_images == 0
    asked = partition.estimate(energy, random_images(2), dataclasses.replace(QUICK, base="uniform"))
    assert asked == uniform
    with pytest.raises(UserError, match=r"^--ais-base: got data, expected uniform: the run has no training images$"):
        partition.estimate(energy, None, dataclasses.replace(QUICK, base="data"))


def test_images_that_are_drawn_at_each_presentation_are_drawn_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def told(energy: Energy, images: Tensor, *rest: object) -> PartitionEstimate:
        seen.append(images)
        return estimate_partition(golden(), images, 5, 4)

    monkeypatch.setattr(partition, "estimate_partition", told)
    gray = random_images(16)
    partition.estimate(golden(), gray, QUICK)
    assert seen[0].shape == gray.pixels.shape
    assert seen[0].unique().tolist() == [0, 1]
    assert float(seen[0][gray.pixels == 15].float().mean()) == 1.0
    assert float(seen[0][gray.pixels == 0].float().mean()) == 0.0


def test_everything_that_is_known_of_an_estimate_is_kept(tmp_path: Path) -> None:
    run = run_of(golden().float(), tmp_path / "run")
    network, _ = load_network(run)
    assert isinstance(network, RBM)
    whole = Partition(
        7.5, Kind.ESTIMATE, -math.inf, 7.9, 3.25, 4, 5, base_images=0, seed=2, reverse=7.6, reverse_low=7.0,
        reverse_high=math.inf, sweeps=30,
    )  # fmt: skip
    partition.write(network, run, whole)
    assert loaded(run).partition == whole


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("low", math.nan),
        ("low", math.inf),
        ("low", 2.0),
        ("high", 0.5),
        ("reverse_low", 7.0),
        ("reverse", math.inf),
        ("effective_samples", math.inf),
        ("effective_samples", -1.0),
        ("chains", math.nan),
        ("chains", 2.5),
        ("chains", -3.0),
        ("log_z", 1e300),
    ],
)
def test_numbers_that_cannot_be_are_named(run: Path, name: str, value: float) -> None:
    tensors = {key: torch.tensor(1.0, dtype=torch.float64) for key in ("log_z", "reverse")}
    tensors |= {name: torch.tensor(value, dtype=torch.float64)}
    derived.write(run, NAME, digest(load_network(run)[0].state_dict()), {"kind": "ESTIMATE"}, tensors)
    with pytest.raises(UserError, match=rf"partition\.safetensors: got .*{name}.*, expected .*; delete it$") as caught:
        loaded(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tensor", [torch.tensor(1.0 + 1.0j), torch.zeros(2, dtype=torch.float64)])
def test_what_is_not_one_number_is_named(run: Path, tensor: Tensor) -> None:
    tensors = {"log_z": torch.tensor(1.0, dtype=torch.float64), "low": tensor}
    derived.write(run, NAME, digest(load_network(run)[0].state_dict()), {"kind": "ESTIMATE"}, tensors)
    with pytest.raises(UserError, match=r"partition\.safetensors: got low .*, expected one number in float64; delete"):
        loaded(run)


def test_chains_whose_weights_are_all_alike_can_be_kept(run: Path) -> None:
    """Their limits are log Z up to rounding, on either side."""
    network, _ = load_network(run)
    assert isinstance(network, Boltzmann)
    alike = Partition(0.3, Kind.ESTIMATE, 0.3 + 1e-15, 0.3 - 1e-15, 10.0, 10, 5, base_images=0, seed=2**60)
    partition.write(network, run, alike)
    assert known(loaded(run)) == alike
    assert alike.standard_error == 0.0


def test_a_limit_beyond_all_bounds_is_no_standard_error() -> None:
    assert Partition(0.0, Kind.ESTIMATE, -1.0, 1e30).standard_error is None


def test_estimates_that_cannot_be_are_named(run: Path) -> None:
    network, _ = load_network(run)
    assert isinstance(network, Boltzmann)
    path = estimates.keep(network, run, Partition(1.0, Kind.ESTIMATE, 0.9, 1.1, 9.0, 10, 5))
    tensors, _ = read_tensors(path)
    for name in ("log_z", "high"):
        wrong = {**tensors, name: torch.tensor([math.nan if name == "log_z" else 0.0], dtype=torch.float64)}
        derived.write(run, estimates.NAME, digest(network.state_dict()), {}, wrong)
        with pytest.raises(UserError, match=rf"estimates\.safetensors: got .*{name}.*, expected .*; delete it$"):
            estimates.kept(network, run)

"""What is seen of energies, and their pages: with a partition function, and without one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import small
from inspected import contents
from test_page import Read

from davi import derived, estimates, page, partition
from davi.cli import main
from davi.data import Images
from davi.errors import UserError
from davi.evaluation.autocorrelation import autocorrelation
from davi.evidence import Kind
from davi.files import digest
from davi.inspection import Filters, Inspection, chains, inspect
from davi.model import Model, Normalized, Partition
from davi.models import RBM
from davi.page import energy_charts, signed
from davi.runs import load_network, save_model


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "DISCARDED", 20)
    monkeypatch.setattr(chains, "STEPS", 60)
    monkeypatch.setattr(chains, "PICTURES", (1, 2, 10))


def images(n: int, name: str) -> Images:
    generator = torch.Generator().manual_seed(n)
    return Images(torch.randint(2, (n, 1, 2, 3), generator=generator, dtype=torch.uint8), 2, name)


TEST, TRAINING = images(12, "toy/test"), images(20, "toy/train")


def machine() -> RBM:
    found = small("rbm_digits_tiny", (1, 2, 3), 2)
    assert isinstance(found, RBM)
    return found


def estimate(temperatures: int, log_z: float, **changes: float) -> Partition:
    made = Partition(log_z, Kind.ESTIMATE, log_z - 1.0, log_z + 0.5, 40.0, 100, temperatures)
    return replace(made, **changes)  # type: ignore[arg-type]  # numbers of both kinds


def text_of(found: Inspection, model: Model, known: bool, several: Sequence[Partition] = ()) -> str:
    """The text of a page."""
    made = contents(inspection=found, model=model, levels=2, estimates=several, no_estimates="How to compare.")
    made = made if known else replace(made, result=None, no_result="Estimate it first.")
    return " ".join(" ".join(Read(page.render(made, page.compose(made, 96))).text).split())


def test_filters_come_with_the_largest_first() -> None:
    rbm = machine()
    (found,) = chains.filters_of(rbm)
    norms = found.fields.flatten(1).norm(dim=1)
    assert (found.layer, found.units, found.fields.shape) == (1, 8, (8, 1, 2, 3))
    assert bool((norms.diff() <= 0).all())
    expected = rbm.receptive_fields(1).flatten(1).norm(dim=1).sort(descending=True).values
    torch.testing.assert_close(norms, expected)


def test_free_energies_are_those_of_the_images_and_of_the_last_states() -> None:
    rbm = machine()
    model = Normalized(rbm, Partition(float(rbm.log_partition()), Kind.EXACT))
    found = inspect(model, TEST, samples=2, training=TRAINING).chains
    assert found is not None
    assert found.training is not None
    # As many training images as there are others.
    assert (len(found.training), len(found.images), len(found.samples)) == (12, 12, 14)
    torch.testing.assert_close(found.images.float(), rbm.free_energy(TEST.pixels).detach())
    torch.testing.assert_close(found.samples.float(), rbm.free_energy(found.ends).detach())
    measured = found.free_energy
    assert (found.discarded, measured.chains, measured.steps, len(measured.rho)) == (20, 14, 60, 31)


def test_images_are_ranked_without_a_partition_function_as_with_one() -> None:
    rbm = machine()
    with_one = inspect(Normalized(rbm, Partition(3.0, Kind.ESTIMATE)), TEST, samples=2)
    without = inspect(Normalized(rbm, None), TEST, samples=2)
    roles = [[(item.role, item.index) for item in found.chosen] for found in (with_one, without)]
    assert roles[0] == roles[1]
    assert all(item.bits_per_dim is not None for item in with_one.chosen)
    assert all(item.bits_per_dim is None for item in without.chosen)
    assert torch.equal(with_one.strips[0].images, without.strips[0].images)


def test_the_page_of_an_energy_has_its_sections() -> None:
    rbm = machine()
    found = inspect(model := Normalized(rbm, estimate(1000, 5.0)), TEST, samples=2, training=TRAINING)
    several = (estimate(100, 4.5, low=-math.inf), estimate(1000, 5.0, reverse=5.2, reverse_low=5.0, reverse_high=5.5))
    text = text_of(found, model, True, several)
    for words in (
        "Filters of all units, largest first.",
        "14 chains of 60 steps, after 20 steps that do not count",
        "Where 14 chains are after 80 Gibbs steps, each from another image of toy/test.",
        "training images on average (12 and 12 of them).",
        "The numbers of this page take log Z = 5.00 nats, an estimate, three standard errors 4.00 to 5.50; it comes "
        "from 1,000 temperatures and 100 chains, which count as 40.0 independent ones.",
        "100 4.50 (-infinity to 5.00) 40.0 of 100 not made",
        "1,000 5.00 (4.00 to 5.50) 40.0 of 100 5.20 (5.00 to 5.50)",
        "Comparison with baselines",
    ):
        assert words in text, words
    assert "No likelihood" not in text
    assert "How to compare." not in text
    assert "How to compare." in text_of(found, model, True)
    exact = Normalized(rbm, Partition(5.25, Kind.EXACT))
    assert "log Z = 5.2500 nats, exactly: it was summed over all states." in text_of(found, exact, True)


def test_a_page_without_a_likelihood_says_so() -> None:
    model = Normalized(machine(), None)
    text = text_of(inspect(model, TEST, samples=2), model, False)
    for words in (
        "No likelihood Estimate it first.",
        "ranked by their probability; what each costs is not known",
        "The partition function is not known: no number on this page is a likelihood.",
        "Free energies of 12 images of toy/test and of the ends of chains.",
        "Left out, since no likelihood is known: comparison with baselines.",
    ):
        assert words in text, words
    assert "Lower is better" not in text.partition("Contents")[0]
    assert "Comparison with baselines" not in text
    assert "mutual information" in text.partition("Does not apply to this model:")[2]
    assert "The number above" not in text


def test_an_autocorrelation_time_that_is_not_reached_is_no_number() -> None:
    model = Normalized(machine(), None)
    found = inspect(model, TEST, samples=2)
    assert found.chains is not None
    slow = autocorrelation(torch.arange(200.0).expand(3, 200))
    still = autocorrelation(torch.zeros(3, 200))
    for measured, words in (
        (
            slow,
            "is not reached by 3 chains of 200 steps, after 20 steps that do not count: it is at least about 20 steps",
        ),
        (still, "The autocorrelation time is not known: the free energy does not vary"),
    ):
        changed = replace(found, chains=replace(found.chains, free_energy=measured))
        assert words in text_of(changed, model, False)


def test_receptive_fields_have_a_figure_for_each_layer() -> None:
    model = Normalized(machine(), None)
    found = inspect(model, TEST, samples=2)
    more = (*found.filters, Filters(2, 7, torch.randn(5, 1, 2, 3)), Filters(3, 2, torch.randn(2, 3, 2, 3)))
    text = text_of(replace(found, filters=more), model, False)
    assert "Filters and receptive fields" in text
    assert "Receptive fields of the 5 units with the largest receptive fields, of 7, largest first, layer 2." in text
    assert "Gray is zero" in text


def test_zero_is_neutral_and_signs_have_their_colors() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5)
    red, _, blue = signed.colored(x, 1.0)[0, :, 0].int()
    assert abs(int(red[2]) - int(blue[2])) <= 2
    assert int(red[2]) > 240
    assert bool((blue[:2] > red[:2] + 50).all())
    assert bool((red[3:] > blue[3:] + 50).all())
    assert (int(red[0]), int(red[4])) == (int(red[1]), int(red[3]))  # cut off at the ends of the scale
    gray = signed.colored(torch.tensor([0.0, 1.0, -1.0]).view(1, 3, 1, 1), 1.0)[0, :, 0, 0].tolist()
    assert gray == [128, 255, 0]


def test_charts_of_open_intervals_and_of_equal_numbers() -> None:
    one = energy_charts.Interval(100, 3.0, -math.inf, 3.5)
    back = energy_charts.Interval(100, 3.2, 3.0, math.inf)
    drawn = energy_charts.estimates([one], [back], 3.1, "log Z, nats").axes[0]
    bottom, top = drawn.get_ylim()
    assert bottom < 3.0 < 3.5 < top
    assert drawn.get_legend_handles_labels()[1] == ["forward", "reverse", "exact"]
    alone = energy_charts.estimates([replace(one, low=3.0, high=3.0)], [], None, "log Z, nats").axes[0]
    assert alone.get_legend() is None
    energy_charts.histograms([("all alike", np.full(7, 2.0))], "free energy, nats")


# Estimates that are kept


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(folder / "model.safetensors", machine())
    return folder


def test_estimates_are_kept_by_their_number_of_temperatures(run: Path) -> None:
    network, _ = load_network(run)
    assert isinstance(network, RBM)
    assert estimates.kept(network, run) == ()
    many, few = estimate(1000, 5.0, reverse=5.2, sweeps=1000), estimate(100, 4.5, low=-math.inf)
    estimates.keep(network, run, many)
    partition.write(network, run, few)  # what likelihoods are computed with is one of them
    assert estimates.kept(network, run) == (few, many)
    assert isinstance(estimates.kept(network, run)[1].sweeps, int)
    again = estimate(100, 4.75)
    estimates.keep(network, run, again)
    assert estimates.kept(network, run) == (again, many)
    partition.write(network, run, Partition(5.1, Kind.EXACT))  # which is no estimate
    assert estimates.kept(network, run) == (again, many)
    with torch.no_grad():
        network.weight.add_(0.5)
    assert estimates.kept(network, run) == ()


def test_a_damaged_list_of_estimates_is_named(run: Path) -> None:
    network, _ = load_network(run)
    assert isinstance(network, RBM)
    weights = digest(network.state_dict())
    derived.write(run, estimates.NAME, weights, {}, {"log_z": torch.zeros(2), "temperatures": torch.zeros(3)})
    with pytest.raises(UserError, match=r"estimates\.safetensors: got no list of estimates, expected one; delete it$"):
        estimates.kept(network, run)


def test_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """More than 24 units on either side: the partition function is not known until it is estimated."""
    monkeypatch.setattr(estimates, "TEMPERATURES", (3, 20))
    folder = tmp_path / "run"
    few = ["--training.steps", "2", "--training.validate_every", "2", "--model.hidden", "30"]
    assert main(["train", "rbm_digits_tiny", "--run", str(folder), *few]) == 0
    inspecting = ["inspect", str(folder), "--limit", "12", "--no-figures"]
    assert main(inspecting) == 0
    text = (folder / "inspection.html").read_text()
    assert "No likelihood" in text
    assert f"davi evaluate {folder} estimates it" in text
    assert f"davi inspect {folder} --estimates" in text
    capsys.readouterr()
    assert main([*inspecting, "--estimates"]) == 0
    assert "number: digits/test costs about" in capsys.readouterr().out
    network, _ = load_network(folder)
    assert isinstance(network, RBM)
    several = estimates.kept(network, folder)
    assert [one.temperatures for one in several] == [3, 20]
    assert [one.reverse is None for one in several] == [True, False]
    assert f"log Z = {several[-1].log_z:.2f} nats, an estimate" in (folder / "inspection.html").read_text()
    vae = tmp_path / "vae"
    assert main(["train", "vae_digits_tiny", "--run", str(vae), "--training.steps", "1"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(vae), "--estimates"]) == 2
    assert capsys.readouterr().err.endswith(
        "davi: --estimates: got it for vae, which needs no partition function; expected no such option\n"
    )

"""Estimates of partition functions against sums over all states: their error bars hold what they say, for all kinds of
visible units; and what becomes of weights."""

from __future__ import annotations

import math

import pytest
import torch
from contract import seeded
from golden_rbm import LOG_Z, golden
from torch import Tensor

from davi.errors import UserError
from davi.evaluation import PartitionEstimate, ReverseEstimate, Weights, estimate_partition
from davi.evaluation.annealing import schedule
from davi.evidence import Kind
from davi.model import Harmonium, Partition
from davi.models.rbm import RBM, RBMConfig

EVEN = torch.linspace(0.0, 1.0, 1000, dtype=torch.float64).tolist()


def weights(*logs: float) -> Weights:
    return Weights(torch.tensor(logs, dtype=torch.float64))


def machine(levels: int, config: RBMConfig, scale: float, seed: int) -> RBM:
    """Of three pixels, with parameters of that standard deviation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = RBM((1, 1, 3), levels, config).double().eval()
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.normal_(0.0, scale)
    return found


# Estimates


def test_a_thousand_temperatures_find_the_golden_log_z() -> None:
    estimate = estimate_partition(golden(), None, EVEN, 500, seeded())
    assert estimate.log_z == pytest.approx(LOG_Z, abs=5e-3)
    assert (estimate.chains, len(estimate.temperatures)) == (500, 1000)
    assert float(estimate.log_weights.std()) == pytest.approx(0.0106, rel=0.1)
    assert estimate.low < estimate.log_z < estimate.high < estimate.low + 0.01
    assert estimate.effective_samples > 499
    assert estimate.doubts() == ()
    assert estimate.reverse is None
    assert repr(estimate).startswith(f"PartitionEstimate(log Z {estimate.log_z:.4f}, from {estimate.low:.4f} to ")
    assert repr(estimate).endswith("of 500 chains effective, 1000 temperatures)")


def test_a_base_with_the_mean_of_images() -> None:
    images = golden().images(golden().state_gibbs(torch.zeros(300, 1, 2, 3).double(), 20, seeded()))
    estimate = estimate_partition(golden(), images, schedule(100), 500, seeded())
    assert estimate.log_z == pytest.approx(LOG_Z, abs=5e-3)
    plain = estimate_partition(golden(), None, schedule(100), 500, seeded())
    assert not torch.equal(estimate.base, plain.base)
    assert estimate.log_base != plain.log_base


def test_single_precision_is_enough() -> None:
    estimate = estimate_partition(golden().float(), None, 1000, 500, seeded())
    assert estimate.log_weights.dtype == torch.float64
    assert estimate.log_z == pytest.approx(LOG_Z, abs=5e-3)


@pytest.mark.parametrize(
    "energy",
    [
        golden(),
        machine(2, RBMConfig(5), 1.0, 1),
        machine(3, RBMConfig(4, visible="potts"), 1.0, 2),
        machine(4, RBMConfig(4, visible="gaussian"), 0.6, 3),
    ],
    ids=("golden", "binary", "potts", "gaussian"),
)
def test_95_percent_intervals_cover_the_truth(energy: Harmonium) -> None:
    """In at least 90 of 100 repeats, which are parts of one tensor of chains; in all of them they would be too wide."""
    truth = float(energy.log_partition())
    estimate = estimate_partition(energy, None, 12, 100 * 100, seeded(3))
    assert estimate.effective_samples < 9950  # there is something to be uncertain about
    covered = 0
    for logs in estimate.log_weights.view(100, 100):
        low, high = Weights(logs).interval(1.96)
        covered += low <= truth - estimate.log_base <= high
    assert 90 <= covered < 100
    assert estimate.low < truth < estimate.high


def test_the_reverse_estimate_comes_from_the_other_side() -> None:
    estimate = estimate_partition(golden(), None, 50, 400, seeded(), reverse=True, sweeps=40)
    assert estimate.reverse is not None
    assert estimate.reverse.low < LOG_Z < estimate.reverse.high
    assert estimate.reverse.low < estimate.reverse.log_z < estimate.reverse.high
    assert estimate.reverse.sweeps == 40
    assert estimate.reverse.levels >= 2
    assert 0.2 < estimate.reverse.acceptance <= 1.0
    assert not estimate.disagree
    assert estimate.doubts() == ()
    alone = estimate_partition(golden(), None, 50, 400, seeded())
    assert torch.equal(alone.log_weights, estimate.log_weights)  # the forward estimate does not depend on it


def test_estimates_follow_the_generator() -> None:
    first, again, other = (estimate_partition(golden(), None, 20, 10, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.log_weights, again.log_weights)
    assert first.log_z != other.log_z
    torch.manual_seed(3)
    default = estimate_partition(golden(), None, 20, 10)
    torch.manual_seed(3)
    assert estimate_partition(golden(), None, 20, 10).log_z == default.log_z


@pytest.mark.parametrize("reverse", [False, True])
def test_progress_is_that_of_the_whole(reverse: bool) -> None:
    seen: list[tuple[int, int]] = []
    estimate_partition(golden(), None, 8, 4, seeded(), lambda *at: seen.append(at), reverse, sweeps=6)
    total = 7 + 6 + 7 if reverse else 7
    assert seen == [(i, total) for i in range(1, total + 1)]


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^chains: got 1, expected 2 or more$"):
        estimate_partition(golden(), None, 8, 1)
    broken = golden()
    with torch.no_grad():
        broken.c[0] = math.inf
    with pytest.raises(UserError, match=r"^rbm: got the partition function exp\((nan|inf)\), expected a finite one$"):
        estimate_partition(broken, None, 8, 4, seeded())


def test_it_is_a_partition_function_that_is_estimated() -> None:
    estimate = PartitionEstimate(2.0, weights(0.5, 0.7, 0.6), torch.zeros(1), schedule(30))
    numbers = (estimate.log_z, Kind.ESTIMATE, estimate.low, estimate.high, estimate.effective_samples, 3, 30)
    assert estimate.partition() == Partition(*numbers)
    mean = (math.exp(0.5) + math.exp(0.7) + math.exp(0.6)) / 3
    assert estimate.log_z == pytest.approx(2.0 + math.log(mean), abs=1e-14)


# Doubts


def reverse(log_base: float, *logs: float) -> ReverseEstimate:
    return ReverseEstimate(log_base, weights(*logs), 100, 8, 0.3)


def estimate_of(forward: Weights, back: ReverseEstimate | None = None) -> PartitionEstimate:
    return PartitionEstimate(0.0, forward, torch.zeros(1), (0.0, 1.0), back)


def test_estimates_that_disagree_are_doubted() -> None:
    forward = weights(1.0, 1.1, 0.9, 1.0)
    assert not estimate_of(forward, reverse(0.0, -1.0, -1.05, -0.95, -1.0)).disagree
    for log_z in (2.0, 0.0):
        found = estimate_of(forward, reverse(0.0, -log_z, -log_z - 0.05, -log_z + 0.05, -log_z))
        assert found.disagree
        assert len(found.doubts()) == 1
        assert found.doubts()[0].startswith("chains that walk forward and back disagree")
    uncertain = reverse(0.0, -9.0, -9.0, -9.0, 0.0)  # one chain of four has all the weight: no upper limit
    assert uncertain.high == math.inf
    assert not estimate_of(forward, uncertain).disagree


def test_few_effective_samples_are_doubted() -> None:
    found = estimate_of(weights(*[0.0] * 99, 12.0))
    assert found.effective_samples == pytest.approx(1.0, abs=0.01)
    assert found.low == -math.inf
    few, no_limit = found.doubts()
    assert few == "only 1 of 100 chains are effective, fewer than half"
    assert no_limit.startswith("the interval of Z reaches 0")


# Weights


def test_an_interval_that_contains_zero_has_no_lower_limit() -> None:
    found = weights(*[0.0] * 99, 10.0)
    low, high = found.interval()
    assert low == -math.inf
    assert found.log_mean < high < 10.0
    w = found.logs.exp()
    assert high == pytest.approx(math.log(float(w.mean() + 3 * w.std() / 10)), abs=1e-12)
    low, high = found.interval(0.5)
    assert low == pytest.approx(math.log(float(w.mean() - 0.5 * w.std() / 10)), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_weights_of_any_size(shift: float) -> None:
    logs = torch.randn(50, generator=seeded(), dtype=torch.float64)
    found = Weights(logs + shift)
    w = logs.exp()
    margin = 3 * float(w.std()) / math.sqrt(50)
    assert found.log_mean - shift == pytest.approx(math.log(float(w.mean())), abs=1e-10)
    expected = (math.log(float(w.mean()) - margin), math.log(float(w.mean()) + margin))
    assert [end - shift for end in found.interval()] == pytest.approx(expected, abs=1e-10)
    assert found.effective_samples == pytest.approx(float(w.sum() ** 2 / w.square().sum()), rel=1e-10)


@pytest.mark.parametrize(
    ("logs", "interval", "effective"),
    [
        ([3.0, 3.0, 3.0], (3.0, 3.0), 3.0),
        ([-math.inf, -math.inf], (-math.inf, -math.inf), 0.0),
        ([3.0], (-math.inf, math.inf), 1.0),
    ],
)
def test_extreme_weights(logs: list[float], interval: tuple[float, float], effective: float) -> None:
    found = weights(*logs)
    assert found.interval() == pytest.approx(interval, abs=1e-14)
    assert found.effective_samples == pytest.approx(effective, abs=1e-12)
    assert not math.isnan(found.log_mean)


def test_a_weight_of_zero_counts() -> None:
    found = weights(0.0, -math.inf)
    assert found.log_mean == pytest.approx(math.log(0.5), abs=1e-14)
    assert found.effective_samples == pytest.approx(1.0, abs=1e-14)


def test_exact_sums_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [float(energy.log_partition()) for energy in (golden(), machine(3, RBMConfig(20), 1.0, 2))]
    monkeypatch.setattr("davi.model.harmonium._IN_CACHE", 50)
    pieces: list[Tensor] = [energy.log_partition() for energy in (golden(), machine(3, RBMConfig(20), 1.0, 2))]
    assert [float(piece) for piece in pieces] == pytest.approx(whole, abs=1e-12)
    assert whole[0] == pytest.approx(LOG_Z, abs=1e-13)

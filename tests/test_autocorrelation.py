"""The integrated autocorrelation time, against processes of which it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from torch import Tensor

from davi.evaluation.autocorrelation import autocorrelation


def autoregressive(phi: float, chains: int, steps: int, seed: int) -> Tensor:
    """x_t = phi x_{t-1} + noise, from its own distribution: rho(t) = phi^t and tau = (1 + phi) / (1 - phi)."""
    noise = np.random.default_rng(seed).standard_normal((chains, steps))
    noise[:, 0] /= math.sqrt(1.0 - phi * phi)
    return torch.from_numpy(lfilter([1.0], [1.0, -phi], noise, axis=1))


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_time_of_an_autoregressive_process(phi: float) -> None:
    """The errors are as large as they are said to be: their squares have a mean near 1."""
    truth, deviations = (1.0 + phi) / (1.0 - phi), []
    for seed in range(40):
        found = autocorrelation(autoregressive(phi, 16, 1000, seed))
        assert found.time is not None
        assert found.standard_error is not None
        deviations.append((found.time - truth) / found.standard_error)
    assert abs(float(np.mean(deviations))) < 0.6
    assert 0.4 < float(np.mean(np.square(deviations))) < 1.7
    assert max(map(abs, deviations)) < 4.0


def test_the_correlation_falls_as_it_should() -> None:
    found = autocorrelation(autoregressive(0.8, 64, 4000, 1))
    assert (found.chains, found.steps, len(found.rho)) == (64, 4000, 2001)
    expected = 0.8 ** torch.arange(20, dtype=torch.float64)
    torch.testing.assert_close(found.rho[:20], expected, rtol=0.0, atol=0.02)


def test_one_chain_by_hand() -> None:
    """Of 2, 0, -1, -1: covariances 6/4, 1/3 and -2/2."""
    found = autocorrelation(torch.tensor([[2.0, 0.0, -1.0, -1.0]]))
    torch.testing.assert_close(found.rho, torch.tensor([1.0, 2 / 9, -2 / 3], dtype=torch.float64))


def test_a_time_longer_than_the_chains_is_not_reached() -> None:
    assert autocorrelation(autoregressive(0.999, 16, 500, 0)).time is None  # 1999 steps


def test_chains_that_stay_apart_do_not_reach_it() -> None:
    values = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert autocorrelation(values).time == pytest.approx(1.0, abs=0.1)
    values[:4] += 5.0
    assert autocorrelation(values).time is None


def test_what_does_not_vary_has_no_autocorrelation() -> None:
    found = autocorrelation(torch.full((3, 50), 0.1))
    assert found.time is None
    assert bool(found.rho.isnan().all())

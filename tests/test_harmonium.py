"""Energies of two layers: the path from independent units and the sums over states, against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from contract import assert_frequencies, seeded
from golden_rbm import LOG_Z, golden
from torch import Tensor

from davi.model import harmonium
from davi.models.rbm import RBM, RBMConfig

BETAS = [0.0, 0.35, 1.0]


def potts() -> RBM:
    """Two pixels of three levels, two hidden units, strongly coupled."""
    torch.manual_seed(2)
    model = RBM((1, 1, 2), 3, RBMConfig(2)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1.5 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=[golden, potts], ids=["binary", "potts"])
def model(request: pytest.FixtureRequest) -> RBM:
    found = request.param()
    assert isinstance(found, RBM)
    return found


def visible_states(model: RBM) -> Tensor:
    return model.visible.states(0, round(2**model.visible.log2_states), model.b)


def base_of(model: RBM) -> Tensor:
    return torch.randn(model.visible.shape, dtype=torch.float64, generator=seeded(4))


@torch.no_grad()
def log_joint(model: RBM, beta: float, base: Tensor) -> Tensor:
    """Minus the energy at a place of the path of every pair of states, by loops over its terms, ``[V, H]``. The fields
    and couplings of Potts units are made to sum to zero here."""
    w, b = model.weight.view(*model.visible.shape, -1), model.b.detach()
    if model.levels > 2:
        w, b = w - w.mean(-2, keepdim=True), b - b.mean(-1, keepdim=True)
    w, b, c, a = w.reshape(-1, len(model.c)), b.flatten(), model.c, base.flatten()
    rows = []
    for v in visible_states(model).flatten(1):
        row = []
        for h in itertools.product((0.0, 1.0), repeat=len(c)):
            linear = sum(((1 - beta) * a[i] + beta * b[i]) * v[i] for i in range(len(v)))
            linear += sum(beta * c[j] * h[j] for j in range(len(c)))
            linear += sum(beta * w[i, j] * v[i] * h[j] for i in range(len(v)) for j in range(len(c)))
            row.append(float(linear))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("beta", BETAS)
@torch.no_grad()
def test_free_energies_along_the_path_by_enumeration(model: RBM, beta: float) -> None:
    base, v = base_of(model), visible_states(model)
    expected = -log_joint(model, beta, base).logsumexp(1)
    torch.testing.assert_close(model.path_free_energy(v, beta, base), expected, rtol=0.0, atol=1e-12)
    if beta == 1.0:
        torch.testing.assert_close(model.state_free_energy(v), expected, rtol=0.0, atol=1e-12)
    if beta == 0.0:
        torch.testing.assert_close(model.path_log_z(base), (-expected).logsumexp(0), rtol=0.0, atol=1e-12)


@torch.no_grad()
def test_every_chain_may_have_a_place_of_its_own(model: RBM) -> None:
    base, v = base_of(model), visible_states(model)
    v = v[torch.arange(12) % len(v)]
    betas = torch.linspace(0.0, 1.0, 12, dtype=torch.float64)
    one_by_one = [model.path_free_energy(v[i : i + 1], float(betas[i]), base) for i in range(12)]
    torch.testing.assert_close(model.path_free_energy(v, betas, base), torch.cat(one_by_one), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@torch.no_grad()
def test_one_step_on_the_path_has_the_stated_transitions(model: RBM, beta: float) -> None:
    """p(v' | v) is the sum over h of p(h | v) p(v' | h); the distribution at that place stays as it is."""
    base, v = base_of(model), visible_states(model)
    joint = log_joint(model, beta, base).exp()
    matrix = (joint / joint.sum(1, keepdim=True)) @ (joint / joint.sum(0)).T
    p = joint.sum(1) / joint.sum()
    torch.testing.assert_close(p @ matrix, p, rtol=0.0, atol=1e-14)
    n, first = 20000, len(v) // 2
    start = v[first].expand(n, *v.shape[1:])
    place = torch.tensor(beta).expand(n) if beta == 0.35 else beta
    moved = model.path_gibbs(start, place, base, seeded())
    places = (moved.flatten(1) @ v.flatten(1).T + (1 - moved.flatten(1)) @ (1 - v.flatten(1)).T).argmax(1)
    rare = matrix[first] * n < 5  # which the test of frequencies is not for
    number = torch.where(rare, 0, torch.cumsum((~rare).long(), 0))
    grouped = torch.zeros(int(number.max()) + 1, dtype=torch.float64).index_add_(0, number, matrix[first])
    keep = 0 if float(grouped[0]) * n >= 5 else 1
    merged = grouped[keep:].clone()
    merged[0] += grouped[:keep].sum()
    assert_frequencies((number[places] - keep).clamp(min=0), merged.log())


def test_log_z_is_the_sum_over_either_layer(model: RBM) -> None:
    everything = log_joint(model, 1.0, base_of(model)).logsumexp((0, 1))
    torch.testing.assert_close(model.log_partition(), everything, rtol=0.0, atol=1e-12)
    by_visible = (-model.state_free_energy(visible_states(model))).logsumexp(0)
    torch.testing.assert_close(by_visible, everything, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("wide", [False, True])
def test_the_smaller_layer_is_summed_over(wide: bool) -> None:
    """The golden RBM, and the same with its layers exchanged."""
    model = golden()
    if wide:
        turned = RBM((1, 1, 4), 2, RBMConfig(6)).double()
        with torch.no_grad():
            turned.set_parameters(model.weight.T, model.c.view(1, 1, 4), model.b.flatten())
        model = turned
    assert model.log2_states == 4
    assert float(model.log_partition()) == pytest.approx(LOG_Z, abs=1e-13)


@pytest.mark.parametrize("hidden", [9, 16])
def test_a_sum_in_pieces_is_the_same_and_holds_no_more_than_a_piece(
    hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2^9 states of 9 hidden or 9 visible units, 32 numbers at a time: the memory does not grow with their number. In
    the way of all units, bits as well."""
    torch.manual_seed(0)
    model = RBM((1, 3, 4 if hidden == 9 else 3), 2, RBMConfig(hidden, weight_std=1.0)).double()
    whole = model.log_partition()
    sizes = []
    for name in ("hidden_input", "visible_input"):
        plain = getattr(RBM, name)

        def counting(self: RBM, states: Tensor, plain=plain) -> Tensor:  # type: ignore[no-untyped-def]
            found: Tensor = plain(self, states)
            sizes.append(found.numel())
            return found

        monkeypatch.setattr(RBM, name, counting)
    monkeypatch.setattr(RBM, "_log_partition_of_bits", lambda *arguments: None)
    monkeypatch.setattr(harmonium, "_IN_CACHE", 32)
    torch.testing.assert_close(model.log_partition(), whole, rtol=0.0, atol=1e-11)
    assert max(sizes) <= 32
    assert sum(sizes) == 2**9 * (12 if hidden == 9 else 16)

"""The restricted Boltzmann machine: known numbers, the Gibbs kernel, gradients, and the gauge of Potts units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contract import all_images, assert_frequencies, seeded
from golden_rbm import LOG_Z, SHAPE, golden, log_probabilities, place, states, transitions
from torch import Tensor

import davi
from davi.errors import OptionError, UserError
from davi.evidence import Kind
from davi.model import Normalized, Partition
from davi.models.rbm import RBM, RBMConfig


def test_log_z_by_either_layer() -> None:
    model = golden()
    by_visible = (-model.state_free_energy(states())).logsumexp(0)
    assert float(model.log_partition()) == pytest.approx(LOG_Z, abs=1e-13)  # the hidden layer is the smaller one
    assert float(by_visible.detach()) == pytest.approx(LOG_Z, abs=1e-13)


def test_known_probabilities() -> None:
    model = golden()
    known = Normalized(model, Partition(float(model.log_partition()), Kind.EXACT))
    x = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)]).to(torch.uint8)
    evidence = known.evidence(x)
    assert evidence.kind is Kind.EXACT
    assert evidence.log_px.tolist() == pytest.approx([-4.575052655796, -4.274147081606], abs=1e-12)


def test_large_couplings_do_not_overflow() -> None:
    """One unit on each side, W = 200: Z = e^200 + 3, and float32 ends at e^88."""
    model = RBM((1, 1, 1), 2, RBMConfig(1))
    with torch.no_grad():
        model.weight.fill_(200.0)
    assert float(model.log_partition()) == 200.0
    assert model.free_energy(torch.ones(1, 1, 1, 1).long()).item() == -200.0


# The chain


def test_the_gibbs_kernel_leaves_p_alone_and_is_in_detailed_balance() -> None:
    model = golden()
    matrix, p = transitions(model), log_probabilities(model).exp()
    torch.testing.assert_close(matrix.sum(1), torch.ones(64, dtype=torch.float64), rtol=0.0, atol=1e-14)
    torch.testing.assert_close(p @ matrix, p, rtol=0.0, atol=1e-15)
    flow = p[:, None] * matrix
    torch.testing.assert_close(flow, flow.T, rtol=0.0, atol=1e-16)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_chain_makes_the_kernels_steps(steps: int) -> None:
    """From one state, by powers of the matrix."""
    model = golden()
    expected = torch.linalg.matrix_power(transitions(model), steps)[13]
    start = states()[13].expand(40000, *SHAPE)
    assert_frequencies(place(model.state_gibbs(start, steps, seeded())), expected.log())


def test_the_chain_may_run_in_inference_mode() -> None:
    model = golden()
    with torch.inference_mode():
        moved = model.gibbs(torch.zeros(3, *SHAPE, dtype=torch.uint8), 2, seeded())
    assert torch.equal(moved, model.gibbs(torch.zeros(3, *SHAPE, dtype=torch.uint8), 2, seeded()))


# Gradients


def potts() -> RBM:
    torch.manual_seed(2)
    model = RBM((1, 1, 2), 3, RBMConfig(2, weight_std=1.5)).double().eval()
    with torch.no_grad():
        model.b.normal_()
        model.c.normal_()
    return model


@pytest.mark.parametrize("make", [golden, potts])
def test_the_likelihood_gradient_is_that_of_free_energies(make: Callable[[], RBM]) -> None:
    """d log p(x) = -dF(x) + E[dF] with the expectation under the model, by autograd of the enumerated log p."""
    model = make()
    v = model.visible.states(0, round(2**model.visible.log2_states), model.b)
    free = model.state_free_energy(v)
    log_p = -free - (-free).logsumexp(0)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(log_p[:3].mean(), parameters, retain_graph=True)
    weighted = -free[:3].mean() + (log_p.detach().exp() * free).sum()
    for found, wanted in zip(torch.autograd.grad(weighted, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-12)


def test_visible_and_hidden_statistics_are_of_one_state() -> None:
    """<v h> under the model. With hidden units one step later than the visible ones it would be .255741."""
    model = golden()
    p = log_probabilities(model).exp()
    (gradient,) = torch.autograd.grad(-(p * model.state_free_energy(states())).sum(), model.weight)
    assert float(gradient[0, 0]) == pytest.approx(0.290299, abs=5e-7)
    v, h = states().flatten(1)[:, 0], model.hidden_input(states()).detach().sigmoid()[:, 0]
    assert float((p * v * h).sum()) == pytest.approx(float(gradient[0, 0]), abs=1e-12)
    assert float((p * v * (transitions(model) @ h)).sum()) == pytest.approx(0.255741, abs=5e-7)


# The gauge of Potts units


def log_p_by_terms(model: RBM, weight: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Of all images, from parameters as they are: no gauge, no code of the model."""
    x = all_images(model).flatten(1)  # [N, pixels]
    w = weight.view(model.dims, model.levels, -1)
    pixels = torch.arange(model.dims)
    fields = b.view(model.dims, -1)[pixels, x].sum(1)
    inputs = c + w[pixels, x].sum(1)
    return (fields + inputs.exp().log1p().sum(1)).log_softmax(0)


def test_parameters_in_any_gauge_give_the_same_probabilities() -> None:
    model = potts()
    weight, b, c = (p.detach().clone() for p in (model.weight, model.b, model.c))
    torch.manual_seed(3)
    # Numbers added to all levels of a pixel change nothing, if those added to the couplings are taken from c.
    by_pixel = torch.randn(2, 1, 2, dtype=torch.float64)
    shifted = (weight.view(2, 3, 2) + by_pixel).view(6, 2), b + torch.randn(1, 1, 2, 1), c - by_pixel.sum((0, 1))
    expected = log_p_by_terms(model, weight, b, c)
    torch.testing.assert_close(log_p_by_terms(model, *shifted), expected, rtol=0.0, atol=1e-12)
    free = []
    for parameters in ((weight, b, c), shifted):
        model.set_parameters(*parameters)
        x = all_images(model)
        log_p = -model.free_energy(x).detach() - model.log_partition()
        torch.testing.assert_close(log_p, expected, rtol=0.0, atol=1e-12)
        assert float(model.b.detach().sum(-1).abs().max()) < 1e-14
        assert float(model.weight.detach().view(2, 3, 2).sum(1).abs().max()) < 1e-14
        free.append(model.free_energy(x).detach())
    torch.testing.assert_close(free[0], free[1], rtol=0.0, atol=1e-12)  # the gauge is fixed on c and the constant too


def test_what_lies_outside_of_the_gauge_plays_no_part() -> None:
    model = potts()
    x = all_images(model)
    before = model.free_energy(x).detach(), model.log_partition(), model.visible_input(torch.ones(1, 2).double())
    with torch.no_grad():
        model.weight.view(2, 3, 2).add_(torch.tensor([[[1.0, -2.0]], [[3.0, 0.5]]]))
        model.b.add_(1.5)
    after = model.free_energy(x).detach(), model.log_partition(), model.visible_input(torch.ones(1, 2).double())
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=0.0, atol=1e-12)


def test_training_stays_in_the_gauge() -> None:
    """Gradients sum to zero over the levels and do not vanish; so do weights after steps with momentum and decay."""
    model = potts()
    with torch.no_grad():
        model.initialize(torch.randint(3, (50, 1, 1, 2), generator=seeded()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    x = torch.tensor([[[[0, 2]]]])
    for _ in range(5):
        optimizer.zero_grad()
        (model.free_energy(x).mean() - model.free_energy(all_images(model)).mean()).backward()
        assert model.b.grad is not None
        assert model.weight.grad is not None
        assert float(model.b.grad.abs().max()) > 0.1
        assert float(model.b.grad.sum(-1).abs().max()) < 1e-14
        assert float(model.weight.grad.view(2, 3, 2).abs().max()) > 0.01
        assert float(model.weight.grad.view(2, 3, 2).sum(1).abs().max()) < 1e-14
        optimizer.step()
    # They were drawn in float32.
    assert float(model.b.detach().sum(-1).abs().max()) < 1e-6
    assert float(model.weight.detach().view(2, 3, 2).sum(1).abs().max()) < 1e-6


def test_two_potts_levels_are_a_binary_unit() -> None:
    """W = W_1 - W_0 and b = b_1 - b_0."""
    torch.manual_seed(5)
    one_hot = RBM(SHAPE, 2, RBMConfig(3, weight_std=1.0, visible="potts")).double()
    binary = RBM(SHAPE, 2, RBMConfig(3)).double()
    w, b = torch.randn(6, 2, 3).double(), torch.randn(*SHAPE, 2).double()
    c = torch.randn(3).double()
    one_hot.set_parameters(w.view(12, 3), b, c)
    binary.set_parameters(w[:, 1] - w[:, 0], b[..., 1] - b[..., 0], c + w[:, 0].sum(0))
    x = all_images(binary)
    with torch.no_grad():
        found, expected = (-model.free_energy(x) - model.log_partition() for model in (one_hot, binary))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    assert float(expected.exp().sum()) == pytest.approx(1.0, abs=1e-12)


# Beginning


@pytest.mark.parametrize(("visible", "levels"), [("binary", 2), ("potts", 5), ("gaussian", 5)])
def test_it_begins_as_independent_pixels(visible: str, levels: int) -> None:
    torch.manual_seed(0)
    config = RBMConfig(7, weight_std=0.02, hidden_bias=-4.0, visible=visible)  # type: ignore[arg-type]  # a literal
    model = RBM((3, 4, 5), levels, config)
    assert model.c.tolist() == [-4.0] * 7
    assert 0.015 < float(model.weight.detach().std()) < 0.025
    images = (torch.rand(400, 3, 4, 5, generator=seeded()) ** 2 * levels).long()
    model.initialize(images)
    field = model.pixels.field(images)
    torch.testing.assert_close(model.b.double(), field, rtol=0.0, atol=1e-6)
    expected = model.state(images, seeded()).mean(0)  # of independent units: the mean of the data, nearly
    torch.testing.assert_close(model.visible.mean(model.b[None])[0], expected, rtol=0.0, atol=0.2)


def test_lent_weights_stay() -> None:
    model = RBM((1, 2, 2), 17, RBMConfig(2, visible="gaussian"))
    with torch.no_grad():
        model.b.fill_(0.5)
    std = model.pixels.get_buffer("std").clone()
    model.initialize(torch.randint(17, (50, 1, 2, 2), generator=seeded()) // 2, {"b", "pixels.std"})
    assert bool((model.b == 0.5).all())
    assert torch.equal(model.pixels.get_buffer("std"), std)
    assert bool((model.pixels.get_buffer("mean") != 8.5).all())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("hidden=0", "hidden: got 0, expected at least 1"),
        ("weight_std=-1", "weight_std: got -1.0, expected a finite number from 0"),
        ("hidden_bias=.inf", "hidden_bias: got inf, expected a finite number"),
        ("conditional_std=0", "conditional_std: got 0.0, expected a number above 0, at most 1"),
        ("visible=poisson", "visible: got 'poisson', expected one of auto, binary, gaussian, potts"),
        ("visible=binary", "visible: got binary for 17 levels, expected potts or gaussian (or 2 levels)"),
    ],
)
def test_options_that_do_not_fit_are_named_in_one_line(option: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        davi.recipes.build(davi.recipes.load("rbm_potts_digits_tiny", [f"model.{option}"]), (1, 8, 8), 17)
    assert f"model.{message}" in str(caught.value) or message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_program_the_option_is_named_too() -> None:
    with pytest.raises(OptionError, match=r"^visible: got binary for 3 levels"):
        RBM((1, 2, 2), 3, RBMConfig(2, visible="binary"))

"""Flow++: its couplings, their inverse, layers set from data, the published counts of parameters."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from davi import recipes
from davi.flows import Coupling, MixtureLogistic, OnHalves, PositionNorm, TanhAffine, coupling_steps
from davi.flows.noise import UniformConfig, VariationalConfig
from davi.flows.splits import Checkerboard, Columns
from davi.layers.coupling_network import CouplingNetworkConfig, GatedConv
from davi.layers.data_conv import DataConv2d
from davi.layers.from_data import set_from_data
from davi.models.flowpp import FlowPP, FlowPPConfig

K = 5
NETWORK = CouplingNetworkConfig(width=4, blocks=1, heads=2)


def harsh(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Points and parameters of ``[n, 1, 1, 1]`` variables: narrow and wide logistics far from each other, points far
    out."""
    generator = torch.Generator().manual_seed(3)
    draw = torch.randn(n, 2 + 3 * K, generator=generator, dtype=torch.float64)
    draw[:, 2 : 2 + K] *= 3.0
    draw[:, 2 + K : 2 + 2 * K] *= 5.0
    draw[:, 2 + 2 * K :] = 3.0 * draw[:, 2 + 2 * K :] - 2.0
    x = 10.0 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return x[..., None, None].to(dtype), draw[..., None, None, None].to(dtype)


def test_the_coupling_function_is_the_logit_of_the_distribution_function() -> None:
    x, raw = harsh(40)
    x = x.clamp(-2.0, 2.0)  # where the distribution function is not rounded to 0 or 1
    raw[:, 2 + 2 * K :] = raw[:, 2 + 2 * K :].clamp_min(-1.0)
    s, t, *rest = raw[..., 0, 0, 0].T
    logits, means, log_scales = torch.stack(rest, 1).chunk(3, 1)
    weights, where = logits.softmax(1).numpy(), (x[:, :, 0, 0].numpy(), means.numpy(), log_scales.exp().numpy())
    c = torch.from_numpy((weights * stats.logistic.cdf(*where)).sum(1))
    rest_of_it = torch.from_numpy((weights * stats.logistic.sf(*where)).sum(1))
    p = torch.from_numpy((weights * stats.logistic.pdf(*where)).sum(1))
    y, log_slope = MixtureLogistic(K)(x, raw)
    expected = s.tanh().exp() * (c.log() - rest_of_it.log()) + t
    torch.testing.assert_close(y[:, 0, 0, 0], expected, rtol=1e-11, atol=1e-11)
    slope = s.tanh() + p.log() - c.log() - rest_of_it.log()
    torch.testing.assert_close(log_slope[:, 0, 0, 0], slope, rtol=1e-11, atol=1e-11)


def test_the_inverse_is_found_whatever_the_mixture() -> None:
    x, raw = harsh(4000)
    function = MixtureLogistic(K)
    y, log_slope = function(x, raw)
    back, log_slope_back = function.inverse(y, raw)
    error = (back - x).abs() * log_slope.exp().clamp_max(1.0)  # where the function is flat, no x can be told from y
    assert float(error.max()) < 1e-8
    again, _ = function(back, raw)
    torch.testing.assert_close(again, y, rtol=1e-10, atol=1e-10)
    steep = log_slope > -2.0
    assert int(steep.sum()) > 2000
    torch.testing.assert_close(log_slope_back[steep], -log_slope[steep], rtol=1e-7, atol=1e-7)


def test_solutions_do_not_depend_on_the_batch() -> None:
    x, raw = harsh(200)
    function = MixtureLogistic(K)
    together, _ = function.inverse(x, raw)
    for i in (0, 77, 199):
        assert torch.equal(function.inverse(x[i : i + 1], raw[i : i + 1])[0], together[i : i + 1])


def test_nothing_is_lost_far_out_in_float32() -> None:
    """There y grows as x does, with the slope of the narrowest or the widest logistic."""
    _, raw = harsh(50, torch.float32)
    raw.requires_grad_()
    for far in (-1e6, -300.0, 300.0, 1e6):
        x = torch.full((50, 1, 1, 1), far)
        y, log_slope = MixtureLogistic(K)(x, raw)
        exact, exact_slope = MixtureLogistic(K)(x.double(), raw.double())
        torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(log_slope.double(), exact_slope, rtol=0.0, atol=0.1)
        (gradient,) = torch.autograd.grad(y.sum() / abs(far) + log_slope.sum(), raw)
        assert bool(gradient.isfinite().all())
        back, _ = MixtureLogistic(K).inverse(y, raw)
        torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)


def test_gradients_of_the_inverse_are_those_of_the_solution() -> None:
    x, raw = harsh(3)
    raw = 0.3 * raw
    function = MixtureLogistic(K)
    assert torch.autograd.gradcheck(lambda y, raw: function.inverse(y, raw), (x.requires_grad_(), raw.requires_grad_()))


def test_the_density_integrates_to_one() -> None:
    _, raw = harsh(1)
    raw[:, 2 + 2 * K :] = raw[:, 2 + 2 * K :].clamp_min(-2.0)
    x = torch.linspace(-400.0, 400.0, 400_001, dtype=torch.float64)
    y, log_slope = MixtureLogistic(K)(x[None, None, :, None], raw)
    density = (-0.5 * y.square() - 0.5 * math.log(2 * math.pi) + log_slope).exp().flatten()
    assert abs(float(torch.trapezoid(density, x)) - 1.0) < 1e-4


def test_scales_of_the_affine_part_are_bounded() -> None:
    raw = torch.tensor([[50.0, 0.0], [-50.0, 0.0]])[:, :, None, None, None]
    _, log_scale = TanhAffine()(torch.ones(2, 1, 1, 1), raw)
    assert log_scale.flatten().tolist() == [1.0, -1.0]


def parameters(config: FlowPPConfig) -> int:
    """Of the model for CIFAR-10."""
    with torch.device("meta"):
        model = FlowPP((3, 32, 32), 256, config)
    return sum(parameter.numel() for parameter in model.parameters())


def published() -> tuple[FlowPPConfig, VariationalConfig]:
    config = recipes.load("flowpp_cifar10").model
    assert isinstance(config, FlowPPConfig)
    assert isinstance(config.dequantization, VariationalConfig)
    return config, config.dequantization


def test_the_published_configuration_and_its_ablations_have_the_published_numbers_of_parameters() -> None:
    config, noise = published()
    assert parameters(config) == 31_443_440
    network = replace(config.network, mixing="maxout")
    without = replace(config, network=network, dequantization=replace(noise, mixing="maxout"))
    assert parameters(without) == 31_443_440
    uniform = replace(config, network=replace(config.network, width=104), dequantization=UniformConfig())
    assert parameters(uniform) == 32_324_408
    network, affine = replace(config.network, width=108), replace(noise, width=108, components=0)
    assert parameters(replace(config, network=network, components=0, dequantization=affine)) == 32_045_708


def test_layers_are_set_in_the_order_in_which_they_are_reached() -> None:
    steps = coupling_steps((1, 4, 8), 2, NETWORK, components=2).double()
    x = 5.0 + 3.0 * torch.randn(64, 1, 4, 8, dtype=torch.float64)
    seen: list[tuple[float, float, float]] = []

    def keep(layer: torch.nn.Module, inputs: object, output: Tensor) -> None:
        assert isinstance(layer, DataConv2d)
        std, mean = torch.std_mean(output, (0, 2, 3), correction=0)
        seen.append((float(mean.abs().max()), float((std / layer.scale - 1.0).abs().max()), layer.scale))

    convolutions = [layer for layer in steps.modules() if isinstance(layer, DataConv2d)]
    for layer in convolutions:
        layer.register_forward_hook(keep)
    set_from_data(steps, lambda: steps(x))
    assert len(seen) == len(convolutions) == 12
    assert max(mean for mean, _, _ in seen) < 1e-12
    assert max(spread for _, spread, _ in seen) < 1e-2  # 1e-8 beside a small variance is seen
    assert {scale for *_, scale in seen} == {1.0, 0.1}
    norms = [layer for layer in steps.modules() if isinstance(layer, PositionNorm)]
    y, _ = norms[0](Checkerboard().split(x)[0].repeat(1, 2, 1, 1))  # the first half of its channels saw these
    torch.testing.assert_close(y[:, :1].mean(0), torch.zeros(1, 4, 4, dtype=torch.float64), rtol=0.0, atol=1e-10)
    torch.testing.assert_close(y[:, :1].var(0, correction=0), torch.ones(1, 4, 4, dtype=torch.float64))


def test_what_is_constant_over_the_images_has_no_scale() -> None:
    norm, conv = PositionNorm((1, 1, 2)), DataConv2d(1, 2)
    set_from_data(norm, lambda: norm(torch.full((3, 1, 1, 2), 7.0)))
    assert norm.gain.flatten().tolist() == [1.0, 1.0]
    before = conv.weight.clone()
    set_from_data(conv, lambda: conv(torch.zeros(3, 1, 4, 4)))
    assert torch.equal(conv.weight, before)
    assert conv.bias.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 2, 1)])
def test_images_of_any_size_are_padded(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = FlowPP(shape, 4, FlowPPConfig((1, 1, 1), 2, NETWORK)).double().eval()
    x = torch.randint(4, (3, *shape))
    evidence = model.evidence(x)
    assert evidence.dims == math.prod(shape)
    assert all(bool(term.isfinite().all()) for term in evidence.terms.values())
    assert torch.equal(model.decode(model.encode(x)), x)
    assert model.sample(2).shape == (2, *shape)


def test_only_as_much_is_padded_as_the_steps_need() -> None:
    assert FlowPPConfig((1, 1, 1)).padding(28, 28) == (0, 0)
    assert FlowPPConfig((1, 1, 1)).padding(27, 26) == (1, 2)
    assert FlowPPConfig((0, 1, 0)).padding(27, 26) == (1, 0)
    assert FlowPPConfig((1,)).padding(3, 3) == (0, 1)


def test_the_split_of_the_program_is_an_option() -> None:
    default, program = FlowPPConfig((1,), 2, NETWORK), FlowPPConfig((1,), 2, NETWORK, "columns")
    for config, kind in ((default, Checkerboard), (program, Columns)):
        (steps,) = (part for part in FlowPP((1, 4, 4), 4, config).bijection if isinstance(part, OnHalves))
        assert isinstance(steps.split, kind)


def test_networks_of_mixtures_have_their_parameters_in_float32_under_autocast() -> None:
    model = FlowPP((1, 4, 4), 4, FlowPPConfig((2,), 2, NETWORK)).eval()
    seen: list[torch.dtype] = []
    for part in model.modules():
        if isinstance(part, Coupling):
            part.function.register_forward_hook(lambda module, inputs, output: seen.extend(x.dtype for x in output))
    x = torch.randint(4, (2, 1, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.evidence(x).terms
    assert set(seen) == {torch.float32}
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_a_context_must_be_given_where_one_is_expected() -> None:
    with pytest.raises(ValueError, match="context: got None, expected a tensor"):
        GatedConv(2, context=3)(torch.zeros(1, 2, 2, 2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FlowPPConfig(()), "steps"),
        (lambda: FlowPPConfig((1, 1)), "steps"),
        (lambda: FlowPPConfig((0,)), "steps"),
        (lambda: FlowPPConfig((1, -1, 1)), "steps"),
        (lambda: FlowPPConfig(components=-1), "components"),
        (lambda: MixtureLogistic(0), "components"),
        (lambda: CouplingNetworkConfig(width=6, heads=4), "heads"),
        (lambda: CouplingNetworkConfig(blocks=0), "blocks"),
        (lambda: CouplingNetworkConfig(dropout=1.0), "dropout"),
        (lambda: coupling_steps((1, 2, 3), 1, NETWORK), "shape: got 3 columns"),
        (lambda: coupling_steps((3, 2, 2), 1, NETWORK, split="channels"), "shape: got 3 channels"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=said):
        make()

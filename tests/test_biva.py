"""BIVA: its 2L - 1 latents, what depends on what, and that its weights are those of a bound."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quadrature import from_the_posterior, from_the_prior
from tiny import RECIPE, same_files, sets
from torch import Generator, Tensor

import davi
from davi import recipes
from davi.data import Images
from davi.distributions import Drawn, Latent, Normal
from davi.inspection import inspect
from davi.layers.weight_norm_init import initialize_from_data
from davi.model import Step
from davi.models.biva import BIVA, BIVAConfig, GatedBlock, Head
from davi.objectives import ObjectiveConfig
from davi.training import TrainingConfig, train
from davi.training.parallel import Processes
from davi.training.prepare import initialize
from davi.training.sections import CheckpointConfig
from davi.training.state import BatchLoader

SMALL = BIVAConfig(
    latents=(3, 2, 2), strides=(2, 1, 2), dense=False, width=4, blocks=1, first_kernel=3, likelihood="bernoulli"
)


def build(config: BIVAConfig = SMALL, shape: tuple[int, int, int] = (1, 8, 8), shake: float = 0.2) -> BIVA:
    """In float64 and eval mode, with weights that leave nothing at its neutral value."""
    model = BIVA(shape, 2, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    return model.double().eval()


def images(n: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    return torch.randint(2, (n, *shape))


def seeded(seed: int = 3) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("dense", [False, True])
def test_there_are_2l_minus_1_latents(layers: int, dense: bool) -> None:
    config = replace(SMALL, latents=tuple(range(2, 2 + layers)), strides=(2, *[1] * (layers - 1)), dense=dense)
    evidence = build(config).evidence(images(2), seeded())
    assert list(evidence.kl_maps) == [f"kl/{i:02d}" for i in range(2 * layers - 1)]
    sizes = [layers + 1] + [size for size in range(layers, 1, -1) for _ in range(2)]
    grid = (1, 1) if dense else (4, 4)
    assert [tuple(kl.shape[1:]) for kl in evidence.kl_maps.values()] == [(size, *grid) for size in sizes]


def test_order_of_the_walk() -> None:
    """Bottom-up latents are asked for from the image upwards; then the top, and TD before BU in each layer below."""
    model = build()
    asked: list[tuple[int, str]] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        asked.append((layer, "early" if prior is None else type(posterior).__name__))
        return posterior.sample()

    model.top_down(choose, model.encode(images(2)))
    turns = [(0, "Normal"), (1, "Normal"), (2, "Drawn"), (3, "Normal"), (4, "Drawn")]
    assert asked == [(4, "early"), (2, "early"), *turns]
    assert [model.layer(3), model.layer(2), model.layer(2, True), model.layer(1), model.layer(1, True)] == [*range(5)]
    names = ["z3", "z2 top-down", "z2 bottom-up", "z1 top-down", "z1 bottom-up"]
    assert [model.latent_name(layer) for layer in range(5)] == names


def test_its_page_knows_which_divergences_are_estimates() -> None:
    model = build()
    found = inspect(model, Images(images(3).byte(), 2, "random/test"), samples=1)
    assert [layer.drawn for layer in found.layers] == [False, False, True, False, True]
    assert [layer.latent for layer in found.layers] == [model.latent_name(layer) for layer in range(5)]


def test_sampling_and_decoding_are_one_path() -> None:
    model, drawn = build(), []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        drawn.append(prior.expand(3).sample(generator))
        return drawn[-1]

    generator = seeded()
    made = model.top_down(choose).sample(generator)
    assert torch.equal(made, model.sample(3, generator=seeded()))
    x = images(3)
    assert torch.equal(model.decode(drawn).log_prob(x), model.top_down(lambda layer, p, q: drawn[layer]).log_prob(x))
    generator = seeded()
    for z in drawn:  # as many numbers as the walk has used
        torch.randn(z.shape, generator=generator, dtype=z.dtype)
    assert torch.equal(made, model.decode(drawn).sample(generator))


def influences(model: BIVA, x: Tensor) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """Which latents the mean of the prior and of the posterior of each latent depends on."""
    early: dict[int, Tensor] = {}
    prior_means: dict[int, Tensor] = {}
    posterior_means: dict[int, Tensor] = {}
    z: dict[int, Tensor] = {}

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        if prior is not None:
            prior_means[layer] = prior.mean
        if layer not in early:
            posterior_means[layer] = posterior.center()
            z[layer] = posterior.sample().detach().requires_grad_()
        if prior is None:
            early[layer] = z[layer]
        return z[layer]

    model.top_down(choose, model.encode(x))

    def reach(mean: Tensor) -> set[int]:
        if not mean.requires_grad:
            return set()
        found = torch.autograd.grad(mean.sum(), [z[i] for i in sorted(z)], allow_unused=True, retain_graph=True)
        return {i for i, gradient in enumerate(found) if gradient is not None and bool(gradient.any())}

    return {i: reach(m) for i, m in prior_means.items()}, {i: reach(m) for i, m in posterior_means.items()}


def test_what_depends_on_what() -> None:
    """The factors of p and q, as the module's docstring has them, for L = 3: 0 is z_3, 1 and 2 are z_2 (TD, BU), 3 and
    4 are z_1. The two latents of a layer are independent given those above."""
    priors, posteriors = influences(build(), images(2))
    assert priors == {0: set(), 1: {0}, 2: {0}, 3: {0, 1, 2}, 4: {0, 1, 2}}
    assert posteriors == {4: set(), 2: {4}, 0: {2, 4}, 1: {0, 2, 4}, 3: {0, 1, 2, 4}}


def test_the_way_down_of_the_inference_reads_the_climbing_features_of_its_own_layer() -> None:
    """t_i is made from t_{i+1} and u_i."""
    model, made, read = build(), dict[int, Tensor](), dict[int, Tensor]()
    for i, stage in enumerate(model.up):
        stage.register_forward_hook(lambda module, inputs, output, i=i: made.update({i: output}))
    for i, conv in enumerate(model.across_read):
        conv.register_forward_hook(lambda module, inputs, output, i=i: read.update({i: inputs[0]}))
    model.evidence(images(2), seeded())
    assert (sorted(made), sorted(read)) == ([0, 1, 2], [0, 1])
    assert all(torch.equal(read[i], torch.nn.functional.elu(made[i])) for i in read)


@pytest.mark.parametrize("variance", ["raw", "softplus_log_variance"])
def test_variances_of_the_published_programs(variance: Any) -> None:
    """Their log-variance passes a softplus: no variance below 1 in p and q, but for the top prior, which has none."""
    model = build(replace(SMALL, variance=variance), shake=1.0)
    scales: list[Tensor] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        if prior is not None and layer == 0:
            assert torch.equal(prior.scale, torch.ones_like(prior.scale))
            assert not prior.mean.any()
        elif prior is not None:
            scales.append(prior.scale)
        if isinstance(posterior, Normal):
            scales.append(posterior.scale)
        return posterior.sample()

    model.top_down(choose, model.encode(images(2)))
    assert len(scales) == 9  # five posteriors, four priors
    assert all(bool((scale > 1.0).all()) for scale in scales) == (variance == "softplus_log_variance")


@pytest.mark.parametrize(
    ("variance", "expected"),
    [("raw", [math.exp(0.5), math.exp(-1.0)]), ("softplus_log_variance", [2.648721, 1.367879])],
)
def test_a_heads_second_output_is_the_log_variance(variance: Any, expected: list[float]) -> None:
    """Raw or through a softplus, which makes 1 + e^raw the variance."""
    head = Head(3, [2], None, variance).double()
    assert head.conv.bias is not None
    torch.nn.init.constant_(head.conv.log_g, -math.inf)
    head.conv.bias.data = torch.tensor([0.3, -0.2, 0.5, -1.0], dtype=torch.float64)
    (found,) = head(torch.randn(1, 3, 1, 1, dtype=torch.float64))
    assert found.mean.flatten().tolist() == [0.3, -0.2]
    # six figures of the numbers above
    assert found.scale.square().flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_no_divergence_where_q_is_p() -> None:
    """Heads with zero weights and the biases of one distribution; that of q(z_L) is the standard normal."""
    model = build()
    for module in model.modules():
        if isinstance(module, Head):
            assert module.conv.bias is not None
            torch.nn.init.constant_(module.conv.log_g, -math.inf)
            torch.nn.init.constant_(module.conv.bias, 0.0 if module is model.up_head[-1] else 0.3)
    evidence = model.evidence(images(2), seeded())
    assert all(not kl.any() for kl in evidence.kl_maps.values())
    assert bool(evidence.terms["reconstruction"].all())


@pytest.mark.parametrize("variance", ["raw", "softplus_log_variance"])
def test_weights_have_expectation_p_of_x(variance: Any) -> None:
    """L = 2 with three scalars, every image of two pixels. Differences beyond 1e-3 in relative terms would show a
    missing or doubled density; the integrals themselves agree far better."""
    config = BIVAConfig((1, 1), (1, 1), dense=True, width=3, blocks=1, first_kernel=1, kernel=1, variance=variance)
    shape = (1, 1, 2)
    model = build(config, shape)
    total = 0.0
    for pixels in itertools.product((0, 1), repeat=2):
        x = torch.tensor(pixels).view(1, *shape)
        exact = from_the_prior(model, x, variables=3, points=31)
        assert from_the_posterior(model, x, variables=3, points=31) == pytest.approx(exact, rel=1e-3)
        total += exact
    assert total == pytest.approx(1.0, abs=1e-6)


def test_divergences_in_closed_form_for_early_draws_would_be_no_bound() -> None:
    r"""Linear and Gaussian, so that all is known: z_2 ~ N(0, 1), z_1 ~ N(a z_2, 1), x ~ N(z_1 + z_2, 1/4), and q is
    the true posterior, first z_1 given x, then z_2 given z_1 and x. With the divergence of the draw every single draw
    gives log p(x). The closed form treats z_1 and z_2 as independent and claims -a cov(z_1, z_2 | x) nats more."""
    a, s2, x = 0.5, 0.25, 0.7
    rows = [[1.0 + 1.0 / s2, -a + 1.0 / s2], [-a + 1.0 / s2, 1.0 + a * a + 1.0 / s2]]  # of z_1 and z_2 given x
    precision = torch.tensor(rows, dtype=torch.float64)
    covariance = precision.inverse()
    mean = covariance @ torch.full((2,), x / s2, dtype=torch.float64)
    n = 200_000
    ones = torch.ones(n, 1, dtype=torch.float64)
    q1 = Normal(mean[0] * ones, covariance[0, 0].sqrt() * ones)
    drawn = Drawn(q1, q1.sample(seeded()))
    slope = covariance[0, 1] / covariance[0, 0]
    q2 = Normal(mean[1] + slope * (drawn.z - mean[0]), (1.0 / precision[1, 1]).sqrt() * ones)
    z2 = q2.sample(seeded(4))
    p1, p2 = Normal(a * z2, ones), Normal(0.0 * ones, ones)
    likelihood = Normal(drawn.z + z2, s2**0.5 * ones).log_prob(x * ones)
    variance = (1.0 + a) ** 2 + 1.0 + s2  # of x
    log_px = -0.5 * x * x / variance - 0.5 * math.log(2.0 * math.pi * variance)
    weight = likelihood + p1.log_prob(drawn.z) + p2.log_prob(z2) - q1.log_prob(drawn.z) - q2.log_prob(z2)
    torch.testing.assert_close(weight, torch.full_like(weight, log_px), rtol=0.0, atol=1e-12)
    true = likelihood - Step(p1, drawn, drawn.z).kl() - Step(p2, q2, z2).kl()
    claimed = likelihood - Step(p1, q1, drawn.z).kl() - Step(p2, q2, z2).kl()
    too_much = -a * float(covariance[0, 1])
    for found, expected in ((true, log_px), (claimed, log_px + too_much)):
        assert float(found.mean()) == pytest.approx(expected, abs=4.0 * float(found.std()) / n**0.5)
    assert too_much > 0.05


@pytest.mark.parametrize(("shape", "dense"), [((2, 5, 7), False), ((3, 6, 9), True)])
def test_any_size_and_number_of_channels(shape: tuple[int, int, int], dense: bool) -> None:
    model = build(replace(SMALL, dense=dense), shape)
    assert model.sample(2, generator=seeded()).shape == (2, *shape)
    assert bool(model.evidence(images(2, shape), seeded()).log_px.isfinite().all())


def test_dropout_is_of_training_alone_and_recomputed_as_it_was() -> None:
    model = build(replace(SMALL, inference_dropout=0.5, generative_dropout=0.5))
    x = images(4)
    assert torch.equal(model.evidence(x, seeded()).log_px, model.evidence(x, seeded()).log_px)
    gradients = []
    for recompute in (False, True):
        for block in model.train().blocks():
            block.recompute = recompute  # type: ignore[assignment]
        torch.manual_seed(1)
        model.zero_grad()
        model.evidence(x, seeded()).log_px.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_each_direction_has_its_own_dropout() -> None:
    model = build(replace(SMALL, inference_dropout=0.25, generative_dropout=0.5))

    def shares(chain: torch.nn.Module) -> set[float]:
        return {block.dropout.p for block in chain.modules() if isinstance(block, GatedBlock)}

    assert (shares(model.up), shares(model.across), shares(model.down)) == ({0.25}, {0.25}, {0.5})


def test_the_first_weights_of_a_run_do_not_depend_on_earlier_draws() -> None:
    """A run that is killed before its first checkpoint begins again with the same weights."""
    found = []
    config = TrainingConfig(steps=1, batch_size=8)
    for seed in (1, 2):
        torch.manual_seed(0)
        model = BIVA((1, 4, 4), 2, SMALL).train()
        torch.manual_seed(seed)
        initialize(model, BatchLoader(sets(), config, torch.device("cpu")), config, Processes())
        found.append(model.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


class Killed(BaseException):
    """What no line of the program expects."""


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its first checkpoint, so that it is initialized from images again, and between two checkpoints;
    with dropout, free bits and a warm-up."""
    config = TrainingConfig(
        steps=6,
        batch_size=8,
        checkpoints=CheckpointConfig(minutes=0.0, steps=3),
        objective=ObjectiveConfig(kl_steps=4, free_nats=0.1, free_group="layer"),
        threads=1,
    )
    options = replace(SMALL, inference_dropout=0.5, generative_dropout=0.5)

    def go(run: Path) -> None:
        torch.manual_seed(0)
        train(BIVA((1, 4, 4), 2, options), sets(), config, run, RECIPE, resume=True, print_fn=lambda line: None)

    go(tmp_path / "whole")
    calls, encode = itertools.count(1), BIVA.encode

    def killing(self: BIVA, x: Tensor) -> Tensor:
        # 1: initialization, 2 and 3: steps; 4: initialization, 5 to 9: steps, a checkpoint after the third of them
        if next(calls) in (3, 9):
            raise Killed
        return encode(self, x)

    monkeypatch.setattr(BIVA, "encode", killing)
    for _ in range(2):
        with pytest.raises(Killed):
            go(tmp_path / "killed")
    go(tmp_path / "killed")
    assert same_files(tmp_path / "whole", tmp_path / "killed")


def test_initialized_from_data_it_computes_what_it_was_initialized_with() -> None:
    model, x, found = build(shake=0.0), images(32), []
    initialize_from_data(model, lambda: found.append(model.evidence(x, seeded())), scale=0.1)
    # 1e-9: float64; lengths of kernels are stored as logarithms.
    torch.testing.assert_close(model.evidence(x, seeded()).log_px, found[0].log_px, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": ()}, r"latents: got \[\], expected one or more positive numbers"),
        ({"latents": (3, 0, 2)}, r"latents: got \[3, 0, 2\]"),
        ({"strides": (2, 1)}, r"strides: got \[2, 1\], expected 1 or 2 for each of 3 layers"),
        ({"strides": (2, 1, 4)}, r"strides: got \[2, 1, 4\]"),
        ({"kernel": 4}, "kernel: got 4, expected an odd number"),
        ({"blocks": 0}, "blocks: got 0, expected at least 1"),
        ({"inference_dropout": 1.0}, "inference_dropout: got 1.0, expected 0 to below 1"),
        ({"initial_scale": 0.0}, "initial_scale: got 0.0, expected a number above 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **options)


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.startswith("biva") and "tiny" not in name])
def test_the_page_states_the_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = davi.build(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    page = Path(__file__).parents[1] / "docs" / "models" / "biva.md"
    assert re.search(rf"^\| `{name}` \|.*\| {count:,} \|$", page.read_text("utf-8"), re.MULTILINE)

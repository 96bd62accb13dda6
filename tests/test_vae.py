"""The flat VAE: the paper's networks, its two layers, and what it makes of the training images before it starts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import davi
from davi import recipes
from davi.data import DataSets, Images
from davi.distributions import Drawn, Latent, Normal
from davi.errors import UserError
from davi.evaluation import importance_bound
from davi.evidence import Evidence
from davi.layers import LikelihoodConfig
from davi.model import Hierarchy
from davi.models import VAE
from davi.models.vae import DenseNormal, VAEConfig
from davi.objectives import EvidenceConfig
from davi.training import TrainingConfig, train
from davi.training.plan import plan
from davi.training.schedule import Schedule
from davi.training.sections import CheckpointConfig, OptimizerConfig, ScheduleConfig, StepFilterConfig


def paper(*latents: int, hidden: tuple[int, ...]) -> VAE:
    torch.manual_seed(0)
    return VAE((1, 28, 28), 2, VAEConfig(latents=latents, hidden=hidden))


def last_bias(model: VAE) -> Tensor:
    bias = model.output.last.bias
    assert bias is not None
    return bias.detach()


def linears(module: nn.Module) -> list[tuple[int, int]]:
    return [(part.in_features, part.out_features) for part in module.modules() if isinstance(part, nn.Linear)]


def test_the_papers_networks() -> None:
    one = paper(50, hidden=(200,))
    assert linears(one.inference) == [(784, 200), (200, 200), (200, 50), (200, 50)]
    assert linears(one.output) == [(50, 200), (200, 200), (200, 784)]
    two = paper(100, 50, hidden=(200, 100))
    lower = [(784, 200), (200, 200), (200, 100), (200, 100)]
    assert linears(two.inference) == [*lower, (100, 100), (100, 100), (100, 50), (100, 50)]
    assert linears(two.generative) == [(50, 100), (100, 100), (100, 100), (100, 100)]
    assert linears(two.output) == [(100, 200), (200, 200), (200, 784)]


def test_initial_weights_are_glorots_and_differ() -> None:
    model = paper(50, hidden=(200,))
    for layer in (part for part in model.modules() if isinstance(part, nn.Linear)):
        bound = math.sqrt(6.0 / (layer.in_features + layer.out_features))
        assert bool((layer.weight.detach().abs() <= bound).all())
        # The standard deviation of n uniform numbers is known to 0.45 / sqrt(n) of itself: 4 sigma of 10,000.
        assert layer.weight.detach().std().item() == pytest.approx(bound / math.sqrt(3.0), rel=0.02)
        assert not bool(layer.bias.any())
    head = model.inference[0]
    assert isinstance(head, DenseNormal)
    assert not torch.equal(head.mean.weight, head.log_scale.weight)


def test_the_lower_layer_is_drawn_on_the_way_up() -> None:
    model, x = paper(4, 3, hidden=(8, 6)).eval(), torch.randint(2, (5, 1, 28, 28))
    asked: list[tuple[int, bool, bool]] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        asked.append((layer, prior is None, isinstance(posterior, Drawn)))
        return posterior.sample()

    model.top_down(choose, model.encode(x))
    assert asked == [(1, True, False), (0, False, False), (1, False, True)]


def quadrature(dimensions: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite points of standard Normal variables, ``[n, dimensions]``, and their log masses, ``[n]``."""
    nodes, masses = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(80))
    points = torch.cartesian_prod(*[nodes] * dimensions).view(-1, dimensions)
    return points, torch.cartesian_prod(*[masses / masses.sum()] * dimensions).view(-1, dimensions).log().sum(1)


def log_weights(model: VAE, x: Tensor, points: Tensor) -> Tensor:
    """log p(x, z) - log q(z | x) of one image where the posteriors' noise is given, ``[n]``."""
    total = torch.zeros(len(points), dtype=torch.float64)

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        nonlocal total
        if isinstance(posterior, Normal):
            z = posterior.mean + posterior.scale * points[:, layer, None, None, None]
        else:
            assert isinstance(posterior, Drawn)
            z = posterior.sample()
        if prior is not None:
            total = total + prior.log_prob(z) - posterior.log_prob(z)
        return z

    return model.top_down(choose, model.encode(x)).log_prob(x) + total


@pytest.mark.parametrize("latents", [(1,), (1, 1)])
@torch.no_grad()
def test_weights_average_to_the_probability(latents: tuple[int, ...]) -> None:
    """E_q[w] = p(x), both by quadrature: over the posteriors and over the priors. The sum over all images is 1."""
    torch.manual_seed(3)
    model = VAE((1, 2, 2), 2, VAEConfig(latents=latents, hidden=(5,) * len(latents))).double().eval()
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    for part in model.inference:
        assert isinstance(part, DenseNormal)
        part.log_scale.weight.zero_()  # wider than the prior: in no tail do the weights grow
        part.log_scale.bias.fill_(0.3)
    points, log_masses = quadrature(len(latents))

    def prior_draw(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        return prior.mean + prior.scale * points[:, layer, None, None, None]

    pixels, total = model.top_down(prior_draw), 0.0
    for x in torch.cartesian_prod(*[torch.arange(2)] * 4).view(16, 1, 1, 2, 2).expand(-1, len(points), -1, -1, -1):
        exact = (log_masses + pixels.log_prob(x)).logsumexp(0).item()
        # 1e-3: what 80 nodes leave of functions that are no polynomials; a missing density would be worth tenths
        assert (log_masses + log_weights(model, x, points)).logsumexp(0).item() == pytest.approx(exact, abs=1e-3)
        total += math.exp(exact)
    assert total == pytest.approx(1.0, abs=1e-12)


def test_bounds_rise_with_the_draws() -> None:
    torch.manual_seed(3)
    model = VAE((1, 2, 2), 2, VAEConfig(latents=(2,), hidden=(5,))).double()
    x = torch.randint(2, (500, 1, 2, 2))
    bounds = [importance_bound(model, x, k, torch.Generator().manual_seed(0)).mean().item() for k in (1, 10, 100)]
    assert bounds[0] < bounds[1] < bounds[2]


def test_pixels_begin_as_probable_as_they_are() -> None:
    model = paper(4, hidden=(8,))
    images = torch.zeros(1000, 1, 28, 28, dtype=torch.uint8)
    images[:250, 0, 3, 4] = 1
    images[:, 0, 5, 6] = 1
    with torch.no_grad():
        model.initialize(images)
    begun = last_bias(model).view(28, 28).sigmoid()
    # 1e-4: the logit of 0.999 in float32
    assert [begun[at].item() for at in ((3, 4), (5, 6), (0, 0))] == pytest.approx([0.25, 0.999, 0.001], rel=1e-4)


def test_pixels_of_a_convolution_share_the_mean_of_their_channel() -> None:
    model = VAE((2, 4, 4), 2, VAEConfig("convolutional", (2,), (4,), halvings=1))
    images = torch.zeros(8, 2, 4, 4, dtype=torch.uint8)
    images[:2, 0] = 1
    with torch.no_grad():
        model.initialize(images)
    assert last_bias(model).sigmoid().tolist() == pytest.approx([0.25, 0.001], rel=1e-4)


def binary(n: int = 64) -> DataSets:
    """Images with one pixel that is always on, and one that is on in half of them."""
    pixels = torch.zeros(n, 1, 4, 4, dtype=torch.uint8)
    pixels[:, 0, 1, 1] = 1
    pixels[::2, 0, 2, 2] = 1
    images = Images(pixels, 2, "binary")
    return DataSets(images, None, images, {"set": "binary", "binarization": "none", "flip": "none"})


STILL: dict[str, Any] = {"learning_rate": 0.0, "schedule": ScheduleConfig("constant")}
"""Training that changes no weight."""


def test_the_images_shown_are_drawn_and_presented_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as are wanted, from all over the set, and binarized where training binarizes."""
    shown: list[Tensor] = []
    monkeypatch.setattr(VAE, "images_wanted", 10)
    monkeypatch.setattr(VAE, "initialize", lambda self, images, kept: shown.append(images))
    pixels = torch.zeros(64, 1, 4, 4, dtype=torch.uint8)
    pixels[32:] = 15
    protocol = {"set": "black and white", "binarization": "dynamic", "flip": "none"}
    data = DataSets(Images(pixels, 16, "train"), None, Images(pixels // 15, 2, "test"), protocol)
    config = TrainingConfig(steps=1, batch_size=8, validate_every=0, **STILL)
    train(paper_of_16_pixels(), data, config, tmp_path / "run", {}, print_fn=lambda line: None)
    (images,) = shown
    assert images.shape == (10, 1, 4, 4)
    assert images.unique().tolist() == [0, 1]


def paper_of_16_pixels() -> VAE:
    torch.manual_seed(0)
    return VAE((1, 4, 4), 2, VAEConfig(latents=(2,), hidden=(4,)))


def go(run: Path, steps: int, resume: bool, **options: Any) -> VAE:
    torch.manual_seed(0)
    model = VAE((1, 4, 4), 2, VAEConfig(**{"latents": (2,), "hidden": (4,), **options}))
    often = CheckpointConfig(steps=2)
    config = TrainingConfig(steps=steps, batch_size=8, checkpoints=often, validate_every=0, threads=1, **STILL)
    recipe = {"model": {"name": "vae", "latents": [2], "hidden": [4]}}
    train(model, binary(), config, run, recipe, resume, print_fn=lambda line: None)
    return model


def test_training_initializes_once_and_never_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    real = VAE.initialize

    def watched(self: VAE, images: Tensor, kept: Any) -> None:
        assert not torch.is_grad_enabled()
        calls.append(tuple(images.shape))
        real(self, images, kept)

    monkeypatch.setattr(VAE, "initialize", watched)
    first = last_bias(go(tmp_path / "run", 4, False))
    assert calls == [(64, 1, 4, 4)]
    assert first.view(4, 4).sigmoid()[[1, 2], [1, 2]].tolist() == pytest.approx([0.999, 0.5], rel=1e-4)
    again = last_bias(go(tmp_path / "run", 6, True))
    assert len(calls) == 1
    assert torch.equal(first, again)
    averaged = davi.load(tmp_path / "run").state_dict()["output.last.bias"]
    torch.testing.assert_close(averaged, first, rtol=1e-6, atol=1e-6)  # the average rounds


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The batches that are explained from here on."""
    seen: list[Tensor] = []
    real = Hierarchy.elbo

    def elbo(self: Hierarchy, x: Tensor, *arguments: Any, **others: Any) -> Evidence:
        seen.append(x)
        return real(self, x, *arguments, **others)

    monkeypatch.setattr(Hierarchy, "elbo", elbo)
    return seen


DRAWS = EvidenceConfig(draws=3, bound="importance_weighted")


def several(seen: list[Tensor]) -> list[Tensor]:
    """What the model saw in steps; one image alone is looked at to learn what the objective can count on."""
    return [x for x in seen if len(x) > 1]


def test_every_image_of_a_batch_is_drawn_for_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    config = TrainingConfig(steps=2, batch_size=8, accumulate=2, objective=DRAWS, **STILL)
    plan(paper_of_16_pixels(), binary(), config)
    planned = len(several(seen))
    train(paper_of_16_pixels(), binary(), config, tmp_path / "run", {}, print_fn=lambda line: None)
    assert (planned, len(several(seen))) == (4, 8)  # two steps of two parts each
    for x in several(seen):
        assert len(x) == 12
        alike = x.unflatten(0, (4, 3))
        assert torch.equal(alike, alike[:, :1].expand_as(alike))


def test_a_diagnosis_repeats_the_draws_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = paper_of_16_pixels(), watched(monkeypatch)
    layer = model.inference[0]
    assert isinstance(layer, DenseNormal)
    torch.nn.init.constant_(layer.log_scale.bias, math.nan)
    strict = StepFilterConfig(nonfinite_limit=1)
    config = TrainingConfig(steps=2, batch_size=8, step_filter=strict, objective=DRAWS, **STILL)
    with pytest.raises(UserError, match=r"first layer: inference\.0\.log_scale"):
        train(model, binary(), config, tmp_path / "run", {}, print_fn=lambda line: None)
    assert [len(x) for x in several(seen)] == [24, 24]


def test_resuming_what_has_no_checkpoint_yet_initializes(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    bias = last_bias(go(tmp_path / "run", 1, True))
    assert bias.view(4, 4).sigmoid()[[1, 2], [1, 2]].tolist() == pytest.approx([0.999, 0.5], rel=1e-4)


def test_a_model_that_needs_no_images_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VAE, "initialize", lambda self, images, kept: pytest.fail("was called"))
    go(tmp_path / "run", 1, False, likelihood=LikelihoodConfig("categorical"))


@pytest.mark.parametrize(("shape", "levels"), [((3, 5, 7), 256), ((1, 9, 2), 4), ((4, 8, 8), 16)])
@pytest.mark.parametrize("family", ["categorical", "logistic_mixture"])
@pytest.mark.parametrize("network", ["dense", "convolutional", "gated"])
def test_any_size_and_likelihood(network: Any, family: Any, shape: tuple[int, int, int], levels: int) -> None:
    likelihood = LikelihoodConfig(family, 5)
    model = VAE(shape, levels, VAEConfig(network, (3,), (4,), depth=1, halvings=2, likelihood=likelihood)).eval()
    x = torch.randint(levels, (2, *shape))
    assert bool(model.evidence(x).log_px.isfinite().all())
    assert model.sample(2, temperature=0.5).shape == x.shape
    grid = (1, 1) if network != "convolutional" else (math.ceil(shape[1] / 4), math.ceil(shape[2] / 4))
    assert [tuple(z.shape) for z in model.latents(x)] == [(2, 3, *grid)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": ()}, "latents: got"),
        ({"hidden": (0,)}, "hidden: got"),
        ({"latents": (3, 2)}, "hidden: got 1 widths, expected one for each of 2 stochastic layers"),
        ({"network": "convolutional", "latents": (3, 2), "hidden": (4, 4)}, "expected 1 if convolutional"),
        (
            {"network": "gated", "latents": (3, 2), "hidden": (4, 4)},
            "expected 1 if gated",
        ),
        ({"depth": 0}, "depth: got 0"),
        ({"halvings": 0}, "halvings: got 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAEConfig(**options)


def test_the_papers_schedule() -> None:
    """3280 passes: 3^i at the rate 10^(-i / 7) / 1000, i = 0 .. 7. The epsilon of 1e-4 is for a sum over 20 images."""
    config = recipes.load("iwae_mnist").training
    assert config is not None
    assert config.batch_size == 20
    assert config.optimizer == OptimizerConfig("adamw", eps=1e-4 / 20, betas=(0.9, 0.999))
    schedule, epoch = Schedule(config, 2980), 0
    assert schedule.total_steps == 3280 * 2980
    for stage in range(8):
        rate = 1e-3 * 10.0 ** (-stage / 7)
        for step in (epoch * 2980, (epoch + 3**stage) * 2980 - 1):
            assert schedule.learning_rate(step, 0.0) == pytest.approx(rate, rel=1e-12)
        epoch += 3**stage
    assert epoch == 3280


def test_stages_of_a_budget_in_minutes_and_after_a_warm_up() -> None:
    stairs = ScheduleConfig("staircase", stairs=2, final_learning_rate=0.1, period_multiplier=3.0)
    schedule = Schedule(TrainingConfig(minutes=4.0, learning_rate=1.0, schedule=stairs), 10)
    rates = [schedule.learning_rate(0, seconds) for seconds in (0.0, 59.0, 60.0, 240.0)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1], rel=1e-12)
    stairs = replace(stairs, period_multiplier=1.0, warmup_steps=2)
    schedule = Schedule(TrainingConfig(steps=12, learning_rate=1.0, schedule=stairs), 10)
    rates = [schedule.learning_rate(step, 0.0) for step in range(12)]
    assert rates == pytest.approx([1e-4, 0.50005, *[1.0] * 5, *[0.1] * 5], rel=1e-12)

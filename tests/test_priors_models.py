"""Priors in models: every one in every hierarchy, and what the probabilities of images become with them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from contract import seeded, shake, some_images
from torch import Tensor

import davi
from davi.cli import main
from davi.distributions import Latent, Normal, TransformedNormal
from davi.errors import UserError
from davi.evaluation import importance_bound
from davi.evaluation.rate_floor import RATE_FLOOR
from davi.evidence import Kind
from davi.flows import InverseAutoregressiveFlow
from davi.layers import LikelihoodConfig
from davi.model import PixelHierarchy
from davi.models import VAE
from davi.models.vae import DenseNormal, VAEConfig
from davi.priors import PRIORS, PriorConfig
from davi.priors.autoregressive_1 import Autoregressive1Config
from davi.priors.autoregressive_flow import AutoregressiveFlow, AutoregressiveFlowConfig
from davi.priors.gaussian_mixture import GaussianMixtureConfig
from davi.priors.standard_normal import StandardNormalConfig
from davi.priors.vamp import Vamp, VampConfig
from davi.training.roles import generative_parameters

SMALL = {"gaussian_mixture": ("components=3",), "vamp": ("components=3",), "autoregressive_flow": ("width=4",)}
"""Options of the priors in these tests."""

HIERARCHIES = ("vae", "ladder_vae", "attentive", "iaf_vae", "biva", "nvae", "very_deep_vae")
"""Their tiny recipes."""

CASES = [
    *itertools.product(("ladder_vae", "attentive", "biva"), PRIORS),
    *((hierarchy, "vamp") for hierarchy in HIERARCHIES if hierarchy not in ("ladder_vae", "attentive", "biva")),
]
"""Every prior for vectors, for maps and for latents drawn on the way up; that which asks a model's encoder in all."""

NORMAL_TOP = {
    "vae": ("latents=[3]", "hidden=[6]"),
    "iaf_vae": ("flow_steps=0",),
    "biva": ("latents=[2]", "strides=[2]"),
    "nvae": ("shifts=0",),
}
"""Options that give those a Normal top posterior which have none in their tiny recipes."""


def build(hierarchy: str, prior: str, *options: str) -> PixelHierarchy:
    words = [*options, f"prior.name={prior}", *(f"prior.{option}" for option in SMALL.get(prior, ()))]
    model = davi.build(f"{hierarchy}_digits_tiny", *(f"model.{word}" for word in words))
    assert isinstance(model, PixelHierarchy)
    return model


@pytest.mark.parametrize(("hierarchy", "prior"), CASES)
def test_hierarchies_take_priors(hierarchy: str, prior: str) -> None:
    model = build(hierarchy, prior, *(NORMAL_TOP.get(hierarchy, ()) if prior == "vamp" else ()))
    x = some_images(model, 4)
    with torch.no_grad():
        model.initialize(x)
    evidence = model(x)
    assert evidence.kind is Kind.LOWER_BOUND
    assert bool(evidence.log_px.isfinite().all())
    evidence.log_px.sum().backward()
    own = {name for name, _ in model.named_parameters() if name.startswith("prior_of_top.")}
    assert own <= {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert own <= generative_parameters(model)
    model.eval()
    assert model.latent_shapes() == [tuple(z.shape[1:]) for z in model.latents(x)]
    assert model.sample(2, temperature=0.7, generator=seeded()).shape == (2, *model.shape)


@pytest.mark.parametrize(
    ("hierarchy", "options", "reason"),
    [
        ("vae", (), "the top one of 2 stochastic layers depends on draws"),
        ("biva", (), "the top one of BIVA's 3 layers depends on draws"),
        ("iaf_vae", (), "the posterior has a flow"),
        ("nvae", (), "the posterior has autoregressive shifts"),
        ("ladder_vae", ("posterior_flow.name=iaf",), "the posterior has a flow"),
    ],
)
def test_a_vamp_prior_needs_densities_at_any_point(hierarchy: str, options: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UserError, match=f"prior.name: got vamp, expected another prior: .*{reason}") as error:
        build(hierarchy, "vamp", *options)
    assert "\n" not in str(error.value)


def test_pseudo_inputs_leave_the_batch_and_the_statistics_alone() -> None:
    """The posteriors at pseudo-inputs are those of evaluation, in training as well, and begin as training images."""
    model = build("nvae", "vamp", *NORMAL_TOP["nvae"])
    x = some_images(model, 2)
    with torch.no_grad():
        prior = model.prior_of_top
        assert isinstance(prior, Vamp)
        noise = prior.logits.clone()
        model.initialize(x, kept={"prior_of_top.logits"})
        assert torch.equal(prior.logits, noise)
        model.initialize(x)
    pseudo = x[[0, 1, 0]] / (model.levels - 1)
    torch.testing.assert_close(prior.pseudo_inputs().detach(), pseudo, rtol=0.0, atol=0.07)  # noise and margin
    seen: list[Latent] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        if layer == 0:
            seen.append(prior)
        return prior.expand(2).center()

    shake(model)
    model.train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.top_prior(Normal(x, x))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(module.training for module in model.modules())
    for training in (True, False):
        model.train(training)
        model.top_down(choose)
    z = torch.randn(2, *model.latent_shapes()[0])
    assert torch.equal(seen[0].expand(2).log_prob(z), seen[1].expand(2).log_prob(z))


PIXELS = 4
PRIOR_OPTIONS: list[tuple[PriorConfig, int]] = [
    (StandardNormalConfig(), 1),
    (GaussianMixtureConfig(components=3), 1),
    (VampConfig(components=3), 1),
    (AutoregressiveFlowConfig(width=6), 1),
    (Autoregressive1Config(alpha=0.8), 2),
]
"""Of every prior, and how many latent variables it is tried with: a process needs two."""


def tiny_vae(prior: PriorConfig, latents: int) -> VAE:
    """On images of four binary pixels; its posteriors are wide, so that no weight is rare and large."""
    config = VAEConfig(latents=(latents,), hidden=(5,), depth=1, likelihood=LikelihoodConfig("bernoulli"), prior=prior)
    model = shake(VAE((1, 1, PIXELS), 2, config).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        (inference,) = model.inference
        assert isinstance(inference, DenseNormal)
        inference.log_scale.weight.zero_()
        inference.log_scale.bias.fill_(0.7)
    return model


@pytest.mark.parametrize(("config", "latents"), PRIOR_OPTIONS, ids=[config.name for config, _ in PRIOR_OPTIONS])
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one_and_bounds_rise_to_them(config: PriorConfig, latents: int) -> None:
    """By quadrature over the latents, with the density that the walk offers as the prior."""
    model = tiny_vae(config, latents)
    edge, points = (25.0, 3000) if latents == 1 else (9.0, 150)
    axis = torch.linspace(-edge, edge, points, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * latents).reshape(-1, latents, 1, 1)
    log_cell = latents * torch.tensor(2.0 * edge / (points - 1)).log()
    priors: list[Tensor] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        priors.append(prior.expand(len(grid)).log_prob(grid))
        return grid

    pixels = model.top_down(choose)
    binary = torch.tensor(list(itertools.product((0, 1), repeat=PIXELS))).view(-1, 1, 1, PIXELS)
    each = [pixels.log_prob(x.expand(len(grid), 1, 1, PIXELS)) for x in binary]
    exact = (torch.stack(each) + priors[0] + log_cell).logsumexp(1)
    assert float(exact.exp().sum()) == pytest.approx(1.0, abs=1e-6)  # kinks of the networks
    n = 400
    x, previous = binary.repeat(n, 1, 1, 1), torch.tensor(0.0)
    for k in (1, 10, 100):
        bound = importance_bound(model, x, k, seeded()).view(n, len(binary))
        gap = exact - bound.mean(0)
        assert bool((gap > -5.0 * bound.std(0) / n**0.5).all())
        assert k == 1 or float(gap.mean()) < float(previous)
        previous = gap.mean()
    assert float(previous) < 0.05  # of the bound with 100 draws, nats
    evidence = model.evidence(x, seeded())
    assert evidence.log_weight is not None
    weights = evidence.log_weight.exp().view(n, len(binary))
    assert bool(((weights.mean(0) - exact.exp()).abs() < 5.0 * weights.std(0) / n**0.5).all())


@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 2, 2)])
@torch.no_grad()
def test_an_autoregressive_prior_is_an_inverse_autoregressive_posterior(shape: tuple[int, int, int]) -> None:
    """Pathwise, on the same noise: the prior with the flow, against the standard Normal prior, the same flow as the
    last step of the posterior, and a decoder that begins with its inverse."""
    prior = AutoregressiveFlow(shape, (1, 2, 2), AutoregressiveFlowConfig(width=8)).double()
    for parameter in prior.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    (flow,) = prior.children()
    assert isinstance(flow, InverseAutoregressiveFlow)
    n, x = 50, torch.randn(50, *shape, dtype=torch.float64)
    posterior = Normal(0.5 * x, torch.full_like(x, 0.7))
    z = posterior.sample(seeded())
    p = prior(lambda pixels: posterior).expand(n)

    def log_likelihood(z: Tensor) -> Tensor:
        return Normal(z.sin(), torch.full_like(z, 0.3)).log_prob(x)

    with_prior = log_likelihood(z) + p.log_prob(z) - posterior.log_prob(z)
    sent = TransformedNormal(posterior, flow)
    epsilon = sent.sample(seeded())
    standard = Normal(torch.zeros_like(epsilon), torch.ones_like(epsilon))
    with_flow = log_likelihood(flow.inverse(epsilon)[0]) + standard.log_prob(epsilon) - sent.log_prob(epsilon)
    torch.testing.assert_close(with_prior, with_flow, rtol=0.0, atol=1e-10)
    drawn = p.sample(seeded())
    noise = standard.sample(seeded())
    torch.testing.assert_close(flow(drawn)[0], noise, rtol=0.0, atol=1e-8)
    assert not torch.allclose(drawn, noise)


def test_the_rate_floor_is_measured_and_everything_works_on_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--model.prior.name=autoregressive_1"]
    quick = ["--training.steps=2", "--training.validate_every=0"]
    assert main(["train", "ladder_vae_digits_tiny", *words, *quick, "--run", str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--limit", "20"]) == 0
    assert "rate floor" in capsys.readouterr().out
    measures = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["measures"]
    (floor,) = [measure for measure in measures if measure["name"] == RATE_FLOOR]
    assert floor["value"] == pytest.approx(0.1438410362)  # of two variables
    assert main(["sample", str(run), "--n", "4", "--temperature", "0.5"]) == 0
    assert main(["inspect", str(run), "--limit", "4"]) == 0
    assert main(["score", str(run), "--importance-samples", "2", "--llr", "1", "--held-out", "8"]) == 0


@pytest.mark.parametrize(
    ("hierarchy", "options", "prior", "found"),
    [
        ("ladder_vae", (), "autoregressive_1", True),
        ("ladder_vae", (), "gaussian_mixture", False),
        ("ladder_vae", ("posterior_flow.name=iaf", "posterior_flow.width=4"), "autoregressive_1", False),
        ("vae", (), "autoregressive_1", False),
        ("hvi", (), "autoregressive_1", False),
        ("hvi", ("iterations=0",), "autoregressive_1", True),
        ("mixture_posterior", (), "autoregressive_1", False),
    ],
)
def test_only_independent_normal_variables_are_committed(
    hierarchy: str, options: tuple[str, ...], prior: str, found: bool
) -> None:
    """Behind a flow, along trajectories, in a mixture, or given draws of other layers, the top latents may be dependent
    given the image."""
    model = build(hierarchy, prior, *options)
    pixels = some_images(model, 4).to(torch.uint8)
    evaluation = davi.evaluation.evaluate(model, davi.data.Images(pixels, model.levels, "some"))
    assert (evaluation.measure(RATE_FLOOR) is not None) == found
    if found:
        measure = evaluation.measure(RATE_FLOOR)
        assert measure is not None
        assert float(-evaluation.terms["kl/00"].max()) > measure.value

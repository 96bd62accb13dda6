"""Top layers whose KL divergence is a constant, in every hierarchy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from contract import names, seeded, shake, some_images

from davi import Kind, recipes
from davi.data import Images, geometry_of
from davi.distributions import Normal
from davi.errors import OptionError, UserError
from davi.evaluation import evaluate, importance_bound
from davi.evaluation.rate_floor import CONSTANT_RULE, RATE_FLOOR
from davi.model import PixelHierarchy
from davi.models import VAE
from davi.models.vae import VAEConfig
from davi.posteriors import CONSTANT_RATES
from davi.posteriors.fixed_normal import FixedNormalConfig
from davi.posteriors.von_mises_fisher import VonMisesFisherConfig
from davi.training.roles import generative_parameters

OWN_POSTERIOR = ["hvi_digits_tiny", "mixture_posterior_digits_tiny"]
HIERARCHIES = [name for name in names(PixelHierarchy) if name not in OWN_POSTERIOR and "autoregressive" not in name]
"""Those that have it; an autoregressive likelihood in place of another has no part in this."""
CASES = [
    *((name, "von_mises_fisher") for name in HIERARCHIES),
    *((name, "fixed_normal") for name in ("vae_digits_tiny", "biva_digits_tiny", "pixelvae_digits_tiny")),
]
"""A kind of rate sees the top posterior of a model alone: one in all hierarchies; the other for latents that are drawn
on the way up, for maps and for a vector."""


def built(name: str, *assignments: str) -> PixelHierarchy:
    recipe = recipes.load(name, assignments)
    assert recipe.data is not None
    model = shake(recipes.build(recipe, *geometry_of(recipe.data)))
    assert isinstance(model, PixelHierarchy)
    return model


def test_every_kind_is_tried() -> None:
    assert {kind for _, kind in CASES} == set(CONSTANT_RATES)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_hierarchy_has_a_constant_rate_when_asked(name: str, kind: str) -> None:
    model = built(name, f"model.constant_rate.name={kind}", "model.prior=null", "model.posterior_flow=null")
    assert model.sample(2, generator=seeded()).shape == (2, *model.shape)
    assert f"nats ({kind})" in repr(model)
    model = model.double()
    rate = model.rate_of_top
    assert rate is not None
    x = some_images(model, 4)
    evidence = model.evidence(x, seeded())
    assert evidence.kind is Kind.LOWER_BOUND
    assert bool(evidence.log_px.isfinite().all())
    torch.testing.assert_close(-evidence.terms["kl/00"], torch.full((4,), rate.rate, dtype=torch.float64))
    assert evidence.kl_maps["kl/00"].shape == (4, *model.latent_shapes()[0])
    assert bool(importance_bound(model, x, 3, seeded()).isfinite().all())
    generative = generative_parameters(model)
    encoder = [parameter for key, parameter in model.named_parameters() if key not in generative]
    gradients = torch.autograd.grad(evidence.terms["reconstruction"].sum(), encoder, allow_unused=True)
    assert any(gradient is not None and bool(gradient.abs().max() > 1e-9) for gradient in gradients)


def test_the_rate_is_measured_as_a_floor() -> None:
    model = built("vae_digits_tiny", "model.constant_rate.name=von_mises_fisher")
    evaluation = evaluate(model, Images(some_images(model, 8, torch.uint8), model.levels, "some"))
    (floor,) = [measure for measure in evaluation.measures if measure.name == RATE_FLOOR]
    assert floor.value == rate_of(model)
    assert floor.rule == CONSTANT_RULE


def test_the_rates_are_the_closed_forms() -> None:
    shape = (3, 2, 2)
    normal = CONSTANT_RATES["fixed_normal"](shape, FixedNormalConfig(scale=0.3, radius=2.0))
    assert normal.rate == pytest.approx(0.5 * (4.0 + 12 * (0.09 - 1.0 - math.log(0.09))))
    matched = CONSTANT_RATES["fixed_normal"](shape, FixedNormalConfig(scale=0.3))
    assert matched.rate == pytest.approx(-12 * math.log(0.3))  # of as much power as the prior
    sphere = CONSTANT_RATES["von_mises_fisher"]((50, 1, 1), VonMisesFisherConfig(kappa=80.0))
    assert sphere.rate == pytest.approx(19.5152079329, abs=5e-11)


@pytest.mark.parametrize("kind", list(CONSTANT_RATES))
def test_the_rate_is_the_mean_of_log_q_minus_log_p(kind: str) -> None:
    model = built("vae_convolutional_digits_tiny", f"model.constant_rate.name={kind}").double()
    x = some_images(model, 1).repeat(4000, 1, 1, 1)
    rate = model.rate_of_top
    assert rate is not None
    with torch.no_grad():
        posterior = model.top_posterior(model.encode_pixels(x.double() / (model.levels - 1)))
        z = posterior.sample(seeded())
        estimate = posterior.log_prob(z) - rate.prior().expand(len(z)).log_prob(z)
    assert abs(float(estimate.mean()) - rate.rate) < 4 * float(estimate.std()) / len(z) ** 0.5


def test_the_mean_of_the_fixed_normal_lies_on_a_sphere() -> None:
    rate = CONSTANT_RATES["fixed_normal"]((2, 3, 1), FixedNormalConfig(scale=0.5, radius=3.0))
    base = Normal(torch.randn(5, 2, 3, 1, generator=seeded()), torch.ones(5, 2, 3, 1))
    posterior = rate(base, base.mean)
    assert isinstance(posterior, Normal)
    torch.testing.assert_close(posterior.mean.flatten(1).norm(dim=1), torch.full((5,), 3.0))
    assert bool((posterior.scale == 0.5).all())


@pytest.mark.parametrize("name", OWN_POSTERIOR)
def test_models_about_another_posterior_refuse_it(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.constant_rate: got fixed_normal, expected null"):
        built(name, "model.constant_rate.name=fixed_normal")


def test_layers_below_keep_the_flows_of_a_model() -> None:
    plain, constant = (
        built("nvae_digits_tiny", *extra).state_dict() for extra in ((), ("model.constant_rate.name=fixed_normal",))
    )
    missing = {name for name in plain if name not in constant}
    assert missing
    assert all(name.startswith("shifts.0.") for name in missing)
    assert not set(constant) - set(plain)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["prior.name=standard_normal"], "got fixed_normal beside prior standard_normal, expected one of the two"),
        (["posterior_flow.name=iaf"], "got fixed_normal beside posterior_flow iaf, expected one of the two"),
        (["latents=[1]", "hidden=[4]"], "got fixed_normal for a top layer of 1 latent variable, expected at least 2"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(assignments: list[str], words: str) -> None:
    given = [f"model.{one}" for one in ["constant_rate.name=fixed_normal", *assignments]]
    with pytest.raises((UserError, OptionError), match=words) as caught:
        built("vae_digits_tiny", *given)
    assert "constant_rate.name" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "fixed_normal", "scale": 0.0}, "scale: got 0.0, expected 0.0001 to 10"),
        ({"name": "fixed_normal", "scale": 1e200, "radius": 1.0}, "scale: got 1e[+]200, expected 0.0001 to 10"),
        ({"name": "fixed_normal", "radius": 1e200}, "radius: got 1e[+]200, expected .* at most 100000 times the scale"),
        (
            {"name": "fixed_normal", "scale": 1.0},
            "scale: got 1.0 without a radius, expected a number above 0 and below",
        ),
        ({"name": "fixed_normal", "radius": 0.0}, "radius: got 0.0, expected a number above 0"),
        ({"name": "von_mises_fisher", "kappa": 0.0}, "kappa: got 0.0, expected a number above 0, at most 1e"),
        ({"name": "von_mises_fisher", "kappa": 1e7}, "kappa: got 10000000.0, expected a number above 0, at most 1e"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], words: str) -> None:
    kind = CONSTANT_RATES[str(options["name"])].Config
    with pytest.raises(ValueError, match=words):
        kind(**options)  # type: ignore[arg-type]  # what a recipe could hold


def test_half_precision_and_inference_mode() -> None:
    config = VAEConfig(latents=(4,), hidden=(8,), depth=1, constant_rate=VonMisesFisherConfig(kappa=20.0))
    model = VAE((1, 4, 4), 2, config).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        evidence = model.evidence(some_images(model, 3))
    assert evidence.terms["kl/00"].dtype == torch.float32
    assert evidence.terms["kl/00"].tolist() == pytest.approx([-rate_of(model)] * 3, rel=1e-6)


def rate_of(model: PixelHierarchy) -> float:
    assert model.rate_of_top is not None
    return model.rate_of_top.rate


def test_a_run_trains_and_loads_again(tmp_path: Path) -> None:
    import davi
    from davi.cli import main

    run = tmp_path / "run"
    words = ["train", "vae_digits_tiny", "--run", str(run), "--training.steps=3", "--training.validate_every=3"]
    assert main([*words, "--model.constant_rate.name", "von_mises_fisher", "--model.constant_rate.kappa", "12"]) == 0
    model = davi.load(run)
    assert isinstance(model, PixelHierarchy)
    assert rate_of(model) == pytest.approx(divergence(model, 12.0))


def divergence(model: PixelHierarchy, kappa: float) -> float:
    from davi.distributions.sphere import divergence_from_uniform

    return divergence_from_uniform(math.prod(model.latent_shapes()[0]), kappa)

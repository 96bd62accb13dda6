"""What every hierarchy promises about the sections ``posterior_flow`` and ``prior`` of its options."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import names, seeded, shake, some_images
from torch import Tensor

from davi import Kind, recipes
from davi.cli import main
from davi.config import parse
from davi.data import Images
from davi.distributions import Drawn, Latent, Normal, TransformedNormal
from davi.evaluation import evaluate
from davi.model import PixelHierarchy
from davi.models import MODELS
from davi.models.hvi import HamiltonianPosterior
from davi.runs import load_model, save_model

FLOWS: dict[str, dict[str, Any]] = {
    "iaf": {"name": "iaf", "steps": 2, "width": 4},
    "orthogonal": {"name": "sylvester_orthogonal", "steps": 1, "vectors": 2},
}
OWN_FLOWS = {"iaf_vae": "flow_steps", "nvae": "shifts"}
"""Models with flows of their own, and the option that says how many."""
SHAPE = (1, 8, 8)


def options(recipe: str, sections: dict[str, Any]) -> tuple[type[PixelHierarchy], Any]:
    """The class of a tiny recipe's model, and its options with more sections, its own flow switched off."""
    found = recipes.load(recipe)
    cls: Any = MODELS[found.model_name]
    own = {OWN_FLOWS[found.model_name]: 0} if found.model_name in OWN_FLOWS else {}
    values = {key: value for key, value in found.to_dict()["model"].items() if key != "name"}
    return cls, parse(cls.Config, {**values, **own, **sections}, "test")


@functools.cache
def build(recipe: str, flow: str) -> PixelHierarchy:
    """The model of a tiny recipe with a flow and a prior; weights neutral nowhere, in eval mode, float64."""
    cls, config = options(recipe, {"posterior_flow": FLOWS[flow], "prior": {"name": "standard_normal"}})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # not the seed of a test, whose images it draws
        return shake(cls(SHAPE, 2 if config.likelihood.family == "bernoulli" else 4, config)).double()


HIERARCHIES = [name for name in names(PixelHierarchy) if "autoregressive" not in name and "mixture" not in name]
"""The likelihood has no part in this, and those take their time; a mixture of posteriors refuses flows, since each
component has to know the density of the others' draws."""


@pytest.fixture(params=list(zip(HIERARCHIES, itertools.cycle(FLOWS), strict=False)), ids="-".join)
def hierarchy(request: pytest.FixtureRequest) -> PixelHierarchy:
    return copy.deepcopy(build(*request.param))


def test_all_hierarchies_take_them() -> None:
    assert {recipes.load(name).model_name for name in HIERARCHIES} >= {
        "attentive_vae",
        "biva",
        "iaf_vae",
        "ladder_vae",
        "nvae",
        "vae",
        "very_deep_vae",
    }


def test_the_bound_is_that_of_the_draws(hierarchy: PixelHierarchy) -> None:
    """Densities of flows have no divergence in closed form: every term is that of a draw, and so is their sum."""
    x = some_images(hierarchy, 3)
    evidence = hierarchy.evidence(x, seeded())
    assert evidence.kind is Kind.LOWER_BOUND
    assert evidence.log_weight is not None
    assert bool(evidence.log_px.isfinite().all())
    torch.testing.assert_close(evidence.log_px, evidence.log_weight, rtol=1e-10, atol=1e-10)  # float64
    assert all(kl.shape == z.shape for kl, z in zip(evidence.kl_maps.values(), hierarchy.latents(x), strict=True))


def test_gradients_reach_all_of_a_flow(hierarchy: PixelHierarchy) -> None:
    hierarchy(some_images(hierarchy, 3)).log_px.sum().backward()
    assert hierarchy.posteriors is not None
    assert len(hierarchy.posteriors) == hierarchy.num_layers
    parameters = dict(hierarchy.posteriors.named_parameters())
    assert parameters
    assert [name for name, p in parameters.items() if p.grad is None or not bool(p.grad.any())] == []


def test_every_layer_has_its_flow_and_the_top_its_prior(hierarchy: PixelHierarchy) -> None:
    found: dict[int, tuple[Latent, Latent]] = {}

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        if prior is not None:
            own = posterior.posterior if isinstance(posterior, Drawn) else posterior
            found[layer] = prior, own.base if isinstance(own, HamiltonianPosterior) else own
        return posterior.sample()

    hierarchy.top_down(choose, hierarchy.encode(some_images(hierarchy, 2)))
    assert all(isinstance(posterior, TransformedNormal) for _, posterior in found.values())
    top = found[0][0]
    assert isinstance(top, Normal)
    assert not bool(top.mean.any())
    assert bool((top.scale == 1).all())
    assert tuple(top.shape[1:]) == hierarchy.latent_shapes()[0]


def test_it_samples_decodes_and_is_saved(hierarchy: PixelHierarchy, tmp_path: Path) -> None:
    x = some_images(hierarchy, 3)
    hierarchy.check_images(hierarchy.sample(2, generator=seeded()))
    latents = hierarchy.latents(x)
    assert [tuple(z.shape[1:]) for z in latents] == hierarchy.latent_shapes()
    assert torch.equal(hierarchy.reconstruct(x), hierarchy.decode(latents).mode())
    save_model(tmp_path / "model.safetensors", hierarchy.float())
    again, _ = load_model(tmp_path / "model.safetensors")
    assert again.config == hierarchy.config
    assert again.state_dict().keys() == hierarchy.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), hierarchy.state_dict().values(), strict=True)
    )
    # 1e-5: float32, whose sums go with where tensors lie in memory.
    own, read = (model.evidence(x, seeded()).log_px for model in (hierarchy, again))
    torch.testing.assert_close(own, read, rtol=1e-5, atol=0.0)


def test_it_is_measured_as_every_model(hierarchy: PixelHierarchy) -> None:
    images = Images(some_images(hierarchy, 6, torch.uint8), hierarchy.levels, "some")
    found = evaluate(hierarchy.float(), images, samples=4)
    assert found.kind is Kind.LOWER_BOUND
    assert bool((found.bound >= found.elbo).all())  # of the same draws
    units = next(measure for measure in found.measures if measure.name == "active units")
    assert list(units.out_of or ()) == [math.prod(shape) for shape in hierarchy.latent_shapes()]


@pytest.mark.parametrize("recipe", ["iaf_vae_digits_tiny", "nvae_digits_tiny"])
def test_a_model_with_flows_of_its_own_has_no_others_beside_them(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe, "--model.posterior_flow.name", "planar"]) == 2
    option = OWN_FLOWS[recipes.load(recipe).model_name]
    count = getattr(recipes.load(recipe).model, option)
    words = f"model.posterior_flow: got planar beside {count} {option}, expected one of the two"
    assert capsys.readouterr().err == f"davi: command line: {words}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["posterior_flow.name", "planer"], "model.posterior_flow.name: got 'planer', expected one of planar, "),
        (["posterior_flow.steps", "2"], "model.posterior_flow.name: got nothing, expected one of planar, "),
        (["posterior_flow", "planar"], "model.posterior_flow: got 'planar', expected a section of keys"),
        (["posterior_flow", "{name: planar, steps: 0}"], "model.posterior_flow.steps: got 0, expected at least 1"),
        (
            ["posterior_flow", "{name: iaf, vectors: 2}"],
            "unknown key model.posterior_flow.vectors; it is an ",
        ),
        (["prior.name", "normal"], "model.prior.name: got 'normal', expected one of "),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    option, value = words
    assert main(["train", "vae_digits_tiny", f"--model.{option}", value]) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"davi: command line: {said}")
    assert found.count("\n") == 1


def test_latents_that_a_flow_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = "{name: sylvester_orthogonal, vectors: 4}"
    assert main(["train", "vae_digits_tiny", "--model.posterior_flow", words]) == 2
    said = "posterior_flow.vectors: got 4, expected 1 to 3, the channels of the latents"
    assert capsys.readouterr().err.endswith(f": the model cannot be built for images [1, 8, 8]: {said}\n")


def test_a_run_with_a_flow_from_first_to_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe without such a section, and every verb that asks for posteriors."""
    run = str(tmp_path / "run")
    words = ["--model.posterior_flow.name", "planar", "--model.prior.name", "standard_normal", "--run", run]
    assert main(["train", "vae_digits_tiny", "--steps", "3", *words]) == 0
    assert recipes.load(Path(run) / "recipe.yaml").model.posterior_flow.name == "planar"
    for verb in (
        ["evaluate", run, "--limit", "4", "--importance-samples", "2"],
        ["inspect", run, "--limit", "4", "--no-figures"],
        ["encode", run],
        ["score", run, "--split", "validation", "--importance-samples", "2"],
    ):
        assert main(verb) == 0, capsys.readouterr().err

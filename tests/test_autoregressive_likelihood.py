"""The likelihood of a hierarchy by a causal network: normalized, causal, drawn pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import all_images, assert_frequencies, place, seeded, shake, some_images
from torch import Tensor

import davi
from davi import recipes
from davi.cli import main
from davi.data import Images
from davi.distributions import Latent
from davi.errors import OptionError, UserError
from davi.evaluation import importance_bound
from davi.inspection import inspect
from davi.layers import AutoregressivePixels, LikelihoodConfig
from davi.layers.autoregressive_head import AutoregressiveHead, make_head
from davi.model import Hierarchy, PixelHierarchy
from davi.models.gated_pixelcnn import GatedPixelCNNConfig
from davi.models.pixelcnn_pp import PixelCNNPPConfig
from davi.runs import load_model, save_model

RECIPES = [f"{name}_autoregressive_digits_tiny" for name in ("attentive", "nvae", "very_deep_vae")]
OTHERS = [f"{name}_digits_tiny" for name in ("vae", "ladder_vae", "iaf_vae", "biva")]
NETWORKS: dict[str, dict[str, Any]] = {
    "gated_pixelcnn": {"width": 4, "layers": 1, "first_kernel": 3, "head_width": 4},
    "pixelcnn_pp": {"width": 2, "blocks": 1},
    "pixelsnail": {"width": 2, "blocks": 1, "resnets": 1},
}


def built(recipe: str, shape: tuple[int, int, int] = (1, 2, 2), levels: int = 2, network: str = "") -> PixelHierarchy:
    """The shaken hierarchy of a recipe in float64, its likelihood by another network if one is named."""
    torch.manual_seed(3)
    words = []
    if network:
        family = "bernoulli" if levels == 2 else "categorical"
        options = {"name": network, "likelihood": {"family": family}, **NETWORKS[network]}
        words = ["model.likelihood.family=autoregressive", "model.likelihood.features=3"]
        words += [f"model.likelihood.network={json.dumps(options)}"]
    made = recipes.build(recipes.load(recipe, words), shape, levels)
    assert isinstance(made, PixelHierarchy)
    return shake(made.double())


def decoded(model: Hierarchy, n: int) -> AutoregressivePixels:
    """p(x | z) for latents drawn once, the same for ``n`` images."""
    generator = seeded()

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        z = prior.sample(generator)
        return z[:1].expand(n, *z.shape[1:])

    pixels = model.top_down(choose)
    assert isinstance(pixels, AutoregressivePixels)
    return pixels


@pytest.mark.parametrize("network", ["", *NETWORKS])
@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_given_latents_all_images_have_probability_one(recipe: str, network: str) -> None:
    """Images of 3x3 binary pixels, which the hierarchies pad; the crop comes before the network."""
    model = built(recipe, (1, 3, 3), 2, network)
    x = all_images(model)
    assert float(decoded(model, len(x)).log_prob(x).exp().sum()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("recipe", OTHERS)
@torch.no_grad()
def test_every_hierarchy_takes_a_causal_network(recipe: str) -> None:
    model = built(recipe, (2, 1, 2), 3, "gated_pixelcnn")
    x = all_images(model)
    assert float(decoded(model, len(x)).log_prob(x).exp().sum()) == pytest.approx(1.0, abs=1e-10)
    assert model.sample(2, seed=1).shape == (2, 2, 1, 2)
    assert model(x[:2], 3).log_px.shape == (6,)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_pixel_sees_all_features_and_earlier_pixels_only(recipe: str) -> None:
    """The Jacobian of every log-probability by scaled pixels is strictly lower triangular; that by features is not."""
    model = built(recipe, (1, 3, 3), 4)
    network = model.head.network  # type: ignore[attr-defined]
    assert isinstance(model.head, AutoregressiveHead)
    features = torch.randn(1, network.features, 3, 3, dtype=torch.float64, requires_grad=True)
    x = some_images(model, 1)
    scaled = network.scaled(x).requires_grad_()
    network.scaled = lambda images: scaled
    raw = network(x, features)
    for pixel in range(9):
        seen = raw.flatten(2)[..., pixel].square().sum()
        by_pixels, by_features = torch.autograd.grad(seen, [scaled, features], retain_graph=True)
        assert not bool(by_pixels.flatten()[pixel:].any())
        assert bool(by_features[0, :, pixel // 3, pixel % 3].any())
    assert bool(by_pixels.flatten()[:8].any())


@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_draws_are_those_of_whole_passes_and_have_their_probabilities(recipe: str) -> None:
    model = built(recipe, (1, 2, 2))
    several = decoded(model, 2000)
    blank = torch.zeros(2000, 1, 2, 2, dtype=torch.long)
    drawn = several.complete(blank, 0, generator=seeded(8))
    assert torch.equal(drawn, several.complete(blank, 0, generator=seeded(8), cached=False))
    x = all_images(model)
    assert_frequencies(place(drawn, 2), decoded(model, len(x)).log_prob(x))
    assert torch.equal(model.sample(3, seed=2), model.sample(3, seed=2))


@torch.no_grad()
def test_importance_weights_repeat_the_features() -> None:
    model = built(RECIPES[0], (1, 2, 2))
    x = all_images(model)[:5]
    bound, elbo = importance_bound(model, x, 200, seeded()), importance_bound(model, x, 1, seeded())
    assert bound.shape == (5,)
    assert bool(bound.isfinite().all())
    assert float((bound - elbo).mean()) > 0


@pytest.mark.parametrize("network", ["pixelcnn_pp", "pixelsnail"])
def test_the_network_is_initialized_from_images_given_the_features(network: str) -> None:
    """Its first layers have outputs of mean 0 and deviation 1 then; what is kept stays."""
    torch.manual_seed(5)
    section = f"{{name: {network}, likelihood: {{family: bernoulli}}, width: 2, blocks: 1}}"
    recipe = recipes.load(RECIPES[0], [f"model.likelihood.network={section}"])
    model = recipes.build(recipe, (1, 4, 4), 2).double()
    assert isinstance(model, PixelHierarchy)
    causal: Any = model.head.network  # type: ignore[attr-defined]
    assert model.images_wanted == causal.images_wanted > 0
    x = some_images(model, 64)
    first, outputs = causal.above, []
    kept = "head.network.before.g" if network == "pixelcnn_pp" else "head.network.beside.g"
    before = model.state_dict()[kept].clone()
    with torch.no_grad():
        model.train().initialize(x, {kept})
    first.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.evidence(x)
    std, mean = torch.std_mean(outputs[0].detach(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0.0, atol=1e-8)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-6, atol=0.0)
    assert torch.equal(model.state_dict()[kept], before)


def test_no_mean_is_claimed_for_pictures() -> None:
    """What a page shows of an image are draws; nothing pretends to be an average."""
    model = built(RECIPES[0], (1, 4, 4), 3).float()
    x = some_images(model, 6).to(torch.uint8)
    found = inspect(model, Images(x, 3, "random"), limit=6, samples=2, temperatures=(1.0,), batch_size=3)
    assert found.pixels == "draws"
    assert not found.expected
    assert all(not strip.images.is_floating_point() for strip in found.strips)


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_compiled_block_by_block(recipe: str) -> None:
    model = built(recipe)
    assert isinstance(model.head, AutoregressiveHead)
    inner = list(model.head.network.compilable())
    assert inner
    assert set(inner) <= set(model.blocks())
    assert len(set(model.blocks())) == len(list(model.blocks()))


def test_switches_leave_the_numbers() -> None:
    """bfloat16 within its rounding."""
    model = built(RECIPES[0], (1, 4, 4), 3).float()
    x = some_images(model, 8)
    with torch.no_grad():
        expected = model.evidence(x, seeded()).log_px
        with torch.autocast("cpu", torch.bfloat16):
            found = model.evidence(x, seeded()).log_px
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.5)


def test_a_model_is_saved_with_its_network(tmp_path: Path) -> None:
    model = built(RECIPES[2]).float()
    save_model(tmp_path / "model.safetensors", model)
    again, _ = load_model(tmp_path / "model.safetensors")
    assert again.config == model.config
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.startswith("head.network.") for name in theirs)


def test_verbs_take_options_of_the_network(tmp_path: Path) -> None:
    """Trained for two steps, loaded, sampled from and looked at."""
    words = ["--training.steps", "2", "--training.batch_size=4", "--training.validate_every=0", "--data.validation=8"]
    run = tmp_path / "run"
    assert main(["train", RECIPES[0], "--run", str(run), *words, "--model.likelihood.network.layers", "1"]) == 0
    config = davi.load(run).config
    assert (config.likelihood.network.name, config.likelihood.network.layers) == ("gated_pixelcnn", 1)
    assert main(["sample", str(run), "--n", "2"]) == 0
    assert main(["reconstruct", str(run), "--n", "2"]) == 0
    assert main(["inspect", str(run), "--limit", "3"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["likelihood.network.name=pixelrnn"],
            "likelihood.network.name: got 'pixelrnn', expected one of gated_pixelcnn, ",
        ),
        (["likelihood.network.widht=8"], "unknown key model.likelihood.network.widht; did you mean "),
        (["likelihood.network.width=0"], "likelihood.network.width: got 0, expected at least 1"),
        (
            ["likelihood.network=gated_pixelcnn"],
            "likelihood.network: got 'gated_pixelcnn', expected a section of keys or null",
        ),
        (
            ["likelihood.network=null"],
            "likelihood.network: got nothing, expected a causal network, by the name of one of ",
        ),
        (
            ["likelihood.family=bernoulli"],
            "likelihood.network: got gated_pixelcnn, expected null for the family bernoulli",
        ),
        (["likelihood.features=0"], "likelihood.features: got 0, expected at least 1"),
        (["likelihood.form=nvae"], "likelihood.form: got nvae, expected exact for an autoregressive likelihood"),
    ],
)
def test_wrong_options_are_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        recipes.load(RECIPES[0], [f"model.{word}" for word in words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_within_a_network_is_refused() -> None:
    inner = LikelihoodConfig("autoregressive", network=GatedPixelCNNConfig())  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^network\.likelihood\.family: got autoregressive, expected the family of a p"
    ):
        LikelihoodConfig("autoregressive", network=GatedPixelCNNConfig(likelihood=inner))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"likelihood\.family: got autoregressive, expected the family of a pixel"):
        davi.build("gated_pixelcnn_digits_tiny", "model.likelihood.family=autoregressive",
                   "model.likelihood.network.name=gated_pixelcnn")  # fmt: skip


def test_a_network_that_does_not_fit_the_images_is_named() -> None:
    likelihood = LikelihoodConfig("autoregressive", network=PixelCNNPPConfig(likelihood=LikelihoodConfig("bernoulli")))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"^likelihood\.network\.likelihood\.family: got bernoulli for 4 levels"):
        make_head(likelihood, (1, 4, 4), 4)
    with pytest.raises(
        ValueError, match=r"^network: got int, expected the options of a causal network: gated_pixelcnn"
    ):
        LikelihoodConfig("autoregressive", network=3)  # type: ignore[arg-type]

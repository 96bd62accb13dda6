"""PixelVAE and the variational lossy autoencoder: bounds by quadrature, causality, receptive fields, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import all_images, seeded, shake, some_images
from quadrature import from_the_posterior, from_the_prior
from torch import Tensor

import davi
from davi import recipes
from davi.distributions import AutoregressiveNormal, Drawn, Latent, Normal
from davi.errors import OptionError, UserError
from davi.layers import AutoregressivePixels, LikelihoodConfig
from davi.layers.causal import CausalNetwork, Window
from davi.models import VLAE, PixelVAE, pixelvae
from davi.models.gated_pixelcnn import GatedPixelCNNConfig, GatedPixelCNNNetwork
from davi.models.pixelcnn import PixelCNNConfig, PixelCNNNetwork
from davi.models.pixelvae import LatentPixelCNNConfig, PixelVAEConfig
from davi.models.vlae import VLAEConfig

NETWORK = GatedPixelCNNConfig(width=4, layers=2, first_kernel=3, head_width=4)
LIKELIHOOD = LikelihoodConfig("autoregressive", network=NETWORK, features=3)  # type: ignore[arg-type]
GRID = LatentPixelCNNConfig(width=4, layers=2, first_kernel=3)
BOTH = LatentPixelCNNConfig(width=4, layers=2, first_kernel=3, within_position=True)


def build(shape: tuple[int, int, int] = (1, 2, 2), levels: int = 2, **options: Any) -> PixelVAE:
    """In float64 and eval mode, with weights that leave nothing at its neutral value."""
    torch.manual_seed(7)
    small = {"latents": (1,), "width": 4, "hidden": 4, "halvings": 1, "top_halvings": 0, "likelihood": LIKELIHOOD}
    return shake(PixelVAE(shape, levels, PixelVAEConfig(**{**small, **options})).double())


@pytest.mark.parametrize("decoder", ["upsample", "bias"])
def test_all_images_together_have_probability_one(decoder: str) -> None:
    """One latent, integrated over the prior and, with the weights of the bound, over the posterior."""
    model = build(decoder=decoder)
    x = all_images(model)
    prior = [from_the_prior(model, image[None], variables=1, points=101) for image in x]
    assert sum(prior) == pytest.approx(1.0, abs=1e-10)
    posterior = [from_the_posterior(model, image[None], variables=1, points=101) for image in x]
    assert posterior == pytest.approx(prior, rel=1e-5)  # rectifiers of the pixel's network have kinks


@pytest.mark.parametrize("top_given", ["image", "latents"])
@pytest.mark.parametrize(
    ("shape", "latents", "network"),
    [((1, 1, 2), (1, 1), None), ((1, 1, 3), (1, 1), GRID), ((1, 1, 2), (2, 1), BOTH)],
)
def test_weights_of_two_levels_are_those_of_a_bound(
    shape: tuple[int, int, int],
    latents: tuple[int, int],
    network: LatentPixelCNNConfig | None,
    top_given: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A vector of one latent above one, two positions, or two channels; the last two with an autoregressive prior."""
    # Standard deviations from 0.82 to 1.22: what a coarse grid covers, of the prior in the posterior's noise as well.
    monkeypatch.setattr(pixelvae, "_LARGEST_LOG_SCALE", 0.2)
    model = build(shape, latents=latents, latent_network=network, top_given=top_given)
    variables = sum(torch.Size(size).numel() for size in model.latent_shapes())
    assert variables == (2 if network is None else 3)
    for image in all_images(model)[2:3]:
        expected = from_the_prior(model, image[None], variables, 21)
        assert from_the_posterior(model, image[None], variables, 31, 10.0) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("network", [None, GRID])
@pytest.mark.parametrize("top_given", ["image", "latents"])
def test_the_bound_is_below_and_its_mean_that_of_the_weights(
    top_given: str, network: LatentPixelCNNConfig | None
) -> None:
    """Terms of the bound, divergences given the draws above, and log-weights of the same draws: equal in the mean."""
    model = build((1, 1, 3), latents=(1, 1), latent_network=network, top_given=top_given)
    x = all_images(model)[5:6]
    evidence = model.evidence(x.expand(4_000, -1, -1, -1), seeded())
    assert evidence.log_weight is not None
    difference = evidence.log_px - evidence.log_weight
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / 4_000**0.5 + 1e-12
    assert float(evidence.log_px.mean()) < torch.tensor(from_the_prior(model, x, 3, 31)).log()


@pytest.mark.parametrize("top_given", ["image", "latents"])
def test_who_is_drawn_when(top_given: str) -> None:
    """Given the image, both levels are inferred before the walk; given the grid, the grid is drawn on the way up."""
    early = top_given == "latents"
    model = build(latents=(2, 1), latent_network=GRID, top_given=top_given)
    asked: list[tuple[int, bool]] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        asked.append((layer, prior is None))
        if prior is not None:
            assert isinstance(posterior, Drawn) == (early and layer == 1)
            assert isinstance(prior, AutoregressiveNormal if layer else Normal)
        return posterior.sample()

    x = some_images(model, 2)
    model.top_down(choose, model.encode(x))
    assert asked == [(1, True)] * early + [(0, False), (1, False)]
    assert model.evidence(x).no_divergence == ({"kl/01"} if early else frozenset())


@pytest.mark.parametrize(
    "options",
    [{}, {"decoder": "bias"}, {"latents": (2, 1)}, {"latents": (2, 1), "latent_network": BOTH}],
    ids=["upsample", "bias", "two levels", "two levels, autoregressive"],
)
def test_pixels_see_earlier_pixels_and_all_latents(options: dict[str, Any]) -> None:
    """For given latents, gradients of every pixel's parameters: by later pixels 0, by earlier ones and by z not."""
    model = build((1, 3, 3), 4, **options)
    latents = [torch.randn(1, *shape, dtype=torch.float64) for shape in model.latent_shapes()]
    latents[-1].requires_grad_()
    pixels = model.decode(latents)
    assert isinstance(pixels, AutoregressivePixels)
    scaled = pixels.network.scaled(some_images(model, 1)).requires_grad_()
    pixels.network.scaled = lambda x: scaled  # type: ignore[method-assign,misc]
    raw = pixels.network(scaled, pixels.features)
    for pixel in range(9):
        seen = raw.flatten(2)[..., pixel].square().sum()
        by_pixels, by_latents = torch.autograd.grad(seen, [scaled, latents[-1]], retain_graph=True)
        assert not bool(by_pixels.flatten()[pixel:].any())
        assert bool(by_latents.any())
    assert bool(by_pixels.flatten()[:8].any())


@torch.no_grad()
def test_a_bias_is_the_same_at_every_pixel() -> None:
    model = build((1, 3, 5), latents=(2,), decoder="bias")
    pixels = model.decode(model.latents(some_images(model, 2)))
    assert isinstance(pixels, AutoregressivePixels)
    assert pixels.features is not None
    assert pixels.features.shape == (2, 3, 3, 5)
    assert torch.equal(pixels.features, pixels.features[..., :1, :1].expand(-1, -1, 3, 5))
    assert not torch.equal(pixels.features[0], pixels.features[1])


def seen_by(network: CausalNetwork[Any], row: int, column: int) -> Tensor:
    """Which pixels the parameters of one depend on, ``[H, W]``."""
    _, height, width = network.shape
    scaled = torch.rand(1, 1, height, width, dtype=torch.float64, generator=seeded()).requires_grad_()
    network.scaled = lambda x: scaled  # type: ignore[method-assign,misc]
    features = torch.randn(1, network.features, height, width, dtype=torch.float64) if network.features else None
    seen = network(scaled, features)[0, :, row, column].square().sum()
    return torch.autograd.grad(seen, scaled)[0][0, 0] != 0


def inside(window: Window, row: int, column: int, size: int) -> Tensor:
    """The pixels of a square image that a window lets a pixel see."""
    rows, columns = torch.arange(size)[:, None] - row, torch.arange(size) - column
    above = (rows < 0) & (rows >= -window.above) & (columns.abs() <= window.beside)
    return above | ((rows == 0) & (columns < 0) & (columns >= -window.beside))


@pytest.mark.parametrize(
    ("layers", "kernel", "first_kernel", "reach"), [(1, 3, 3, 1), (1, 3, 7, 3), (3, 3, 3, 3), (2, 5, 5, 4)]
)
def test_a_gated_pixelcnn_sees_exactly_its_window(layers: int, kernel: int, first_kernel: int, reach: int) -> None:
    torch.manual_seed(2)
    config = GatedPixelCNNConfig(width=6, layers=layers, kernel=kernel, first_kernel=first_kernel, head_width=4)
    network = shake(GatedPixelCNNNetwork((1, 11, 11), 2, config).double())
    assert network.window == Window(reach, reach)
    for row, column in ((8, 5), (9, 1), (2, 9)):
        assert torch.equal(seen_by(network, row, column), inside(network.window, row, column, 11))


def test_nothing_outside_its_window_matters_to_a_pixelcnn() -> None:
    """Inside there is a blind spot; the window is a bound."""
    torch.manual_seed(2)
    config = PixelCNNConfig(width=6, blocks=2, kernel=3, first_kernel=5, head_width=4)
    network = shake(PixelCNNNetwork((1, 11, 11), 2, config).double())
    assert network.window == Window(4, 4)
    seen, window = seen_by(network, 8, 5), inside(network.window, 8, 5, 11)
    assert not bool((seen & ~window).any())
    assert bool(seen[4, 5])
    assert bool(seen[8, 1])


def test_a_vlae_is_a_pixelvae_whose_pixels_see_little() -> None:
    """The same numbers with the same weights; beyond the window a pixel is told by z alone."""
    torch.manual_seed(3)
    model = shake(VLAE((1, 12, 12), 2, VLAEConfig(latents=(2,), width=4, hidden=4, halvings=1)).double())
    assert model.window == Window(3, 3)
    assert model.config.prior is not None
    assert model.config.prior.name == "autoregressive_flow"
    options: dict[str, Any] = {"latents": (2,), "width": 4, "hidden": 4, "halvings": 1}
    options |= {"likelihood": model.config.likelihood, "prior": model.config.prior}
    other = PixelVAE(model.shape, 2, PixelVAEConfig(**options)).double()
    other.load_state_dict(model.state_dict())
    x = some_images(model, 3)
    assert torch.equal(model.evidence(x, seeded()).log_px, other.eval().evidence(x, seeded()).log_px)
    network = model.head.network  # type: ignore[attr-defined]
    seen = seen_by(network, 9, 6)
    assert torch.equal(seen, inside(Window(3, 3), 9, 6, 12))
    assert int(seen.sum()) == 3 * 7 + 3


def test_other_networks_and_families_have_no_window() -> None:
    words = ["model.likelihood.network={name: pixelsnail, width: 2, blocks: 1, resnets: 1}"]
    model = davi.build("pixelvae_digits_tiny", *words)
    assert isinstance(model, PixelVAE)
    assert model.window is None
    plain = build(likelihood=LikelihoodConfig("bernoulli"))
    assert plain.window is None
    assert plain.evidence(some_images(plain, 2)).log_px.shape == (2,)
    for likelihood, got in ((model.config.likelihood, "pixelsnail"), (LikelihoodConfig("bernoulli"), "bernoulli")):
        with pytest.raises(OptionError, match=f"^likelihood.network: got {got}, expected a causal network with a lim"):
            VLAE((1, 4, 4), 2, VLAEConfig(likelihood=likelihood))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["latents=[1,2,3]"], "latents: got [1, 2, 3], expected one or two positive numbers"),
        (["latents=[2,2]"], "decoder: got bias for two levels, expected upsample: their lower one is a grid"),
        (["top_given=latents"], "top_given: got latents for one level, expected image"),
        (["latent_network.width=8"], "latent_network: got a network for one level, expected null"),
        (
            ["latents=[9,2]", "decoder=upsample", "latent_network.within_position=true", "latent_network.width=8"],
            "latent_network.width: got 8, expected at least 9, one for each channel of a position",
        ),
        (["latents=[9,2]", "decoder=upsample", "latent_network.kernel=2"], "latent_network.kernel: got 2, expected an"),
        (["halvings=0"], "halvings: got 0, expected at least 1"),
        (["width=1"], "width: got 1, expected at least 2"),
    ],
)
def test_wrong_options_are_refused_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        recipes.load("pixelvae_digits_tiny", [f"model.{word}" for word in words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (3, 9, 4)])
@torch.no_grad()
def test_any_shape(shape: tuple[int, int, int]) -> None:
    for options in ({"latents": (2,)}, {"latents": (2, 1), "halvings": 2, "top_halvings": 1, "latent_network": BOTH}):
        model = build(shape, 3, **options).float()
        x = some_images(model, 2)
        assert bool(model.evidence(x).log_px.isfinite().all())
        assert model.sample(2, seed=1).shape == (2, *shape)

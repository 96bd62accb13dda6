"""What an autoregressive likelihood is shown of the image: less in training, and never more than its window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import seeded, shake, some_images
from torch import Tensor

from davi import recipes
from davi.data import geometry_of
from davi.layers import AutoregressivePixels, LikelihoodConfig
from davi.layers.causal import NETWORKS, CausalNetwork, Window
from davi.model import PixelHierarchy
from davi.models.gated_pixelcnn import GatedPixelCNNConfig, GatedPixelCNNNetwork

SMALL = {
    "gated_pixelcnn": {"width": 4, "layers": 2, "first_kernel": 3, "head_width": 4},
    "pixelcnn": {"width": 4, "blocks": 1, "head_width": 4},
    "pixelcnn_pp": {"width": 2, "blocks": 1},
    "pixelsnail": {"width": 2, "blocks": 1, "resnets": 1},
}


def network(name: str, channels: int = 1, levels: int = 4) -> CausalNetwork[Any]:
    torch.manual_seed(0)
    config = NETWORKS[name].Config(**SMALL[name], likelihood=LikelihoodConfig("categorical"))
    return shake(NETWORKS[name]((channels, 5, 5), levels, config, features=3)).double()


def pixels(name: str, dropout: float, channels: int = 1) -> AutoregressivePixels:
    made = network(name, channels).train()
    return AutoregressivePixels(
        made, 6, torch.randn(6, 3, 5, 5, generator=seeded(), dtype=torch.float64), None, dropout
    )


def images(channels: int = 1, seed: int = 1) -> Tensor:
    return torch.randint(4, (6, channels, 5, 5), generator=seeded(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(SMALL))
def test_with_all_inputs_hidden_no_pixel_depends_on_others(name: str, channels: int) -> None:
    one, other = images(channels), images(channels, seed=2)
    other[:, :, 2, 2] = one[:, :, 2, 2]
    found = pixels(name, 1.0, channels).log_prob_map(one), pixels(name, 1.0, channels).log_prob_map(other)
    assert torch.equal(found[0][..., 2, 2], found[1][..., 2, 2])
    assert not torch.equal(found[0], found[1])  # it is the true pixels that are predicted
    plain = pixels(name, 0.0, channels)
    assert not torch.equal(plain.log_prob_map(one)[..., 2, 2], plain.log_prob_map(other)[..., 2, 2])


def test_a_hidden_pixel_is_seen_as_zero() -> None:
    found = pixels("gated_pixelcnn", 1.0)
    middle = torch.full((6, 1, 5, 5), 1.5, dtype=torch.float64)
    assert float(found.network.scaled(middle).abs().max()) < 1e-15
    expected = found.network.head(found.network(middle, found.features)).log_prob_map(images())
    assert torch.equal(found.log_prob_map(images()), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_hidden_with_the_probability_whole_and_in_training_only(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pixels("gated_pixelcnn", 0.3, channels)
    seen: list[Tensor] = []
    forward = found.network.forward

    def watched(x: Tensor, *rest: Tensor | None) -> Tensor:
        seen.append(x)
        return forward(x, *rest)

    monkeypatch.setattr(found.network, "forward", watched)
    torch.manual_seed(0)
    x = images(channels)
    for _ in range(40):
        found.log_prob_map(x)
    shown = torch.stack(seen)
    hidden = shown == 1.5
    assert torch.equal(hidden, hidden[:, :, :1].expand_as(hidden))
    assert torch.equal(shown[~hidden], x.double().expand_as(shown)[~hidden])
    assert float(hidden.double().mean()) == pytest.approx(0.3, abs=4 * (0.21 / (40 * 6 * 25)) ** 0.5)
    found.network.eval()
    found.log_prob_map(x)
    assert seen[-1] is x


def test_without_dropout_nothing_changes_and_nothing_is_drawn() -> None:
    plain = pixels("pixelsnail", 0.0)
    state = torch.get_rng_state()
    expected = plain.network.head(plain.network(images(), plain.features)).log_prob_map(images())
    assert torch.equal(plain.log_prob_map(images()), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_sampling_does_not_know_of_it() -> None:
    draws = [pixels("gated_pixelcnn", dropout).sample(seeded()) for dropout in (0.0, 0.9)]
    assert torch.equal(*draws)


def test_a_recipe_can_ask_for_it() -> None:
    name = "attentive_autoregressive_digits_tiny"
    losses = []
    for dropout in (0.0, 0.7):
        recipe = recipes.load(name, [f"model.likelihood.input_dropout={dropout}"])
        assert recipe.data is not None
        torch.manual_seed(0)
        model = shake(recipes.build(recipe, *geometry_of(recipe.data)))
        assert isinstance(model, PixelHierarchy)
        x = some_images(model, 3)
        losses.append((model.evidence(x, seeded()).log_px, model.train().evidence(x, seeded()).log_px))
    assert torch.equal(losses[0][0], losses[1][0])
    assert not torch.equal(losses[0][1], losses[1][1])


@pytest.mark.parametrize(
    ("family", "dropout", "words"),
    [
        ("bernoulli", 0.5, "input_dropout: got 0.5, expected 0 for the family bernoulli"),
        ("autoregressive", 1.5, "input_dropout: got 1.5, expected 0 to 1"),
        ("autoregressive", -0.1, "input_dropout: got -0.1, expected 0 to 1"),
    ],
)
def test_impossible_options_are_refused(family: str, dropout: float, words: str) -> None:
    inner = None if family == "bernoulli" else GatedPixelCNNConfig()
    with pytest.raises(ValueError, match=words):
        LikelihoodConfig(family, network=inner, input_dropout=dropout)  # type: ignore[arg-type]  # a literal


@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({"layers": 1, "first_kernel": 3}, 1),
        ({"layers": 4, "first_kernel": 5, "kernel": 1}, 2),
        ({"layers": 3, "first_kernel": 3, "kernel": 3}, 3),
        ({"layers": 2, "first_kernel": 3, "kernel": 5, "skips": True}, 3),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_outside_of_the_window_have_no_influence(options: dict[str, int], reach: int, channels: int) -> None:
    """Every pixel of the window before the middle one has a gradient, and no other has."""
    side = 2 * reach + 5
    torch.manual_seed(0)
    config = GatedPixelCNNConfig(width=6, head_width=6, likelihood=LikelihoodConfig("categorical"), **options)  # type: ignore[arg-type]  # as a recipe has them
    made = shake(GatedPixelCNNNetwork((channels, side, side), 4, config, features=2)).double()
    assert made.window == Window(reach, reach)
    middle = side // 2
    x = torch.randint(4, (4, channels, side, side)).double().requires_grad_()
    outputs = made(x, torch.randn(4, 2, side, side, dtype=torch.float64))[:, :, middle, middle]
    (slope,) = torch.autograd.grad((outputs * torch.randn_like(outputs)).sum(), x)
    seen = slope.abs().sum((0, 1)) > 0
    rows = torch.arange(side).view(-1, 1).expand(side, side)
    columns = rows.T
    before = (rows < middle) | ((rows == middle) & (columns < middle))
    window = ((rows - middle).abs() <= reach) & ((columns - middle).abs() <= reach)
    expected = before & window
    expected[middle, middle] = channels > 1  # earlier channels of the pixel itself
    assert torch.equal(seen, expected)

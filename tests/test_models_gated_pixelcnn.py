"""Gated PixelCNN and PixelCNN: what each output depends on, that probabilities sum to one, and drawing pixel by pixel.

Everything in float64 and for both networks, since they promise the same but for the blind spot.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import seeded
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from davi.distributions import Bernoulli, Categorical, DiscretizedLogisticMixture
from davi.layers import LikelihoodConfig, PixelHead, causal_mask, degrees
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.layers.causal import CausalNetwork
from davi.models.gated_pixelcnn import CausalConv2d, GatedPixelCNN, GatedPixelCNNConfig, GatedPixelCNNNetwork
from davi.models.pixelcnn import PixelCNN, PixelCNNConfig, PixelCNNNetwork

Shape = tuple[int, int, int]
Build = Callable[..., CausalNetwork[Any]]

MIXTURE = LikelihoodConfig("logistic_mixture", 2)


def moved(network: CausalNetwork[Any]) -> CausalNetwork[Any]:
    """In float64, in eval mode, and with no weight at its first value, where some are zero."""
    with torch.no_grad():
        for parameter in network.double().parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def gated(shape: Shape, levels: int, classes: int = 0, features: int = 0, **options: Any) -> CausalNetwork[Any]:
    config = GatedPixelCNNConfig(**{"width": 7, "layers": 3, "first_kernel": 3, "head_width": 9, **options})
    return moved(GatedPixelCNNNetwork(shape, levels, config, classes, features))


def skipping(shape: Shape, levels: int, classes: int = 0, features: int = 0, **options: Any) -> CausalNetwork[Any]:
    return gated(shape, levels, classes, features, skips=True, dropout=0.5, **options)


def masked(shape: Shape, levels: int, classes: int = 0, features: int = 0, **options: Any) -> CausalNetwork[Any]:
    config = PixelCNNConfig(**{"width": 6, "blocks": 2, "first_kernel": 5, "head_width": 9, **options})
    return moved(PixelCNNNetwork(shape, levels, config, classes, features))


EVERY = pytest.mark.parametrize("build", [gated, skipping, masked])


def dependence(network: CausalNetwork[Any], images: int = 6) -> Tensor:
    """Which output depends on which variable: ``[HW, parts, HW, C]`` booleans, of some images taken together."""
    channels, height, width = network.shape
    pixels, parameters = height * width, network.head.inputs
    found = torch.zeros(pixels, network.parts, pixels, channels, dtype=torch.bool)
    for _ in range(images):
        x = torch.rand(1, *network.shape, dtype=torch.float64) * (network.levels - 1)
        jacobian = torch.autograd.functional.jacobian(network, x).view(parameters, pixels, channels, pixels)
        for part in range(network.parts):
            found[:, part] |= (jacobian[part :: network.parts] != 0).any(0).transpose(1, 2)
    return found


def before(network: CausalNetwork[Any]) -> Tensor:
    """Which variables come before those an output is about, in the form of :func:`dependence`."""
    channels, height, width = network.shape
    pixel = torch.arange(height * width)
    earlier = (pixel[:, None] > pixel)[:, None, :, None].expand(-1, network.parts, -1, channels).clone()
    for part in range(network.parts):
        earlier[pixel, part, pixel, :part] = True
    return earlier


def offsets(shape: Shape) -> tuple[Tensor, Tensor]:
    """How many rows above and how many columns to the right of each pixel each pixel is, ``[HW, HW]``."""
    row, column = torch.arange(shape[1] * shape[2]) // shape[2], torch.arange(shape[1] * shape[2]) % shape[2]
    return row[:, None] - row, column - column[:, None]


@pytest.mark.parametrize(
    ("shape", "levels", "options"),
    [
        ((1, 4, 4), 2, {}),
        ((3, 2, 3), 2, {}),
        ((2, 2, 3), 4, {}),
        ((3, 2, 4), 300, {"likelihood": MIXTURE}),
        ((2, 3, 2), 300, {"likelihood": MIXTURE}),
    ],
)
@EVERY
def test_every_variable_sees_those_before_it_and_no_other(
    build: Build, shape: Shape, levels: int, options: dict[str, Any]
) -> None:
    """At every position, the first channel of the first pixel included, which sees nothing."""
    network = build(shape, levels, width=15, head_width=24, **options)
    found, allowed = dependence(network), before(network)
    assert not bool((found & ~allowed).any())
    if build is masked:  # which has a blind spot even here: k = 5
        rows, right = offsets(shape)
        allowed &= ~((rows >= 1) & (right > rows + 1))[:, None, :, None]
    assert torch.equal(found, allowed)


@pytest.mark.parametrize("build", [gated, skipping])
def test_the_gated_network_sees_its_whole_receptive_field(build: Build) -> None:
    """A rectangle: as many columns on both sides as all kernels reach together, and one row more."""
    shape, reach = (1, 8, 11), 1 + 2  # a first kernel of 3, then two of 3
    rows, right = offsets(shape)
    expected = (rows >= 0) & (rows <= reach) & (right.abs() <= reach) & ((rows > 0) | (right < 0))
    assert torch.equal(dependence(build(shape, 2, width=12), 2)[:, 0, :, 0], expected)


def test_the_blind_spot_of_the_masked_network() -> None:
    """Of its receptive field it misses (r - j, c + d) with d > j + 1, for a first kernel of 5, and nothing else."""
    shape, reach = (1, 8, 11), 2 + 2  # a first kernel of 5, then two of 3
    rows, right = offsets(shape)
    field = (rows >= 0) & (rows <= reach) & (right.abs() <= reach) & ((rows > 0) | (right < 0))
    missed = field & (rows >= 1) & (right > rows + 1)
    found = dependence(masked(shape, 2, width=16))[:, 0, :, 0]
    assert torch.equal(found, field & ~missed)
    pixel = 4 * 11 + 5  # by hand, in the middle: two in the row above, one in the row above that
    assert [divmod(int(other), 11) for other in missed[pixel].nonzero()] == [(2, 9), (3, 8), (3, 9)]


@pytest.mark.parametrize("size", [3, 5, 7])
def test_taps(size: int) -> None:
    """Both stacks together: (k^2 - 1) / 2 in the first layer, with type A, and (k^2 + 1) / 2 in the others, whose
    vertical convolution has a row more: what it sees was moved down by one."""
    one = degrees(1, 1)
    network = GatedPixelCNNNetwork((1, 9, 9), 2, GatedPixelCNNConfig(1, 2, size, size))
    first, second = network.layers
    above, left = (int((layer.weight[0] != 0).sum()) for layer in (first.vertical, first.horizontal))
    assert (above, left) == (size * (size // 2), size // 2)
    assert above + left == (size**2 - 1) // 2 == int(causal_mask(one, one, size, mask_type="A").sum())
    above, own = (int((layer.weight[0] != 0).sum()) for layer in (second.vertical, second.horizontal))
    assert above - size + own == (size**2 + 1) // 2
    assert own == size // 2 + 1


def test_both_halves_of_a_gate_have_the_same_mask() -> None:
    colors = degrees(3, 3)
    layer = GatedPixelCNNNetwork((3, 4, 4), 2, GatedPixelCNNConfig(6, 2)).layers[1].horizontal
    assert torch.equal(*(half != 0 for half in layer.weight.chunk(2)))
    mask = CausalConv2d(colors, colors, left=1, mask_type="A").mask
    assert mask is not None
    assert mask.int().tolist() == [[[[1, int(source < own)]] for source in range(3)] for own in range(3)]


@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 3, 3), 2), ((1, 2, 2), 4), ((3, 2, 2), 2), ((3, 1, 2), 4), ((2, 1, 2), 5)]
)
@EVERY
def test_probabilities_sum_to_one(build: Build, shape: Shape, levels: int) -> None:
    network = build(shape, levels, classes=2, features=2)
    x = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).view(-1, *shape)
    features = torch.randn(1, 2, *shape[1:], dtype=torch.float64).expand(len(x), -1, -1, -1)
    totals, first = [], []
    for y in range(2):
        log_p = AutoregressivePixels(network, len(x), features, torch.full((len(x),), y)).log_prob(x).detach()
        totals.append(float(log_p.exp().sum()))
        first.append(float(log_p[0]))
    assert totals == pytest.approx([1.0, 1.0], abs=1e-10)
    assert abs(first[0] - first[1]) > 1e-5


@pytest.mark.parametrize("levels", [257, 1000])
@EVERY
def test_many_levels_sum_to_one(build: Build, levels: int) -> None:
    """A mixture, as both have it beyond 256 levels; of a pixel of two channels the one is given."""
    network = build((2, 1, 1), levels)
    x = torch.stack([torch.arange(levels), torch.full((levels,), 7)], 1)[..., None, None]
    log_p = network.head(network(x)).log_prob_map(x).detach()
    assert float(log_p[:, 0].exp().sum()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("shape", [(1, 2, 4), (3, 3, 2)])
@pytest.mark.parametrize(("classes", "features"), [(0, 0), (3, 0), (0, 2), (3, 2)])
@EVERY
def test_the_cache_draws_the_same_images(build: Build, shape: Shape, classes: int, features: int) -> None:
    """Bit for bit, from nothing and from the first pixels of given images."""
    network, n, levels = build(shape, 6, classes, features), 4, 6
    given = torch.randn(n, 2, *shape[1:], dtype=torch.float64) if features else None
    y = torch.tensor([0, 1, 2, 1]) if classes else None
    pixels = AutoregressivePixels(network, n, given, y)
    x = torch.randint(levels, (n, *shape))
    for known in (0, 1, shape[2] + 1):
        drawn = pixels.complete(x, known, generator=seeded())
        assert torch.equal(drawn, pixels.complete(x, known, generator=seeded(), cached=False))
        assert torch.equal(drawn.flatten(2)[..., :known], x.flatten(2)[..., :known])
        assert not torch.equal(drawn, x)


@pytest.mark.parametrize("likelihood", [LikelihoodConfig(), MIXTURE])
@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 2, 3), (3, 2, 3)])
@EVERY
def test_what_was_drawn_has_the_conditionals_it_was_drawn_from(
    build: Build, shape: Shape, likelihood: LikelihoodConfig
) -> None:
    """With other values in all places that are not known yet: they are not looked at."""
    network, n, levels = build(shape, 5, classes=2, features=3, likelihood=likelihood), 3, 5
    features, y = torch.randn(n, 3, *shape[1:], dtype=torch.float64), torch.tensor([0, 1, 1])
    x = AutoregressivePixels(network, n, features, y).sample(seeded())
    whole = network(x, features, y).detach()
    state = network.start(n, features, y)
    with torch.no_grad():
        for row, column, part in itertools.product(*map(range, shape[1:]), range(network.parts)):
            asked = torch.randint(levels, x.shape)
            known = row * shape[2] + column
            asked.flatten(2)[..., :known] = x.flatten(2)[..., :known]
            asked[:, :part, row, column] = x[:, :part, row, column]
            raw = network.advance(state, asked)
            places = slice(part, None, network.parts)
            torch.testing.assert_close(raw[:, places, 0, 0], whole[:, places, row, column], rtol=0.0, atol=1e-12)


@EVERY
def test_a_pixel_costs_the_same_in_images_of_any_size(build: Build) -> None:
    counts = []
    for height, width in ((2, 3), (5, 6)):
        network = build((1, height, width), 2, first_kernel=7)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            AutoregressivePixels(network, 2).sample()
        counts.append(counter.get_total_flops() / (height * width))
    assert counts[0] == counts[1] > 0


@EVERY
def test_a_class_moves_its_own_numbers_only(build: Build) -> None:
    network = build((1, 3, 3), 2, classes=4)
    y = torch.tensor([2, 2, 0])
    AutoregressivePixels(network, 3, y=y).log_prob(torch.randint(2, (3, 1, 3, 3))).sum().backward()
    tables = [parameter.grad for name, parameter in network.named_parameters() if "labels" in name]
    assert len(tables) >= 2
    for grad in tables:
        assert grad is not None
        assert (grad != 0).any(1).tolist() == [True, False, True, False]


@pytest.mark.parametrize("build", [gated, masked])
def test_reduced_precision_keeps_the_sum(build: Build) -> None:
    """The network in bfloat16, the likelihood in float32."""
    network = build((1, 3, 3), 2).float()
    x = torch.tensor(list(itertools.product(range(2), repeat=9))).view(-1, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        log_p = AutoregressivePixels(network, len(x)).log_prob(x)
    assert log_p.dtype == torch.float32
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_likelihood_follows_the_levels() -> None:
    expected = {2: Bernoulli, 3: Categorical, 256: Categorical, 257: DiscretizedLogisticMixture}
    for levels, kind in expected.items():
        for model in (
            GatedPixelCNN((1, 2, 2), levels, GatedPixelCNNConfig()),
            PixelCNN((1, 2, 2), levels, PixelCNNConfig()),
        ):
            assert type(model.conditionals(torch.zeros(1, 1, 2, 2).long())) is kind
    families = {levels: PixelHead(LikelihoodConfig(), 1, levels).likelihood.family for levels in (2, 3, 32, 33)}
    assert families == {2: "bernoulli", 3: "categorical", 32: "categorical", 33: "logistic_mixture"}
    assert LikelihoodConfig("bernoulli").following(7).family == "bernoulli"


def test_dropout_is_for_training() -> None:
    network, x = skipping((1, 4, 4), 2), torch.randint(2, (2, 1, 4, 4))
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (GatedPixelCNNConfig, {"width": 0}, "width: got 0, expected at least 1"),
        (GatedPixelCNNConfig, {"kernel": 4}, "kernel: got 4, expected an odd number, at least 1"),
        (GatedPixelCNNConfig, {"first_kernel": 1}, "first_kernel: got 1, expected an odd number, at least 3"),
        (GatedPixelCNNConfig, {"dropout": 1.0}, "dropout: got 1.0, expected 0 to below 1"),
        (PixelCNNConfig, {"blocks": 0}, "blocks: got 0, expected at least 1"),
        (PixelCNNConfig, {"first_kernel": 6}, "first_kernel: got 6, expected an odd number, at least 3"),
    ],
)
def test_options_that_make_no_network(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        config(**options)


def test_a_form_needs_a_family() -> None:
    with pytest.raises(ValueError, match=r"^form: got nvae, expected exact for a likelihood without a family$"):
        LikelihoodConfig(form="nvae")

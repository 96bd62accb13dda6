"""PixelCNN++: what each pixel sees, sums over all images, drawing pixel by pixel, initialization from images."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from contract import all_images, shake
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.shifted import (
    GatedResnet,
    ShiftedConv2d,
    ShiftedDeconv2d,
    WeightNormalized,
    concat_elu,
    initializing,
)
from davi.models import PixelCNNPP
from davi.models.pixelcnn_pp import PixelCNNPPConfig, PixelCNNPPNetwork

MIXTURE = LikelihoodConfig("logistic_mixture", 2)
CATEGORICAL = LikelihoodConfig("categorical")
BERNOULLI = LikelihoodConfig("bernoulli")


def config(likelihood: LikelihoodConfig = MIXTURE, **options: Any) -> PixelCNNPPConfig:
    given: dict[str, Any] = {"width": 4, "blocks": 1, "dropout": 0.0, "likelihood": likelihood}
    return PixelCNNPPConfig(**(given | options))


def model(
    shape: tuple[int, int, int], levels: int, likelihood: LikelihoodConfig = MIXTURE, classes: int = 0, **options: Any
) -> PixelCNNPP:
    return shake(PixelCNNPP(shape, levels, config(likelihood, **options), classes).double())


def seen(network: PixelCNNPPNetwork, part: int = 0) -> Tensor:
    """Sizes of the gradient of the parameters of a part of every pixel, ``[H * W, C, H, W]``."""
    channels, height, width = network.shape
    pixels = height * width
    x = torch.rand(1, channels, height, width, dtype=torch.float64) * (network.levels - 1)
    x = x.expand(pixels, -1, -1, -1).clone().requires_grad_()
    raw = network(x).flatten(2)  # [HW, P, HW]
    own = raw.diagonal(dim1=0, dim2=2)[part :: network.parts]  # of image i the parameters of pixel i
    (gradient,) = torch.autograd.grad((own * torch.randn_like(own)).sum(), x)
    return gradient.abs()


def test_parameters_as_published() -> None:
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in PixelCNNPP((3, 32, 32), 256, PixelCNNPPConfig(), n).parameters()) for n in (0, 10)
        ]
    assert counts == [53_659_080, 53_863_880]


@pytest.mark.parametrize("nonlinearity", ["concat_elu", "elu"])
def test_a_pixel_sees_those_before_it_and_nothing_else(nonlinearity: str) -> None:
    # 5 x 7: padded to 8 x 8, none of which is seen
    network = model((3, 5, 7), 256, nonlinearity=nonlinearity).causal
    gradient = seen(network).sum(1).flatten(1)
    assert torch.equal(gradient != 0, torch.ones(35, 35).tril(-1) != 0)


def test_the_channels_of_a_pixel_in_order() -> None:
    network = model((2, 3, 3), 3, CATEGORICAL).causal
    assert network.parts == 2
    for part in range(2):
        gradient = seen(network, part).permute(0, 2, 3, 1).flatten(1)  # variables in order
        position = 2 * torch.arange(9) + part
        assert torch.equal(gradient != 0, torch.arange(18) < position[:, None])


def test_pieces_that_odd_rows_do_not_see() -> None:
    """Rows 2k and 2k + 1 share a row of the smaller maps, which so tells nothing of the one to the other: there only
    the blocks of full size reach, 4 R + 2 columns far."""
    blocks, height, width = 1, 5, 16  # not so wide that the smaller maps do not reach everything
    gradient = seen(model((1, height, width), 256, blocks=blocks).causal)[:, 0]
    reach = 4 * blocks + 2
    for row, column in itertools.product(range(height), range(width)):
        expected = torch.arange(height * width).view(height, width) < row * width + column
        if row % 2:
            expected[row - 1, column + reach + 1 :] = False
            expected[row, : max(0, column - reach)] = False
        assert torch.equal(gradient[row * width + column] != 0, expected), (row, column)


@pytest.mark.parametrize(
    ("shape", "levels", "likelihood"),
    [
        ((1, 3, 3), 2, BERNOULLI),
        ((1, 2, 2), 4, CATEGORICAL),
        ((1, 2, 2), 4, MIXTURE),
        ((3, 2, 2), 2, BERNOULLI),
        ((3, 1, 2), 4, MIXTURE),
        ((3, 1, 2), 4, CATEGORICAL),
        ((2, 1, 2), 5, MIXTURE),
        ((2, 2, 1), 5, CATEGORICAL),
    ],
)
def test_all_images_sum_to_one(shape: tuple[int, int, int], levels: int, likelihood: LikelihoodConfig) -> None:
    few = model(shape, levels, likelihood)
    with torch.no_grad():
        log_p = few.evidence(all_images(few)).log_px
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-10)
    assert float(log_p.std()) > 0.01  # not simply even


def test_classes_sum_to_one_each_and_move_their_own_rows() -> None:
    few = model((1, 3, 2), 2, BERNOULLI, classes=3)
    x = all_images(few)
    sums, log_p = [], []
    for y in range(3):
        few.zero_grad()
        log_p.append(few.evidence(x, y=torch.full((len(x),), y)).log_px)
        sums.append(float(log_p[-1].detach().exp().sum()))
        log_p[-1][0].backward()
        for block in few.blocks():
            assert isinstance(block, GatedResnet)
            assert block.labels is not None
            gradient = block.labels.grad
            assert gradient is not None
            assert [bool(row.any()) for row in gradient] == [row == y for row in range(3)]
    assert sums == pytest.approx([1.0] * 3, abs=1e-10)
    assert not torch.allclose(log_p[0], log_p[1])


@pytest.mark.parametrize("options", [{}, {"scales": 1}, {"scales": 2, "nonlinearity": "relu"}], ids=str)
@pytest.mark.parametrize(
    ("shape", "levels", "likelihood", "classes"),
    [((3, 5, 7), 256, MIXTURE, 0), ((2, 4, 3), 3, CATEGORICAL, 2), ((1, 8, 8), 2, BERNOULLI, 0)],
)
def test_pixel_by_pixel_draws_what_whole_passes_draw(
    shape: tuple[int, int, int], levels: int, likelihood: LikelihoodConfig, classes: int, options: dict[str, Any]
) -> None:
    pixels = model(shape, levels, likelihood, classes, **options).pixels(
        3, torch.tensor([0, 1, 1]) if classes else None
    )
    start = torch.randint(levels, (3, *shape))
    drawn = [pixels.complete(start, 2, 1.0, Generator().manual_seed(5), cached=cached) for cached in (True, False)]
    assert torch.equal(*drawn)
    assert torch.equal(drawn[0].flatten(2)[..., :2], start.flatten(2)[..., :2])


def test_pixel_by_pixel_with_features_and_classes() -> None:
    shape = (1, 5, 6)
    network = PixelCNNPPNetwork(shape, 8, config(CATEGORICAL), classes=2, features=3).double()
    x, features, y = torch.randint(8, (2, *shape)), torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.tensor([1, 0])
    with torch.no_grad():
        whole = network(x, features, y)
        state = network.start(2, features, y)
        parts = [network.advance(state, x)[..., 0, 0] for _ in range(30)]
        torch.testing.assert_close(torch.stack(parts, -1), whole.flatten(2), rtol=0.0, atol=1e-12)
        assert not torch.allclose(whole, network(x, features.flip(0), y))
        assert not torch.allclose(whole, network(x, features, y.flip(0)))


def test_a_pixel_costs_the_same_in_a_large_image() -> None:
    costs = []
    for size in (4, 8):
        network = model((1, size, size), 2, BERNOULLI, scales=2).causal
        x = torch.zeros(1, 1, size, size, dtype=torch.long)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            state = network.start(1)
            for _ in range(size * size):
                network.advance(state, x)
        costs.append(counter.get_total_flops() / size**2)
    # The first row has nothing above it: fewer layers there.
    assert costs[1] == pytest.approx(costs[0], rel=0.1)


@pytest.mark.parametrize("nonlinearity", ["concat_elu", "elu", "relu"])
def test_initial_outputs_have_mean_0_and_variance_1(nonlinearity: str) -> None:
    fresh = PixelCNNPP((3, 8, 8), 256, config(nonlinearity=nonlinearity)).double()
    images = torch.randint(256, (6, 3, 8, 8))
    fresh.initialize(images)
    for layer, y in _outputs(fresh, images):
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0.0, atol=1e-9)
        torch.testing.assert_close(variance, torch.full_like(variance, layer.init_scale**2), rtol=1e-6, atol=0.0)


def _outputs(network: PixelCNNPP, x: Tensor) -> list[tuple[WeightNormalized, Tensor]]:
    """Of all normalized layers, before any crop."""
    found: list[tuple[WeightNormalized, Tensor]] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, WeightNormalized)
        found.append((layer, layer.convolve(inputs[0], layer.kernels(), layer.b)))

    hooks = [m.register_forward_hook(hook) for m in network.modules() if isinstance(m, WeightNormalized)]
    with torch.no_grad():
        network.causal(x)
    for handle in hooks:
        handle.remove()
    scales = [layer.init_scale for layer, _ in found]
    assert scales.count(0.1) == len(list(network.blocks()))
    return found


def test_weights_that_were_lent_stay() -> None:
    fresh = PixelCNNPP((1, 4, 4), 2, config(BERNOULLI))
    fresh.initialize(torch.randint(2, (4, 1, 4, 4)), kept={"causal.u.g", "causal.output.b"})
    assert torch.equal(fresh.causal.u.g, torch.ones(4))
    assert not torch.equal(fresh.causal.u.b, torch.zeros(4))
    assert fresh.causal.output is not None
    assert torch.equal(fresh.causal.output.b, torch.zeros(1))
    assert not fresh.causal.u.initializing


def test_a_pass_after_the_initialization_is_the_one_that_initialized() -> None:
    block = GatedResnet(3, "down", shortcut=2).double()
    x, a = torch.randn(4, 3, 6, 5, dtype=torch.float64), torch.randn(4, 2, 6, 5, dtype=torch.float64)
    with torch.no_grad(), initializing(block):
        first = block(x, a)
    assert torch.equal(first, block(x, a))


def test_kernels_by_hand() -> None:
    """w = g V / |V| for each output; a transposed kernel has its outputs second."""
    for layer, axes in ((ShiftedConv2d(2, 3, "down"), (1, 2, 3)), (ShiftedDeconv2d(2, 3, "down"), (0, 2, 3))):
        layer.g.data.copy_(torch.tensor([0.5, 2.0, 3.0]))
        assert layer.kernels().square().sum(axes).sqrt().tolist() == pytest.approx([0.5, 2.0, 3.0], rel=1e-6)
    assert concat_elu(torch.tensor([[1.0, -2.0]]))[0].tolist() == pytest.approx(
        [1.0, math.exp(-2.0) - 1.0, math.exp(-1.0) - 1.0, 2.0]
    )


def test_dropout_is_between_the_two_convolutions() -> None:
    block = GatedResnet(4, "down_right", dropout=0.5).train()
    x = torch.randn(2, 4, 5, 5)
    caught: list[Tensor] = []
    block.conv2.register_forward_hook(lambda module, inputs, output: caught.append(inputs[0]))
    torch.manual_seed(1)
    block(x)
    whole = concat_elu(block.conv1(concat_elu(x)))
    kept = caught[0] != 0
    assert 0.3 < float(kept.double().mean()) < 0.7
    torch.testing.assert_close(caught[0], torch.where(kept, 2.0 * whole, 0.0))


def test_lower_precision_stays_near() -> None:
    few = shake(PixelCNNPP((3, 8, 8), 256, config()))
    x = torch.randint(256, (2, 3, 8, 8))
    with torch.no_grad():
        exact = few.evidence(x).log_px
        with torch.autocast("cpu", torch.bfloat16):
            rough = few.evidence(x).log_px
    torch.testing.assert_close(rough.float(), exact, rtol=0.02, atol=0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 0}, "width: got 0, expected at least 1"),
        ({"blocks": 0}, "blocks: got 0, expected at least 1"),
        ({"scales": 0}, "scales: got 0, expected at least 1"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected 0 to less than 1"),
        ({"nonlinearity": "tanh"}, "nonlinearity: got tanh, expected one of concat_elu, elu, relu"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PixelCNNPPConfig(**options)

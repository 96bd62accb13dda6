"""PixelSNAIL: what each pixel sees, normalization, drawing pixel by pixel, attention, initialization."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import Tensor

from davi.layers import LikelihoodConfig
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.layers.causal_attention import attention_weights
from davi.layers.pixel_head import Family
from davi.layers.shifted import WeightNormalized
from davi.models.pixelsnail import PixelSNAIL, PixelSNAILConfig, PixelSNAILNetwork, SnailBlock

RGB = (3, 3, 4)


def config(family: Family = "logistic_mixture", **options: int) -> PixelSNAILConfig:
    small = {"blocks": 2, "resnets": 1, "width": 6, "key_width": 3} | options
    return PixelSNAILConfig(**small, likelihood=LikelihoodConfig(family, 2))


def shaken(network: PixelSNAILNetwork) -> PixelSNAILNetwork:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return network.double().eval()


def network(
    shape: tuple[int, int, int],
    levels: int,
    family: Family = "logistic_mixture",
    classes: int = 0,
    features: int = 0,
    **options: int,
) -> PixelSNAILNetwork:
    return shaken(PixelSNAILNetwork(shape, levels, config(family, **options), classes, features))


def model(shape: tuple[int, int, int], levels: int, family: Family, classes: int = 0) -> PixelSNAIL:
    found = PixelSNAIL(shape, levels, config(family), classes)
    shaken(found.causal)
    return found.double().eval()


def images(net: PixelSNAILNetwork, n: int, seed: int = 3) -> Tensor:
    return torch.randint(net.levels, (n, *net.shape), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("components", "parameters"), [(10, 46_180_788), (32, 46_237_548)])
def test_published_parameters(components: int, parameters: int) -> None:
    options = PixelSNAILConfig(likelihood=LikelihoodConfig("logistic_mixture", components))
    with torch.device("meta"):
        found = PixelSNAIL((3, 32, 32), 256, options)
    assert sum(parameter.numel() for parameter in found.parameters()) == parameters


def sensitivity(net: PixelSNAILNetwork, channel: int | None) -> Tensor:
    """Derivatives of a random combination of the parameters of every pixel, or of a channel of it, with respect to all
    values of the image, ``[H * W, C, H * W]``."""
    x = images(net, 1).double().requires_grad_()
    raw = net(x)
    weights = torch.randn(raw.shape[1], generator=torch.Generator().manual_seed(4)).double()
    if channel is not None:
        weights[torch.arange(len(weights)) % net.shape[0] != channel] = 0.0
    outputs = torch.einsum("p,phw->hw", weights, raw[0]).flatten()
    rows = [torch.autograd.grad(output, x, retain_graph=True)[0][0].flatten(1) for output in outputs]
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("shape", "family", "nonlinearity"),
    [((1, 4, 5), "bernoulli", "elu"), (RGB, "logistic_mixture", "concat_elu"), ((2, 5, 2), "logistic_mixture", "elu")],
)
def test_every_pixel_sees_all_earlier_pixels_and_no_other(
    shape: tuple[int, int, int], family: Family, nonlinearity: str
) -> None:
    options = config(family)
    options = PixelSNAILConfig(2, 1, 6, 3, nonlinearity=nonlinearity, likelihood=options.likelihood)  # type: ignore[arg-type]
    found = sensitivity(shaken(PixelSNAILNetwork(shape, 2, options)), None)
    n = shape[1] * shape[2]
    earlier = torch.ones(n, n).tril(-1).bool()[:, None].expand(n, shape[0], n)
    assert torch.equal(found != 0.0, earlier)


def test_a_channel_also_sees_the_channels_before_it() -> None:
    net, n = network(RGB, 4, "categorical"), 12
    assert net.parts == 3
    for channel in range(3):
        expected = torch.ones(n, n).tril(-1).bool()[:, None].repeat(1, 3, 1)
        expected[:, :channel] |= torch.eye(n).bool()[:, None]
        assert torch.equal(sensitivity(net, channel) != 0.0, expected)


def test_later_pixels_may_be_in_any_order() -> None:
    net = network((3, 4, 4), 256)
    x = images(net, 2)
    other = x.flatten(2)
    other = torch.cat([other[..., :7], other[..., 7 + torch.randperm(9)]], -1).view_as(x)
    for dtype in (torch.float64, torch.float32):
        before, after = (net.to(dtype)(asked).flatten(2) for asked in (x, other))
        assert torch.equal(before[..., :8], after[..., :8])
        assert not torch.equal(before[..., 8:], after[..., 8:])


@pytest.mark.parametrize(
    ("shape", "levels", "family"),
    [
        ((1, 3, 3), 2, "bernoulli"),
        ((1, 2, 2), 4, "categorical"),
        ((1, 2, 2), 4, "logistic_mixture"),
        ((3, 2, 2), 2, "bernoulli"),
        ((3, 1, 2), 4, "categorical"),
        ((3, 1, 2), 4, "logistic_mixture"),
        ((2, 1, 2), 5, "logistic_mixture"),
    ],
)
def test_probabilities_of_all_images_sum_to_one(shape: tuple[int, int, int], levels: int, family: Family) -> None:
    found = model(shape, levels, family, classes=2)
    x = torch.tensor(list(itertools.product(range(levels), repeat=found.dims))).view(-1, *shape)
    with torch.no_grad():
        for y in range(2):
            log_p = found.evidence(x, y=torch.full((len(x),), y)).log_px
            assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-10)
            assert float(log_p.std()) > 0.1
        with torch.autocast("cpu", torch.bfloat16):
            log_p = found.float().evidence(x, y=torch.zeros(len(x)).long()).log_px
        assert float(log_p.double().exp().sum()) == pytest.approx(1.0, abs=1e-3)


CASES: list[tuple[tuple[int, int, int], int, Family, int, int]] = [
    ((1, 5, 4), 2, "bernoulli", 0, 0),
    ((3, 4, 3), 256, "logistic_mixture", 3, 2),
    ((2, 3, 4), 5, "logistic_mixture", 0, 2),
    ((3, 3, 3), 4, "categorical", 3, 0),
    ((1, 1, 1), 3, "categorical", 0, 0),
]


@pytest.mark.parametrize(("shape", "levels", "family", "classes", "features"), CASES)
def test_pixel_by_pixel_as_in_one_pass(
    shape: tuple[int, int, int], levels: int, family: Family, classes: int, features: int
) -> None:
    net, n = network(shape, levels, family, classes, features), 3
    told = torch.randn(n, features, *shape[1:]).double() if features else None
    y = torch.tensor([0, 2, 1]) if classes else None
    pixels = AutoregressivePixels(net, n, told, y)
    start = torch.zeros(n, *shape).long()
    drawn = [pixels.complete(start, 0, generator=torch.Generator().manual_seed(5), cached=c) for c in (True, False)]
    assert torch.equal(drawn[0], drawn[1])
    raw = net(drawn[0], told, y).flatten(2)
    state = net.start(n, told, y)
    for place in range(raw.shape[2]):
        for part in range(net.parts):
            found = net.advance(state, drawn[0])[:, :, 0, 0]
            ours, theirs = (
                found.view(n, -1, net.parts)[..., part],
                raw[..., place].reshape(n, -1, net.parts)[..., part],
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_half_precision() -> None:
    net = network((3, 6, 6), 256)
    x = images(net, 2)
    exact = net(x).detach()
    single = net.float()(x).detach()
    torch.testing.assert_close(single.double(), exact, rtol=0.0, atol=1e-5 * float(exact.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x).detach()
    torch.testing.assert_close(half.double(), exact, rtol=0.0, atol=0.03 * float(exact.abs().max()))


def test_features_need_not_be_causal_and_classes_keep_apart() -> None:
    net = network(RGB, 256, classes=4, features=2)
    x, told, y = images(net, 2), torch.randn(2, 2, 3, 4).double().requires_grad_(), torch.tensor([1, 3])
    net(x, told, y)[:, :, 1, 0].sum().backward()
    assert told.grad is not None
    assert bool((told.grad != 0.0).any(1)[:, 1, 0].all())
    tables = [p for name, p in net.named_parameters() if name.endswith("labels")]
    assert len(tables) == 2 * (1 + 3)  # of every gated block
    for table in tables:
        assert table.grad is not None
        assert bool((table.grad[[0, 2]] == 0.0).all())
    # The last block reaches the output at every pixel.
    assert tables[-1].grad is not None
    assert bool((tables[-1].grad[[1, 3]] != 0.0).any(1).all())


def test_where_a_pixel_is() -> None:
    found = network((2, 4, 5), 256).background(torch.zeros(3, 1).double())
    assert found.shape == (3, 4, 4, 5)
    assert found[1, :2, :, 2].tolist() == [[-0.5, -0.25, 0.0, 0.25]] * 2
    torch.testing.assert_close(found[2, 3, 1], torch.tensor([-0.5, -0.3, -0.1, 0.1, 0.3]).double())


def test_attention_maps() -> None:
    found = model(RGB, 256, "logistic_mixture")
    x = images(found.causal, 2)
    inputs: list[Tensor] = []
    block = found.causal.blocks[1]
    assert isinstance(block, SnailBlock)
    handle = block.register_forward_pre_hook(lambda _, given: inputs.extend(given[:3]))
    found.causal(x)
    handle.remove()
    attending = block.attend(*inputs)
    weights = attention_weights(attending.query, attending.key)
    for row, column in ((0, 0), (1, 2), (2, 3)):
        maps = found.attention_maps(x, (row, column))
        assert maps.shape == (2, 2, 3, 4)
        torch.testing.assert_close(maps[:, 1].flatten(1), weights[:, 4 * row + column], rtol=0.0, atol=1e-12)
    with pytest.raises(ValueError, match=re.escape("pixel: got (3, 0), expected a row below 3 and a column below 4")):
        found.attention_maps(x, (3, 0))


def test_initial_scales_from_images() -> None:
    found = PixelSNAIL((3, 8, 8), 256, config()).double()
    x = images(found.causal, 6)
    found.initialize(x)
    spreads: dict[str, float] = {}
    for name, layer in found.named_modules():
        if isinstance(layer, WeightNormalized):

            def keep(_: object, given: object, output: Tensor, name: str = name) -> None:
                assert float(output.mean((0, 2, 3)).abs().max()) < 1e-9
                spreads[name] = float(output.std((0, 2, 3), correction=0).mean())

            layer.register_forward_hook(keep)
    with torch.no_grad():
        found.causal(x)
    assert len(spreads) == 2 + 2 * (2 + 2 + 1 + 2 + 1 + 3) + 1
    for name, spread in spreads.items():
        assert spread == pytest.approx(0.1 if name.endswith("conv2") else 1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks: got 0, expected at least 1"),
        ({"width": 1}, "width: got 1, expected at least 2"),
        ({"key_width": 0}, "key_width: got 0, expected at least 1"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected 0 to below 1"),
    ],
)
def test_options_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PixelSNAILConfig(**options)  # type: ignore[arg-type]

"""The look into a model: every number again from the evidence, a walk of the test's own, or a sum by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import contract
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import davi
from davi import Hierarchy, Kind, LatentModel, Model
from davi.data import Images
from davi.distributions import Categorical, Distribution, Normal
from davi.errors import UserError
from davi.evaluation import evaluate
from davi.evaluation.activity import ACTIVE_UNITS
from davi.evidence import Evidence
from davi.inspection import Inspection, inspect
from davi.inspection.bits import spread
from davi.inspection.inspect import pick
from davi.layers import LikelihoodConfig, Padding
from davi.layers.depth_attention import DepthWiseAttention
from davi.model import Choose, Temperature
from davi.model.depths import depths_of
from davi.models.attentive_vae import AttentiveVAE, AttentiveVAEConfig

SEED = 3
TINY = [name for name in contract.names(Model) if name in contract.TINY]
ROUNDING = 1e-10
"""Sums of a few hundred float64 numbers in another order."""


def attentive(shape: tuple[int, int, int] = (1, 6, 10), levels: int = 4, **options: Any) -> AttentiveVAE:
    """In float64 and eval mode, every weight moved, so that no gate is closed."""
    usual: dict[str, Any] = {
        "layers": (1, 2),
        "latent_channels": 2,
        "width": 4,
        "preprocess": (-2,),
        "postprocess": (2,),
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "nodes": 1,
        "generative_attention": DepthWiseAttention(2),
        "inference_attention": DepthWiseAttention(2),
        "likelihood": LikelihoodConfig("categorical"),
    }
    model = AttentiveVAE(shape, levels, AttentiveVAEConfig(**{**usual, **options})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def some(model: Model, n: int) -> Images:
    return Images(torch.randint(model.levels, (n, *model.shape), dtype=torch.uint8), model.levels, "random/test")


def tensors(found: Inspection) -> list[Tensor]:
    """All there are, in a fixed order."""
    all_ = [*found.samples.values()]
    all_ += [*found.expected.values()]
    all_ += [tensor for item in found.chosen for tensor in (item.original, item.reconstruction) if tensor is not None]
    all_ += [strip.images for strip in found.strips]
    if found.progressive:
        all_ += [found.progressive.originals, found.progressive.images, torch.tensor(found.progressive.nats)]
    all_ += [tensor for view in found.depth_attention for tensor in (view.matrix, view.maps)]
    all_ += [view.maps for view in found.spatial_attention]
    if found.bits:
        all_ += [found.bits.images, found.bits.reconstruction, found.bits.layers]
    return all_


class Uniform(Model):
    """No latents, exact."""

    def __init__(self) -> None:
        super().__init__((1, 2, 3), 4, None)

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        share = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
        return Evidence({"log_p": share.log()[x.long()].flatten(1).sum(1)}, Kind.EXACT)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        return torch.randint(self.levels, (n, *self.shape), generator=generator)


class Vector(Uniform, LatentModel):
    """A latent vector and no walk; every image is reconstructed as its first pixel."""

    def latents(self, x: Tensor, sample: bool = False, generator: Generator | None = None) -> list[Tensor]:
        return [x[:, 0, 0, :1].double()]

    def decode(self, latents: Sequence[Tensor]) -> Distribution:
        one_hot = F.one_hot(latents[0].long(), self.levels).double().view(-1, self.levels, 1, 1, 1)
        return Categorical(one_hot.expand(-1, -1, *self.shape))


class Collapsed(Hierarchy):
    """Two vectors as latents, the second of which has the prior for its posterior; an odd grain for a hierarchy."""

    num_layers = 2

    def __init__(self) -> None:
        super().__init__((1, 2, 3), 4, None)
        self.weight = nn.Parameter(torch.randn(3, self.levels * self.dims, dtype=torch.float64))

    def encode(self, x: Tensor) -> Tensor:
        return x.double().flatten(2).mean(2).expand(-1, 3)

    def top_down(self, choose: Choose, context: Any = None) -> Distribution:
        standard = Normal(torch.zeros(1, 3).double(), torch.ones(1, 3).double())
        top = choose(0, standard, None if context is None else Normal(context, torch.ones_like(context)))
        prior = Normal(0.5 * top, torch.ones_like(top))
        z = choose(1, prior, None if context is None else prior)
        return Categorical((z @ self.weight).view(-1, self.levels, *self.shape))


@pytest.fixture
def model() -> AttentiveVAE:
    return attentive()


def test_layers_are_those_of_the_evaluation(model: AttentiveVAE) -> None:
    images = some(model, 7)
    found = inspect(model, images, limit=5, samples=1, batch_size=2, seed=SEED)
    measured = evaluate(model, images, limit=5, batch_size=2, seed=SEED)
    assert (found.images, found.seed, found.set) == (5, SEED, "random/test")
    assert [layer.name for layer in found.layers] == ["kl/00", "kl/01", "kl/02"]
    assert [layer.grid for layer in found.layers] == [(2, 3), (4, 6), (4, 6)]  # 6x10 padded to 8x12, halved, halved
    units = measured.measure(ACTIVE_UNITS)
    assert units is not None
    assert units.layers is not None
    for i, layer in enumerate(found.layers):
        values = -measured.terms[layer.name]
        assert layer.nats == pytest.approx(values.mean(), rel=ROUNDING)
        assert layer.standard_error == pytest.approx(np.sqrt(values.var(ddof=1) / 5), rel=ROUNDING)
        assert (layer.channels, layer.units) == (2, 2 * layer.grid[0] * layer.grid[1])
        assert layer.active == units.layers[i]
        assert layer.inactive == (values.mean() < 0.01)


def test_a_collapsed_layer_is_inactive_and_changes_nothing() -> None:
    model = Collapsed()
    found = inspect(model, some(model, 6), samples=2, seed=SEED)
    assert [(layer.grid, layer.channels, layer.inactive) for layer in found.layers] == [
        ((1, 1), 3, False),
        ((1, 1), 3, True),
    ]
    assert found.layers[1].nats == 0.0
    assert found.progressive is not None
    assert found.progressive.depths == (0, 1, 2)
    # The same noise at all depths: where prior and posterior agree, not even the draws differ.
    assert found.progressive.nats[1] == found.progressive.nats[2] != found.progressive.nats[0]
    assert torch.equal(found.progressive.images[1], found.progressive.images[2])
    assert found.depth_attention == found.spatial_attention == ()


def test_one_image_is_enough() -> None:
    model = Collapsed()
    found = inspect(model, some(model, 1), samples=1)
    assert [(layer.standard_error, layer.active, layer.units) for layer in found.layers] == [(None, 0, 0)] * 2
    assert [(item.role, item.index) for item in found.chosen] == [("best", 0), ("typical", 0), ("worst", 0)]
    assert found.bits is not None
    assert len(found.bits.images) == 1


# --- chosen images


def test_roles_by_hand() -> None:
    costs = np.array([5.0, 1.0, 9.0, 4.0, 100.0, 2.0, 5.5])  # sorted: 1 2 | 4 5 5.5 | 9 100; median 5
    assert pick(costs) == [
        ("best", 1),
        ("best", 5),
        ("typical", 0),
        ("typical", 6),
        ("worst", 4),
        ("worst", 2),
    ]
    assert pick(np.array([2.0, 1.0])) == [("best", 1), ("typical", 1), ("worst", 0)]
    many = pick(np.arange(100.0))
    assert [i for role, i in many if role == "best"] == [0, 1, 2, 3]
    assert {i for role, i in many if role == "typical"} == {48, 49, 50, 51}
    assert [i for role, i in many if role == "worst"] == [99, 98, 97, 96]


def test_chosen_images_are_what_they_are_said_to_be(model: AttentiveVAE) -> None:
    images = some(model, 8)
    found = inspect(model, images, samples=1, batch_size=3, seed=SEED)
    measured = evaluate(model, images, batch_size=3, seed=SEED)
    for item in found.chosen:
        assert item.bits_per_dim == pytest.approx(-measured.elbo[item.index] / (60 * np.log(2.0)), rel=ROUNDING)
        assert torch.equal(item.original, images.pixels[item.index])
        assert item.name == f"test image {item.index}"
        assert item.reconstruction is not None
        means = model.decode(model.latents(images.pixels[item.index][None])).mean()
        torch.testing.assert_close(item.reconstruction, means[0], rtol=ROUNDING, atol=ROUNDING)
    bits = [item.bits_per_dim for item in found.chosen]
    assert bits[0] == min(bits)
    assert bits[-2] == max(bits)  # two of each role, the worst first


# --- reconstructions from the first layers


@pytest.mark.parametrize(
    ("layers", "depths"),
    [(1, (0, 1)), (3, (0, 1, 2, 3)), (11, tuple(range(12))), (12, (0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12))],
)
def test_depths(layers: int, depths: tuple[int, ...]) -> None:
    assert depths_of(layers) == depths


def test_many_depths_are_a_dozen() -> None:
    for layers in (13, 40, 100):
        depths = depths_of(layers)
        assert len(depths) == 12
        assert (depths[0], depths[-1]) == (0, layers)
        gaps = {b - a for a, b in pairwise(depths)}
        assert max(gaps) - min(gaps) <= 1


def test_all_layers_reconstruct_and_no_layer_ignores_the_image(model: AttentiveVAE) -> None:
    found = inspect(model, some(model, 6), samples=1).progressive
    assert found is not None
    assert found.depths == (0, 1, 2, 3)
    assert found.images.shape == (4, len(found.originals), *model.shape)
    torch.testing.assert_close(found.images[-1], model.decode(model.latents(found.originals)).mean())
    assert torch.equal(found.images[0], found.images[0, :1].expand_as(found.images[0]))
    first = model.latents(found.originals)[0]
    walk = iter([first])
    expected = model.top_down(lambda i, prior, _: next(walk, prior.mean)).mean()  # one latent, then prior means
    torch.testing.assert_close(found.images[1], expected)


def test_bounds_of_the_first_layers_by_another_walk(model: AttentiveVAE) -> None:
    images = some(model, 5)
    found = inspect(model, images, samples=1, seed=SEED).progressive
    assert found is not None
    x = images.pixels
    for depth, nats in zip(found.depths, found.nats, strict=True):
        generator, divergences = Generator().manual_seed(SEED), []

        def choose(
            i: int,
            prior: Normal,
            posterior: Normal | None,
            depth: int = depth,
            generator: Generator = generator,
            divergences: list[Tensor] = divergences,
        ) -> Tensor:
            assert posterior is not None
            p, q = ((d.mean.expand(5, -1, -1, -1), d.scale.expand(5, -1, -1, -1)) for d in (prior, posterior))
            mean, scale = q if i < depth else p
            if i < depth:
                both = [torch.distributions.Normal(*parameters) for parameters in (q, p)]
                divergences.append(torch.distributions.kl_divergence(*both).flatten(1).sum(1))
            return mean + scale * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)

        with torch.no_grad():
            log_p = model.top_down(choose, model.encode(x)).log_prob(x)
        assert nats == pytest.approx(float((-log_p + sum(divergences)).mean()), rel=ROUNDING)
    assert found.nats[-1] == pytest.approx(-evaluate(model, images, seed=SEED).elbo.mean(), rel=ROUNDING)


# --- where the bits go


@pytest.mark.parametrize(
    ("shape", "levels", "options"),
    [
        ((1, 6, 10), 4, {}),
        (
            (3, 5, 9),
            256,
            {"likelihood": LikelihoodConfig("logistic_mixture", 5), "layers": (1, 1, 1)},
        ),  # channels share their bits
        (
            (1, 8, 8),
            2,
            {"likelihood": LikelihoodConfig("bernoulli"), "pad": 4},
        ),  # latent pixels that cover padding alone
        ((2, 4, 7), 4, {"generative_attention": DepthWiseAttention(), "inference_attention": DepthWiseAttention()}),
    ],
)
def test_bits_add_up(shape: tuple[int, int, int], levels: int, options: dict[str, Any]) -> None:
    model = attentive(shape, levels, **options)
    images = some(model, 6)
    found = inspect(model, images, samples=1, seed=SEED)
    assert found.bits is not None
    with torch.no_grad():
        terms = model.elbo(images.pixels, model.encode(images.pixels), Generator().manual_seed(SEED)).terms
    shown = [int((images.pixels == image).flatten(1).all(1).nonzero()) for image in found.bits.images]
    costs = {item.index: item.bits_per_dim * model.dims for item in found.chosen}
    assert found.bits.reconstruction.shape == (len(shown), *shape[1:])
    assert found.bits.layers.shape == (len(shown), len(found.layers), *shape[1:])
    for i, index in enumerate(shown):
        parts = [found.bits.reconstruction[i].sum(), *found.bits.layers[i].sum((1, 2))]
        expected = [-float(term[index]) / np.log(2.0) for term in terms.values()]
        assert [float(part) for part in parts] == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
        assert float(sum(parts)) == pytest.approx(costs[index], rel=ROUNDING)


def test_bits_of_images_from_several_batches(model: AttentiveVAE) -> None:
    found = inspect(model, some(model, 7), samples=1, batch_size=2, seed=SEED)
    assert found.bits is not None
    assert found.progressive is not None
    first = {role: next(item for item in found.chosen if item.role == role) for role in ("best", "typical", "worst")}
    for i, item in ((0, first["best"]), (1, first["typical"]), (-1, first["worst"])):
        assert torch.equal(found.bits.images[i], item.original)
        total = found.bits.reconstruction[i].sum() + found.bits.layers[i].sum()
        assert float(total) / 60 == pytest.approx(item.bits_per_dim, rel=ROUNDING)
    assert torch.equal(found.bits.images, found.progressive.originals)


@pytest.mark.parametrize(
    ("size", "grid", "padding"),
    [
        ((4, 6), (2, 3), Padding(4, 6, 0, 0, 0, 0)),
        ((5, 7), (2, 2), Padding(5, 7, 0, 1, 1, 2)),  # 8 x 8
        ((4, 4), (4, 4), Padding(4, 4, 6, 6, 6, 6)),  # 16 x 16: twelve latent pixels cover padding alone
        ((3, 2), (1, 1), Padding(3, 2, 0, 0, 0, 0)),
    ],
)
def test_spreading_pixel_by_pixel(size: tuple[int, int], grid: tuple[int, int], padding: Padding) -> None:
    maps = torch.rand(2, *grid, dtype=torch.float64)
    unit = (padding.padded[0] // grid[0], padding.padded[1] // grid[1])
    expected = torch.zeros(2, *size, dtype=torch.float64)
    for r in range(grid[0]):
        for c in range(grid[1]):
            covered = [
                (y - padding.top, x - padding.left)
                for y in range(r * unit[0], (r + 1) * unit[0])
                for x in range(c * unit[1], (c + 1) * unit[1])
            ]
            rows = {y for y, _ in covered if 0 <= y < size[0]} or {0 if covered[0][0] < 0 else size[0] - 1}
            columns = {x for _, x in covered if 0 <= x < size[1]} or {0 if covered[0][1] < 0 else size[1] - 1}
            for y in rows:
                for x in columns:
                    expected[:, y, x] += maps[:, r, c] / (len(rows) * len(columns))
    torch.testing.assert_close(spread(maps, padding), expected, rtol=ROUNDING, atol=ROUNDING)


def test_latent_grids_that_do_not_divide_the_image_keep_their_sums() -> None:
    maps = torch.rand(3, 3, 9, dtype=torch.float64)
    found = spread(maps, Padding(7, 5, 0, 0, 0, 0))
    assert found.shape == (3, 7, 5)
    torch.testing.assert_close(found.sum((1, 2)), maps.sum((1, 2)), rtol=ROUNDING, atol=0.0)


# --- the whole


@pytest.mark.parametrize("name", TINY)
def test_every_tiny_recipe_is_inspected(name: str) -> None:
    model = davi.build(name)
    images = some(model, 6)
    found = inspect(model, images, samples=2, batch_size=4)
    assert all(drawn.shape == (2, *model.shape) for drawn in found.samples.values())
    assert all((item.reconstruction is not None) == isinstance(model, LatentModel) for item in found.chosen)
    assert bool(found.layers) == isinstance(model, Hierarchy)
    if found.progressive is not None:  # all layers from the posterior: the very draws of the evaluation
        measured = evaluate(model, images, batch_size=4)
        assert found.progressive.nats[-1] == pytest.approx(-float(measured.elbo.mean()), rel=1e-5)  # float32
    for tensor in tensors(found):
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad


def test_seed_decides_everything_and_nothing_is_left_behind(model: AttentiveVAE) -> None:
    images, state = some(model, 6), torch.get_rng_state()
    model.train()
    first, again, other = (inspect(model, images, samples=2, batch_size=4, seed=seed) for seed in (1, 1, 2))
    same = [
        torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(tensors(first), tensors(again), strict=True)
    ]
    assert len(same) > 20
    assert all(same)
    assert not torch.equal(first.samples[1.0], other.samples[1.0])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_without_latents_there_are_samples_and_images() -> None:
    model = Uniform()
    found = inspect(model, some(model, 5), samples=2)
    assert found.images == 5
    assert list(found.samples) == [0.6, 0.8, 1.0]
    assert found.progressive is found.bits is None
    assert found.layers == found.depth_attention == found.spatial_attention == found.strips == ()
    assert found.expected == {}
    assert [item.reconstruction for item in found.chosen] == [None] * 3
    assert found.examples is not None
    assert found.examples.shape == (2, *model.shape)


def test_latents_without_a_walk_reconstruct() -> None:
    model = Vector()
    found = inspect(model, some(model, 5), samples=2)
    assert len(found.chosen) == 3
    for item in found.chosen:
        assert item.reconstruction is not None
        # One of four values for sure: e to 0, 0, 0; the mean of the levels given one-hot logits, by hand.
        shares = torch.softmax(F.one_hot(item.original[0, 0, 0].long(), 4).double(), 0)
        expected = (shares * torch.arange(4)).sum().expand(1, 2, 3)
        torch.testing.assert_close(item.reconstruction, expected, check_dtype=False, rtol=1e-6, atol=1e-6)
    assert found.layers == ()
    assert found.progressive is found.bits is None


def test_progress_goes_up_to_the_whole(model: AttentiveVAE) -> None:
    told: list[tuple[int, int]] = []
    inspect(model, some(model, 5), samples=1, batch_size=2, progress=lambda done, total: told.append((done, total)))
    done = [d for d, _ in told]
    assert done == sorted(done)
    assert {total for _, total in told} == {25}  # the evaluation and four depths, five images each
    assert done[-1] == 25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples: got 0, expected a whole number from 1"),
        ({"limit": 0}, "limit: got 0, expected a whole number from 1"),
        ({"batch_size": 0}, "batch_size: got 0, expected a whole number from 1"),
        ({"temperatures": (1.0, -0.5)}, "temperatures: got -0.5, expected finite numbers from 0"),
        ({"temperatures": (float("nan"),)}, "temperatures: got nan, expected finite numbers from 0"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], message: str) -> None:
    model = Collapsed()
    with pytest.raises(UserError, match=f"^{message}$"):
        inspect(model, some(model, 2), **options)


def test_images_of_another_shape() -> None:
    other = Images(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), 4, "others")
    with pytest.raises(UserError, match="others: got images"):
        inspect(Collapsed(), other)

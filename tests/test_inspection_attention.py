"""Attention as the inspection shows it, against weights made by hand from what the modules were given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from davi.data import Images
from davi.inspection import DepthAttentionView, inspect
from davi.inspection.attention import MOST_BLOCKS, SpatialRecorder, queries_on
from davi.layers import DepthAttention, LikelihoodConfig, NonLocalBlock, resize_to
from davi.layers.depth_attention import DepthAttentive, DepthWiseAttention
from davi.models.attentive_vae import AttentiveVAE, AttentiveVAEConfig, SpatialAttention

SEED = 3
ROUNDING = 1e-10
"""Sums of a few dozen float64 numbers in another order."""


def attentive(**options: Any) -> AttentiveVAE:
    """Latent grids 2x3 (one layer) and 4x6 (three), in float64 and eval mode, every weight moved."""
    usual: dict[str, Any] = {
        "layers": (1, 3),
        "latent_channels": 2,
        "width": 4,
        "preprocess": (0, -2),
        "postprocess": (2, 0),
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "nodes": 2,
        "generative_attention": DepthWiseAttention(2),
        "inference_attention": DepthWiseAttention(2),
        "likelihood": LikelihoodConfig("categorical"),
    }
    model = AttentiveVAE((1, 7, 12), 4, AttentiveVAEConfig(**{**usual, **options})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def some(model: AttentiveVAE, n: int) -> Images:
    return Images(torch.randint(model.levels, (n, *model.shape), dtype=torch.uint8), model.levels, "random")


def inputs_of(model: AttentiveVAE, x: Tensor, kind: type[nn.Module]) -> dict[str, tuple[Any, ...]]:
    """What all modules of one kind are given in the evidence with the inspection's draws, by the module's name."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(lambda _, given, name=name: found.update({name: given}))
    with torch.no_grad():
        model.elbo(x, model.encode(x), Generator().manual_seed(SEED))
    return found


def indices(images: Images, shown: Tensor) -> list[int]:
    return [int((images.pixels == image).flatten(1).all(1).nonzero()) for image in shown]


def weights_by_hand(model: AttentiveVAE, name: str, given: tuple[Any, ...]) -> Tensor:
    """exp(score) over its sum, pixel by pixel, [B, sources, h, w]."""
    query, keys, _ = given
    scale = model.get_submodule(name).scale
    scores = torch.stack([(scale * query * key).sum(1) for key in keys], 1)
    return (scores.exp() / scores.exp().sum(1, keepdim=True)).detach()


@pytest.mark.parametrize("side", ["generative", "inference"])
def test_matrices_and_maps_by_hand(side: str) -> None:
    model = attentive()
    images = some(model, 6)
    found = inspect(model, images, samples=1, seed=SEED)
    view = next(view for view in found.depth_attention if view.side == side)
    given = inputs_of(model, images.pixels, DepthAttention)
    assert found.bits is not None
    shown = indices(images, found.bits.images)
    if side == "generative":
        readers, sources = ("1", "2", "3"), ("0", "1", "2")
        offered = {"1": ["0"], "2": ["0", "1"], "3": ["0", "1", "2"]}
        names = {reader: f"generative.{int(reader) - 1}.attention" for reader in readers}
    else:
        readers, sources = ("0", "1", "2", "3"), ("0", "1", "2", "3", "image")
        offered = {reader: list(sources[int(reader) :]) for reader in readers}
        names = {reader: f"inference.{reader}.attention" for reader in readers}
    assert (view.readers, view.sources) == (readers, sources)
    assert view.maps.shape == (len(shown), len(readers), len(sources), 4, 6)
    for r, reader in enumerate(readers):
        expected = weights_by_hand(model, names[reader], given[names[reader]])
        gate = model.get_submodule(names[reader].removesuffix(".attention")).gate.detach()
        assert view.gates[r] == float(gate) != 0
        for s, source in enumerate(sources):
            if source not in offered[reader]:
                assert view.matrix[r, s].isnan()
                assert view.maps[:, r, s].isnan().all()
                continue
            weights = expected[:, offered[reader].index(source)]  # [B, h, w]
            assert float(view.matrix[r, s]) == pytest.approx(float(weights.mean()), rel=ROUNDING)
            factor = 4 // weights.shape[1]
            fine = weights[shown].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            torch.testing.assert_close(view.maps[:, r, s], fine.float(), rtol=1e-6, atol=0.0)  # kept in float32


def test_rows_sum_to_one_over_batches_of_any_size() -> None:
    model = attentive()
    images = some(model, 5)
    for view in inspect(model, images, samples=1, batch_size=2, seed=SEED).depth_attention:
        ones = torch.ones(len(view.readers), dtype=torch.float64)
        torch.testing.assert_close(view.matrix.nansum(1), ones, rtol=ROUNDING, atol=0.0)
        sums = view.maps.nansum(2)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-6, atol=0.0)


def test_sources_are_the_layers_that_offer_the_keys() -> None:
    """The keys that a reader is given, in order, are those of the layers that the place names."""
    model = attentive()
    x = some(model, 3).pixels
    states: dict[int, Any] = {}
    for i, layer in enumerate(model.generative, start=1):
        layer.register_forward_hook(lambda _, args, state, i=i: states.update({i - 1: args[0], i: state}))
    given = inputs_of(model, x, DepthAttention)
    names = {id(module): name for name, module in model.named_modules() if isinstance(module, DepthAttention)}
    sites = list(model.depth_attentions())
    assert {id(site.attention) for site in sites} == set(names)
    with torch.no_grad():
        features = model.encode(x)
        stem = features.memory.read((4, 6), model.num_layers)[0][0]  # keys of what the preprocessing made
        for site in sites:
            query, keys, _ = given[names[id(site.attention)]]
            assert len(keys) == len(site.sources)
            for source, key in list(zip(site.sources, keys, strict=True))[site.side == "inference" :]:
                if site.side == "inference":  # its own comes merged with the context; all others as encoded
                    expected = stem if source == model.num_layers else features.features[source][1]
                elif source == site.layer - 1:
                    expected = states[source].key
                else:  # normalized when layer source + 2 takes it in
                    both = torch.cat([states[source].context, states[source].key], 1)
                    expected = model.generative[source + 1].norm_stack(both)[:, states[source].context.shape[1] :]
                assert torch.equal(key, resize_to(expected, tuple(query.shape[2:])))


@pytest.mark.parametrize(("generative", "inference"), [(2, 0), (0, 2), (0, 0)])
def test_a_side_without_attention_has_no_view(generative: int, inference: int) -> None:
    model = attentive(
        generative_attention=DepthWiseAttention(generative), inference_attention=DepthWiseAttention(inference)
    )
    assert isinstance(model, DepthAttentive)
    found = inspect(model, some(model, 3), samples=1)
    sides = [side for side, keys in (("generative", generative), ("inference", inference)) if keys]
    assert [view.side for view in found.depth_attention] == sides
    assert found.spatial_attention == ()


def test_a_single_layer_reads_the_image_alone() -> None:
    model = attentive(layers=(1,))
    views = inspect(model, some(model, 3), samples=1).depth_attention
    assert [(view.side, view.readers, view.sources) for view in views] == [("inference", ("0",), ("0", "image"))]


# --- non-local blocks


@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_weights_are_those_of_the_fused_attention(subsample: bool, layer_norm: bool) -> None:
    block = NonLocalBlock(6, 3, subsample=subsample, layer_norm=layer_norm).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
        pixels = [(row, column) for row in range(4) for column in range(5)]
        weights = block.weights(x, pixels)
        assert weights.shape == (2, 20, *((2, 2) if subsample else (4, 5)))
        torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 20).double(), rtol=ROUNDING, atol=0.0)
        source = x if block.norm_in is None else block.norm_in(x)
        values = block.value(source)
        values = nn.functional.max_pool2d(values, 2) if subsample else values
        attended = torch.einsum("bqhw,bchw->bcq", weights, values).view_as(x)
        y = x + block.gamma * attended
        if block.norm_out is not None and block.project is not None:
            y = x + block.project(block.norm_out(y))
        torch.testing.assert_close(block(x), y, rtol=ROUNDING, atol=ROUNDING)
        some_rows = block.weights(x, [(3, 1), (0, 4)])
        torch.testing.assert_close(some_rows, weights[:, [16, 4]], rtol=ROUNDING, atol=0.0)


def test_maps_of_query_pixels_by_hand() -> None:
    model = attentive(spatial_attention=SpatialAttention(2, 2, 2, 2, 2, 2))
    images = some(model, 6)
    found = inspect(model, images, samples=1, seed=SEED)
    given = inputs_of(model, images.pixels, NonLocalBlock)
    assert found.bits is not None
    shown = indices(images, found.bits.images)
    assert len(found.spatial_attention) == MOST_BLOCKS
    for view in found.spatial_attention:
        block, x = model.get_submodule(view.name), given[view.name][0]
        assert isinstance(block, NonLocalBlock)
        assert view.grid == view.key_grid == tuple(x.shape[2:])
        assert view.gate == float(block.gamma.detach())
        with torch.no_grad():
            queries, keys = block.query(x), block.key(x)
        for i, index in enumerate(shown):
            for q, (row, column) in enumerate(view.queries):
                scores = (block.scale * queries[index, :, row, column, None, None] * keys[index]).sum(0).exp()
                torch.testing.assert_close(view.maps[i, q], (scores / scores.sum()).detach(), rtol=1e-9, atol=0.0)


def test_maps_come_in_the_order_of_the_images_whatever_the_batches() -> None:
    model = attentive(spatial_attention=SpatialAttention(encoder=2, preprocess=2))
    images = some(model, 7)
    found, single = (inspect(model, images, samples=1, batch_size=size, seed=SEED) for size in (2, 7))
    assert found.bits is not None
    assert single.bits is not None
    columns = [indices(images, bits.images) for bits in (found.bits, single.bits)]
    common = [(columns[0].index(i), columns[1].index(i)) for i in columns[0] if i in columns[1]]
    assert common
    for a, b in zip(found.spatial_attention, single.spatial_attention, strict=True):
        for i, j in common:  # on the way up nothing is drawn: batches cannot matter
            torch.testing.assert_close(a.maps[i], b.maps[j], rtol=ROUNDING, atol=0.0)


def test_first_blocks_of_all_parts_go_before_last_ones() -> None:
    model = attentive(spatial_attention=SpatialAttention(2, 2, 2, 2, 2, 2))
    all_ = [name for name, module in model.named_modules() if isinstance(module, NonLocalBlock)]
    kept = [view.name for view in inspect(model, some(model, 3), samples=1).spatial_attention]
    assert len(all_) > MOST_BLOCKS
    assert kept == [name for name in all_ if name in kept]
    parts = {name.partition(".")[0] for name in all_}
    for part in parts:
        mine = [name for name in all_ if name.startswith(f"{part}.")]
        assert mine[0] in kept
        assert {name for name in kept if name in mine} <= {mine[0], mine[-1]}
    assert SpatialRecorder(nn.Identity()).views([0]) == ()


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ((8, 8), ((4, 4), (2, 2), (2, 6), (6, 4))),
        ((4, 12), ((2, 6), (1, 3), (1, 9), (3, 6))),
        ((2, 2), ((1, 1), (0, 0), (0, 1))),
        ((1, 1), ((0, 0),)),
    ],
)
def test_queries(grid: tuple[int, int], expected: tuple[tuple[int, int], ...]) -> None:
    assert queries_on(grid) == expected
    assert all(0 <= row < grid[0] and 0 <= column < grid[1] for row, column in expected)


def test_attention_that_looks_one_way_is_seen_so() -> None:
    """A query that agrees with the key of one source far more than with the others'."""
    model = attentive()
    with torch.no_grad():
        for site in model.depth_attentions():
            site.attention.scale.fill_(0.0)
    for view in inspect(model, some(model, 4), samples=1).depth_attention:
        _all_equal(view)


def _all_equal(view: DepthAttentionView) -> None:
    """Scores of 0: every source that is offered gets the same share."""
    for row in view.matrix:
        offered = row[~row.isnan()]
        share = 1.0 / len(offered)
        assert all(math.isclose(float(value), share, rel_tol=ROUNDING) for value in offered)

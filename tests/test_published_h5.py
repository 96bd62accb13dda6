"""Reading the authors' Keras weight files: the order of their weights and the configuration behind them.

The order is tested against tables made from files that the authors' own program wrote (where the reference data are at
hand), and against the order of a small model written out by hand from the description of those files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from authors_h5 import BY_HAND, SMALL, SMALL_SHAPE, by_hand, refused, small, write_small
from safetensors.torch import load_file
from torch import Tensor

from davi.distributions import DiscretizedLogisticMixture
from davi.errors import UserError
from davi.layers import LikelihoodConfig
from davi.model import Step
from davi.models.attentive_vae import (
    AttentiveVAE,
    AttentiveVAEConfig,
    DepthWiseAttention,
    GaussianOptions,
    SpatialAttention,
)
from davi.published.attentive.files import import_h5, infer_configuration
from davi.published.attentive.keras_h5 import Group, Weight, read
from davi.published.attentive.layout import datasets, layout
from davi.published.attentive.names import parameter_names

BERNOULLI = LikelihoodConfig("bernoulli")
mixture = partial(LikelihoodConfig, "logistic_mixture")

CIFAR = {
    "prior_bounds": GaussianOptions(-1.0, 5.0, 0.001),
    "posterior_bounds": GaussianOptions(-5.0, 5.0, 0.001),
    "likelihood": mixture(5),
    "pad": 0,
}
OMNIGLOT = {
    "preprocess": (0, 0, -2),
    "postprocess": (2, 0, 0),
    "likelihood": LikelihoodConfig("bernoulli", 1),
    "pad": 2,
}
PUBLISHED: dict[str, AttentiveVAEConfig] = {
    "att_cifar": AttentiveVAEConfig(
        layers=(4,),
        latent_channels=3,
        width=7,
        spatial_attention=SpatialAttention(5, 5, 5),
        generative_attention=DepthWiseAttention(3),
        inference_attention=DepthWiseAttention(4),
        **CIFAR,
    ),
    "att_omniglot": AttentiveVAEConfig(
        layers=(3,),
        latent_channels=4,
        width=6,
        spatial_attention=SpatialAttention(postprocess=3, inference_merge=3, generative_merge=3),
        generative_attention=DepthWiseAttention(4),
        inference_attention=DepthWiseAttention(6, layer_norm=False),
        **OMNIGLOT,
    ),
    "base_cifar": AttentiveVAEConfig(layers=(3,), latent_channels=3, width=8, pad=0),
    "readme_cifar_att": AttentiveVAEConfig(
        spatial_attention=SpatialAttention(32, 32, 32),
        generative_attention=DepthWiseAttention(20),
        inference_attention=DepthWiseAttention(20),
        **CIFAR,
    ),
    "readme_omniglot": AttentiveVAEConfig(
        layers=(15,),
        width=32,
        spatial_attention=SpatialAttention(postprocess=8, inference_merge=8, generative_merge=8),
        generative_attention=DepthWiseAttention(8),
        inference_attention=DepthWiseAttention(8, layer_norm=False),
        **OMNIGLOT,
    ),
    "readme_nvae": AttentiveVAEConfig(pad=0),
}
"""The configurations that the tables of reference data stand for, from the commands that made them."""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file of the small model."""
    return write_small(tmp_path / "own.h5")


def table(need_shared: Callable[[str], Path], name: str) -> dict[str, list[list[Any]]]:
    """Group -> rows of a table of reference data; groups without weights have no rows."""
    rows = json.loads(need_shared(f"fixtures/attentive_h5/h5table_{name}.json").read_text())["rows"]
    groups: dict[str, list[list[Any]]] = {}
    for row in rows:
        groups.setdefault(row[0], []).append(row)
    return groups


def on_paper(config: AttentiveVAEConfig, shape: tuple[int, int, int], levels: int) -> AttentiveVAE:
    with torch.device("meta"):
        return AttentiveVAE(shape, levels, config)


def groups_of(model: AttentiveVAE) -> list[Group]:
    """What ``read`` would find in a file of a model, without numbers and with meaningless names."""
    known = datasets(model)
    groups = []
    for kind, names in layout(model):
        weights = []
        for name in names:
            leaf, shape = known[name] if name else ("initialized:0", ())
            weights.append(Weight(f"scope/{leaf}", torch.empty(shape, device="meta")))
        groups.append(Group(kind, tuple(weights)))
    return groups


def test_layout_is_the_one_written_by_hand() -> None:
    found = layout(on_paper(SMALL, SMALL_SHAPE, 256))
    wanted = [(re.sub(r"_\d+$", "", group), by_hand(text)) for group, text in BY_HAND.items()]
    assert found == wanted


@pytest.mark.parametrize("name", PUBLISHED)
def test_layout_is_that_of_the_official_tables(need_shared: Callable[[str], Path], name: str) -> None:
    config = PUBLISHED[name]
    binary = config.likelihood.family == "bernoulli"
    model = on_paper(config, (1, 28, 28) if binary else (3, 32, 32), 2 if binary else 256)
    groups, known = table(need_shared, name), datasets(model)
    found = layout(model)
    attention = bool(config.generative_attention.key_channels)
    assert len(found) == 3 + model.num_layers * (1 + attention)
    if attention:  # the groups of the two norms that are never built are empty, and empty groups have no rows
        assert [names for _, names in found[3 + model.num_layers :][:2]] == [[], []]
    filled = [(kind, names) for kind, names in found if names]
    assert [kind for kind, _ in filled] == [re.sub(r"_\d+$", "", group) for group in groups]
    for (_, names), rows in zip(filled, groups.values(), strict=True):
        assert names == [row[5] for row in rows]
        expected = [known[x] if x else ("initialized:0", ()) for x in names]
        assert expected == [(row[2].rpartition("/")[2], tuple(row[3])) for row in rows]
        assert [row[4] for row in rows] == ["float32" if x else "bool" for x in names]


@pytest.mark.parametrize("name", PUBLISHED)
def test_configuration_is_found_from_the_shapes_of_the_official_tables(
    need_shared: Callable[[str], Path], name: str
) -> None:
    groups = [
        Group(group, tuple(Weight(row[2], torch.empty(row[3], device="meta")) for row in rows))
        for group, rows in table(need_shared, name).items()
    ]
    shape, levels, config, notes = infer_configuration(groups)
    assert config == PUBLISHED[name]
    assert (shape, levels) == (((1, 28, 28), 2) if config.likelihood.family == "bernoulli" else ((3, 32, 32), 256))
    assert "2 convolutions per block (by the names" in notes[-1]


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        (SMALL_SHAPE, SMALL),
        ((3, 16, 16), AttentiveVAEConfig((1,), 2, 4, pad=0, likelihood=mixture(1))),
        ((3, 8, 8), AttentiveVAEConfig((2,), 5, 4, (-2, 0, -2), (0, 2, 2, 0), 3, 1, 2, pad=0, likelihood=mixture(3))),
        ((1, 12, 8), AttentiveVAEConfig((2,), 1, 4, (0,), (0, 0), 1, 1, 3, pad=0, likelihood=BERNOULLI)),
        (
            (2, 4, 4),
            AttentiveVAEConfig(
                (5,),
                1,
                2,
                (-2,),
                (2,),
                1,
                2,
                2,
                pad=0,
                spatial_attention=SpatialAttention(1, 2, 3, 4, 5, 6),
                generative_attention=DepthWiseAttention(1, layer_norm=False),
                likelihood=BERNOULLI,
            ),
        ),
        (
            (3, 4, 4),
            AttentiveVAEConfig(
                (2,),
                1,
                2,
                (-2,),
                (2,),
                2,
                2,
                2,
                pad=0,
                inference_attention=DepthWiseAttention(4, layer_norm=False),
                likelihood=mixture(2),
            ),
        ),
        (
            (3, 4, 4),
            AttentiveVAEConfig(
                (1,), 1, 2, (-2,), (2,), pad=0, inference_attention=DepthWiseAttention(2), likelihood=mixture(2)
            ),
        ),
    ],
)
def test_configuration_is_found_from_shapes_alone(shape: tuple[int, int, int], config: AttentiveVAEConfig) -> None:
    levels = 2 if config.likelihood.family == "bernoulli" else 256
    model = on_paper(config, shape, levels)
    found_shape, found_levels, found, _ = infer_configuration(groups_of(model))
    assert (found_shape, found_levels) == (shape, levels)
    same = {"prior_bounds": found.prior_bounds, "posterior_bounds": found.posterior_bounds}
    if levels == 2:
        same["likelihood"] = replace(config.likelihood, components=found.likelihood.components)
    assert found == type(config)(**{**vars(config), **same})


def test_a_file_of_one_layer_may_leave_the_key_width_open() -> None:
    config = AttentiveVAEConfig(
        (1,), 1, 2, (-2,), (2,), pad=0, inference_attention=DepthWiseAttention(2, layer_norm=False)
    )
    groups = groups_of(on_paper(config, (3, 4, 4), 256))
    with pytest.raises(UserError, match=r"does not say model\.inference_attention\.key_channels"):
        infer_configuration(groups)
    _, _, found, _ = infer_configuration(groups, {"inference_attention": {"key_channels": 2}})
    assert found == config


def test_blocks_are_told_by_the_scopes_of_the_names() -> None:
    """Two convolutions one after the other: one block of two, or two blocks of one? The shapes are the same."""
    config = AttentiveVAEConfig((2,), 1, 2, (0, -2, 0), (2, 0), 2, 2, 1, pad=0, likelihood=mixture(1))
    config = type(config)(**{**vars(config), "preprocess": (0, 0, -2, 0)})
    groups = groups_of(on_paper(config, (3, 4, 4), 256))
    _, _, found, notes = infer_configuration(groups)
    assert (found.nodes, found.encoder_blocks, found.preprocess) == (2, 1, (0, -2))
    assert "(assumed)" in notes[-1]
    _, _, given, _ = infer_configuration(groups, {"nodes": 1})
    assert given == config
    block = iter(range(99))

    def scoped(weight: Weight) -> Weight:
        if weight.leaf != "kernel:0":
            return weight
        scope = f"res_net_block_{next(block)}"
        return Weight(f"{scope}/{scope}/conv2d_5/conv2d_5/weight_norm_4/kernel:0", weight.value)

    scopes = [Group(group.name, tuple(map(scoped, group.weights))) for group in groups]
    _, _, named, notes = infer_configuration(scopes)
    assert named == config
    assert "(by the names" in notes[-1]


def test_round_trip(own: Path) -> None:
    shape, levels, config, state, notes = import_h5(own)
    assert (shape, levels, config) == (SMALL_SHAPE, 256, SMALL)
    expected = small().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], x) for name, x in expected.items())
    AttentiveVAE(shape, levels, config).load_state_dict(state)
    assert "prior log-scales -1 to 5" in notes[-1]
    assert all("\n" not in note for note in notes)


def test_long_lists_of_names_may_be_split(own: Path) -> None:
    with h5py.File(own, "a") as file:
        for holder, name in ((file, "layer_names"), (file["data_layer"], "weight_names")):
            names = holder.attrs[name]
            del holder.attrs[name]
            for i, part in enumerate(np.array_split(names, 3)):
                holder.attrs[f"{name}{i}"] = part
    state = import_h5(own)[3]
    assert all(torch.equal(state[name], x) for name, x in small().state_dict().items())


def test_lists_of_names_may_be_texts_of_any_length(own: Path) -> None:
    with h5py.File(own, "a") as file:
        file.attrs["layer_names"] = [name.decode() for name in file.attrs["layer_names"]]
    assert import_h5(own)[2] == SMALL


def test_official_file_reproduces_the_official_numbers(need_shared: Callable[[str], Path]) -> None:
    facts = json.loads(need_shared("fixtures/attentive_h5/att_cifar_trained.json").read_text())
    path = need_shared("fixtures/attentive_h5/att_cifar_trained.h5")
    shape, levels, config, state, _ = import_h5(path, {"likelihood": {"form": "attentive"}})
    model = AttentiveVAE(shape, levels, config)
    model.load_state_dict(state)
    model.eval()
    for name, theirs in facts["gates"].items():
        assert float(state[parameter_names(model)[name]]) == pytest.approx(theirs, rel=1e-7)
    x = load_file(need_shared("fixtures/att_cifar.safetensors"))["input/x_uint8"].permute(0, 3, 1, 2)
    steps: list[Step] = []

    def choose(layer: int, prior: Any, posterior: Any) -> Tensor:
        steps.append(Step(prior, posterior, posterior.center()))
        return steps[-1].z

    with torch.no_grad():
        likelihood = model.top_down(choose, model.encode(x))
    assert isinstance(likelihood, DiscretizedLogisticMixture)
    assert likelihood.form == "attentive"
    # The numbers are float32 on both sides: sums of 3072 terms of about 5 nats, and KLs of sums of 768.
    theirs = torch.tensor(facts["log_likelihood_official_nats"], dtype=torch.float64)
    assert (likelihood.log_prob(x) - theirs).abs().max() < 0.05
    kl = torch.stack([step.kl() for step in steps], 1)
    theirs = torch.tensor(facts["kl_nats_per_layer_per_image"], dtype=torch.float64)
    assert ((kl - theirs).abs() / theirs).max() < 1e-4


def test_overrides(own: Path) -> None:
    given = {
        "prior_bounds": {"log_scale_low": -3},
        "posterior_bounds": {"noise": 0.5},
        "likelihood": {"form": "attentive"},
        "width": 4,
    }
    _, _, config, _, notes = import_h5(own, {**given, "name": "attentive_vae", "pad": None})
    assert config.prior_bounds == GaussianOptions(-3.0, 5.0, 0.001)
    assert config.posterior_bounds == GaussianOptions(-5.0, 5.0, 0.5)
    assert config.likelihood.form == "attentive"
    assert "prior log-scales -3 to 5" in notes[-1]
    shape, _, config, _, _ = import_h5(own, {"pad": 1})
    assert (shape, config.pad) == ((3, 6, 4), 1)


def test_binary_sets_are_taken_as_padded_unless_told_otherwise() -> None:
    config = AttentiveVAEConfig((1,), 2, 4, likelihood=BERNOULLI, pad=2)
    groups = groups_of(on_paper(config, (1, 28, 28), 2))
    shape, levels, found, _ = infer_configuration(groups)
    assert (shape, levels, found.pad) == ((1, 28, 28), 2, 2)
    shape, _, found, _ = infer_configuration(groups, {"pad": 0, "likelihood": {"components": 5}})
    assert (shape, found.pad) == ((1, 32, 32), 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 8}, "model.width: got 8, but the file's shapes say 4"),
        ({"layers": [2]}, "model.layers: got [2], but the file's shapes say [3]"),
        ({"spatial_attention": {"decoder": 1}}, "model.spatial_attention.decoder: got 1, but the file's shapes say 0"),
        (
            {"generative_attention": {"key_channels": 0}},
            "model.generative_attention.key_channels: got 0, but the file's shapes say 3",
        ),
        ({"nodes": 2}, "model.nodes: got 2, expected a divisor of 1"),
        ({"nodes": "two"}, "model.nodes: got 'two', expected a divisor of 1"),
        ({"pad": 3}, "model.pad: got 3, which leaves no image of 8x6"),
        ({"pad": -1}, "pad: got -1, expected at least 0"),
        (
            {"prior_bounds": {"log_scale": 3}},
            "unknown key prior_bounds.log_scale; did you mean prior_bounds.log_scale_low?",
        ),
        ({"prior_bounds": 3}, "prior_bounds: got 3, expected a section of keys"),
        ({"widht": 3}, "unknown key widht; did you mean width?"),
        ({"likelihood": {"form": "official"}}, "likelihood.form: got 'official', expected one of exact"),
        ({"name": "nvae"}, "model.name: got 'nvae', expected attentive_vae"),
    ],
)
def test_overrides_that_contradict_the_file(own: Path, overrides: dict[str, Any], message: str) -> None:
    refused(own, message, overrides)


def test_read_keeps_the_order_and_the_numbers_of_the_file(own: Path) -> None:
    groups = read(own)
    assert [group.name for group in groups] == list(BY_HAND)
    with h5py.File(own) as file:
        for group in groups:
            assert [weight.name.encode() for weight in group.weights] == list(file[group.name].attrs["weight_names"])
            for weight in group.weights:
                assert np.array_equal(weight.value.numpy(), file[group.name][weight.name][()])


def test_models_that_the_authors_never_published_have_no_layout() -> None:
    config = AttentiveVAEConfig(layers=(1,), latent_channels=1, width=4, squeeze_excite=True)
    with pytest.raises(UserError, match="squeeze_excite"):
        layout(on_paper(config, (3, 4, 4), 256))

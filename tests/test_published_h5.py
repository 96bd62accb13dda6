"""Reading the authors' Keras weight files: the order of their weights, the configuration behind them, broken files.

The order is tested against tables made from files that the authors' own program wrote (where the reference data are at
hand), and against the order of a small model written out by hand from the description of those files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from davi.distributions import DiscretizedLogisticMixture
from davi.errors import UserError
from davi.model import Step
from davi.models.attentive_vae import (
    AttentiveVAE,
    AttentiveVAEConfig,
    DepthWiseAttention,
    GaussianOptions,
    SpatialAttention,
)
from davi.published import keras_h5
from davi.published.attentive import head_order, parameter_names
from davi.published.attentive_h5 import import_h5, infer_configuration
from davi.published.attentive_layout import datasets, layout
from davi.published.keras_h5 import Group, Weight, read

CIFAR = {
    "prior": GaussianOptions(-1.0, 5.0, 0.001),
    "posterior": GaussianOptions(-5.0, 5.0, 0.001),
    "likelihood": "logistic_mixture",
    "pad": 0,
}
OMNIGLOT = {
    "preprocess": (0, 0, -2),
    "postprocess": (2, 0, 0),
    "likelihood": "bernoulli",
    "mixture_components": 1,
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

SMALL = AttentiveVAEConfig(
    layers=(3,),
    latent_channels=2,
    width=4,
    encoder_blocks=1,
    decoder_blocks=1,
    nodes=1,
    pad=0,
    spatial_attention=SpatialAttention(encoder=2, postprocess=3, inference_merge=2),
    generative_attention=DepthWiseAttention(3),
    inference_attention=DepthWiseAttention(2),
    prior=GaussianOptions(-1.0, 5.0, 0.001),
    posterior=GaussianOptions(-5.0, 5.0, 0.001),
    mixture_components=2,
)
SMALL_SHAPE = (3, 8, 6)

# By hand. c: convolution, u: convolution without bias, n: gain and offset of a normalisation, s: non-local block, t: the
# same without biases, =: a single weight; behind the bar f: flag of a convolution, m: moving mean and variance.
_LOWER = """=:variational_layers/{i}/decoder_gate =:variational_layers/{i}/encoder_gate
    c:encoder_layers/{i}/block0/node0/conv n:encoder_layers/{i}/block0/node0/bn
    s:encoder_layers/{i}/block0/node0/nonlocal c:variational_layers/{i}/decoder/block0/node0/conv n:variational_layers/{i}/decoder/block0/node0/bn
    c:variational_layers/{i}/merge_decoder/conv c:variational_layers/{i}/merge_encoder/conv_b
    c:variational_layers/{i}/merge_encoder/conv_a s:variational_layers/{i}/merge_encoder/nonlocal
    c:variational_layers/{i}/posterior/conv c:variational_layers/{i}/prior/conv n:variational_layers/{i}/ln_last_value
    n:variational_layers/{i}/ln_attended n:variational_layers/{i}/ln_context n:variational_layers/{i}/ln_encoder_local
    n:variational_layers/{i}/ln_encoder_attended
    | f m:encoder_layers/{i}/block0/node0/bn f f f f m:variational_layers/{i}/decoder/block0/node0/bn f f f f f f f f"""
BY_HAND: dict[str, str] = {
    "concat_conv2d_7": "c:final_merge/conv | f",
    "data_layer": """u:postproc/block0/shortcut/conv t:postproc/block0/shortcut/nonlocal
        c:postproc/block0/node0/conv n:postproc/block0/node0/bn s:postproc/block0/node0/nonlocal
        c:postproc/block1/node0/conv n:postproc/block1/node0/bn s:postproc/block1/node0/nonlocal c:data_head/conv
        | f f f f f m:postproc/block0/node0/bn f f f f m:postproc/block1/node0/bn f f f f""",
    "res_net_3": """c:preproc/block0/node0/conv n:preproc/block0/node0/bn c:preproc/block1/shortcut/conv_1
        c:preproc/block1/shortcut/conv_2 c:preproc/block1/shortcut/conv_3 c:preproc/block1/shortcut/conv_4
        c:preproc/block1/node0/conv n:preproc/block1/node0/bn c:preproc/stem
        | f m:preproc/block0/node0/bn f f f f f m:preproc/block1/node0/bn f""",
    "variational_layer": """=:variational_layers/0/encoder_gate c:encoder_layers/0/block0/node0/conv
        n:encoder_layers/0/block0/node0/bn s:encoder_layers/0/block0/node0/nonlocal
        =:variational_layers/0/decoder_constant c:variational_layers/0/posterior/conv0
        c:variational_layers/0/posterior/conv1 n:variational_layers/0/ln_encoder_local
        n:variational_layers/0/ln_encoder_attended | f m:encoder_layers/0/block0/node0/bn f f f f f""",
    "variational_layer_1": _LOWER.format(i=1),
    "variational_layer_2": _LOWER.format(i=2),
    "layer_normalization_4": "|",
    "layer_normalization_9": "|",
    "layer_normalization_14": "n:context_stack_norm/2 |",
}
_CONV, _NORM = ("v", "log_g", "bias"), ("gamma", "beta")
_PARTS: dict[str, tuple[str, ...]] = {
    "c": _CONV,
    "u": _CONV[:2],
    "n": _NORM,
    "s": ("gamma", *(f"{conv}/{part}" for conv in ("query", "key", "value") for part in _CONV), "scale"),
    "t": ("gamma", *(f"{conv}/{part}" for conv in ("query", "key", "value") for part in _CONV[:2]), "scale"),
    "m": ("moving_mean", "moving_variance"),
}
_LEAF = {
    "v": "kernel",
    "log_g": "g",
    "decoder_gate": "gamma",
    "encoder_gate": "enc_gamma",
    "decoder_constant": "constant",
}


def by_hand(text: str) -> list[str | None]:
    """The structured names that a text of ``BY_HAND`` stands for; None: a flag."""
    names: list[str | None] = []
    for token in text.replace("|", "").split():
        kind, _, path = token.partition(":")
        if kind in "f=":
            names.append(path or None)
        else:
            names += [f"{path}/{part}" for part in _PARTS[kind]]
    return names


def small(seed: int = 3) -> AttentiveVAE:
    """A small model with all kinds of parts, every weight drawn at random."""
    model = AttentiveVAE(SMALL_SHAPE, 256, SMALL)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in model.state_dict().items():
            if not name.endswith(("num_batches_tracked", "attention.scale")) or "nodes" in name:
                x.copy_(torch.rand(x.shape, generator=generator).add(0.5) if x.is_floating_point() else x)
    for module in (*model.generative, *model.inference):
        module.attention.scale.data.fill_(1.0)  # not in the files
    return model.eval()


def their_layout(model: AttentiveVAE, name: str, x: Tensor) -> np.ndarray:
    """One of our tensors as the authors keep it."""
    if name.startswith("data_head/conv/"):
        order = head_order(model.head)
        x = x[[order.index(i) for i in range(len(order))]]
    if name.endswith("/v"):
        x = x.permute(2, 3, 1, 0)
    elif name.endswith("/decoder_constant"):
        x = x.permute(0, 2, 3, 1)
    return x.numpy()


def write(path: Path, model: AttentiveVAE, order: dict[str, list[str | None]]) -> Path:
    """A file as Keras writes it, with names whose counters mean nothing."""
    names, state = parameter_names(model), model.state_dict()
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = b"tensorflow"
        file.attrs["layer_names"] = [group.encode() for group in order]
        for group, members in order.items():
            handle, listed = file.create_group(group), []
            for i, name in enumerate(members):
                last = "initialized" if name is None else name.rpartition("/")[2]
                listed.append(f"deep_vae/thing_{97 - i % 7}/part_{i}/{_LEAF.get(last, last)}:0")
                handle[listed[-1]] = True if name is None else their_layout(model, name, state[names[name]])
            handle.attrs["weight_names"] = [name.encode() for name in listed]
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file of the small model."""
    return write(tmp_path / "own.h5", small(), {group: by_hand(text) for group, text in BY_HAND.items()})


@pytest.fixture(params=["own", "official"])
def weights_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, to be broken, of a good file: one of the small model, and one that the authors' program wrote."""
    if request.param == "own":
        path: Path = request.getfixturevalue("own")
        return path
    need: Callable[[str], Path] = request.getfixturevalue("need_shared")
    source = need("fixtures/attentive_h5/att_cifar_trained.h5")
    copy = tmp_path / "official.h5"
    shutil.copyfile(source, copy)
    return copy


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
    binary = config.likelihood == "bernoulli"
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
    assert (shape, levels) == (((1, 28, 28), 2) if config.likelihood == "bernoulli" else ((3, 32, 32), 256))
    assert "2 convolutions per block (by the names" in notes[-1]


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        (SMALL_SHAPE, SMALL),
        ((3, 16, 16), AttentiveVAEConfig((1,), 2, 4, pad=0, mixture_components=1)),
        ((3, 8, 8), AttentiveVAEConfig((2,), 5, 4, (-2, 0, -2), (0, 2, 2, 0), 3, 1, 2, pad=0, mixture_components=3)),
        ((1, 12, 8), AttentiveVAEConfig((2,), 1, 4, (0,), (0, 0), 1, 1, 3, pad=0, likelihood="bernoulli")),
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
                likelihood="bernoulli",
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
                mixture_components=2,
            ),
        ),
        (
            (3, 4, 4),
            AttentiveVAEConfig(
                (1,), 1, 2, (-2,), (2,), pad=0, inference_attention=DepthWiseAttention(2), mixture_components=2
            ),
        ),
    ],
)
def test_configuration_is_found_from_shapes_alone(shape: tuple[int, int, int], config: AttentiveVAEConfig) -> None:
    levels = 2 if config.likelihood == "bernoulli" else 256
    model = on_paper(config, shape, levels)
    found_shape, found_levels, found, _ = infer_configuration(groups_of(model))
    assert (found_shape, found_levels) == (shape, levels)
    same = {"prior": found.prior, "posterior": found.posterior, "mixture_components": found.mixture_components}
    if levels > 2:
        del same["mixture_components"]
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
    config = AttentiveVAEConfig((2,), 1, 2, (0, -2, 0), (2, 0), 2, 2, 1, pad=0, mixture_components=1)
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
    assert all(torch.equal(import_h5(own)[3][name], x) for name, x in small().state_dict().items())


def test_official_file_reproduces_the_official_numbers(need_shared: Callable[[str], Path]) -> None:
    facts = json.loads(need_shared("fixtures/attentive_h5/att_cifar_trained.json").read_text())
    path = need_shared("fixtures/attentive_h5/att_cifar_trained.h5")
    shape, levels, config, state, _ = import_h5(path, {"likelihood_form": "attentive"})
    model = AttentiveVAE(shape, levels, config)
    model.load_state_dict(state)
    model.eval()
    for name, theirs in facts["gates"].items():
        assert float(state[parameter_names(model)[name]]) == pytest.approx(theirs, rel=1e-7)
    x = load_file(need_shared("fixtures/att_cifar.safetensors"))["input/x_uint8"].permute(0, 3, 1, 2)
    steps: list[Step] = []

    def choose(layer: int, prior: Any, posterior: Any) -> Tensor:
        steps.append(Step(prior, posterior, posterior.mean))
        return steps[-1].z

    with torch.no_grad():
        likelihood = model.top_down(choose, model.encode(x))
    assert isinstance(likelihood, DiscretizedLogisticMixture)
    assert likelihood.form == "attentive"
    # The numbers are float32 on both sides: sums of 3072 terms of about 5 nats, and KLs of sums of 768.
    theirs = torch.tensor(facts["log_likelihood_official_nats"], dtype=torch.float64)
    assert (likelihood.log_prob(x) - theirs).abs().max() < 0.05
    kl = torch.stack([step.posterior.kl(step.prior) for step in steps], 1)
    theirs = torch.tensor(facts["kl_nats_per_layer_per_image"], dtype=torch.float64)
    assert ((kl - theirs).abs() / theirs).max() < 1e-4


def test_overrides(own: Path) -> None:
    given = {"prior": {"log_scale_low": -3}, "posterior": {"noise": 0.5}, "likelihood_form": "attentive", "width": 4}
    _, _, config, _, notes = import_h5(own, {**given, "name": "attentive_vae", "pad": None})
    assert config.prior == GaussianOptions(-3.0, 5.0, 0.001)
    assert config.posterior == GaussianOptions(-5.0, 5.0, 0.5)
    assert config.likelihood_form == "attentive"
    assert "prior log-scales -3 to 5" in notes[-1]
    shape, _, config, _, _ = import_h5(own, {"pad": 1})
    assert (shape, config.pad) == ((3, 6, 4), 1)


def test_binary_sets_are_taken_as_padded_unless_told_otherwise() -> None:
    config = AttentiveVAEConfig((1,), 2, 4, likelihood="bernoulli", pad=2)
    groups = groups_of(on_paper(config, (1, 28, 28), 2))
    shape, levels, found, _ = infer_configuration(groups)
    assert (shape, levels, found.pad) == ((1, 28, 28), 2, 2)
    shape, _, found, _ = infer_configuration(groups, {"pad": 0, "mixture_components": 5})
    assert (shape, found.pad) == ((1, 32, 32), 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 8}, "model.width: got 8, but the file's shapes say 4"),
        ({"layers": [2]}, "model.layers: got (2,), but the file's shapes say (3,)"),
        ({"spatial_attention": {"decoder": 1}}, "model.spatial_attention: got SpatialAttention("),
        ({"generative_attention": {"key_channels": 0}}, "model.generative_attention: got DepthWiseAttention("),
        ({"nodes": 2}, "model.nodes: got 2, expected a divisor of 1"),
        ({"nodes": "two"}, "model.nodes: got 'two', expected a divisor of 1"),
        ({"pad": 3}, "model.pad: got 3, which leaves no image of 8x6"),
        ({"pad": -1}, "pad: got -1, expected at least 0"),
        ({"prior": {"log_scale": 3}}, "unknown key prior.log_scale; did you mean prior.log_scale_low?"),
        ({"prior": 3}, "prior: got 3, expected a section of keys"),
        ({"widht": 3}, "unknown key widht; did you mean width?"),
        ({"likelihood_form": "official"}, "likelihood_form: got 'official', expected one of exact"),
        ({"name": "nvae"}, "model.name: got 'nvae', expected attentive_vae"),
    ],
)
def test_overrides_that_contradict_the_file(own: Path, overrides: dict[str, Any], message: str) -> None:
    refused(own, message, overrides)


def refused(path: Path, message: str, overrides: dict[str, Any] | None = None) -> None:
    """The file is refused in one line that begins with its path and contains the message."""
    with pytest.raises(UserError) as caught:
        import_h5(path, overrides)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()  # so it is one line, and no hostile name can play with the terminal
    assert message in text


def first(file: h5py.File, group: str, leaf: str) -> str:
    """Path of the first data set of a group with this last component."""
    names = [name.decode() for name in file[group].attrs["weight_names"]]
    return f"{group}/{next(name for name in names if name.endswith('/' + leaf) or name == leaf)}"


def replaced(file: h5py.File, path: str, value: Any, **options: Any) -> None:
    del file[path]
    file.create_dataset(path, data=value, **options)


def relisted(file: h5py.File, group: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the list of a group's data sets; '' is the list of groups."""
    holder, attribute = (file[group], "weight_names") if group else (file, "layer_names")
    holder.attrs[attribute] = change(list(holder.attrs[attribute]))


def swap(names: list[bytes], i: int, j: int) -> list[bytes]:
    names[i], names[j] = names[j], names[i]
    return names


def without_dataset(file: h5py.File) -> None:
    del file[first(file, "variational_layer_1", "kernel:0")]


def without_listed_dataset(file: h5py.File) -> None:
    del file[first(file, "variational_layer_1", "kernel:0")]
    relisted(
        file, "variational_layer_1", lambda names: [n for n in names if f"variational_layer_1/{n.decode()}" in file]
    )


def with_unlisted_dataset(file: h5py.File) -> None:
    file["data_layer/one/more"] = 1.0


def with_listed_dataset(file: h5py.File) -> None:
    file["data_layer/one/gamma:0"] = np.float32(1.0)
    relisted(file, "data_layer", lambda names: [*names, b"one/gamma:0"])


def with_layer_too_many(file: h5py.File) -> None:
    file.create_group("layer_normalization_99").attrs["weight_names"] = np.array([])
    relisted(file, "", lambda names: [*names, b"layer_normalization_99"])


def with_foreign_layer(file: h5py.File) -> None:
    file.create_group("dense").attrs["weight_names"] = [b"kernel:0"]
    file["dense/kernel:0"] = np.ones((2, 2), np.float32)
    relisted(file, "", lambda names: [b"dense", *names])


def with_transposed(file: h5py.File) -> None:
    path = first(file, "variational_layer_1", "kernel:0")
    replaced(file, path, file[path][()].reshape(file[path].shape[::-1]))


def with_wider_layer(file: h5py.File) -> None:
    path = first(file, "variational_layer_2", "bias:0")
    replaced(file, path, np.append(file[path][()], np.float32(0)))


def with_nan(file: h5py.File) -> None:
    file[first(file, "res_net_1" if "res_net_1" in file else "res_net_3", "moving_mean:0")][-1] = np.nan


def with_infinity(file: h5py.File) -> None:
    file[first(file, "data_layer", "bias:0")][0] = np.inf


def of_type(dtype: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        path = first(file, "data_layer", "g:0")
        replaced(file, path, file[path][()].astype(dtype))

    return change


def with_text(file: h5py.File) -> None:
    replaced(file, first(file, "data_layer", "g:0"), ["many"], dtype=h5py.string_dtype())


def with_ragged(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file.create_dataset(path, (9,), dtype=h5py.vlen_dtype(np.float32))


def with_nothing(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file[path] = h5py.Empty("f4")


def with_weight_for_flag(file: h5py.File) -> None:
    replaced(file, first(file, "concat_conv2d" if "concat_conv2d" in file else "concat_conv2d_7", "initialized:0"), 1.0)


def with_soft_link(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    file.move(path, "data_layer/elsewhere")
    file[path] = h5py.SoftLink("/data_layer/elsewhere")


def with_external_link(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file[path] = h5py.ExternalLink("other.h5", "/x")


def with_circle(file: h5py.File) -> None:
    file["data_layer/again"] = file["data_layer"]


def with_external_storage(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file.create_dataset(path, (9,), dtype="f4", external=[("elsewhere.bin", 0, 36)])


def with_virtual_dataset(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    virtual = h5py.VirtualLayout((9,), dtype="f4")
    virtual[:] = h5py.VirtualSource("other.h5", "x", (9,))
    file.create_virtual_dataset(path, virtual)


def with_compression(file: h5py.File) -> None:
    path = first(file, "variational_layer", "constant:0")
    replaced(file, path, file[path][()], compression="gzip")


def with_enormous_shape(file: h5py.File) -> None:
    path = first(file, "variational_layer", "constant:0")
    del file[path]
    file.create_dataset(path, (1, 2**20, 2**20, 2**20), dtype="f4", chunks=(1, 1, 1, 8))


def with_unwritten_data(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    shape = file[path].shape
    del file[path]
    file.create_dataset(path, shape, dtype="f4")


def with_many_names_for_the_same_bytes(file: h5py.File) -> None:
    names = [f"{i}/constant:0" for i in range(400)]
    for name in names:
        file[f"variational_layer/{name}"] = file[first(file, "variational_layer", "constant:0")]
    relisted(file, "variational_layer", lambda listed: listed + [name.encode() for name in names])


def with_renamed(file: h5py.File) -> None:
    path = first(file, "data_layer", "gamma:0")
    group, _, name = path.partition("/")
    file.move(path, path.replace("gamma:0", "delta:0"))
    relisted(file, group, lambda names: [n.replace(b"gamma:0", b"delta:0") if n == name.encode() else n for n in names])


def with_control_characters(file: h5py.File) -> None:
    relisted(file, "data_layer", lambda names: [b"\x1b[2J\nhello\xff", *names])


def without_layer_names(file: h5py.File) -> None:
    del file.attrs["layer_names"]


def without_weight_names(file: h5py.File) -> None:
    del file["variational_layer_2"].attrs["weight_names"]


def with_number_for_names(file: h5py.File) -> None:
    file.attrs["layer_names"] = 7


def with_numbers_for_names(file: h5py.File) -> None:
    file["data_layer"].attrs["weight_names"] = [1, 2, 3]


def with_group_for_weight(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file.create_group(path)


def with_type_for_weight(file: h5py.File) -> None:
    path = first(file, "data_layer", "g:0")
    del file[path]
    file[path] = np.dtype("f4")


BROKEN: dict[Callable[[h5py.File], None], str] = {
    without_dataset: "kernel:0', but does not hold it",
    without_listed_dataset: "group 'variational_layer_1'",
    with_unlisted_dataset: "holds the data set 'data_layer/one/more', which no layer lists",
    with_listed_dataset: "group 'data_layer' has",
    with_layer_too_many: "group 'layer_normalization_99' is one too many",
    with_foreign_layer: "group 0 is 'dense', expected concat_conv2d; is it the authors' Deep Attentive VAE?",
    with_transposed: "group 'variational_layer_1': ",
    with_wider_layer: "group 'variational_layer_2': ",
    with_nan: "/moving_mean holds values that are not finite",
    with_infinity: "/bias holds values that are not finite",
    of_type(np.float64): "holds float64, expected float32",
    of_type(np.float16): "holds float16, expected float32",
    of_type(np.int32): "holds int32, expected float32",
    with_text: "holds object, expected float32",
    with_ragged: "holds object, expected float32",
    with_nothing: "g:0' is empty",
    with_weight_for_flag: "group 'concat_conv2d",
    with_soft_link: "is a link to somewhere else",
    with_external_link: "is a link to somewhere else",
    with_circle: "nests groups more than 64 deep",
    with_external_storage: "is kept in another file",
    with_virtual_dataset: "is kept in another file",
    with_compression: "is compressed",
    with_enormous_shape: "has shape [1, 1048576, 1048576, 1048576], but the file holds only 0 bytes of it",
    with_unwritten_data: "but the file holds only 0 bytes of it",
    with_many_names_for_the_same_bytes: "bytes of weights, more than the",
    with_renamed: "delta:0",
    with_control_characters: "but does not hold it",
    without_layer_names: "has no attribute layer_names",
    without_weight_names: "group 'variational_layer_2' has no attribute weight_names",
    with_number_for_names: "attribute layer_names is not a list of names",
    with_numbers_for_names: "attribute weight_names is not a list of names",
    with_group_for_weight: "g:0', but does not hold it",
    with_type_for_weight: "is neither a group nor a data set",
    lambda file: relisted(file, "", lambda names: names[:-1]): "holds the data set 'layer_normalization_",
    lambda file: relisted(file, "", lambda names: swap(names, 3, 4)): "group 'variational_layer_1'",
    lambda file: relisted(file, "", lambda names: [*names, names[0]]): "layer_names lists a layer twice",
    lambda file: relisted(file, "", lambda names: [*names, b"none"]): "lists the layer 'none', but has no such group",
    lambda file: relisted(file, "", lambda names: [*names, b".."]): "lists the layer '..', but has no such group",
    lambda file: relisted(file, "", lambda names: []): "there are only 0 groups, expected concat_conv2d",
    lambda file: relisted(file, "data_layer", lambda names: swap(names, 0, 1)): "group 'data_layer': ",
    lambda file: relisted(file, "data_layer", lambda names: [*names, names[0]]): "weight_names lists a data set twice",
}
"""What is done to a good file -> part of the message."""


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__.strip("<>"))
def test_broken_files_are_refused_in_one_line(weights_file: Path, change: Callable[[h5py.File], None]) -> None:
    import_h5(weights_file)  # it is the change that breaks it
    with h5py.File(weights_file, "a") as file:
        change(file)
    refused(weights_file, BROKEN[change])


def test_files_that_are_no_hdf5_are_refused_in_one_line(weights_file: Path, tmp_path: Path) -> None:
    content = weights_file.read_bytes()
    bad = tmp_path / "bad.h5"
    refused(bad, "no such file")
    refused(tmp_path, "no such file")
    for text in (b"", b"weights: none", content[8:]):
        bad.write_bytes(text)
        refused(bad, "not an HDF5 file")
    for length in (9, 100, len(content) // 2, len(content) - 1):
        bad.write_bytes(content[:length])
        refused(bad, "damaged or truncated HDF5 file")


def test_damaged_bytes_are_refused_in_one_line_or_change_numbers_alone(own: Path) -> None:
    """Whatever byte of the file's structure is wrong: one line, or a complete model."""
    content = own.read_bytes()
    keys = import_h5(own)[3].keys()
    generator = np.random.default_rng(5)
    structure = [m.start() for m in re.finditer(rb"TREE|HEAP|SNOD|weight_names|layer_names", content)]
    refusals = 0
    for _ in range(60):
        damaged = bytearray(content)
        place = min(int(generator.choice(structure)) + int(generator.integers(-60, 200)), len(content) - 1)
        damaged[place] ^= int(generator.integers(1, 256))
        own.write_bytes(damaged)
        try:
            assert import_h5(own)[3].keys() == keys
        except UserError as error:
            assert str(error).isprintable()
            refusals += 1
    assert refusals > 5


def test_nothing_is_read_before_everything_is_checked(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(own, "a") as file:
        path = first(file, "layer_normalization_14", "beta:0")  # the last of the file
        replaced(file, path, file[path][()].astype(np.float64))

    def no_reading(dataset: Any) -> Tensor:
        raise AssertionError(f"read {dataset.name}")

    monkeypatch.setattr(keras_h5, "_tensor", no_reading)
    refused(own, "holds float64, expected float32")


def test_without_h5py_one_line_says_what_to_install(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_h5, "h5py", None)
    refused(own, "pip install 'davi[import]'")


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

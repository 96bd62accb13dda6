"""Our Deep Attentive VAE against the authors' own: the fixtures agree, a wrong weight is found and named, and a fixture
that cannot be used is refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from davi.models import AttentiveVAE
from davi.published.agreement import Comparison, report
from davi.published.attentive.names import configuration, state_dict
from davi.published.parity import main

FIXTURES = ("att_cifar", "att_omniglot", "base_cifar")

Tensors = dict[str, Tensor]
Facts = dict[str, Any]


def test_whatever_other_fixture_there_is_agrees(shared: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that the tests know by name are looked at more closely elsewhere; this one needs no name."""
    known = {*FIXTURES, "nvae_flow", "nvae_mnist", "vdvae_a"}
    folder = None if shared is None else shared / "fixtures"
    others = [] if folder is None else sorted(path for path in folder.glob("*.safetensors") if path.stem not in known)
    if not others:
        pytest.skip("needs fixtures of the reference data beyond those with tests of their own")
    failed = [path.name for path in others if main([str(path)]) != 0]
    assert not failed, capsys.readouterr().out


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FIXTURES)
def test_agrees_with_the_authors_code(
    need_shared: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, option: list[str]
) -> None:
    assert main([str(need_shared(f"fixtures/{name}.safetensors")), *option]) == 0
    printed = capsys.readouterr().out
    facts = json.loads(need_shared(f"fixtures/{name}.json").read_text())
    compared = {line.split()[0] for line in printed.splitlines() if line.endswith(" ok")}
    expected = [key for key in load_file(need_shared(f"fixtures/{name}.safetensors")) if key.startswith("expected/")]
    assert {key.removeprefix("expected/") for key in expected} <= compared
    assert {"kl", "log_likelihood/official", "log_likelihood/correct_edge_0999", "training_mode/kl"} <= compared
    gradients = {name for name in compared if name.startswith("gradient/")}
    wanted = facts["gradient_l2_norms_float64"] if option else {}
    assert gradients == {f"gradient/{weight}" for weight in wanted}


@pytest.mark.parametrize("name", FIXTURES)
def test_the_default_likelihood_is_theirs_with_the_edge_where_it_belongs(
    need_shared: Callable[[str], Path], name: str
) -> None:
    # Theirs takes the density at the middle of a bin for its probability where that is below 1e-5; on these images the
    # difference is 3e-6 nats of 18,000 in float64.
    path = need_shared(f"fixtures/{name}.safetensors")
    tensors, facts = load_file(path), json.loads(path.with_suffix(".json").read_text())
    shape, levels, config = configuration(facts["config"], facts["image_info"])
    model = AttentiveVAE(shape, levels, config)
    named = {key.removeprefix("weights/"): x for key, x in tensors.items() if key.startswith("weights/")}
    model.load_state_dict(state_dict(model, named))
    model.eval().double()
    x = tensors["input/x_uint8"].permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        ours = model.decode(model.latents(x)).log_prob(x)
    theirs = torch.tensor(facts["float64"]["log_likelihood_correct_edge_0999_nats"], dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-5)


def weight(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors, Facts], None]:
    def apply(tensors: Tensors, facts: Facts) -> None:
        tensors[f"weights/{name}"] = change(tensors[f"weights/{name}"]).contiguous()

    return apply


def pixelcnn_order(x: Tensor) -> Tensor:
    """The likelihood head as it would be if its outputs were ordered as in PixelCNN++: the means of all channels, all
    log-scales, all coefficients; the official order takes six of every nine numbers as one list."""
    k, rest = x.shape[-1] // 10, x[..., x.shape[-1] // 10 :]
    blocks = rest.unflatten(-1, (3, 3, k))  # [..., means | log-scales | coefficients, channel, component]
    return torch.cat([x[..., :k], blocks.permute(*range(blocks.ndim - 3), -1, -3, -2).flatten(-3)], -1)


def wrong_number(tensors: Tensors, facts: Facts) -> None:
    facts["float32"]["log_likelihood_official_nats"][1] += 0.1


def wrong_edge_number(tensors: Tensors, facts: Facts) -> None:
    facts["float32"]["log_likelihood_correct_edge_0999_nats"][0] += 0.1


def wrong_kl(tensors: Tensors, facts: Facts) -> None:
    facts["float32"]["kl_nats_per_layer_per_image"][1][2] *= 1.001


def wrong_training_number(tensors: Tensors, facts: Facts) -> None:
    facts["float32"]["training_mode"]["log_likelihood_official_nats"][0] -= 0.1


def not_a_number(tensors: Tensors, facts: Facts) -> None:
    facts["float32"]["kl_nats_per_layer_per_image"][0][0] = math.nan


def wrong_expectation(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/unconditional/layers/2/z"][0, 3, 5, 1] += 1.0


WRONG: list[tuple[str, Callable[[Tensors, Facts], None], str]] = [
    ("att_cifar", weight("preproc/stem/log_g", lambda x: x + 0.01), "preproc_output"),
    ("att_cifar", weight("preproc/block1/node0/bn/moving_mean", lambda x: x.flip(0)), "preproc_output"),
    ("att_cifar", weight("encoder_layers/2/block1/node1/conv/v", lambda x: x.flip(0)), "layers/2/encoder_feature"),
    ("att_cifar", weight("variational_layers/2/decoder_gate", lambda x: -x), "layers/2/attended_context"),
    ("att_cifar", weight("variational_layers/1/encoder_gate", lambda x: x + 1e-3), "layers/1/posterior_condition"),
    (
        "att_cifar",
        weight("variational_layers/2/encoder_attention_scale", lambda x: x + 1e-3),
        "layers/2/encoder_attention_weights",
    ),
    ("att_cifar", weight("variational_layers/3/prior/conv/bias", lambda x: x.roll(1)), "layers/3/prior_mu_raw"),
    ("att_cifar", weight("context_stack_norm/2/beta", lambda x: -x), "layers/2/decoder_attention_weights"),
    ("att_cifar", weight("data_head/conv/v", pixelcnn_order), "likelihood_params"),
    ("att_omniglot", weight("final_merge/nonlocal/gamma", lambda x: x * 1.01), "final_merge_output"),
    ("att_omniglot", weight("postproc/block0/shortcut/nonlocal/scale", lambda x: x + 0.1), "postproc_output"),
    (
        "base_cifar",
        weight("variational_layers/1/posterior/conv/v", lambda x: x.flip(1)),
        "layers/1/posterior_delta_mu_raw",
    ),
    ("base_cifar", wrong_number, "log_likelihood/official"),
    ("base_cifar", wrong_edge_number, "log_likelihood/correct_edge_0999"),
    ("base_cifar", wrong_kl, "kl"),
    ("base_cifar", wrong_training_number, "training_mode/log_likelihood/official"),
    ("base_cifar", not_a_number, "kl"),
    ("base_cifar", wrong_expectation, "unconditional/layers/2/z"),
]


@pytest.mark.parametrize(("name", "change", "first"), WRONG, ids=[f"{name}-{first}" for name, _, first in WRONG])
def test_names_the_first_tensor_that_differs(
    spoilt: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[Tensors, Facts], None],
    first: str,
) -> None:
    assert main([str(spoilt(name, change))]) == 1
    assert f"DIFFERS: {first} is the first," in capsys.readouterr().out


def test_float64_sees_what_float32_does_not(spoilt: Callable[..., Path]) -> None:
    """A change of 1e-5 in a log-likelihood, and of 1e-5 of a gradient, is far below the rounding of float32."""

    def likelihood(tensors: Tensors, facts: Facts) -> None:
        for key in ("float32", "float64"):
            facts[key]["log_likelihood_official_nats"][0] += 1e-5

    def gradient(tensors: Tensors, facts: Facts) -> None:
        facts["gradient_l2_norms_float64"]["preproc/stem/v"] *= 1.00001

    for change in (likelihood, gradient):
        path = str(spoilt("base_cifar", change))
        assert (main([path]), main([path, "--float64"])) == (0, 1)


def refused(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line with which the program gives up, status 2."""
    assert main([str(path), *options]) == 2
    line = capsys.readouterr().err
    assert line.startswith("parity: ")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    return line


def test_missing_and_broken_files(
    need_shared: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = need_shared("fixtures/base_cifar.safetensors")
    path = tmp_path / "copy.safetensors"
    assert f"{path}: no such file" in refused(path, capsys)
    path.write_bytes(source.read_bytes())
    beside = path.with_suffix(".json")
    assert f"{beside}: no such file" in refused(path, capsys)
    for text in ("", "{", "[1, 2]", '"model"', "{}", '{"model": "other"}', '{"model": null}', '{"model": ["a"]}'):
        beside.write_text(text)
        assert str(beside) in refused(path, capsys)
    beside.write_bytes(b"\xff\xfe{}")
    assert f"{beside}: not readable JSON" in refused(path, capsys)
    beside.write_text(source.with_suffix(".json").read_text())
    for content in (b"", b"safetensors", source.read_bytes()[:-1], source.read_bytes()[:1000]):
        path.write_bytes(content)
        assert f"{path}: not a readable safetensors file" in refused(path, capsys)
    assert "no such file" in refused(tmp_path, capsys)


def at(*keys: str | int, value: Any = None) -> Callable[[Tensors, Facts], None]:
    """Set a fact; without a value, remove it."""

    def apply(tensors: Tensors, facts: Facts) -> None:
        place: Any = facts
        for key in keys[:-1]:
            place = place[key]
        if value is None:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value

    return apply


def tensor(name: str, value: Tensor | None) -> Callable[[Tensors, Facts], None]:
    """Set a tensor; without a value, remove it."""

    def apply(tensors: Tensors, facts: Facts) -> None:
        del tensors[name]
        if value is not None:
            tensors[name] = value

    return apply


UNUSABLE: dict[str, Callable[[Tensors, Facts], None]] = {
    "no configuration": at("config"),
    "configuration is a list of texts": at("config", value=["hparams", "encoder_hparams"]),
    "group is a text": at("config", "encoder_hparams", value="scale=[0,0]"),
    "group is a list of texts": at("config", "encoder_hparams", value=["scale", "num_nodes"]),
    "group is missing": at("config", "merge_decoder_hparams"),
    "group is null": lambda tensors, facts: facts["config"].update(prior_hparams=None),
    "option is missing": at("config", "hparams", "num_layers"),
    "layers is a text": at("config", "hparams", "num_layers", value="three"),
    "no layers": at("config", "hparams", "num_layers", value=0),
    "negative layers": at("config", "hparams", "num_layers", value=-3),
    "layers is not a number": at("config", "hparams", "num_layers", value=math.nan),
    "layers without end": at("config", "hparams", "num_layers", value=math.inf),
    "a layer too many": at("config", "hparams", "num_layers", value=4),
    "an absurd number of layers": at("config", "hparams", "num_layers", value=10**12),
    "an absurd number of nodes": lambda tensors, facts: [
        facts["config"][f"{part}_hparams"].update(num_nodes=10**12)
        for part in ("preproc_encoder", "encoder", "decoder", "postproc_decoder")
    ],
    "an absurd width": lambda tensors, facts: [
        facts["config"][f"{part}_hparams"].update(num_filters=10**9)
        for part in ("preproc_encoder", "encoder", "decoder", "postproc_decoder")
    ],
    "an absurd image": at("image_info", "shape", value=[10**6, 10**6, 3]),
    "latent shape of texts": at("config", "hparams", "layer_latent_shape", value=["a", "b", "c"]),
    "unknown likelihood": at("config", "hparams", "data_distribution", value="normal"),
    "scale of texts": at("config", "preproc_encoder_hparams", "scale", value=["a", "b"]),
    "scale of lists": at("config", "preproc_encoder_hparams", "scale", value=[[0], [-2]]),
    "scale is a number": at("config", "encoder_hparams", "scale", value=3),
    "scale is empty": at("config", "postproc_decoder_hparams", "scale", value=[]),
    "nodes is a list": at("config", "encoder_hparams", "num_nodes", value=[2]),
    "bound is a text": at("config", "prior_hparams", "log_scale_low_bound", value="low"),
    "bounds the wrong way round": at("config", "prior_hparams", "log_scale_low_bound", value=9.0),
    "noise is a list": at("config", "posterior_hparams", "noise_stddev", value=[0.1]),
    "no mixture components": at("config", "data_dist_hparams", "num_logistic_mix", value=0),
    "mixture of texts": at("config", "data_dist_hparams", "num_logistic_mix", value="five"),
    "image of two numbers": at("image_info", "shape", value=[32, 32]),
    "image of texts": at("image_info", "shape", value=["a", "b", "c"]),
    "image of no size": at("image_info", "shape", value=[0, 32, 3]),
    "odd image": at("image_info", "shape", value=[31, 32, 3]),
    "negative padding": at("image_info", "pad_size", value=-1),
    "one level": at("image_info", "high", value=0),
    "two levels": at("image_info", "high", value=1),
    "no numbers": at("float32"),
    "numbers are a text": at("float32", value="all of them"),
    "no KL": at("float32", "kl_nats_per_layer_per_image"),
    "KL of texts": at("float32", "kl_nats_per_layer_per_image", value=[["a"], ["b"]]),
    "ragged KL": at("float32", "kl_nats_per_layer_per_image", value=[[1.0], [1.0, 2.0]]),
    "likelihood is an object": at("float32", "log_likelihood_official_nats", value={"a": 1}),
    "no training mode": at("float32", "training_mode"),
    "training mode is a list": at("float32", "training_mode", value=[1.0]),
    "rounding is a list": at("float32_vs_float64_max_abs_difference_and_scale", value=["a"]),
    "no images": tensor("input/x_uint8", None),
    "images too large": tensor("input/x_uint8", torch.zeros(2, 64, 64, 3, dtype=torch.uint8)),
    "images without channels": tensor("input/x_uint8", torch.zeros(2, 32, 32, dtype=torch.uint8)),
    "images of real numbers": tensor("input/x_uint8", torch.zeros(2, 32, 32, 3)),
    "a weight is missing": tensor("weights/preproc/stem/v", None),
    "a weight has another shape": tensor("weights/preproc/stem/v", torch.zeros(3, 3, 3, 7)),
    "a weight has too few dimensions": tensor("weights/preproc/stem/v", torch.zeros(8)),
    "a weight is not finite": tensor("weights/preproc/stem/log_g", torch.full((8,), math.inf)),
    "a weight of integers": tensor("weights/preproc/stem/log_g", torch.zeros(8, dtype=torch.int64)),
    "a weight too many": lambda tensors, facts: tensors.update({"weights/preproc/stem/w": torch.zeros(1)}),
    "an expectation too many": lambda tensors, facts: tensors.update({"expected/layers/0/x": torch.zeros(1)}),
}
"""What is done to a fixture that cannot be used afterwards."""


@pytest.mark.parametrize("what", UNUSABLE)
def test_unusable_fixtures_are_refused_in_one_line(
    spoilt: Callable[..., Path], capsys: pytest.CaptureFixture[str], what: str
) -> None:
    refused(spoilt("base_cifar", UNUSABLE[what]), capsys)


@pytest.mark.parametrize("value", ["a", ["a", "b"], {"preproc/stem/v": "a"}, {"preproc/stem": 1.0}], ids=repr)
def test_unusable_gradients_are_refused_in_one_line(
    spoilt: Callable[..., Path], capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    path = spoilt("base_cifar", at("gradient_l2_norms_float64", value=value))
    refused(path, capsys, "--float64")


def test_comparison() -> None:
    ours, theirs = torch.tensor([1.0, -4.0]), torch.tensor([1.5, -2.0])
    assert Comparison("a", ours, theirs, 1.0, "scale").difference == 1.0  # 2 of 2
    assert Comparison("a", ours, theirs, 1.0, "each").difference == 1.0  # 2 of 2; 0.5 of 1.5 is less
    assert Comparison("a", ours, theirs, 1.0, "absolute").difference == 2.0
    assert Comparison("a", ours, theirs, 1.0, "absolute", slack=1.5).difference == 0.5
    assert Comparison("a", ours, theirs, 1.0).agrees
    assert not Comparison("a", ours, theirs, 0.99).agrees
    assert not Comparison("a", ours[:1], theirs, 9.0).agrees
    assert not Comparison("a", torch.tensor([1.0, math.nan]), torch.ones(2), 1e9).agrees


def test_report_names_the_first_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = torch.ones(3), torch.full((3,), 2.0)
    good, bad, worse = (
        Comparison("good", one, one, 0.0),
        Comparison("bad", one, two, 0.1),
        Comparison("x", two, one, 0.1),
    )
    assert report([good]) is None
    assert report([good, bad, worse]) == "bad"
    assert capsys.readouterr().out.count("DIFFERS") == 2

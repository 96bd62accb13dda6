"""The authors' Very Deep VAE in ours: fixtures and an independent oracle agree, wrong weights are named, files of
weights become runs, and files that are none are refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from official_vdvae import Official, log_likelihood, random_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

import davi
from davi import recipes
from davi.cli import main as davi_main
from davi.cli.import_ import known
from davi.cli.verbs import FORMS
from davi.distributions import DiscretizedLogisticMixture
from davi.errors import UserError
from davi.models.very_deep_vae import VeryDeepVAE, VeryDeepVAEConfig
from davi.published.importers import IMPORTERS
from davi.published.parity import main
from davi.published.reader import Given
from davi.published.torch_files import fitted, load_state
from davi.published.vdvae.files import Facts, chosen, import_vdvae
from davi.published.vdvae.names import configuration, parameter_names

MEAN, DEVIATION = 120.63838, 64.16736
CUSTOM: dict[str, Any] = {
    "width": 8,
    "zdim": 3,
    "enc_blocks": "32x1,32d2,16,16d4,4x2",
    "dec_blocks": "4x2,16m4,16x1,32m16,32x1,16m4,32m16",
    "bottleneck_multiple": 0.5,
    "no_bias_above": 16,
    "custom_width_str": "16:12,4:24",
    "num_mixtures": 3,
    "image_size": 32,
    "image_channels": 3,
}
"""Channels appended and cut off, pooling by 4, a start from zeros, a scale that is visited twice."""
COARSE = {**CUSTOM, "enc_blocks": "8d2,4d4,1x2", "dec_blocks": "1x2,4m1,8m4,8x1", "image_size": 8}
COARSE |= {"custom_width_str": "1:10", "bottleneck_multiple": 0.25, "no_bias_above": 64, "num_mixtures": 10}
"""Kernels of 1x1 only at the top."""


def write_fixture(
    folder: Path, options: dict[str, Any], change: Callable[[dict[str, Any]], None] | None = None
) -> Path:
    """A fixture in the form of the reference's, computed by the oracle."""
    weights, size = random_weights(options), options["image_size"]
    x = torch.randint(256, (2, size, size, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x[0, 0], x[1, 1], x[1, 2] = 0, 255, 254
    facts: dict[str, Any] = {
        "model": "vdvae",
        "config": options,
        "input_scaling": f"x=(u8-{MEAN})/{DEVIATION} (cifar10)",
    }
    tensors = {"input_u8": x, **{f"state_dict/module.{name}": value for name, value in weights.items()}}
    images = x.permute(0, 3, 1, 2)
    for dtype in (torch.float64, torch.float32):
        official = Official(options, {name: value.to(dtype) for name, value in weights.items()})
        found = official.decode(2, official.encode((images.to(dtype) - MEAN) / DEVIATION))
        facts[str(dtype).removeprefix("torch.")] = {
            "recon_nll_nats": (-log_likelihood(found["params"], images, options["num_mixtures"])).tolist(),
            "recon_nll_nats_5bit": (-log_likelihood(found["params"], images, options["num_mixtures"], True)).tolist(),
            "kl_nats_per_layer_per_image": torch.stack(found["kl"], 1).tolist(),
        }
    tensors |= {f"z/{i}": z for i, z in enumerate(found["z"])}
    tensors["recon_params"] = found["params"].permute(0, 2, 3, 1)
    tensors["uncond_params"] = official.decode(1, None)["params"].permute(0, 2, 3, 1)
    if change is not None:
        change(tensors)
    path = folder / "mine.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["vdvae_a"])
def test_agrees_with_the_authors_code(
    need_shared: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, option: list[str]
) -> None:
    assert main([str(need_shared(f"fixtures/{name}.safetensors")), *option]) == 0
    printed = capsys.readouterr().out
    facts = json.loads(need_shared(f"fixtures/{name}.json").read_text())
    layers = range(facts["n_latent_layers"])
    wanted = {f"layer {i}: {what}" for i in layers for what in ("z", "kl")}
    wanted |= {"recon_params", "uncond_params", "log_likelihood_nats", "log_likelihood_nats_5bit"}
    assert wanted == {line[:52].strip() for line in printed.splitlines() if line.endswith(" ok")}


@pytest.mark.parametrize("options", [CUSTOM, COARSE], ids=["custom", "coarse"])
@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
def test_agrees_with_the_oracle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], option: list[str]
) -> None:
    assert main([str(write_fixture(tmp_path, options)), *option]) == 0, capsys.readouterr().out


def test_the_oracle_is_the_authors_model(need_shared: Callable[[str], Path]) -> None:
    """So that what it says of configurations without a fixture can be believed."""
    path = need_shared("fixtures/vdvae_a.safetensors")
    tensors, facts = load_file(path), json.loads(path.with_suffix(".json").read_text())
    weights = {name.removeprefix("state_dict/"): x.double() for name, x in tensors.items() if name[:6] == "state_"}
    official = Official(facts["config"], weights)
    x = tensors["input_u8"].permute(0, 3, 1, 2)
    found = official.decode(2, official.encode((x.double() - MEAN) / DEVIATION))
    theirs = facts["float64"]
    kl = torch.tensor(theirs["kl_nats_per_layer_per_image"], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(found["kl"], 1), kl, rtol=1e-9, atol=1e-12)  # float64 on both sides
    for bits, key in ((False, "recon_nll_nats"), (True, "recon_nll_nats_5bit")):
        ours = -log_likelihood(found["params"], x, 10, bits)
        torch.testing.assert_close(ours, torch.tensor(theirs[key], dtype=torch.float64), rtol=1e-7, atol=0.0)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("decoder.dec_blocks.3.enc.c2.weight", "layer 3: z"),
        ("decoder.dec_blocks.2.prior.c4.weight", "layer 2: kl"),
        ("decoder.dec_blocks.1.z_proj.weight", "layer 2: z"),
        ("decoder.bias_xs.1", "layer 2: z"),
        ("encoder.in_conv.weight", "layer 0: z"),
        ("decoder.gain", "recon_params"),
    ],
)
def test_the_first_layer_that_differs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, first: str
) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        x = tensors[f"state_dict/module.{name}"]
        tensors[f"state_dict/module.{name}"] = x + 0.1 * x.abs().max()

    assert main([str(write_fixture(tmp_path, CUSTOM, spoil))]) == 1
    assert f"DIFFERS: {first} is the first" in capsys.readouterr().out


def test_a_fixture_whose_weights_do_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["state_dict/module.decoder.gain"]
        tensors["state_dict/extra"] = torch.zeros(1)
        tensors["state_dict/module.decoder.bias"] = torch.zeros(1, 3, 1, 1)

    assert main([str(write_fixture(tmp_path, CUSTOM, spoil))]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in ("1 missing (decoder.gain)", "1 unexpected (extra)", "1 of another shape (decoder.bias [1, 3, 1, 1]"):
        assert part in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_channels": 1}, "image_channels is 1, expected 3"),
        ({"image_size": 16}, "image_size is 16, expected that at which enc_blocks begin"),
        ({"enc_blocks": "32y2"}, "got '32y2', expected"),
        ({"zdim": None}, "expected the authors' hyperparameters"),
    ],
)
def test_configurations_that_have_no_meaning_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"^configuration: ") as caught:
        configuration({**CUSTOM, **change}, 0.5, 0.25)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def official_file(path: Path, options: dict[str, Any], prefix: str = "") -> Path:
    torch.save({prefix + name: x for name, x in random_weights(options).items()}, path)
    return path


RECIPE = """
model:
  name: very_deep_vae
  encoder: "{enc_blocks}"
  decoder: "{dec_blocks}"
  custom_widths: "{custom_width_str}"
  width: {width}
  latent_channels: {zdim}
  bottleneck: {bottleneck_multiple}
  bias_up_to: {no_bias_above}
  likelihood: {{components: {num_mixtures}}}
  input_mean: 0.473091686
  input_deviation: 0.251636706
data: {{set: cifar10}}
"""


def recipe_for(folder: Path, options: dict[str, Any]) -> Path:
    path = folder / "mine.yaml"
    path.write_text(RECIPE.format(**options))
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_import_makes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], prefix: str) -> None:
    file = official_file(tmp_path / "a-model.th", CUSTOM, prefix)
    recipe, run = recipe_for(tmp_path, CUSTOM), tmp_path / "run"
    assert davi_main(["import", "vdvae", str(file), "--recipe", str(recipe), "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert "likelihood: the exact one" in said
    assert "images of 3x32x32 with 256 levels; data set: cifar10" in said
    model = davi.load(run)
    assert isinstance(model, VeryDeepVAE)
    assert not model.training
    x = torch.randint(256, (2, 3, 32, 32))
    official = Official(CUSTOM, {name: value.double() for name, value in random_weights(CUSTOM).items()})
    theirs = official.decode(2, official.encode((x.double() - MEAN) / DEVIATION))
    with torch.no_grad():
        ours = model.double().decode(model.latents(x)).log_prob(x)
    # The exact form against theirs; and input_mean has nine digits here.
    torch.testing.assert_close(ours, log_likelihood(theirs["params"], x, 3), rtol=1e-6, atol=0.0)


def test_an_imported_fixture_has_the_authors_numbers(need_shared: Callable[[str], Path], tmp_path: Path) -> None:
    path = need_shared("fixtures/vdvae_a.safetensors")
    tensors, facts = load_file(path), json.loads(path.with_suffix(".json").read_text())
    weights = {name.replace("state_dict/", "module."): x for name, x in tensors.items() if name[:6] == "state_"}
    torch.save(weights, tmp_path / "a-model.th")
    recipe, run = recipe_for(tmp_path, facts["config"]), tmp_path / "run"
    words = ["import", "vdvae", str(tmp_path / "a-model.th"), "--recipe", str(recipe), "--run", str(run)]
    assert davi_main(words) == 0
    model = davi.load(run).double()
    assert isinstance(model, VeryDeepVAE)
    x = tensors["input_u8"].permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        likelihood = model.decode(model.latents(x))
    assert isinstance(likelihood, DiscretizedLogisticMixture)
    theirs = -torch.tensor(facts["float64"]["recon_nll_nats"], dtype=torch.float64)
    assert likelihood.form == "exact"
    # No probability here is below 1e-5, where the two would differ; 19,000 nats in float64.
    assert (likelihood.log_prob(x) - theirs).abs().max() < 1e-6


def test_five_bits_are_converted_as_far_as_they_can_be(tmp_path: Path) -> None:
    """Without the coefficients the converted model is the authors' on bins that lie side by side."""
    weights = random_weights(COARSE)
    weights["decoder.out_net.out_conv.weight"][10:] *= 0.0
    bias = weights["decoder.out_net.out_conv.bias"][10:].view(3, 3, 10)
    bias[:, 1], bias[:, 2] = -2.0, 0.0
    torch.save(weights, tmp_path / "five.th")
    options = recipes.load(recipe_for(tmp_path, COARSE)).to_dict()["model"]
    del options["name"]
    found = import_vdvae(tmp_path / "five.th", Given(options, ((3, 8, 8), 32)))
    assert found.levels == 32
    assert any("overlap" in note for note in found.notes)
    model = VeryDeepVAE(found.shape, found.levels, found.config).double()
    model.load_state_dict(found.state)
    x = torch.randint(1, 31, (2, 3, 8, 8))  # the ends are open here and closed there
    official = Official(COARSE, {name: value.double() for name, value in weights.items()})
    theirs = log_likelihood(official.decode(2, None)["params"], 8 * x, 10, True)
    with torch.no_grad():
        zeros = [torch.zeros(2, 3, *z.shape[2:], dtype=torch.float64) for z in model.latents(x)]
        ours = model.decode(zeros).log_prob(x)
    # Their bins are 2/31 wide at distances of 8/127.5: log(2/31 / (8/127.5)) = 0.0278 nats a value too much.
    torch.testing.assert_close(theirs - ours, torch.full_like(ours, 0.02779 * 192), rtol=0.02, atol=0.0)


def test_the_recipe_that_fits_is_found(tmp_path: Path) -> None:
    """Among recipes of equal widths, by the number of blocks; on paper, since the file would have 157 MB."""
    with torch.device("meta"):
        model = VeryDeepVAE((3, 32, 32), 256, VeryDeepVAEConfig())
    state = model.state_dict()
    weights = {name: state[key] for name, key in parameter_names(model).items()}
    assert len(weights) == 1393
    facts = Facts.of(weights)
    assert str(facts) == "33 and 43 blocks, width 384, 16 latent channels, 10 mixture components"
    found = chosen(facts, weights, Given(known=partial(known, IMPORTERS["vdvae"])))
    assert found.name == "very_deep_vae_cifar10"
    assert found.geometry == ((3, 32, 32), 256)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_files_that_would_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"encoder.in_conv.weight": Evil()}, "zipped.th")
    Path("pickled.th").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    torch.save({"a": Evil()}, "old.th", _use_new_zipfile_serialization=False)
    for name in ("zipped.th", "pickled.th", "old.th"):
        with pytest.raises(UserError, match=f"^{name}: ") as caught:
            load_state(Path(name))
        assert "\n" not in str(caught.value)
    assert not Path("executed").exists()
    with pytest.raises(UserError, match="refused, since it holds more than tensors and would run code"):
        load_state(Path("zipped.th"))


def test_files_that_are_no_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = official_file(tmp_path / "whole.th", CUSTOM).read_bytes()
    recipe = recipe_for(tmp_path, CUSTOM)
    files = {
        "cut.th": whole[: len(whole) // 2],
        "short.th": whole[:100],
        "empty.th": b"",
        "text.th": b"hello\nworld\n" * 20,
        "middle.th": whole[:2000] + b"x" * 500 + whole[2500:],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.th")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.th")
    torch.save({**random_weights(CUSTOM), "decoder.gain": "one"}, tmp_path / "words.th")
    nan = random_weights(CUSTOM)
    nan["decoder.gain"][0, 1] = torch.nan
    torch.save(nan, tmp_path / "nan.th")
    reasons = {"words.th": "1 not usable (decoder.gain is str)", "nan.th": "1 not usable (decoder.gain is not finite)"}
    for name in (*files, "list.th", "other.th", "words.th", "nan.th", "missing.th", "."):
        run = tmp_path / "run"
        words = ["import", "vdvae", str(tmp_path / name), "--recipe", str(recipe), "--run", str(run)]
        assert davi_main(words) == 2, name
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert str(tmp_path / name) in said
        assert reasons.get(name, "") in said
        assert not run.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 12}, "model.width: got 12, expected 8 as in the file"),
        ({"zdim": 5}, "model.latent_channels: got 5, expected 3 as in the file"),
        ({"num_mixtures": 4}, "model.likelihood.components: got 4, expected 3 as in the file"),
        ({"dec_blocks": "4x2,16m4,32m16"}, "model.decoder: got 4 blocks, expected 8 as in the file"),
        (
            {"custom_width_str": "16:14,4:24"},
            "of another shape (encoder.enc_blocks.2.c1.weight [6, 12, 1, 1], expected",
        ),
        ({"no_bias_above": 4}, "1 unexpected (decoder.bias_xs.1)"),
        ({"no_bias_above": 32}, "1 missing (decoder.bias_xs.2)"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    file = official_file(tmp_path / "a.th", CUSTOM)
    recipe = recipe_for(tmp_path, {**CUSTOM, **change})
    assert davi_main(["import", "vdvae", str(file), "--recipe", str(recipe), "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_everything_that_does_not_fit_is_listed_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = official_file(tmp_path / "a.th", CUSTOM)
    recipe = recipe_for(tmp_path, {**CUSTOM, "custom_width_str": "16:14,4:24"})
    words = ["import", "vdvae", str(file), "--recipe", str(recipe), "--run", str(tmp_path / "run")]
    assert davi_main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (count,) = [int(n) for n in re.findall(r"(\d+) of another shape", said.err)]
    assert davi_main([*words, "--mismatches"]) == 2
    listed = capsys.readouterr().out.splitlines()
    assert len(set(listed)) == len(listed) == count > 3
    assert all(re.fullmatch(r"of another shape: \S+ \[[\d, ]+\], expected \[[\d, ]+\]", line) for line in listed)


def test_without_a_recipe_that_fits_one_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = official_file(tmp_path / "a.th", CUSTOM)
    assert davi_main(["import", "vdvae", str(file), "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "has 6 and 8 blocks, width 8, 3 latent channels, 3 mixture components, which fits none of" in said
    assert "very_deep_vae_cifar10" in said
    assert davi_main(["import", "vdvae", str(file), "--recipe", "attentive_digits", "--run", "x"]) == 2
    assert "got attentive_digits, a attentive_vae, expected one of very_deep_vae" in capsys.readouterr().err


def test_every_form_is_offered() -> None:
    assert list(FORMS) == list(IMPORTERS)


def test_all_that_is_wrong_is_told_at_once() -> None:
    expected = {f"w{i}": torch.zeros(2) for i in range(6)}
    names = {f"their{i}": f"w{i}" for i in range(6)}
    found: dict[str, Any] = {"their0": torch.zeros(3), "their1": torch.zeros(2, dtype=torch.int64), "odd": 1}
    with pytest.raises(UserError) as caught:
        fitted(expected, found, names)
    assert str(caught.value) == (
        "weights: 4 missing (their2, their3, their4, ...); 1 unexpected (odd); "
        "1 of another shape (their0 [3], expected [2]); 1 not usable (their1 is torch.int64, expected torch.float32); "
        "of 6 expected, 3 found"
    )

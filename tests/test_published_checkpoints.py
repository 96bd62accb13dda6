"""Checkpoints as the original programs write them: the numbers are those of these programs, whatever surrounds the
weights; another form is recognized; and no damaged file is read."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_published_nvae import checkpoint
from torch import Tensor

import davi
from davi.cli import main
from davi.config import load_yaml
from davi.data import DataConfig, load
from davi.errors import UserError
from davi.published.nvae.files import import_nvae
from davi.published.reader import Given
from davi.published.recognition import recognized
from davi.published.torch_files import load_state, weights_among, without_prefix
from davi.published.vdvae.files import import_vdvae

Need = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]

ROWS = (
    *("--model.encoder", "32x2,32d2,16x2,16d2,8x2,8d2,4x1,4d4,1x1"),
    *("--model.decoder", "1x1,4m1,4x1,8m4,8x2,16m8,16x2,32m16,32x2"),
)
NORMALIZATION = ("--model.input_mean", "0.47309169", "--model.input_deviation", "0.25163671")
VDVAE, NVAE = "fixtures/checkpoints/vdvae_a-model-ema.th", "fixtures/checkpoints/nvae_mnist.pt"


def run_import(form: str, file: Path, run: Path, *words: str) -> int:
    return main(["import", form, str(file), "--run", str(run), *words])


@torch.no_grad()
def mean_bound(run: Path, x: Tensor) -> float:
    """Nats per image, with one draw of the latents each."""
    model, generator = davi.load(run), torch.Generator().manual_seed(0)
    bounds = [model.evidence(part, generator).log_px for part in x.split(50)]
    return -float(torch.cat(bounds).mean())


def test_a_very_deep_vae_has_the_original_programs_number(need_shared: Need, tmp_path: Path, capsys: Capture) -> None:
    file, mosaic = need_shared(VDVAE), need_shared("data/cifar10/test.webp")
    assert run_import("vdvae", file, tmp_path / "run", *ROWS, *NORMALIZATION, "--data", "cifar10") == 0
    said = capsys.readouterr().out
    assert "the recipe" not in said
    assert "not in the file, and taken from the options given" in said
    assert "images of 3x32x32 with 256 levels; data set: cifar10\n" in said
    assert load_yaml(tmp_path / "run" / "recipe.yaml")["data"]["set"] == "cifar10"
    with Image.open(mosaic) as image:
        tiles = np.asarray(image.crop((0, 0, 3200, 160))).reshape(5, 32, 100, 32, 3)  # the first 500 images
    x = torch.from_numpy(tiles.transpose(0, 2, 4, 1, 3).reshape(500, 3, 32, 32).copy())
    bits = mean_bound(tmp_path / "run", x) / 3072 / np.log(2)
    # Theirs with two seeds: 6.4005 and 6.4003. Draws move the bound of an image by 0.033, the mean of 500 by 0.0015.
    assert bits == pytest.approx(6.4004, abs=0.006)


def test_an_nvae_has_the_original_programs_number(need_shared: Need, tmp_path: Path) -> None:
    assert run_import("nvae", need_shared(NVAE), tmp_path / "run") == 0
    images = load(DataConfig("mnist", str(need_shared("data")), binarization="dynamic")).test
    # Theirs with two seeds: 179.43 and 179.73, of another binarization of the same images.
    assert mean_bound(tmp_path / "run", images.pixels[:500]) == pytest.approx(179.58, abs=1.0)


def prefixed(prefix: str) -> Callable[[Any], Any]:
    return lambda weights: {prefix + name: x for name, x in weights.items()}


WRAPPINGS: dict[str, Callable[[Any], Any]] = {
    "module.": prefixed("module."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "state_dict": lambda weights: {"state_dict": prefixed("module.")(weights), "epoch": 3},
    "model and ema": lambda weights: {"model": {n: x + 1 for n, x in weights.items()}, "model_ema": weights},
    "two deep": lambda weights: {"trainer": {"model": weights, "step": 3}, "optimizer": {"state": {}}},
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_weights_are_found_in_what_surrounds_them(need_shared: Need, tmp_path: Path, name: str) -> None:
    file, other = need_shared(VDVAE), tmp_path / "other.th"
    torch.save(WRAPPINGS[name](torch.load(file, weights_only=True)), other)
    options = {"encoder": ROWS[1], "decoder": ROWS[3], "input_mean": 0.473, "input_deviation": 0.252}
    plain, wrapped = (import_vdvae(path, Given(options)) for path in (file, other))
    assert ("weights: those under 'model_ema'" in wrapped.notes) == (name == "model and ema")
    if name == "module.":
        save_file(load_state(other), tmp_path / "converted.safetensors")
        wrapped = import_vdvae(tmp_path / "converted.safetensors", Given(options))
    assert list(plain.state) == list(wrapped.state)
    assert all(torch.equal(plain.state[key], x) for key, x in wrapped.state.items())


def test_of_several_sets_of_weights_none_is_guessed() -> None:
    def known(names: Any) -> bool:
        return "a" in names

    with pytest.raises(UserError, match=r"^holds several sets of weights \(first, second\), expected one$"):
        weights_among({"first": {"a": 1}, "second": {"module.a": 2}}, known)
    assert weights_among({"first": {"a": 1}, "schema": {"b": 2}}, known) == ({"a": 1}, "first")
    with pytest.raises(UserError, match=r"^weights: a is there twice, with a prefix"):
        without_prefix({"a": 1, "model.module.a": 2})
    for nothing in ([1], {"b": 2}, None, {}):
        with pytest.raises(UserError, match=r"^holds .* without the names of this model's weights$"):
            weights_among(nothing, known)


def rewritten(need_shared: Need, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The checkpoint of NVAE after a change."""
    content = load_state(need_shared(NVAE))
    change(content)
    torch.save(content, path)
    return path


def test_nvae_files_as_others_pass_them_on(need_shared: Need, tmp_path: Path) -> None:
    whole = import_nvae(need_shared(NVAE), Given())

    def parallel(content: dict[str, Any]) -> None:
        content["state_dict"] = prefixed("module.")(content["state_dict"])
        content["args"] = vars(content["args"])

    def bare(content: dict[str, Any]) -> None:
        weights = content.pop("state_dict")
        content.clear()
        content.update(weights)

    found = import_nvae(rewritten(need_shared, tmp_path / "parallel.pt", parallel), Given())
    assert found.config == whole.config
    path = rewritten(need_shared, tmp_path / "bare.pt", bare)
    with pytest.raises(UserError, match=r"bare.pt: holds weights without args, .*; give --recipe$"):
        import_nvae(path, Given())
    options = {
        key: getattr(whole.config, key)
        for key in ("groups", "latent_channels", "encoder_width", "decoder_width", "preprocess_cells", "shifts")
    }
    options |= {
        "pad": 2,
        "postprocess_cells": 2,
        "encoder_cells": 1,
        "decoder_cells": 1,
        "likelihood": {"family": "bernoulli", "components": 1},
    }
    alone = import_nvae(path, Given(options, ((1, 28, 28), 2)))
    for other in (found, alone):
        assert (other.shape, other.levels) == (whole.shape, whole.levels)
        assert all(torch.equal(whole.state[key], x) for key, x in other.state.items())


CROSSED = [
    ("nvae", VDVAE, "looks like a VDVAE checkpoint, expected an NVAE checkpoint; davi import vdvae reads it"),
    ("vdvae", NVAE, "looks like an NVAE checkpoint, expected a VDVAE checkpoint; davi import nvae reads it"),
    ("attentive", NVAE, "looks like an NVAE checkpoint, expected a Keras file (HDF5); davi import nvae reads it"),
    ("attentive", VDVAE, "looks like a VDVAE checkpoint, expected a Keras file (HDF5)"),
    ("nvae", "fixtures/attentive_h5/att_cifar_trained.h5", "looks like a Keras file (HDF5), expected an NVAE"),
    ("vdvae", "fixtures/checkpoints", "is a folder, expected a file of weights"),
    ("nvae", "fixtures/checkpoints", "is a folder, expected a file of weights"),
    ("attentive", "fixtures/checkpoints", "is a folder, expected a file of weights"),
    ("vdvae", "fixtures/vdvae_a.safetensors", "holds a dictionary of 345 without the names of this model's weights"),
]


@pytest.mark.parametrize(("form", "file", "words"), CROSSED)
def test_another_form_is_recognized(
    need_shared: Need, tmp_path: Path, capsys: Capture, form: str, file: str, words: str
) -> None:
    path = need_shared(file)
    assert run_import(form, path, tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"davi: {path}: {words}")
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_no_weights_at_all_is_recognized(need_shared: Need, tmp_path: Path, capsys: Capture) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    torch.save(torch.optim.AdamW([parameter]).state_dict(), tmp_path / "a-opt.th")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3)))
    assert run_import("nvae", need_shared(NVAE), tmp_path / "run") == 0
    capsys.readouterr()
    for name, words in {
        "a-opt.th": "looks like the state of an optimizer, expected a VDVAE checkpoint; the weights are in the file",
        "a.zip": "not a file of weights that torch.save wrote, or damaged (a zip archive of another program)",
        "a.npz": "not a file of weights that torch.save wrote, or damaged (a zip archive of another program)",
        "run": "is a folder, expected a file of weights",
        "run/model.safetensors": "looks like a model that davi wrote, expected a VDVAE checkpoint; davi evaluate and",
        "absent": "no such file",
    }.items():
        assert run_import("vdvae", tmp_path / name, tmp_path / "new") == 2
        told = capsys.readouterr().err
        assert told.startswith(f"davi: {tmp_path / name}: {words}")
        assert told.count("\n") == 1
    (tmp_path / "cut.th").write_bytes((tmp_path / "run" / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match="not a file of weights"):
        load_state(tmp_path / "cut.th")
    for content in (b"", b"\x05", b"{" * 20, b"\x00" * 8 + b"{", (50).to_bytes(8, "little") + b'{"__metadata__": 3}'):
        (tmp_path / "odd").write_bytes(content)
        assert recognized(tmp_path / "odd") is None


@pytest.mark.parametrize("zipped", [True, False])
def test_no_file_is_read_by_half(need_shared: Need, tmp_path: Path, zipped: bool) -> None:
    """Cut off anywhere, it is refused; and whatever byte is changed, too, unless it is one that means nothing. Files of
    the older kind have no check sums: of them only cuts are noticed."""
    content = torch.load(need_shared(VDVAE), weights_only=True)
    small = {name: content[name] for name in list(content)[:10]}
    buffer = io.BytesIO()
    torch.save(small, buffer, _use_new_zipfile_serialization=zipped)
    whole, path = buffer.getvalue(), tmp_path / "a.th"
    for length in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"^\S+a.th: not a file of weights"):
            load_state(path)
    refused = 0
    for position in range(3, len(whole) if zipped else 0, len(whole) // 300):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            found = load_state(path)
        except UserError:
            refused += 1
            continue
        assert all(torch.equal(small[name], found[name]) for name in small), position
    assert refused > 150 or not zipped


def test_a_file_without_check_sums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(9)}, tmp_path / "a.th")
    finally:
        torch.serialization.set_crc32_options(before)
    assert load_state(tmp_path / "a.th")["a"].tolist() == list(range(9))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (ROWS, "--model.input_mean and --model.input_deviation: not given, expected mean and deviation of the pixels"),
        ((*ROWS, *NORMALIZATION[:2]), "--model.input_deviation: not given, expected mean"),
        ((*ROWS, "--model.input_mean", "120.6", *NORMALIZATION[2:]), "model.input_mean: got 120.6, expected 0 to 1"),
        ((*ROWS, *NORMALIZATION, "--data", "cifar10", "--data.levels", "32"), "data.levels: got 32, expected 256"),
        ((*ROWS, *NORMALIZATION, "--data", "cifar10", "--data.test", "x"), "data.test: got "),
        ((*ROWS, *NORMALIZATION, "--data", "cifar10", "--data.crop", "[8, 8]"), "data.crop: got [8, 8], expected noth"),
        ((*ROWS, *NORMALIZATION, "--data", "mnist"), "data: got mnist with images [1, 28, 28] of 256 levels, expected"),
        ((*ROWS, *NORMALIZATION, "--data", "{tmp}/small.npy"), "small.npy with images [3, 8, 8] of 256 levels, expect"),
        (("--model.encoder", "32x2"), "which fits none of very_deep_vae_cifar10, "),
        (("--recipe", "{tmp}/mine.yaml"), "--model.input_mean and --model.input_deviation: not given"),
    ],
)
def test_what_a_file_does_not_tell_is_asked_for(
    need_shared: Need, tmp_path: Path, capsys: Capture, words: tuple[str, ...], message: str
) -> None:
    np.save(tmp_path / "small.npy", np.zeros((20, 8, 8, 3), np.uint8))
    rows = f"encoder: '{ROWS[1]}'\n  decoder: '{ROWS[3]}'"
    (tmp_path / "mine.yaml").write_text(
        f"model:\n  name: very_deep_vae\n  {rows}\n  width: 32\n  latent_channels: 8\ndata: {{set: cifar10}}\n"
    )
    given = [word.format(tmp=tmp_path) for word in words]
    assert run_import("vdvae", need_shared(VDVAE), tmp_path / "run", *given) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_levels_of_a_named_set_are_those_it_has(need_shared: Need, tmp_path: Path, capsys: Capture) -> None:
    for words in (("--data.levels", "2"), ("--data", "mnist", "--data.levels", "16")):
        assert run_import("nvae", need_shared(NVAE), tmp_path / "run", *words) == 2
        assert "data.levels: got " in capsys.readouterr().err
    source = need_shared("fixtures/nvae_flow.safetensors")
    path = checkpoint(source, tmp_path / "five.pt", num_x_bits=5)
    assert run_import("nvae", path, tmp_path / "five") == 0
    assert "with 32 levels; data set: unknown" in capsys.readouterr().out
    assert run_import("nvae", path, tmp_path / "again", "--data", "cifar10") == 2
    assert "cifar10 with images [3, 32, 32] of 256 levels, expected [3, 32, 32] of 32" in capsys.readouterr().err
    x = np.random.default_rng(0).integers(0, 32, (20, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "five.npy", x)
    words = ("--data", str(tmp_path / "five.npy"), "--data.levels", "32")
    assert run_import("nvae", path, tmp_path / "again", *words) == 0
    assert main(["evaluate", str(tmp_path / "again"), "--limit", "2"]) == 0
    shutil.rmtree(tmp_path / "again")


@pytest.mark.parametrize(
    ("form", "said"),
    [("exact", "likelihood: the exact one"), ("openai", "likelihood: the form openai, which gives no")],
)
def test_the_form_of_the_likelihood_is_told(
    need_shared: Need, tmp_path: Path, capsys: Capture, form: str, said: str
) -> None:
    words = (*ROWS, *NORMALIZATION, "--model.likelihood.form", form)
    assert run_import("vdvae", need_shared(VDVAE), tmp_path / "run", *words) == 0
    told = capsys.readouterr().out
    assert next(line for line in told.splitlines() if line.startswith("likelihood")).startswith(said)
    assert davi.load(tmp_path / "run").config.likelihood.form == form
    assert run_import("nvae", need_shared(NVAE), tmp_path / "other", "--model.likelihood.form", "nvae") == 2
    assert "likelihood.form: got nvae, expected exact for a bernoulli" in capsys.readouterr().err

"""Flows through the program: a look inside, latents written and read back, and what does not apply to them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from sklearn.datasets import load_digits
from torch import Tensor
from toys.scales import ScalesFlow

import davi
from davi.cli import main
from davi.model import Invertible, LatentModel
from davi.models import MODELS

Capture = pytest.CaptureFixture[str]


def digits() -> Tensor:
    """The test images of the set."""
    return torch.tensor(load_digits().data[-397:]).view(-1, 1, 8, 8).to(torch.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The folder of a flow that was trained for two steps."""
    folder = tmp_path_factory.mktemp("flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, ScalesFlow.name, ScalesFlow)
        sections = {"data": {"set": "digits", "validation": 100}, "training": {**toys.TRAINING, "steps": 2}}
        recipe = toys.recipe(folder, ScalesFlow.name, **sections)
        assert main(["train", str(recipe), "--run", str(folder / "run")]) == 0
        yield str(folder / "run")


def test_encoded_images_come_back(run: str, tmp_path: Path, capsys: Capture) -> None:
    latents, images = tmp_path / "z.npz", tmp_path / "x.npy"
    capsys.readouterr()
    assert main(["encode", run, "--out", str(latents)]) == 0
    assert capsys.readouterr().out == (
        f"layer_00: 2 x 4 x 4\nlayer_01: 8 x 2 x 2\nlatents of 397 images of digits/test: {latents}\n"
    )
    model = davi.load(run)
    assert isinstance(model, Invertible)
    with np.load(latents) as archive:
        assert sorted(archive) == ["files", "grids", "layer_00", "layer_01"]
        assert archive["grids"].tolist() == [[4, 4], [2, 2]]
        for i, z in enumerate(model.encode(digits())):
            torch.testing.assert_close(torch.from_numpy(archive[f"layer_{i:02d}"]), z, rtol=0.0, atol=1e-5)
    assert main(["decode", run, str(latents), "--out", str(images)]) == 0
    assert "397 images" in capsys.readouterr().out
    assert images.with_suffix(".png").is_file()
    decoded = np.load(images)
    assert (decoded.dtype, decoded.shape) == (np.uint8, (397, 8, 8))
    np.testing.assert_array_equal(decoded, digits()[:, 0].numpy())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["reconstruct"], "run: toy_scales is a flow, whose latents give back the very images; davi inspect says"),
        (["sample", "--recalibrate"], "--recalibrate: toy_scales is a flow, whose likelihood"),
        (["sample", "--temperature", "1,1"], "--temperature: got a list of 2, expected one number"),
        (["sample", "--given", "test"], "--given: toy_scales does not predict each pixel from those before it"),
        (["score", "--llr", "1"], "llr: got k = 1, expected none: LLR>k needs a model with two layers of latents"),
        (["decode", "none.npz"], "none.npz: no such file, expected latents that davi encode has written"),
        (["decode", "--out", "none/x.npy"], "none/x.npy: cannot be written, no such folder none"),
    ],
)
def test_what_does_not_apply_is_one_line(run: str, words: list[str], told: str, capsys: Capture) -> None:
    assert main([words[0], run, *words[1:]]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"davi: {told}")
    assert printed.count("\n") == 1


def test_the_gap_of_a_flow_is_that_of_its_noise(run: str, capsys: Capture) -> None:
    assert main(["evaluate", run, "--gap", "--gap-images", "3", "--gap-samples", "4"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "ScalesFlow is a flow, all of whose gap is that of its noise" in told


def test_inspecting_a_flow(run: str, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "page.html"
    assert main(["inspect", run, "--limit", "20", "--no-figures", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    parts = next(line for line in lines if line.startswith("parts:  scale 1, latents "))
    costs = [float(word.partition(";")[0]) for word in parts.replace(",", "").split() if "." in word]
    assert sum(costs[:-1]) == pytest.approx(costs[-1], abs=0.005)  # six numbers rounded to thousandths
    assert next(line for line in lines if line.startswith("inverse: ")).endswith("as they do where this is below 0.5")
    assert "Latents by scale" in out.read_text(encoding="utf-8")


def test_latents_of_other_shapes_or_no_numbers_are_refused(run: str, tmp_path: Path, capsys: Capture) -> None:
    fine, coarse = np.zeros((3, 2, 4, 4), np.float32), np.zeros((3, 8, 2, 2), np.float32)
    bad = {
        "got latents of the shapes [[2, 4, 4]], expected [[2, 4, 4], [8, 2, 2]] for each image": {"layer_00": fine},
        "got layers of [2, 3] images, expected as many in each": {"layer_00": fine[:2], "layer_01": coarse},
        "got layers of [0, 0] images": {"layer_00": fine[:0], "layer_01": coarse[:0]},
        "got latents that are not finite numbers": {"layer_00": fine, "layer_01": coarse + np.nan},
        "got latents that are not": {"layer_00": fine, "layer_01": coarse.astype(np.float64) + 1e300},  # in float32
        "got latents": {"layer_00": fine, "layer_01": coarse.astype(complex)},
        "cannot be read": {"layer_00": np.array([None]), "layer_01": coarse},
    }
    for told, arrays in bad.items():
        path = tmp_path / "z.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        assert main(["decode", run, str(path)]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"davi: {path}: {told}")
        assert printed.count("\n") == 1


def test_a_damaged_file_of_latents_is_refused(run: str, tmp_path: Path, capsys: Capture) -> None:
    """Within what is compressed, in the header of an array, and where the means of compression are named."""
    path = tmp_path / "z.npz"
    arrays = {"layer_00": np.random.default_rng(0).normal(size=(3, 2, 4, 4)), "layer_01": np.zeros((3, 8, 2, 2))}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    whole = path.read_bytes()
    compressed = bytearray(whole)
    compressed[300:310] = bytes(10)
    method = bytearray(whole)
    method[whole.index(b"PK\x01\x02") + 10] = 14
    for damaged in (compressed, method):
        path.write_bytes(damaged)
        assert main(["decode", run, str(path)]) == 2
        assert (
            capsys.readouterr().err == f"davi: {path}: cannot be read, expected latents that davi encode has written\n"
        )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("layer_00.npy", b"\x93NUMPY\x01\x00v\x00{'descr': " + b" " * 200)
    assert main(["decode", run, str(path)]) == 2
    assert capsys.readouterr().err == f"davi: {path}: cannot be read, expected latents that davi encode has written\n"


def test_a_hierarchy_decodes_its_latents_as_it_reconstructs(tmp_path: Path, capsys: Capture) -> None:
    words = ["--training.steps", "1", "--training.validate_every", "0", "--training.threads", "1"]
    run = str(tmp_path / "run")
    assert main(["train", "vae_digits_tiny", "--run", run, *words]) == 0
    assert main(["encode", run]) == 0
    assert main(["decode", run]) == 0
    model = davi.load(run)
    assert isinstance(model, LatentModel)
    decoded = np.load(tmp_path / "run" / "decoded.npy")
    expected = model.reconstruct(digits())[:, 0].numpy()
    assert (decoded != expected).mean() < 1e-3  # rounding, where two values are equally probable

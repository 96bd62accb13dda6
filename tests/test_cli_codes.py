"""Codes through the program and from Python: trained in two stages, written as small integers and read back."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inspected import contents
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

import davi
from davi.cli import main
from davi.distributions import Latent
from davi.errors import UserError
from davi.metrics import read_metrics
from davi.model import Quantized
from davi.page.curves import curves
from davi.training.log import Log

Capture = pytest.CaptureFixture[str]


def digits() -> Tensor:
    """The test images of the set."""
    return torch.tensor(load_digits().data[-397:]).view(-1, 1, 8, 8).to(torch.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of both stages, and what training said."""
    folder = tmp_path_factory.mktemp("codes")
    words = ["--training.steps", "6", "--training.validate_every", "0", "--data.validation", "20"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["train", "vq_vae2_digits_tiny", "--run", str(folder / "run"), *words]) == 0
    return folder / "run", said.getvalue()


def load(run: Path) -> Quantized:
    model = davi.load(run)
    assert isinstance(model, Quantized)
    return model


def test_each_stage_ends_with_what_pixels_and_codes_take(trained: tuple[Path, str]) -> None:
    run, said = trained
    records = [record for record in read_metrics(run) if record["kind"] == "codes"]
    assert [(record["stage"], record["step"]) for record in records] == [("autoencoder", 6), ("prior", 12)]
    first, last = records
    assert first["nats"]["codes, uniform prior"] == pytest.approx(20 * np.log(6))
    assert "codes, trained prior" not in first["nats"]
    assert first["nats"]["reconstruction"] == pytest.approx(last["nats"]["reconstruction"])  # of the same weights
    model = load(run)
    with torch.no_grad():
        evidence = model.evidence(torch.tensor(load_digits().data[1380:1400]).view(-1, 1, 8, 8).to(torch.uint8))
    taken = sum(float(-term.mean()) for name, term in evidence.terms.items() if name.startswith("kl/"))
    assert last["nats"]["codes, trained prior"] == pytest.approx(taken, rel=1e-5)
    assert [line for line in said.splitlines() if line.startswith(("after stage", "perplexity"))][2].startswith(
        "after stage prior: reconstruction "
    )
    assert ", trained prior " in said


def test_what_the_prior_takes_in_training_is_per_value_of_an_image(trained: tuple[Path, str]) -> None:
    """As in every other line, and in the evaluation: not per code."""
    run, _ = trained
    records = [record for record in read_metrics(run) if record["kind"] in ("train", "validation")]
    assert {record["stage"] for record in records} == {"autoencoder", "prior"}
    for record in records:
        assert record["bits_per_dim"] == pytest.approx(record["nats"] / (64 * np.log(2)))
    last = [record for record in read_metrics(run) if record["kind"] == "codes"][-1]
    assert records[-1]["kind"] == "validation"
    assert records[-1]["nats"] == pytest.approx(last["nats"]["codes, trained prior"], rel=1e-5)


def test_what_is_validated_in_a_stage_is_named(trained: tuple[Path, str]) -> None:
    """The last validation of a run is that of its prior, which is not the cost of an image."""
    run, _ = trained
    assert "\n  validation of prior: " in repr(davi.Run(run))
    section = curves(contents(records=read_metrics(run)), 64)
    told = {figure.name: figure.caption for figure in section.figures() if figure.name.startswith("curve-bits")}
    assert told == {
        "curve-bits-1": "Cost of an image in bits/dim; lower is better.",
        "curve-bits-2": "Cost of the codes of an image, without its pixels, in bits/dim; lower is better.",
    }


def test_the_end_of_a_stage_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often training is killed there."""
    event, run = Log.event, tmp_path / "run"

    def killed(log: Log, kind: str, step: int, **values: Any) -> None:
        if kind == "stage":
            raise RuntimeError("killed")
        event(log, kind, step, **values)

    words = ["--run", str(run), "--training.steps", "2", "--training.checkpoints.steps", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(Log, "event", killed)
        for more in (["vq_vae_digits_tiny"], ["--resume"]):
            with pytest.raises(RuntimeError, match=r"^killed$"):
                main(["train", *more, *words, "--training.validate_every", "0"])
    assert main(["train", "--resume", *words, "--training.validate_every", "0"]) == 0
    records = [record for record in read_metrics(run) if record["kind"] == "codes"]
    assert [(record["stage"], record["step"]) for record in records] == [("autoencoder", 2), ("prior", 4)]


def test_codes_are_small_integers_and_decode_to_the_reconstruction(
    trained: tuple[Path, str], tmp_path: Path, capsys: Capture
) -> None:
    run, _ = trained
    codes, images = tmp_path / "codes.npz", tmp_path / "images.npy"
    assert main(["encode", str(run), "--out", str(codes)]) == 0
    said = capsys.readouterr().out
    assert "layer_00: 1 x 2 x 2, codes from 0 to 5\nlayer_01: 1 x 4 x 4, codes from 0 to 5\ncodes of 397 images" in said
    model = load(run)
    with np.load(codes) as found:
        assert found["sizes"].tolist() == [6, 6]
        assert "active_00" not in found
        for layer, expected in enumerate(model.autoencoder.codes(digits())):
            assert found[f"layer_{layer:02d}"].dtype == np.uint8
            np.testing.assert_array_equal(found[f"layer_{layer:02d}"], expected.numpy())
    assert main(["decode", str(run), "--data", str(codes), "--out", str(images), "--batch-size", "397"]) == 0
    np.testing.assert_array_equal(np.load(images), model.reconstruct(digits())[:, 0].numpy())
    with torch.no_grad():  # not only the most probable value: all numbers of p(x | z)
        seen = model.top_down(lambda layer, prior, posterior: _center(posterior), model.encode(digits()))
        assert torch.equal(model.decode(model.latents(digits())).log_prob(digits()), seen.log_prob(digits()))


def _center(posterior: Latent | None) -> Tensor:
    assert posterior is not None
    return posterior.center()


def test_a_folder_gets_a_file_for_each_image(trained: tuple[Path, str], tmp_path: Path, capsys: Capture) -> None:
    run, _ = trained
    codes, folder = tmp_path / "codes.npz", tmp_path / "made"
    assert main(["encode", str(run), "--out", str(codes)]) == 0
    assert main(["decode", str(run), "--data", str(codes), "--out", str(folder)]) == 0
    assert f"397 images as PNG files: {folder}" in capsys.readouterr().out
    files = sorted(folder.iterdir())
    assert [files[0].name, files[-1].name, len(files)] == ["000.png", "396.png", 397]
    reconstruction = load(run).reconstruct(digits())
    shade = np.asarray(Image.open(files[5]))
    assert shade.shape == (8, 8)
    np.testing.assert_array_equal(shade, np.round(reconstruction[5, 0].numpy() * 255 / 16 + 1e-9))


GOOD = {"layer_00": np.zeros((3, 1, 2, 2), np.uint8), "layer_01": np.zeros((3, 1, 4, 4), np.int64)}
HOSTILE = {
    "got codes from 0 to 6, expected integers from 0 to 5": {
        "layer_01": np.full((3, 1, 4, 4), 6) * np.eye(4, dtype=int)
    },
    "got codes from -1 to -1, expected integers from 0 to 5": {"layer_00": np.full((3, 1, 2, 2), -1, np.int8)},
    "got codes from 18446744073709551615 to": {"layer_00": np.full((3, 1, 2, 2), 2**64 - 1, np.uint64)},
    "got codes of the type float64, expected integers from 0 to 5": {"layer_00": np.zeros((3, 1, 2, 2))},
    "got codes of the type bool, expected": {"layer_00": np.zeros((3, 1, 2, 2), bool)},
    "got latents of the shapes [[1, 2, 2], [1, 2, 2]], expected [[1, 2, 2], [1, 4, 4]]": {
        "layer_01": np.zeros((3, 1, 2, 2), np.uint8)
    },
    "got layers of [3, 2] images, expected as many in each": {"layer_01": np.zeros((2, 1, 4, 4), np.uint8)},
    "got codes of another model, with the sizes [6, 5], expected [6, 6]": {"sizes": np.array([6, 5])},
    "cannot be read": {"layer_00": np.array([None])},
}


@pytest.mark.parametrize("told", HOSTILE)
def test_what_are_no_codes_of_the_model_is_refused(
    trained: tuple[Path, str], tmp_path: Path, capsys: Capture, told: str
) -> None:
    path = tmp_path / "codes.npz"
    arrays = GOOD | HOSTILE[told]
    np.savez(path, **arrays)  # type: ignore[arg-type]
    assert main(["decode", str(trained[0]), "--data", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"davi: {path}: {told}")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_names_that_decode_does_not_take(trained: tuple[Path, str], tmp_path: Path, capsys: Capture) -> None:
    run, path = str(trained[0]), tmp_path / "codes.npz"
    np.savez(path, **GOOD)  # type: ignore[arg-type]
    assert main(["decode", run, str(path), "--data", str(path)]) == 2
    assert "expected one of them" in capsys.readouterr().err
    assert main(["decode", run, str(path), "--out", "x.png"]) == 2
    assert "got 'x.png', expected the path of a .npy file or of a folder" in capsys.readouterr().err
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    assert main(["decode", run, str(path), "--out", str(tmp_path / "taken")]) == 2
    assert str(tmp_path / "taken") in capsys.readouterr().err


def test_codes_from_python(trained: tuple[Path, str], tmp_path: Path) -> None:
    run = davi.Run(shutil.copytree(trained[0], tmp_path / "run"))
    codes = run.encode(batch_size=397)
    assert [(layer.dtype, tuple(layer.shape)) for layer in codes] == [
        (torch.int64, (397, 1, 2, 2)),
        (torch.int64, (397, 1, 4, 4)),
    ]
    assert torch.equal(run.decode(codes, batch_size=397), load(run.folder).reconstruct(digits()))
    assert torch.equal(run.decode(batch_size=397), run.decode(codes, batch_size=397))  # the file in the folder
    codes[1][0, 0, 0, 0] = 6
    with pytest.raises(UserError, match=r"^latents: got codes from \d to 6, expected integers from 0 to 5"):
        run.decode(codes)
    codes[0] = codes[0][:, :, :1]
    with pytest.raises(UserError, match=r"^latents: got latents of the shapes"):
        run.decode(codes)

"""``davi sample --given``: images are continued from their first rows, and what is wrong is said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from toys.belief_net import BeliefNet
from toys.boltzmann import Boltzmann

import davi
from davi.cli import main
from davi.data.subsets import positions
from davi.layers.autoregressive_pixels import reporting
from davi.model import Autoregressive
from davi.pictures import GAP_LEVEL, completions
from davi.progress import part_of

Capture = pytest.CaptureFixture[str]
TEST = 397


@pytest.fixture(scope="module", autouse=True)
def _toys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        toys.register(patch)
        yield


def trained(folder: Path, name: str, **sections: object) -> Path:
    """A run of a toy on digits, 8x8 pixels."""
    assert main(["train", str(toys.recipe(folder, name, **sections)), "--run", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _toys: None) -> Path:
    """Of a belief net, not to be changed."""
    return trained(tmp_path_factory.mktemp("belief"), BeliefNet.name)


def load(run: Path) -> Autoregressive:
    model = davi.load(run)
    assert isinstance(model, Autoregressive)
    return model


def digits(n: int) -> Tensor:
    """Test images, spread evenly, black and white, ``[n, 1, 8, 8]``."""
    chosen = load_digits().images[-TEST:][positions(TEST, n).tolist()]
    return torch.from_numpy(chosen > 8).long()[:, None]


def test_what_is_written_are_the_completions_of_python(run: Path, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "made.png"
    capsys.readouterr()
    words = ["--given", "test", "--rows", "5", "--n", "3", "--draws", "2", "--seed", "4", "--out", str(target)]
    assert main(["sample", str(run), *words]) == 0
    assert capsys.readouterr().out == (
        "3 of 397 images, spread evenly, seed 0, of digits/test, 5 of 8 rows given, 2 draws of the rest "
        f"at temperature 1, seed 4: {target}\n"
    )
    x = digits(3)
    drawn = load(run).complete(x.repeat_interleave(2, 0), rows=5, seed=4)
    assert torch.equal(drawn[:, :, :5], x.repeat_interleave(2, 0)[:, :, :5])
    expected = completions(x, drawn.unflatten(0, (3, 2)), 5, 2)
    with Image.open(target) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_images_of_a_file_are_continued(run: Path, tmp_path: Path, capsys: Capture) -> None:
    given = tmp_path / "given.npy"
    np.save(given, digits(2)[:, 0].to(torch.uint8).numpy())
    assert main(["sample", str(run), "--given", str(given), "--rows", "0", "--draws", "1", "--data.levels", "2"]) == 0
    said = capsys.readouterr().out
    assert f"2 images of {given}, 0 of 8 rows given, 1 draw of the rest" in said
    assert (run / "completions.png").is_file()


def test_the_picture_shows_what_was_given(run: Path) -> None:
    """Three columns under their headings: the original, what of it is left, and the draw."""
    original = torch.ones(1, 1, 2, 56, dtype=torch.int64)
    picture = np.asarray(completions(original, torch.zeros(1, 1, 1, 2, 56).long(), 1, 2, padding=4))
    scale = (picture.shape[1] - 16) // (3 * 56)
    top = picture.shape[0] - 4 - 2 * scale
    rows = picture[[top, -5], :, 0]  # the upper row of the images and the lower one
    middles = [4 + i * (56 * scale + 4) + 28 * scale for i in range(3)]
    assert rows[:, middles].tolist() == [[255, 255, 0], [255, GAP_LEVEL, 0]]
    heading = picture[: top - 4, :, 0]
    assert [bool((heading[:, m - 20 : m + 20] < GAP_LEVEL).any()) for m in middles] == [True] * 3


def test_wrong_words_are_told_in_a_line(run: Path, tmp_path: Path, capsys: Capture) -> None:
    large = tmp_path / "large.npy"
    np.save(large, np.zeros((2, 9, 9), np.uint8))
    gray = tmp_path / "gray.npy"
    np.save(gray, np.arange(128, dtype=np.uint8).reshape(2, 8, 8))
    given = ["--given", "test"]
    for words, expected in (
        ([*given], "--rows: got nothing, expected 0 to 8, how many rows of each image are kept"),
        ([*given, "--rows", "9"], "--rows: got 9, expected 0 to 8, how many rows of each image are kept"),
        (["--rows", "4"], "--rows: got it alone, expected --given X, whose images it is about"),
        (["--data.root", "x"], "--data.root: got it alone, expected --given X, whose images it is about"),
        ([*given, "--rows", "4", "--temperature", "1,2"], "--temperature: got a list, expected one number"),
        ([*given, "--rows", "4", "--recalibrate"], "--recalibrate: cannot be used with --given"),
        (["--given", str(large), "--rows", "4"], "data: got images [1, 9, 9]"),
        (["--given", str(gray), "--rows", "4", "--data.binarization", "none"], "data: got images [1, 8, 8] with 256"),
        (["--given", str(tmp_path / "no"), "--rows", "4"], "data.set: got"),
    ):
        capsys.readouterr()
        assert main(["sample", str(run), *words]) == 2, words
        said = capsys.readouterr().err.splitlines()
        assert len([line for line in said if line.startswith("davi: ")]) == 1
        assert expected in said[-1]


def test_only_models_of_pixels_in_order_continue_images(tmp_path: Path, capsys: Capture) -> None:
    other = trained(tmp_path, Boltzmann.name)
    capsys.readouterr()
    assert main(["sample", str(other), "--given", "test", "--rows", "4"]) == 2
    assert capsys.readouterr().err == (
        "davi: --given: toy_boltzmann does not predict each pixel from those before it, expected a model that does\n"
    )


def test_images_are_continued_within_their_class(tmp_path: Path, capsys: Capture) -> None:
    data = {"set": "digits", "binarization": "threshold", "validation": 100, "labels": True}
    conditional = trained(tmp_path, BeliefNet.name, data=data)
    words = ["--given", "test", "--rows", "2", "--n", "4", "--draws", "1"]
    assert main(["sample", str(conditional), *words]) == 0
    labels = torch.from_numpy(load_digits().target[-TEST:][positions(TEST, 4).tolist()])
    x = digits(4)
    drawn = load(conditional).complete(x, rows=2, seed=0, y=labels)
    with Image.open(conditional / "completions.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(completions(x, drawn[:, None], 2, 2)))
    unlabeled = tmp_path / "images.npy"
    np.save(unlabeled, x[:, 0].to(torch.uint8).numpy())
    capsys.readouterr()
    assert main(["sample", str(conditional), "--given", str(unlabeled), "--rows", "2", "--data.labels", "false"]) == 2
    assert "classes" in capsys.readouterr().err.splitlines()[-1]


def test_progress_is_told_row_by_row_and_batch_by_batch(run: Path) -> None:
    model, told = load(run), []
    with reporting(part_of(lambda done, total: told.append((done, total)), 1, 3)):
        model.complete(digits(1), rows=6)
        model.sample(1)
    assert told[:2] == [(64 + 56, 192), (64 + 64, 192)]
    assert told[2:] == [(64 + 8 * row, 192) for row in range(1, 9)]
    model.sample(1)
    assert len(told) == 10  # nobody listens any longer


def test_one_of_rows_and_pixels_is_wanted(run: Path) -> None:
    model, x = load(run), digits(1)
    assert torch.equal(model.complete(x, rows=3, seed=1), model.complete(x, 24, seed=1))
    for given, rows, expected in ((None, None, "rows: got None and given None"), (8, 1, "rows: got 1 and given 8")):
        with pytest.raises(ValueError, match=f"^{expected}, expected one of the two$"):
            model.complete(x, given, rows=rows)
    with pytest.raises(ValueError, match=r"^rows: got 9, expected 0 to 8$"):
        model.complete(x, rows=9)

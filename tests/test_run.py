"""Training in five lines of Python: that it is the program's own training, and what a run can be asked."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import davi
from davi.cli import main
from davi.data.given import collected
from davi.errors import UserError
from davi.runs import MODEL, load_model
from davi.training.lock import locked
from davi.training.signals import Interrupted

TINY = "vae_digits_tiny"
DIGITS: dict[str, Any] = {"steps": 2, "validation": 4, "batch_size": 8}


def array(n: int = 40, shape: tuple[int, ...] = (8, 8, 3)) -> NDArray[np.uint8]:
    """Random images, channels last."""
    return np.random.default_rng(1).integers(0, 256, (n, *shape), np.uint8)


class Pairs(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images and labels as torchvision's data sets with ``ToTensor`` give them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.images[i]).permute(2, 0, 1).float() / 255, i % 3


class Stream(torch.utils.data.IterableDataset[Tensor]):
    """The same, one after the other, without labels."""

    def __iter__(self) -> Iterator[Tensor]:
        return (x for x, _ in (Pairs(array())[i] for i in range(40)))


def kept(run: davi.Run) -> NDArray[Any]:
    with np.load(run.folder / "images.npz") as file:
        return file["images"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on an array; it is not changed by tests."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    davi.train(TINY, array(), run=folder, **DIGITS)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> davi.Run:
    """A copy of that run in another folder: a run can be moved."""
    shutil.copytree(trained, tmp_path / "moved")
    return davi.Run(tmp_path / "moved")


def pictures() -> list[Image.Image]:
    return [Image.fromarray(image) for image in array()]


def table() -> Any:
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    rows = {"image": pictures(), "label": [i % 3 for i in range(40)]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_training_is_that_of_the_program_on_a_file(trained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array())
    words = ["train", TINY, "--data", str(tmp_path / "x.npy"), "--run", str(tmp_path / "run")]
    assert main([*words, "--training.steps=2", "--data.validation=4", "--training.batch_size=8"]) == 0
    (one, info), (other, known) = load_model(trained), load_model(tmp_path / "run")
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in one.state_dict().items())
    differing = {key for key in known["protocol"] if known["protocol"][key] != info["protocol"][key]}
    assert differing == {"set", "split"}  # which name the file


@pytest.mark.parametrize(
    "images",
    [
        lambda: torch.from_numpy(array()).permute(0, 3, 1, 2),
        pictures,
        lambda: list(array()),
        lambda: Pairs(array()),
        Stream,
        table,
    ],
    ids=["tensor", "PIL", "arrays", "torch", "iterable", "datasets"],
)
def test_every_kind_of_images_is_the_same_array(images: Any, trained: Path, tmp_path: Path) -> None:
    run = davi.train(TINY, images(), run=tmp_path / "run", **DIGITS)
    assert np.array_equal(kept(run), array())
    assert kept(run).dtype == np.uint8
    assert (run.folder / MODEL).read_bytes() == (trained / MODEL).read_bytes()


@pytest.mark.parametrize("images", [lambda: Pairs(array()), table], ids=["torch", "datasets"])
def test_labels_of_a_data_set(images: Any, tmp_path: Path) -> None:
    run = davi.train(TINY, images(), run=tmp_path / "run", labels=True, **DIGITS)
    with np.load(run.folder / "images.npz") as file:
        assert file["labels"].tolist() == [i % 3 for i in range(40)]
    protocol = load_model(run.folder)[1]["protocol"]
    assert protocol["classes"] == 3
    names = "a\nb\nc\n" if images is table else "0\n1\n2\n"  # a torch data set does not tell them
    assert protocol["classes_sha256"] == hashlib.sha256(names.encode()).hexdigest()
    again = davi.train(TINY, images(), run=tmp_path / "run", labels=True, resume=True, **{**DIGITS, "steps": 3})
    assert again.metrics[-1]["step"] == 3
    other = davi.train(TINY, array(), run=tmp_path / "other", labels=np.arange(40) % 3, **DIGITS)
    assert (other.folder / MODEL).read_bytes() != b""
    assert load_model(other.folder)[1]["protocol"]["classes"] == 3


def test_a_folder_of_images_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i, picture in enumerate(pictures()):
        picture.save(tmp_path / "images" / f"{i}.png")
    run = davi.train(TINY, tmp_path / "images", run=tmp_path / "run", steps=2, batch_size=8)
    assert not (run.folder / "images.npz").exists()
    assert run.recipe.data is not None
    assert run.recipe.data.set == str(tmp_path / "images")


def test_every_verb_works_on_a_run_that_was_moved(run: davi.Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run.folder)
    for words in (
        ["evaluate", folder, "--limit", "2"],
        ["reconstruct", folder, "--n", "2"],
        ["sample", folder, "--n", "2"],
        ["inspect", folder, "--limit", "2", "--no-figures"],
        ["train", "--run", folder, "--resume", "--training.steps", "3"],
        ["train", "--from", folder, "--run", f"{folder}-on", "--training.steps", "1"],
        ["evaluate", f"{folder}-on", "--limit", "2"],
    ):
        assert main(words) == 0, capsys.readouterr().err
    assert "not the run's own" not in capsys.readouterr().err
    text = (run.folder / "recipe.yaml").read_text()
    assert "set: run:images.npz" in text
    assert "root: null" in text
    assert f"root: {folder}" in (Path(f"{folder}-on") / "recipe.yaml").read_text()


def test_a_run_tells_what_it_is(run: davi.Run) -> None:
    assert repr(run).splitlines()[0] == f"Run({str(run.folder)!r}): vae, recipe {TINY}"
    assert "trained: 2 steps" in repr(run)
    assert run.evaluation is None
    assert run.metrics[-1]["kind"] == "checkpoint"
    assert not any(parameter.requires_grad for parameter in run.model.parameters())


def test_numbers_are_those_of_the_program(run: davi.Run, capsys: pytest.CaptureFixture[str]) -> None:
    measured = run.evaluate(importance_samples=3, limit=2, seed=4)
    assert capsys.readouterr().out == ""
    assert main(["evaluate", str(run.folder), "--importance-samples", "3", "--limit", "2", "--seed", "4"]) == 0
    assert repr(measured) in capsys.readouterr().out
    assert len(measured.bound) == 2
    assert run.evaluation is not None
    assert run.evaluation.result == measured.result
    assert f"evaluated: {measured.result.bound.in_unit('bits_per_dim').mean:.4g} bits/dim, K = 3" in repr(run)
    with pytest.raises(UserError, match=r"--limti: unknown option of davi evaluate; did you mean --limit\?"):
        run.evaluate(limti=2)


def test_samples_are_those_of_the_program(run: davi.Run) -> None:
    assert main(["sample", str(run.folder), "--n", "101", "--seed", "3", "--temperature", "0.8"]) == 0
    drawn = run.samples(101, temperature=0.8, seed=3)
    assert drawn.shape == (101, 3, 8, 8)
    expected = np.asarray(Image.open(run.folder / "samples.png"))
    assert np.array_equal(np.asarray(davi.show(drawn, run)), expected)
    with pytest.raises(ValueError, match=r"^n: got 0, expected at least 1 image$"):
        run.samples(0)


def test_the_page_is_shown_inline(run: davi.Run) -> None:
    page = run.inspect(limit=2, no_figures=True)
    assert page.path == run.folder / "inspection.html"
    assert page._repr_html_().startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')


def test_the_cell_can_be_run_again(run: davi.Run) -> None:
    again = davi.train(TINY, array(), run=run.folder, resume=True, **{**DIGITS, "steps": 3})
    assert again.metrics[-1]["step"] == 3
    assert davi.train(TINY, run=run.folder, resume=True, steps=4).metrics[-1]["step"] == 4
    with pytest.raises(
        UserError, match=r"^images: got others than .*images\.npz holds, expected those that the run was"
    ):
        davi.train(TINY, array()[::-1], run=run.folder, resume=True)
    with pytest.raises(UserError, match=r"^recipe: got biva_digits_tiny, expected vae_digits_tiny, with which "):
        davi.train("biva_digits_tiny", run=run.folder, resume=True)
    with pytest.raises(UserError, match=r"^run: .* is not empty; choose another folder, or go on with resume=True$"):
        davi.train(TINY, array(), run=run.folder)


def test_options_are_those_of_the_recipe(tmp_path: Path) -> None:
    options: dict[str, Any] = {"likelihood": {"components": 3}, "hidden": (6, 5), "levels": 256, "test_fraction": 0.2}
    training = {"ema_decay": 0.5, "schedule": {"warmup_steps": 1}}
    run = davi.train(
        TINY, array().astype(int), run=tmp_path / "run", lr=0.02, seed=3, training=training, **DIGITS, **options
    )
    recipe = run.recipe
    assert recipe.data is not None
    assert recipe.training is not None
    assert (recipe.model.likelihood.components, recipe.model.hidden) == (3, (6, 5))
    assert recipe.model.likelihood.family == "logistic_mixture"  # as in the recipe
    assert (recipe.data.levels, recipe.data.test_fraction, recipe.data.validation) == (256, 0.2, 4)
    told = (recipe.training.learning_rate, recipe.training.seed, recipe.training.ema_decay, recipe.training.steps)
    assert told == (0.02, 3, 0.5, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hiden": (8, 6)}, r"^hiden: unknown option of davi\.train and of vae; did you mean hidden\?$"),
        ({"step": 2}, r"^step: unknown option of davi\.train and of vae; did you mean steps\?$"),
        (
            {"likelihood": {"famly": 1}},
            r"^unknown key model\.likelihood\.famly; did you mean model\.likelihood\.family\?$",
        ),
        (
            {"hidden": object()},
            r"^model\.hidden: got <object .*>, expected a number, a text, a list of these, or a map",
        ),
        ({"device": "tpu0"}, r"^device: got 'tpu0', expected a device of this machine, such as cpu or cuda$"),
        (
            {"resume": True, "run": None},
            r"^run: got None with resume=True, expected the folder of the run to go on with$",
        ),
        ({"levels": 100}, r"^images: got values 0 to 255, expected 0 to 99$"),
        ({"validation": 50}, r"^data\.validation: got 50 for 36 training images"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        davi.train(TINY, array(), **{"run": tmp_path / "run", **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("count", "parts", "said"),
    [
        (2, [1, 0, 1], "data.validation: 0 in place of the recipe's 64 images; run:images.npz has 1 to train on"),
        (3, [1, 1, 1], "data.validation: 0.05 in place of the recipe's 64 images; run:images.npz has 2 to train on"),
        (141, [121, 6, 14], "data.validation: 0.05 in place of the recipe's 64 images; run:images.npz has 127 to"),
        (142, [64, 64, 14], ""),
    ],
)
def test_a_recipe_trains_on_few_images(
    count: int, parts: list[int], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = davi.train(TINY, array(count), run=tmp_path / "run", steps=1)
    out = capsys.readouterr().out
    assert said in out
    assert ("data.validation:" in out) == bool(said)
    counts = load_model(run.folder)[1]["protocol"]["counts"]
    assert [counts[part] for part in ("train", "validation", "test")] == parts
    assert main(["train", "--run", str(run.folder), "--resume", "--steps", "2"]) == 0
    np.save(tmp_path / "x.npy", array(count))
    words = ["train", TINY, "--data", str(tmp_path / "x.npy"), "--steps", "1", "--run", str(tmp_path / "other")]
    assert main(words) == 0
    assert load_model(tmp_path / "other")[1]["protocol"]["counts"] == counts


def test_what_a_user_has_put_into_the_folder_stays(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=array(30))
    for resume in (False, True):
        with pytest.raises(UserError, match=r"not empty|got others than"):
            davi.train(TINY, array(), run=tmp_path, resume=resume)
    with pytest.raises(UserError, match="unknown key"):
        davi.train(TINY, tmp_path / "images.npz", run=tmp_path, likelihood={"famly": 1})
    with np.load(tmp_path / "images.npz") as file:
        assert len(file["images"]) == 30


def test_killed_while_its_images_were_written(trained: Path, tmp_path: Path) -> None:
    for resume in (False, True):
        folder = tmp_path / str(resume)
        folder.mkdir()
        (folder / "images.npz.new").write_bytes(b"PK half of")
        run = davi.train(TINY, array(), run=folder, resume=resume, **DIGITS)
        assert np.array_equal(kept(run), array())
        assert not (folder / "images.npz.new").exists()
        assert (folder / MODEL).read_bytes() == (trained / MODEL).read_bytes()


@pytest.mark.parametrize("content", [b"", b"PK", "half", {"other": 1, "one": 2}, {"images": np.array([{}, None])}])
def test_images_that_are_damaged_are_named(run: davi.Run, content: Any) -> None:
    path = run.folder / "images.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(path.read_bytes()[:1000] if content == "half" else content)
    with pytest.raises(UserError, match=r"^/.*images\.npz: .*expected") as caught:
        davi.train(TINY, array(), run=run.folder, resume=True, **DIGITS)
    assert "\n" not in str(caught.value)


def test_another_process_that_began_in_the_same_folder_keeps_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def meanwhile(*args: Any) -> Any:
        folder.mkdir()
        np.savez(folder / "images.npz", images=array(7))
        return collected(*args)

    monkeypatch.setattr("davi.run_images.collected", meanwhile)
    with pytest.raises(UserError, match="is not empty"):
        davi.train(TINY, array(), run=folder, **DIGITS)
    with np.load(folder / "images.npz") as file:
        assert len(file["images"]) == 7
    (folder / "images.npz").unlink()
    folder.rmdir()

    def beginning(*args: Any) -> Any:
        stack.enter_context(locked(folder))
        return collected(*args)

    monkeypatch.setattr("davi.run_images.collected", beginning)
    with ExitStack() as stack, pytest.raises(UserError, match="is in use by another process"):
        davi.train(TINY, array(), run=folder, **DIGITS)


def test_odd_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    davi.train(TINY, array(), run="~/at home", **DIGITS)
    assert len(davi.Run("~/at home").evaluate(limit=2).bound) == 2
    assert (tmp_path / "at home" / MODEL).is_file()
    assert len(davi.train(TINY, array(), run="-x", **DIGITS).evaluate(limit=2).bound) == 2
    with pytest.raises(UserError, match=r"^run: got '~nobody-of-that-name/x', expected a path; there is no such user$"):
        davi.train(TINY, array(), run="~nobody-of-that-name/x", **DIGITS)


def test_an_interruption_is_one_for_python_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **options: object) -> None:
        raise Interrupted(2, 1, tmp_path)

    monkeypatch.setattr("davi.cli.train.train", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"resume=True goes on with it$"):
        davi.train(TINY, run=tmp_path / "run", steps=2)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no recipe\.yaml, expected the folder of a run$"):
        davi.Run(tmp_path)
    with pytest.raises(UserError, match=r"^run: got .*/none, found nothing there, expected the folder of a run"):
        davi.Run(tmp_path / "none")


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, davi; dir(davi); sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL', 'yaml')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert (Path(davi.__file__).with_name("py.typed")).is_file()


def test_models_are_built_with_keywords() -> None:
    model = davi.build(TINY, "model.depth=2", hidden=[5, 4], likelihood={"components": 3}, shape=(3, 4, 4), levels=16)
    assert (model.config.hidden, model.config.likelihood.components, model.config.depth) == ((5, 4), 3, 2)
    assert (model.shape, model.levels) == ((3, 4, 4), 16)
    with pytest.raises(UserError, match=r"^width: unknown option of vae; (did you mean|expected one of) "):
        davi.build(TINY, width=8)


def test_images_are_shown_with_the_levels_of_their_model() -> None:
    x = torch.tensor([0, 8, 16], dtype=torch.int64).view(3, 1, 1, 1)
    shown = davi.show(x, levels=17, columns=3, scale=1)
    assert np.asarray(shown)[2, [2, 5, 8], 0].tolist() == [0, 128, 255]
    model = davi.build(TINY)
    assert np.array_equal(np.asarray(davi.show(x, model, columns=3, scale=1)), np.asarray(shown))
    color = np.asarray(davi.show(array(2), columns=2, scale=1))
    assert np.array_equal(color[2:10, 2:10], array(2)[0])
    with pytest.raises(ValueError, match=r"^images: got values from 0 to 16, expected 0 to 15$"):
        davi.show(x, 16)
    with pytest.raises(UserError, match=r"^levels: got str, expected a whole number, or a model or run$"):
        davi.show(x, "many")

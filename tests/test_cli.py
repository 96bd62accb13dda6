"""The program from a user's side: what it prints and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from PIL import Image

import davi
from davi import recipes
from davi.cli import main
from davi.cli.verbs import VERBS
from davi.config import load_yaml
from davi.metrics import read_metrics

TINY = "attentive_digits_tiny"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, not to be changed."""
    run = tmp_path_factory.mktemp("cli") / "trained"
    options = ["--training.steps", "6", "--training.checkpoints.steps=2", "--training.validate_every", "3"]
    assert main(["train", TINY, "--run", str(run), *options]) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def say(*words: object) -> int:
    return main([str(word) for word in words])


def davi_process(*words: str, **options: object) -> subprocess.Popen[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "davi", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]  # only cwd is ever given


def test_train_leaves_a_run(trained: Path, capsys: Capture) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "recipe.yaml",
        "metrics.jsonl",
        "checkpoints",
        "model.safetensors",
    }
    recipe = recipes.load(trained / "recipe.yaml")
    assert recipe.name == TINY
    assert recipe.training is not None
    assert recipe.training.steps == 6
    assert [record["step"] for record in read_metrics(trained) if record["kind"] == "validation"] == [3, 6]


def test_runs_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert say("train", TINY, "--training.steps", 1) == 0
        assert (tmp_path / "runs" / f"{TINY}-{number}" / "model.safetensors").is_file()
    said = capsys.readouterr().out
    assert "13,465 parameters" in said
    assert "1336 training images of 1x8x8 with 17 levels" in said


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(runs, (3, 3, 4), strict=True):
        assert say("train", TINY, "--run", folder, "--training.steps", 2, "--training.seed", seed) == 0
    first, again, other = (davi.load(folder).state_dict() for folder in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("named", [True, False])
def test_resume_prolongs_a_run(named: bool, run: Path, capsys: Capture) -> None:
    recipe = [run / "recipe.yaml"] if named else []
    assert say("train", *recipe, "--run", run, "--resume", "--training.steps", 8) == 0
    assert f"resuming {run} after step 6" in capsys.readouterr().out
    assert max(record["step"] for record in read_metrics(run)) == 8
    assert load_yaml(run / "recipe.yaml")["training"]["steps"] == 8


def test_train_on_ones_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Relative paths are those of the folder where training was started; evaluation works from anywhere."""
    images = np.random.default_rng(0).integers(0, 256, (30, 6, 10, 3), dtype=np.uint8)
    np.save(tmp_path / "mine #1.npy", images)
    monkeypatch.chdir(tmp_path)
    words = ["--data", "mine #1.npy", "--data.validation", 4, "--training.steps", 2, "--run", "own"]
    assert say("train", TINY, *words) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert say("evaluate", "../own", "--split", "validation") == 0
    assert "mine #1.npy/validation: 4 images, 3 x 6 x 10, 256 levels" in capsys.readouterr().out
    assert say("reconstruct", "../own", "--n", 2) == 0
    assert say("sample", "../own", "--n", 2) == 0


def test_a_folder_with_the_name_of_a_set_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """``--data photos`` beside a folder of that name would otherwise train on images that nobody meant."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert say("train", TINY, "--data", "photos", "--plan") == 2
    message = "--data: got photos, which is a named set and also a folder here, expected ./photos for the folder"
    assert message in capsys.readouterr().err
    assert say("train", TINY, "--data", "./photos", "--plan") == 2  # the folder, which is empty
    assert str(tmp_path / "photos") in capsys.readouterr().err


def small_mnist(root: Path, seed: int = 0) -> None:
    """A folder in the form of MNIST with a few random images; the seed is of the test images alone."""
    (root / "mnist").mkdir(parents=True, exist_ok=True)
    for name, n, own in (("train", 20, 1), ("test", 6, seed)):
        images = np.random.default_rng(own).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        np.savez(root / "mnist" / f"{name}.npz", images=images)


def test_images_that_change_or_move_are_noticed(tmp_path: Path, capsys: Capture) -> None:
    run, old, new = tmp_path / "run", tmp_path / "old", tmp_path / "new"
    small_mnist(old)
    words = ["--run", run, "--data.validation", 4, "--training.validate_every", 0]
    assert say("train", TINY, "--data", "mnist", "--data.root", old, *words, "--training.steps", 1) == 0
    shutil.move(old, new)  # the same images elsewhere
    assert say("train", "--run", run, "--resume", "--data.root", new, "--training.steps", 2) == 0
    assert load_yaml(run / "recipe.yaml")["data"]["root"] == str(new)
    assert say("evaluate", run) == 0
    small_mnist(new, seed=2)  # other images at the same place
    capsys.readouterr()
    for words in (["train", "--run", run, "--resume", "--training.steps", 3], ["evaluate", run], ["reconstruct", run]):
        assert say(*words) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith("davi: data: got test_sha256 ")
        assert complaint.count("\n") == 1
    assert "; --data mnist evaluates on these images deliberately" in complaint
    assert say("evaluate", run, "--data.root", new) == 2  # the folder alone does not say that others are wanted
    assert say("evaluate", run, "--data", "mnist") == 0


def test_evaluate_prints_a_table_and_writes_json(run: Path, capsys: Capture) -> None:
    assert say("evaluate", run, "--importance-samples", 3, "--limit", 40, "--batch-size", 25, "--seed", 7) == 0
    said = capsys.readouterr()
    *table, last = said.out.splitlines()
    assert max(map(len, table)) <= 80
    assert last == f"written to {run / 'evaluation.json'}"
    for words in (
        "40 of 397 images, spread evenly, seed 0",
        "log p(x) >= L_3",
        "independent pixels",
        "PNG",
        "lossless WebP",
    ):
        assert words in said.out
    result = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    protocol = result["protocol"]
    assert (protocol["set"], protocol["split"]) == ("digits/test", "test")
    assert (protocol["images"], protocol["limit"]) == (40, 40)
    assert (protocol["importance_samples"], protocol["seed"], protocol["batch_size"]) == (3, 7, 25)
    assert protocol["model"]["parameters"] == 13_465
    assert protocol["model"]["ema"] is True
    assert result["kind"] == "LOWER_BOUND"
    assert result["bound"]["nats"]["mean"] >= result["elbo"]["nats"]["mean"]


def test_json_is_all_there_is_on_standard_output(run: Path, capsys: Capture) -> None:
    assert say("evaluate", run, "--limit", 10, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


def test_evaluation_is_that_of_the_library(run: Path, capsys: Capture) -> None:
    from davi import data
    from davi.evaluation import evaluate

    assert say("evaluate", run, "--limit", 30, "--importance-samples", 2, "--json", "--device", "cpu") == 0
    printed = json.loads(capsys.readouterr().out)
    test = data.load(data.DataConfig(set="digits")).test
    expected = evaluate(davi.load(run), test, samples=2, limit=30)
    # Equal up to the decimal form of the same numbers: the same seed and batch size, on the same machine.
    assert printed["bound"]["nats"]["mean"] == pytest.approx(float(expected.bound.mean()), rel=1e-12)


def test_the_training_split_of_dynamic_data_is_drawn(tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "gray.npy", np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8))
    words = [
        "--data",
        tmp_path / "gray.npy",
        "--data.binarization",
        "dynamic",
        "--model.likelihood.family",
        "bernoulli",
    ]
    assert say("train", TINY, *words, "--data.validation", 0, "--training.steps", 1, "--run", tmp_path / "run") == 0
    capsys.readouterr()
    numbers = []
    for _ in range(2):
        assert say("evaluate", tmp_path / "run", "--split", "train", "--json") == 0
        result = json.loads(capsys.readouterr().out)
        numbers.append(result["elbo"]["nats"]["mean"])
    assert numbers[0] == numbers[1]
    assert result["protocol"]["images"] == 36
    assert result["protocol"]["data"]["evaluated"] == "training images drawn once, seed 0"
    assert say("reconstruct", tmp_path / "run", "--split", "train", "--n", 3) == 0


def test_sample_and_reconstruct_make_pictures(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert say("sample", run) == 0
    assert say("reconstruct", run) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for name in ("samples.png", "reconstructions.png"):
        assert f"{run / name}\n" in said.out
        with Image.open(run / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 400
    pictures = [tmp_path / f"{name}.png" for name in "abcd"]
    for path, seed, temperature in zip(pictures, (1, 1, 2, 1), (1.0, 1.0, 1.0, 0.0), strict=True):
        assert say("sample", run, "--n", 130, "--seed", seed, "--temperature", temperature, "--out", path) == 0
    first, again, other, cold = (path.read_bytes() for path in pictures)
    assert first == again
    assert first not in (other, cold)
    for path, by_layer in zip(pictures, ("1,1,1", "[0, 0, 0]", "1,1,0"), strict=False):
        assert say("sample", run, "--n", 130, "--seed", 1, "--temperature", by_layer, "--out", path) == 0
    ones, zeros, mixed = (path.read_bytes() for path in pictures[:3])
    assert ones == first
    assert zeros == cold
    assert mixed not in (first, cold)


def test_a_run_that_has_not_ended_can_be_used(run: Path, capsys: Capture) -> None:
    (run / "model.safetensors").unlink()
    assert say("sample", run, "--n", 1) == 0
    assert "training has not ended; using the checkpoint of step 6" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="using the checkpoint of step 6"):
        davi.load(run)


def test_a_model_file_can_stand_for_its_run(run: Path, capsys: Capture) -> None:
    assert say("evaluate", run / "model.safetensors", "--limit", 5) == 0
    assert (run / "evaluation.json").is_file()


def test_import_makes_a_run(need_shared: Callable[[str], Path], tmp_path: Path, capsys: Capture) -> None:
    file = need_shared("fixtures/attentive_h5/att_cifar_trained.h5")
    folder = tmp_path / "published"
    assert say("import", "attentive", file, "--run", folder, "--model.prior_bounds.log_scale_low", "-2") == 0
    said = capsys.readouterr().out
    assert "images of 3x32x32 with 256 levels; data set: cifar10" in said
    recipe = recipes.load(folder / "recipe.yaml")
    assert recipe.model.layers == (4,)
    assert recipe.model.prior_bounds.log_scale_low == -2.0
    model = davi.load(folder)
    assert model.shape == (3, 32, 32)
    assert not model.training
    images = tmp_path / "some.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    assert say("evaluate", folder, "--data", images, "--limit", 2) == 0
    assert f"{images}: 2 of 20 images, spread evenly, seed 0" in " ".join(capsys.readouterr().out.split())
    assert say("import", "attentive", file, "--run", folder) == 2
    assert capsys.readouterr().err == f"davi: run: {folder} is not empty; choose another folder\n"


def test_other_images_inherit_no_options_of_the_first(run: Path, tmp_path: Path, capsys: Capture) -> None:
    """64 validation images are more than this set has; a file of test images or levels is that of the first set."""
    rng = np.random.default_rng(0)
    for name in ("first", "second", "third"):
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 17, (30, 8, 8), dtype=np.int64))
    first, second, third = (tmp_path / f"{name}.npy" for name in ("first", "second", "third"))
    assert say("evaluate", run, "--data", second, "--data.levels", 17) == 0
    assert f"{second}:30images" in "".join(capsys.readouterr().out.split())  # a long path is broken
    assert say("evaluate", run, "--data", second, "--data.levels", 17, "--data.validation", 64) == 2
    assert "data.validation: got 64 for 27 training images" in capsys.readouterr().err  # not 64.0
    own = ["--data", first, "--data.test", third, "--data.levels", 17, "--data.validation", 5]
    assert say("train", TINY, *own, "--training.steps", 1, "--run", tmp_path / "own") == 0
    capsys.readouterr()
    assert say("evaluate", tmp_path / "own", "--data", second) == 2
    assert "data.levels: not given" in capsys.readouterr().err
    assert say("evaluate", tmp_path / "own", "--data", second, "--data.levels", 17) == 0
    assert f"{second}:30images" in "".join(capsys.readouterr().out.split())  # not those of the other file
    assert say("evaluate", tmp_path / "own", "--data", first, "--split", "validation") == 0  # the same set keeps them
    assert "first.npy/validation: 5 images" in capsys.readouterr().out


def test_help_and_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"davi {davi.__version__}\n"
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {verb} " in said for verb in VERBS)
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        said = capsys.readouterr().out
        assert f"usage: davi {verb}" in said
        assert all(f"--{section}." in said for section in VERBS[verb].sections)
    assert main(["evaluate", "--help"]) == 0
    assert "--data.root DIR" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["recipes"], ["recipes", "show", TINY], ["trian"]])
def test_quick_answers_do_not_wait_for_torch(words: list[str]) -> None:
    code = f"import sys; from davi.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_path_that_leads_nowhere_does_not_wait_for_torch(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one process, which has not loaded torch at its end."""
    monkeypatch.delenv("DAVI_DATA", raising=False)
    absent, run = str(tmp_path / "absent"), str(trained)
    mistakes = [
        ["train", absent + ".yaml"],
        ["train", "attentive_mist"],
        ["train", "attentive_mnist"],
        ["train", TINY, "--run", run],
        ["train", TINY, "--data", absent],
        ["train", TINY, "--data", "digist"],
        ["train", "--from", absent],
        *([verb, absent] for verb in ("evaluate", "sample", "reconstruct", "inspect", "compare")),
        ["evaluate", run, "--data", absent],
        ["sample", run, "--out", absent + "/a.png"],
        ["import", "nvae", absent, "--run", absent],
    ]
    code = (
        f"import sys; from davi.cli import main; found = [main(words) for words in {mistakes!r}]; "
        f"sys.exit('torch' in sys.modules or found != [2] * {len(mistakes)})"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("\n") == len(mistakes)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_training(number: signal.Signals, status: int, tmp_path: Path, capsys: Capture) -> None:
    words = ["train", TINY, "--run", "run", "--training.steps", "100000", "--training.log_every", "1"]
    os.mkfifo(tmp_path / ".out")
    process, (out, err) = forked.begin(main, words, folder=tmp_path)
    with out.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("step 2/"):  # lines come at once, also in a pipe
                assert process.pid is not None
                os.kill(process.pid, number)
    process.join()
    complaint = err.read_text(encoding="utf-8")
    assert process.exitcode == status, complaint
    assert complaint.startswith(f"davi: {number.name}: saved run/checkpoints/step-")
    assert complaint.count("\n") == 1
    reached = max(record["step"] for record in read_metrics(tmp_path / "run"))
    assert say("train", "--run", tmp_path / "run", "--resume", "--training.steps", reached + 1) == 0
    assert f"after step {reached}" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error() -> None:
    with davi_process("recipes") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
    assert (process.returncode, complaint) == (141, "")

"""A mistake at the command line costs one line on standard error and the exit status 2, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from davi import cli
from davi.cli import main
from davi.cli.verbs import VERBS
from davi.runs import load_model, save_model

TINY = "attentive_digits_tiny"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, not to be changed."""
    run = tmp_path_factory.mktemp("cli") / "trained"
    assert main(["train", TINY, "--run", str(run), "--training.steps", "1"]) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


ERRORS: list[tuple[str, str]] = [
    ("trian", f"verb: got 'trian', expected one of {', '.join(VERBS)}; did you mean train?"),
    ("--fast", "unrecognized arguments: --fast"),
    ("recipes shaw", "recipes: got 'shaw', expected words that a recipe's row or description has"),
    ("recipes show", "recipes show: got no name"),
    ("recipes show a b", "recipes show: got 2 names, expected one"),
    ("recipes show attentive_mist", "did you mean attentive_mnist"),
    ("recipes show absent.yaml", "absent.yaml: no such file"),
    ("recipes list mnist GPU seconds", "recipes: got 'mnist GPU seconds', expected words"),
    ("recipes show {tmp}/binary.yaml", "binary.yaml: got bytes that are not UTF-8"),
    ("train", "recipe: got nothing, expected its name or the path of a .yaml file"),
    ("train attentive_digit", "did you mean attentive_digits"),
    ("train {tmp}/absent.yaml", "absent.yaml: no such file"),
    ("train {tmp}/broken.yaml", "broken.yaml: line 3: not valid YAML"),
    ("train {tmp}/bare.yaml", "bare: got no section data, expected one in a recipe that is to be trained"),
    ("train TINY --model.layrs 8", "command line: unknown key model.layrs; did you mean model.layers?"),
    ("train TINY --model.width wide", "command line: model.width: got 'wide', expected int"),
    ("train TINY --model.width", "--model.width: got no value, expected --model.width VALUE"),
    ("train TINY --model.width --resume", "--model.width: got no value"),
    (
        "train TINY --run {tmp}/new --model.likelihood.family bernoulli",
        "likelihood.family: got bernoulli for 17 levels",
    ),
    ("train TINY --recipe.x 3", "--recipe.x: cannot be used with davi train, expected --model.OPTION or --data.OPTION"),
    ("train TINY --resum", "--resum: unknown option of davi train; did you mean --resume?"),
    ("train TINY --stesp 3", "--stesp: unknown option of davi train; did you mean --steps?"),
    ("train TINY --steps 3.5", "command line: training.steps: got 3.5, expected int or null"),
    ("train TINY --lr fast", "command line: training.learning_rate: got 'fast', expected float"),
    ("train TINY --minutes 0", "training.minutes: got 0, expected a number above 0"),
    ("train TINY --device abacus", "--device: got 'abacus', expected a device of this machine"),
    ("train nvae_imagenet32", "imagenet32, which cannot be loaded by name, expected --data PATH"),
    ("train attentive_mnist", "put there train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz from https://"),
    ("train TINY --from {tmp}/rum", "--from: got {tmp}/rum, found nothing there, expected a run"),
    ("train TINY --data {tmp}/absent.npy", "absent.npy', which does not exist; expected a folder of images"),
    ("train TINY --data {tmp}/foriegn.npz", "foriegn.npz', which does not exist (did you mean {tmp}/foreign.npz?)"),
    ("train TINY --learning-rate 3", "--learning-rate: unknown option of davi train; did you mean --training.learning"),
    ("train TINY --optimizer adam", "unknown option of davi train; did you mean --training.optimizer.name?"),
    ("train TINY --clip-norm 5", "unknown option of davi train; did you mean --training.step_filter.clip_norm?"),
    ("train TINY --run {tmp}/new --training.checkpoints 5", "training.checkpoints: got 5, expected a section of keys"),
    (
        "train TINY --run {tmp}/new --training.schedule.name staircase --training.schedule.final_learning_rate 0",
        "training.schedule.name: got staircase with a learning rate of 0.0, expected rates above 0",
    ),
    ("evaluate {run} --root x", "--root: unknown option of davi evaluate; did you mean --data.root?"),
    ("train TINY again", "again: unknown word of davi train"),
    ("train TINY --resume", "--resume: got no --run DIR"),
    ("train --resume --run {tmp}/absent", "holds no recipe.yaml, expected the folder of a run"),
    ("train TINY --run {run}", "is not empty; choose another folder, or go on with --resume"),
    ("train TINY --run {run}/recipe.yaml", "recipe.yaml, which is a file; expected a folder"),
    ("train TINY --run {run} --resume --model.width 8", "model.width: got 8, expected 4, with which {run} was begun"),
    ("train --run {run} --resume --data.flip both", "data.flip: got both, expected none, with which {run} was begun"),
    ("train nvae_digits_tiny --run {run} --resume", "model.name: got nvae, expected attentive_vae, with which {run}"),
    ("train --run {tmp}/bereft --resume", "no checkpoint to go on from; a new run that begins with its weights: davi"),
    ("train TINY --run {tmp}/bereft", "choose another folder, or begin another from it with --from {tmp}/bereft"),
    ("train TINY --run {tmp}/new --data digit", "(did you mean digits?)"),
    ("train TINY --run {tmp}/new --data.set mnits", "(did you mean mnist?)"),
    ("train TINY --run {tmp}/new --data mnist --data.root {tmp}", "found no folder"),
    ("train TINY --run {tmp}/new --data {tmp}/foreign.npz", "foreign.npz: found 'a', 'b', expected an array"),
    ("train TINY --run {tmp}/new --data {tmp}/half.npy", "half.npy: "),
    ("train TINY --run {tmp}/new --data ~no-such-user/a.npy", "data: got '~no-such-user/a.npy', expected a path"),
    ("train TINY --run {tmp}/new --training.seed 9223372036854775808", "seed: got 9223372036854775808, expected at"),
    ("train TINY --run {tmp}/new --training.epochs 1e308", "training.epochs: got 1e+308, expected a number above 0"),
    (
        "train TINY --run {tmp}/new --training.threads 99999999999",
        "training.threads: got 99999999999, expected at most",
    ),
    (
        "train TINY --run {tmp}/new --training.step_filter.skip_window 2000000",
        "skip_window: got 2000000, expected at most 1000000",
    ),
    ("train TINY --run {tmp}/new --model.generative_attention.key_channels -2", "key_channels: got -2, expected at"),
    ("train TINY --run {tmp}/new --model.spatial_attention.encoder -2", "encoder: got -2, expected at least 0"),
    (
        "train TINY --run {tmp}/new --model.width 1 --model.inference_attention.key_channels 0",
        "out_channels: got 2, expected at least 4",
    ),
    ("train TINY --run {tmp}/new --training.accumulate 3", "accumulate: got 3, expected a divisor of batch_size 16"),
    ("evaluate", "the following arguments are required: RUN"),
    ("evaluate {tmp}/rum", "rum, found nothing there, expected the folder of a run; did you mean {run}?"),
    ("evaluate {tmp}", "no model.safetensors and no checkpoint in this folder"),
    ("evaluate {tmp}/broken.yaml", "broken.yaml: not a complete safetensors file"),
    ("evaluate {tmp}/cut", "model.safetensors: not a complete safetensors file"),
    ("evaluate {tmp}/changed", "model.safetensors: the tensors are not those that were written"),
    ("evaluate {tmp}/lost", "holds no recipe.yaml, which says what images the model is for"),
    ("evaluate {run} --importance-samples 0", "--importance-samples: got '0', expected a whole number from 1"),
    ("evaluate {run} --limit some", "--limit: got 'some', expected a whole number from 1"),
    ("evaluate {run} --split tests", "--split: got 'tests', expected one of test, validation, train"),
    (
        "evaluate {run} --split validation --data.validation 0",
        "--split: got 'validation', but digits has no",
    ),
    ("evaluate {run} --data photos", "expected [1, 8, 8] with 17 levels"),
    ("evaluate {run} --model.width 3", "--model.width: cannot be used with davi evaluate, expected --data.OPTION"),
    ("evaluate {run} --device abacus", "--device: got 'abacus', expected a device of this machine"),
    ("compare", "the following arguments are required: RUN"),
    (
        "compare {run} {tmp}/bereft",
        "found no evaluation.json, expected a run that was evaluated; davi evaluate {run} writes",
    ),
    ("compare {tmp}/rum", "rum, found nothing there, expected the folder of a run; did you mean {run}?"),
    ("compare {run} --json --markdown", "--markdown: not allowed with argument --json"),
    ("compare {run} --data.root x", "--data.root: cannot be used with davi compare, expected no dotted options"),
    ("sample {run} --n 0", "--n: got '0', expected a whole number from 1"),
    ("sample {run} --temperature -1", "--temperature: got '-1', expected a number from 0"),
    ("sample {run} --temperature 1e30", "run: the model computes no finite pixels at temperature 1e+30"),
    ("sample {run} --temperature 1,x", "--temperature: got 'x', expected a number from 0"),
    ("sample {run} --temperature []", "--temperature: got '', expected a number from 0"),
    (
        "sample {run} --temperature 1,0.5",
        "--temperature: got a list of 2, expected one number or one for each of its 3 layers",
    ),
    ("sample {run} --temperature nan", "--temperature: got 'nan', expected a number from 0"),
    ("sample {run} --out picture.jpg", "--out: got 'picture.jpg', expected the path of a .png file"),
    ("sample {run} --out {tmp}/absent/picture.png", "no such folder"),
    ("sample {run} --model.width 3", "--model.width: cannot be used with davi sample, expected --data.OPTION"),
    ("sample {run} --given=", "--given: got '', expected test, validation, train, or a set, folder, array or file"),
    ("sample {run} --data.root x", "--data.root: got it alone, expected --given X, whose images it is about"),
    ("reconstruct {run} --data photos", "expected [1, 8, 8] with 17 levels"),
    ("reconstruct {tmp}/spoiled", "run: the model computes no finite pixels for digits/test"),
    ("reconstruct {run} --n 3.5", "--n: got '3.5', expected a whole number from 1"),
    ("import", "the following arguments are required: FORM, FILE, --run"),
    ("import biva {tmp}/a.h5 --run {tmp}/new", "got 'biva', expected one of attentive"),
    ("import attentive {tmp}/absent.h5 --run {tmp}/new", "absent.h5: "),
    ("import attentive {tmp}/broken.yaml --run {tmp}/new", "broken.yaml: "),
]


@pytest.mark.parametrize(("line", "message"), ERRORS, ids=[line or "nothing" for line, _ in ERRORS])
def test_a_mistake_costs_one_line(
    line: str, message: str, run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAVI_DATA", raising=False)
    (tmp_path / "broken.yaml").write_text("model:\n  name: [\n", encoding="utf-8")
    (tmp_path / "bare.yaml").write_text("model: {name: attentive_vae}\ntraining: {steps: 1}\n", encoding="utf-8")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(tmp_path / "half.npy", np.zeros((9, 8, 8), np.uint8))
    os.truncate(tmp_path / "half.npy", 300)
    spoiled_runs(run, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(tmp=tmp_path, run=run) for word in line.replace("TINY", TINY).split()]
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("davi: ")
    assert said.err.count("\n") == 1
    assert message.format(tmp=tmp_path, run=run) in said.err
    assert "Traceback" not in said.err + said.out
    assert sorted(tmp_path.rglob("*")) == before  # no half of a run is left behind


def spoiled_runs(run: Path, folder: Path) -> None:
    """Runs whose model is cut short, has one changed byte, a weight that is no number, or whose recipe or checkpoints
    are lost."""
    content = (run / "model.safetensors").read_bytes()
    for name in ("cut", "changed", "lost"):
        (folder / name).mkdir()
        shutil.copy(run / "recipe.yaml", folder / name)
        (folder / name / "model.safetensors").write_bytes(content[:-100] if name == "cut" else content)
    shutil.copytree(run, folder / "bereft", ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "changed" / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "lost" / "recipe.yaml").unlink()
    shutil.copytree(folder / "lost", folder / "spoiled")
    shutil.copy(run / "recipe.yaml", folder / "spoiled")
    model, _ = load_model(run)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    save_model(folder / "spoiled" / "model.safetensors", model)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "runs"), 2, "runs: Permission denied"),
        (MemoryError(), 2, "memory: too little"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "memory: too little"),
        (
            RuntimeError("Storage size calculation overflowed with sizes=[16, 1, 99999999999999]"),
            2,
            "memory: too little",
        ),
    ],
)
def test_what_the_machine_refuses_costs_one_line_too(
    error: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert main([]) == status
    said = capsys.readouterr().err
    assert said.startswith(f"davi: {words}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("word", ["--zzzz", "--stelp", "--q"])
def test_a_poor_match_is_no_hint(word: str, capsys: Capture) -> None:
    assert main(["recipes", word]) == 2
    assert capsys.readouterr().err == f"davi: {word}: unknown option of davi recipes\n"


def test_a_full_disk_costs_one_line_and_no_numbers(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert main(["evaluate", str(run), "--limit", "3"]) == 2
    said = capsys.readouterr()
    told, complaint = said.err.splitlines()
    assert told.startswith("data: 1336 training, 64 validation and 397 test images: ")
    assert complaint == f"davi: {run}/evaluation.safetensors: cannot be written (No space left on device)"
    assert "log p(x) >= ELBO" in said.out
    assert not (run / "evaluation.json").exists()


def test_a_name_commands_no_terminal(tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", f"{tmp_path}/\x1b[2J\udcff\nrun"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"davi: run: got {tmp_path}/\\x1b[2J\\udcff run, found nothing there")
    assert error.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_output_to_a_full_disk_costs_one_line() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "davi", "recipes"]
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (process.returncode, process.stderr) == (2, "davi: output: cannot be written (No space left on device)\n")


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError("no file in it"), AttributeError("typo")])
def test_faults_of_ours_are_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(type(error), match=str(error)):
        main([])

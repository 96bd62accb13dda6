"""Classifiers in every verb and in Python: what is said of them, and what is refused."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from sklearn.datasets import load_digits
from toys.belief_net import BeliefNet
from toys.linear_classifier import LinearClassifier, LinearClassifierConfig

import davi
from davi import measurements
from davi.cli import main
from davi.cli.recipes import _CLASSIFIERS
from davi.errors import UserError
from davi.evaluation.classification import ADAPTIVE, BLIND_GUESS, CALIBRATION, ERROR_RATE
from davi.metrics import read_metrics
from davi.model import Classifier
from davi.models import MODELS
from davi.recipes import load, names
from davi.runs import load_classifier, save_model
from davi.training.start import take_over

Capture = pytest.CaptureFixture[str]
NAME = LinearClassifier.name


@pytest.fixture(scope="module", autouse=True)
def _toys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        toys.register(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _toys: None) -> Path:
    """A trained and evaluated run, in which only ``davi score`` writes."""
    folder = tmp_path_factory.mktemp("classifier")
    assert main(["train", str(toys.recipe(folder, NAME)), "--run", str(folder / "run")]) == 0
    assert main(["evaluate", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def unlabeled(tmp_path: Path) -> Path:
    np.save(tmp_path / "plain.npy", load_digits().images[:6].astype(np.uint8))
    return tmp_path / "plain.npy"


def test_the_table_is_in_nats_alone(run: Path, capsys: Capture) -> None:
    before = measurements.load(run)
    assert main(["evaluate", str(run), "--importance-samples", "3"]) == 0
    text = capsys.readouterr().out
    head, claim, guess, kind = text.splitlines()[3:7]
    assert head.split() == ["nats"]
    assert re.fullmatch(r"log p\(y\|x\) +-\d\.\d{4} ± \d\.\d{4}", claim)
    assert re.fullmatch(r"a blind guess +-2\.3026", guess)
    assert kind.endswith("exact: this is log p(y|x); nothing is drawn for it,")
    assert re.search(r"^classification error .*95 % interval", text, re.MULTILINE)
    assert re.search(r"^calibration error .* % \(397 images\)", text, re.MULTILINE)
    assert "bits" not in text
    assert "for comparison" not in text
    again = measurements.load(run)
    assert again.bound.tolist() == before.bound.tolist()
    assert main(["evaluate", str(run)]) == 0


def test_its_file_holds_no_bits(run: Path) -> None:
    content = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert content["bound"]["bits_per_dim"] is None
    assert content["about"] == "y|x"
    assert content["baselines"] == []
    result = measurements.load(run).result
    assert result.units == ("nats",)
    with pytest.raises(ValueError, match=r"^unit: got bits_per_dim, expected nats"):
        result.bound.in_unit("bits_per_dim")
    assert [measure.name for measure in result.measures] == [ERROR_RATE, BLIND_GUESS, CALIBRATION, ADAPTIVE]


@pytest.mark.parametrize("verb", ["sample", "encode", "decode", "reconstruct"])
def test_verbs_on_models_of_images_refuse_it(verb: str, run: Path, capsys: Capture) -> None:
    assert main([verb, str(run)]) == 2
    expected = f"davi: run: {NAME} is a classifier, expected a model of images for davi {verb}; davi evaluate"
    assert capsys.readouterr().err == f"{expected}, inspect, compare and score take classifiers\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "--given", "test", "--rows", "3"], "expected a model of images for davi sample"),
        (["evaluate", "--gap"], f"--gap: got it for {NAME}, a classifier; expected a model whose claim is a bound"),
        (["evaluate", "--ais-again"], "which needs no partition function; expected no such option"),
        (["inspect", "--estimates"], "which needs no partition function; expected no such option"),
        (["score", "--by", "complexity"], f"--by: got it for {NAME}, a classifier, whose files have no such score"),
        (["score", "--llr", "1"], f"--llr: got it for {NAME}, a classifier, whose files have no such score"),
        (
            ["evaluate", "--data.labels", "false"],
            "data: got digits/test without labels, expected the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, with which the "
            "model was trained (--data.labels true reads the labels)",
        ),
    ],
)
def test_options_of_other_models_are_refused(words: list[str], message: str, run: Path, capsys: Capture) -> None:
    assert main([words[0], str(run), *words[1:]]) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert said[-1].startswith("davi: ")


def test_images_without_labels(run: Path, unlabeled: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = str(toys.recipe(tmp_path, NAME))
    words = ["--data", str(unlabeled), "--data.levels", "17"]
    for asked in (["train", recipe, "--run", str(tmp_path / "run")], ["evaluate", str(run)]):
        assert main([*asked, *words]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith(f"davi: data: {unlabeled} has no labels")
        assert f"; expected images with labels, which {NAME} needs (MNIST" in message
    assert main(["train", recipe, "--run", str(tmp_path / "run"), "--data.labels", "false"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.endswith(f"classes: got 0, expected at least 2 for {NAME}: images with labels (--data.labels true)")


def test_an_objective_for_models_of_images(tmp_path: Path, capsys: Capture) -> None:
    recipe = str(toys.recipe(tmp_path, NAME))
    assert main(["train", recipe, "--run", str(tmp_path / "run"), "--training.objective.name", "evidence"]) == 2
    expected = f"davi: objective: got evidence for {NAME}, a classifier; expected cross_entropy"
    expected += " (--training.objective.name cross_entropy)"
    assert capsys.readouterr().err.splitlines()[-1] == expected


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_score_names_the_class_of_each_file(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.csv"
    assert main(["score", str(run), "--out", str(out), "--top", "3", "--patches"]) == 0
    said = capsys.readouterr().out
    found, result = rows(out), measurements.load(run)
    log_p = [float(row["log_p"]) for row in found]
    assert log_p == sorted(log_p)
    places = [int(row["file"].rpartition("/")[2]) for row in found]
    assert log_p == pytest.approx(result.bound[places], abs=2e-6)
    digits = load_digits().target[-397:]
    assert [row["label"] for row in found] == [str(digits[i]) for i in places]
    wrong = sum(row["class"] != row["label"] for row in found)
    error = result.result.measure(ERROR_RATE)
    assert error is not None
    assert 100 * wrong / 397 == pytest.approx(error.value)
    assert f"{wrong} of 397 files are put into a class other than their own" in said
    assert len(rows(out.with_name("out-patches.csv"))) == 397
    assert out.with_suffix(".png").is_file()


def test_score_without_labels(run: Path, unlabeled: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.csv"
    assert main(["score", str(run), "--data", str(unlabeled), "--data.levels", "17", "--out", str(out)]) == 0
    assert "without labels" in capsys.readouterr().err
    found = rows(out)
    assert list(found[0]) == ["file", "images", "class", "probability"]
    sure = [float(row["probability"]) for row in found]
    assert sure == sorted(sure)
    model = davi.load_classifier(run)
    given = np.load(unlabeled)
    p = model.log_class_probabilities(torch.tensor(given)[:, None]).exp()
    for row in found:
        own = p[int(row["file"].rpartition("/")[2])]
        assert row["class"] == str(int(own.argmax()))
        assert float(row["probability"]) == pytest.approx(float(own.max()), abs=1e-6)


def test_score_refuses_classes_of_other_names(run: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "two.npz"
    np.savez(path, images=load_digits().images[:6].astype(np.uint8), labels=np.arange(6) % 2)
    assert main(["score", str(run), "--data", str(path), "--data.levels", "17"]) == 2
    assert "with the classes 0, 1, expected the classes 0, 1, 2" in (said := capsys.readouterr().err)
    assert said.endswith("(--data.labels false leaves the labels out)\n")


def test_it_is_compared_with_its_like_alone(run: Path, tmp_path: Path, capsys: Capture) -> None:
    other, net = tmp_path / "other", tmp_path / "net"
    assert main(["train", str(toys.recipe(tmp_path, NAME)), "--run", str(other), "--seed", "1"]) == 0
    assert main(["evaluate", str(other)]) == 0
    capsys.readouterr()
    assert main(["compare", str(run), str(other), "--strict"]) == 0
    text = capsys.readouterr().out
    assert "exact log p(y|x)" in " ".join(text.split())
    assert "error rate" in text
    assert "bits" not in text
    assert "about log p(y|x), paired" in " ".join(text.split())
    assert main(["compare", str(run), str(other), "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert group["unit"] == "nats"
    pairs = [row["to_reference"] for row in group["rows"] if row["to_reference"] is not None]
    assert [pair["bits_per_dim"] for pair in pairs] == [None]
    difference = measurements.load(other).bound - measurements.load(run).bound
    assert pairs[0]["nats"]["mean"] == pytest.approx(float(difference.mean()))
    assert pairs[0]["nats"]["standard_error"] == pytest.approx(float(difference.std(ddof=1)) / 397**0.5)
    data = {"set": "digits", "binarization": "threshold", "validation": 100}
    assert main(["train", str(toys.recipe(tmp_path, BeliefNet.name, data=data)), "--run", str(net)]) == 0
    assert main(["evaluate", str(net), "--no-baselines"]) == 0
    assert main(["compare", str(run), str(net), "--strict"]) == 2
    assert "about" in capsys.readouterr().err


def test_training_says_nats_and_error_rate(run: Path) -> None:
    records = [record for record in read_metrics(run) if record["kind"] in ("train", "validation")]
    assert all(record["unit"] == "nats" and "bits_per_dim" not in record for record in records)
    assert all(set(record["terms"]) == {"error_rate"} for record in records)


def test_weights_for_other_classes(run: Path, tmp_path: Path, capsys: Capture) -> None:
    """What the classes have a share in is drawn anew, with as many classes of other names as well."""
    images, labels = load_digits().images.astype(np.uint8), load_digits().target
    for number, (classes, words) in enumerate(
        ((labels % 3, "3 classes in place of 10"), ((labels + 1) % 10, None), (labels + 1, "11 classes in place of 10"))
    ):
        path = tmp_path / f"{number}.npz"
        np.savez(path, images=images, labels=classes)
        given = ["--data", str(path), "--data.levels", "17", "--run", str(tmp_path / f"run{number}"), "--steps", "1"]
        assert main(["train", "--from", str(run), *given]) == 0
        said = capsys.readouterr().out
        assert ("drawn anew" in said) == (words is not None)
        if words is not None:
            assert f"drawn anew, since images have {words}: weight, bias" in said
    names = toys.recipe(tmp_path, NAME)
    other = davi.train(str(names), images, labels=labels, levels=17, run=tmp_path / "other", steps=1)
    assert other.classifier.classes == 10


@pytest.mark.parametrize("new_classes", [False, True])
def test_as_many_classes_may_be_others(new_classes: bool) -> None:
    model, source = (LinearClassifier((1, 2, 2), 2, LinearClassifierConfig(), 3) for _ in range(2))
    start, lines = take_over(model, source, "runs/a", new_classes)
    assert torch.equal(model.weight, source.weight) != new_classes
    assert start.kept == (frozenset() if new_classes else {"weight", "bias"})
    anew = "; drawn anew, since images have other classes: weight, bias" if new_classes else ""
    assert lines == [f"begins with the weights of runs/a{anew}"]


def test_in_python(run: Path, tmp_path: Path) -> None:
    opened = davi.Run(run)
    assert isinstance(opened.classifier, Classifier)
    assert opened.levels == 17
    with pytest.raises(UserError, match=rf"^run: {NAME} is a classifier, expected .*; run.classifier has it$"):
        _ = opened.model
    with pytest.raises(UserError, match=r"a classifier, .*\(davi.load_classifier loads a classifier\)$"):
        davi.load(run)
    shown = repr(opened)
    assert "bits" not in shown
    assert re.search(r"validation: \d\.\d+ nats, error rate 0\.\d+ at step 12", shown)
    assert re.search(r"evaluated: log p\(y\|x\) -\d\.\d+ nats, error \d+\.\d+ %, 397 images of digits/test", shown)
    measured = opened.evaluate(limit=20)
    assert len(measured) == 20
    assert "log p(y|x)" in repr(measured)
    opened.evaluate()
    recipe = toys.recipe(tmp_path, NAME)
    for classes in (0, 10):
        with pytest.raises(UserError, match=f"got {NAME}, a classifier; davi.recipes.build builds it$"):
            davi.build(recipe, classes=classes)
    images, labels = load_digits().images.astype(np.uint8), load_digits().target
    trained = davi.train(str(recipe), images, labels=labels, levels=17, run=tmp_path / "run", steps=2)
    assert trained.classifier.classes == 10
    with pytest.raises(UserError, match="expected a classifier"):
        davi.load_classifier(_model(tmp_path))


def _model(folder: Path) -> Path:
    model = davi.build("vae_digits_tiny")
    save_model(folder / "model.safetensors", model)
    return folder / "model.safetensors"


def test_recipes_of_classifiers_are_listed_apart(capsys: Capture) -> None:
    classifiers = [name for name in names() if issubclass(MODELS[load(name).model_name], Classifier)]
    assert classifiers
    assert main(["recipes", "--all"]) == 0
    models, _, below = capsys.readouterr().out.partition(f"\n\n{_CLASSIFIERS}\n")
    listed = [line.split()[0] for line in below.partition("\n\n")[0].splitlines()[1:]]
    assert listed == classifiers
    assert not set(classifiers) & {line.split()[0] for line in models.splitlines()}


def test_its_plan(tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", str(toys.recipe(tmp_path, NAME)), "--plan"]) == 0
    assert "the budget of 12 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([1, 2], r"got class_names '\[1, 2\]', expected a list of names$"),
        (["a", "b"], "got 2 class_names, expected 10: one for each class$"),
    ],
)
def test_a_file_with_something_else_than_names(names: list[object], said: str, run: Path, tmp_path: Path) -> None:
    model, info = load_classifier(run)
    save_model(tmp_path / "model.safetensors", model, {"protocol": info["protocol"], "class_names": names})
    with pytest.raises(UserError, match=said):
        load_classifier(tmp_path / "model.safetensors")

"""The toys through the program: a model of every kind is trained, measured, looked at and compared like any other.

What the program says of each is compared with its probability worked out here, from its weights, in plain loops.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import toys
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from toys.belief_net import BeliefNet
from toys.boltzmann import Boltzmann
from toys.flow import TriangularFlow
from toys.halves import Halves
from toys.linear_classifier import LinearClassifier

import davi
from davi.cli import main
from davi.data.subsets import positions
from davi.files import read_tensors
from davi.model import Model, Normalized

Array = NDArray[np.float64]
Capture = pytest.CaptureFixture[str]
TEST, LIMIT, DRAWS = 397, 60, 5
NOISE = 0.5
"""More nats than the standard deviation of the flow's bound over the noise, of any of these images."""
CHOSEN = positions(TEST, LIMIT).tolist()
"""Places of the measured images among the last of the set, which are its test images."""
KINDS = {
    BeliefNet.name: "EXACT",
    TriangularFlow.name: "LOWER_BOUND",
    Boltzmann.name: "EXACT",
    Halves.name: "EXACT",
    LinearClassifier.name: "EXACT",
}
GRAY = (TriangularFlow.name, LinearClassifier.name)
"""Of images with 17 levels; the others are of binary ones."""
LONGEST = 80


class Runs(NamedTuple):
    """Two runs of a toy with different seeds, evaluated on the same images; not to be changed."""

    name: str
    first: Path
    second: Path

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.first / "evaluation.json").read_text(encoding="utf-8"))
        return found


@pytest.fixture(scope="module", autouse=True)
def _toys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        toys.register(patch)
        yield


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory: pytest.TempPathFactory, _toys: None) -> Callable[[str], Runs]:
    """Runs of a toy, made when they are asked for."""
    made: dict[str, Runs] = {}

    def of(name: str) -> Runs:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            recipe = str(toys.recipe(folder, name))
            made[name] = Runs(name, folder / "first", folder / "second")
            samples = str(DRAWS if name == TriangularFlow.name else 1)
            for seed, run in enumerate(made[name][1:]):
                assert main(["train", recipe, "--run", str(run), "--training.seed", str(seed)]) == 0
                words = ["evaluate", str(run), "--limit", str(LIMIT), "--importance-samples", samples]
                assert main(words) == 0
        return made[name]

    return of


@pytest.fixture(params=toys.TOYS)
def runs(request: pytest.FixtureRequest, all_runs: Callable[[str], Runs]) -> Runs:
    return all_runs(request.param)


def measured(binary: bool) -> Array:
    """The images that were measured, ``[60, 64]``."""
    chosen = load_digits().data[-TEST:][CHOSEN]
    return (chosen > 8).astype(np.float64) if binary else chosen


def weights(run: Path, part: str = "") -> dict[str, Array]:
    """The tensors of the run's file whose names begin with a part's, without it."""
    tensors, _ = read_tensors(run / "model.safetensors")
    return {name.removeprefix(part): x.double().numpy() for name, x in tensors.items() if name.startswith(part)}


def belief(x: Array, w: dict[str, Array], y: int = 0) -> float:
    """log p(x) of a belief net, of the class y if it has any."""
    total = 0.0
    for i in range(len(x)):
        logit = w["bias"][y, i] + w["weight"][i, :i] @ x[:i]
        total -= math.log1p(math.exp(-logit if x[i] else logit))
    return total


def halves(x: Array, run: Path) -> float:
    """log p(x) of the two halves."""
    first, second = weights(run, "top."), weights(run, "bottom.")
    top, bottom = x[:32], x[32:]
    said = [first["bias"][0, i] + first["weight"][i, :i] @ top[:i] > 0 for i in range(32)]
    return belief(top, first) + belief(np.abs(bottom - said), second)


def boltzmann(images: Array, w: dict[str, Array]) -> list[float]:
    """log p of images, with sums over all 32 hidden states."""

    def over_hidden(f: Callable[[Array], float]) -> float:
        values = [f(np.array(h)) for h in itertools.product((0.0, 1.0), repeat=5)]
        return float(np.logaddexp.reduce(values))

    def of_hidden(h: Array) -> float:
        """The log of the sum over all images of exp(-E(v, h)), a product over pixels."""
        return float(w["hidden"] @ h + sum(math.log1p(math.exp(field)) for field in w["visible"] + h @ w["weight"]))

    log_z = over_hidden(of_hidden)
    return [
        over_hidden(lambda h, v=v: float(w["visible"] @ v + (w["hidden"] + w["weight"] @ v) @ h)) - log_z  # type: ignore[misc]
        for v in images
    ]


def flow(images: Array, w: dict[str, Array]) -> list[float]:
    """The flow's bound, with the mean over the noise in closed form: (x + u) / 17 has the variance 1 / 12 / 17^2."""
    matrix = np.tril(w["bijection.below"], -1) + np.diag(np.exp(w["bijection.log_scale"]))
    found = []
    for x in images:
        z = matrix @ ((x + 0.5) / 17 - w["bijection.shift"])
        square = z @ z + (matrix**2).sum() / 12 / 17**2
        density = -0.5 * square - 32 * math.log(2 * math.pi) + w["bijection.log_scale"].sum()
        found.append(density - 64 * math.log(17))
    return found


def classifier(images: Array, w: dict[str, Array]) -> list[float]:
    """log p(y | x) of the classes of the measured images."""
    logits = images / 16 @ w["weight"].T + w["bias"]
    classes = load_digits().target[-TEST:][CHOSEN]
    return [float(own[y] - np.logaddexp.reduce(own)) for own, y in zip(logits, classes, strict=True)]


def exact(runs: Runs) -> Array:
    """The number of each image, worked out here, ``[60]``."""
    images = measured(binary=runs.name not in GRAY)
    if runs.name == BeliefNet.name:
        return np.array([belief(x, weights(runs.first)) for x in images])
    if runs.name == Halves.name:
        return np.array([halves(x, runs.first) for x in images])
    of = {Boltzmann.name: boltzmann, TriangularFlow.name: flow, LinearClassifier.name: classifier}[runs.name]
    return np.array(of(images, weights(runs.first)))


def test_there_is_a_kind_of_every_toy() -> None:
    assert set(KINDS) == set(toys.TOYS)


@pytest.mark.parametrize("path", sorted(Path(toys.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_a_new_model_is_a_short_file(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST


def test_the_number_is_the_models(runs: Runs) -> None:
    result = runs.result()
    assert result["kind"] == KINDS[runs.name]
    assert result["protocol"]["images"] == LIMIT
    expected = exact(runs)
    # 1e-5: float32. The flow's is a mean over draws.
    tolerance = {"abs": 4 * NOISE / math.sqrt(DRAWS * LIMIT)} if runs.name == TriangularFlow.name else {"rel": 1e-5}
    assert result["elbo"]["nats"]["mean"] == pytest.approx(expected.mean(), **tolerance)
    assert result["elbo"]["nats"]["standard_error"] == pytest.approx(expected.std(ddof=1) / LIMIT**0.5, rel=0.05)
    terms = sum(term["nats"]["mean"] for term in result["terms"].values())
    assert terms == pytest.approx(result["elbo"]["nats"]["mean"], rel=1e-9)


def test_the_bound_of_several_draws_is_the_better_one(all_runs: Callable[[str], Runs]) -> None:
    result = all_runs(TriangularFlow.name).result()
    assert result["bound"]["samples"] == DRAWS
    assert result["bound"]["nats"]["mean"] > result["elbo"]["nats"]["mean"]
    model = davi.load(all_runs(TriangularFlow.name).first)
    x = torch.tensor(measured(binary=False)).long().view(-1, 1, 8, 8)
    spread = torch.stack([model.evidence(x).log_px.detach() for _ in range(20)]).std(0)
    assert 0.0 < float(spread.max()) < NOISE


def test_json_is_what_is_kept(runs: Runs, tmp_path: Path, capsys: Capture) -> None:
    kept = (runs.first / "evaluation.json").read_text(encoding="utf-8")
    capsys.readouterr()
    samples = str(runs.result()["bound"]["samples"])
    words = ["evaluate", str(runs.first), "--limit", str(LIMIT), "--importance-samples", samples, "--json"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(kept)  # nor does measuring again change a number


def test_samples_and_a_page(runs: Runs, tmp_path: Path, capsys: Capture) -> None:
    picture, page = tmp_path / "drawn.png", tmp_path / "page.html"
    if issubclass(toys.TOYS[runs.name], Model):
        assert main(["sample", str(runs.first), "--n", "9", "--out", str(picture)]) == 0
        with Image.open(picture) as image:
            assert np.asarray(image.convert("L")).std() > 0
    capsys.readouterr()
    assert main(["inspect", str(runs.first), "--no-figures", "--out", str(page)]) == 0
    assert ("costs at most" in capsys.readouterr().out) == (KINDS[runs.name] == "LOWER_BOUND")
    text = page.read_text(encoding="utf-8")
    assert runs.name in text
    assert "written by davi evaluate for these very weights" in text


def test_two_seeds_are_compared(runs: Runs, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["compare", str(runs.first), str(runs.second), "--json", "--strict"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    rows = {row["run"]: row for row in group["rows"]}
    assert set(rows) == {str(runs.first), str(runs.second)}
    assert rows[str(runs.first)]["nats"] == runs.result()["bound"]["nats"]
    assert rows[str(runs.first)]["nats"] != rows[str(runs.second)]["nats"]
    assert all(row["rank"] in (1, 2) for row in rows.values())


def test_different_kinds_of_exact_models_are_compared(all_runs: Callable[[str], Runs], capsys: Capture) -> None:
    of = [str(all_runs(name).first) for name in (BeliefNet.name, Boltzmann.name, Halves.name)]
    capsys.readouterr()
    assert main(["compare", *of, "--strict"]) == 0
    printed = capsys.readouterr().out
    assert "exact log p(x)" in " ".join(printed.split())
    assert "not ranked" not in printed


def test_a_bound_is_not_ranked_among_exact_numbers(all_runs: Callable[[str], Runs], capsys: Capture) -> None:
    of = [str(all_runs(name).first) for name in (BeliefNet.name, TriangularFlow.name)]
    assert main(["compare", *of, "--strict"]) == 2
    capsys.readouterr()
    assert main(["compare", *of, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [len(group["rows"]) for group in result["groups"]] == [1, 1]


def test_an_energy_is_not_trained_on_evidence_that_it_has_not(tmp_path: Path, capsys: Capture) -> None:
    recipe = toys.recipe(tmp_path, Boltzmann.name, training=toys.TRAINING)
    assert main(["train", str(recipe), "--run", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "davi: objective: got evidence for toy_boltzmann, expected a model\n"
    recipe = toys.recipe(tmp_path, BeliefNet.name, training={**toys.TRAINING, "objective": {"name": "toy_persistent"}})
    assert main(["train", str(recipe), "--run", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "davi: objective: got toy_persistent for toy_belief_net, expected an energy\n"


def test_an_energy_is_loaded_with_its_partition_function(all_runs: Callable[[str], Runs]) -> None:
    run = all_runs(Boltzmann.name).first
    assert isinstance(davi.load(run), Normalized)
    assert (run / "derived" / "partition.safetensors").is_file()


def test_labels_make_a_belief_net_conditional(all_runs: Callable[[str], Runs], tmp_path: Path, capsys: Capture) -> None:
    data = {"set": "digits", "binarization": "threshold", "validation": 100, "labels": True}
    recipe = toys.recipe(tmp_path, BeliefNet.name, data=data)
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--run", str(run)]) == 0
    assert davi.load(run).classes == 10
    assert main(["evaluate", str(run), "--limit", str(LIMIT)]) == 0
    result = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert (result["kind"], result["about"]) == ("EXACT", "x|y")
    classes = load_digits().target[-TEST:][CHOSEN]
    expected = [belief(x, weights(run), y) for x, y in zip(measured(binary=True), classes, strict=True)]
    assert result["elbo"]["nats"]["mean"] == pytest.approx(np.mean(expected), rel=1e-5)  # float32
    assert main(["sample", str(run), "--n", "20"]) == 0
    capsys.readouterr()
    assert main(["compare", str(run), str(all_runs(BeliefNet.name).first)]) == 0
    assert "their protocols differ in about: x|y (A), x (B)" in " ".join(capsys.readouterr().out.split())


def test_classes_of_other_names_are_no_classes_of_the_model(tmp_path: Path, capsys: Capture) -> None:
    """As many classes are not the same classes."""
    data = {"set": "digits", "binarization": "threshold", "validation": 100, "labels": True}
    path = toys.recipe(tmp_path, BeliefNet.name, data=data)
    assert main(["train", str(path), "--run", str(tmp_path / "run"), "--training.steps", "2"]) == 0
    for number in range(10):
        folder = tmp_path / "images" / f"kind{number}"
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(10 * number + i).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "images")]) == 2
    assert "with the classes kind0, kind1" in capsys.readouterr().err

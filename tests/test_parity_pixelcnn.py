"""PixelCNN++ and PixelSNAIL against their authors' programs: fixtures agree, a change is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from davi.published.parity import main
from davi.published.pixelcnn import layout, pixelcnn_pp
from davi.training.adam import AdamInsideRoot

FIXTURES = ("pcnnpp_rgb", "pcnnpp_cond", "psnail_rgb")

Tensors = dict[str, Tensor]
Facts = dict[str, Any]


@pytest.fixture
def fixture(need_shared: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda name: need_shared(f"fixtures/pixelcnn/{name}.safetensors")


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FIXTURES)
def test_agrees_with_the_authors_program(
    fixture: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, option: list[str]
) -> None:
    path = fixture(name)
    assert main([str(path), *option]) == 0
    compared = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")}
    expected = {key.removeprefix("expected/") for key in load_file(path) if key.startswith("expected/")}
    weights = json.loads(path.with_suffix(".json").read_text())["weight_order"]
    assert expected <= compared
    assert {f"gradient/{weight}" for weight in weights} <= compared
    assert {f"initialization/{weight}" for weight in weights if weight[-1] in "gb"} <= compared
    assert {"log_likelihood/openai", "loss_check/exact", "sampling", "adam/losses"} <= compared


def test_whatever_other_fixture_there_is_agrees(shared: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = None if shared is None else shared / "fixtures" / "pixelcnn"
    paths = [] if folder is None else sorted(path.with_suffix(".safetensors") for path in folder.glob("*.json"))
    others = [path for path in paths if path.stem not in FIXTURES]
    if not others:
        pytest.skip("needs fixtures of the reference data beyond those with tests of their own")
    failed = [path.name for path in others if main([str(path)]) != 0]
    assert not failed, capsys.readouterr().out


def changed(
    tmp_path: Path, source: Path, change: Callable[[Tensors, Tensors, Facts], None], initialization: bool = True
) -> Path:
    """A copy of a fixture with a change."""
    beside = source.with_name(f"{source.stem}_init.safetensors")
    tensors, first, facts = load_file(source), load_file(beside), json.loads(source.with_suffix(".json").read_text())
    change(tensors, first, facts)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(facts))
    if initialization:
        save_file(first, tmp_path / "changed_init.safetensors")
    return path


def exchange_halves(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    """The gate becomes what it gates."""
    for own in ("V", "g", "b"):
        name = f"weights/model/conv2d_4/{own}"
        tensors[name] = torch.cat(tensors[name].chunk(2, -1)[::-1], -1).contiguous()


def other_output(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    tensors["weights/model/dense_13/b"] = tensors["weights/model/dense_13/b"] + 0.01


def other_form(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    """The exact likelihood of narrow bins is not what the authors count."""
    key = "loss_check_exact_form_log_likelihood_nats_float64"
    facts[key] = facts["float64"]["loss_check_log_likelihood_nats"]


def other_epsilon(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    facts["adam"]["eps_inside_sqrt"] = 1.0


def other_start(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    first["raw/model/deconv2d_1/V"] = first["raw/model/deconv2d_1/V"] + 0.01


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (exchange_halves, "up/u/1"),
        (other_output, "logits"),
        (other_form, "loss_check/exact"),
        (other_epsilon, "adam/losses"),
        (other_start, "initialization/model/deconv2d_1/g"),
    ],
)
def test_a_change_is_found_and_named(
    fixture: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Tensors, Tensors, Facts], None],
    found: str,
) -> None:
    assert main([str(changed(tmp_path, fixture("pcnnpp_cond"), change)), "--float64"]) == 1
    assert f"DIFFERS: {found} is the first" in capsys.readouterr().out


def drop_weight(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    del tensors["weights/model/deconv2d_0/V"]


def wider(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    facts["config"]["nr_filters"] = 14


def other_nonlinearity(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    facts["config"]["resnet_nonlinearity"] = "tanh"


def flat_weight(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    tensors["weights/model/conv2d_0/V"] = tensors["weights/model/conv2d_0/V"].flatten()


def no_labels(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    del tensors["input/labels"]


def one_label(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    tensors["input/labels"] = tensors["input/labels"][:1]


def whiter_than_white(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    tensors["input/x_uint8"] = tensors["input/x_uint8"].int() + 255


def no_first_kernel(tensors: Tensors, first: Tensors, facts: Facts) -> None:
    del first["raw/model/conv2d_0/V"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_weight, "model/deconv2d_0/V"),
        (wider, "expected"),
        (other_nonlinearity, "nonlinearity: got tanh"),
        (flat_weight, "model/conv2d_0/V [288], expected"),
        (no_labels, "input/labels"),
        (one_label, "labels: got shape (1,), expected [2]"),
        (whiter_than_white, "images: got"),
        (no_first_kernel, "raw/model/conv2d_0/V"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(
    fixture: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Tensors, Tensors, Facts], None],
    said: str,
) -> None:
    assert main([str(changed(tmp_path, fixture("pcnnpp_cond"), change))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_brackets_without_end_are_refused_in_a_line(
    fixture: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(tmp_path, fixture("pcnnpp_cond"), lambda tensors, first, facts: None)
    path.with_suffix(".json").write_text("[" * 100_000)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert "not readable JSON" in error
    assert error.count("\n") == 1


def test_the_initialization_must_lie_beside(
    fixture: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(tmp_path, fixture("pcnnpp_cond"), lambda tensors, first, facts: None, initialization=False)
    assert main([str(path)]) == 2
    assert "changed_init.safetensors: no such file" in capsys.readouterr().err


def test_the_optimizer_of_recipes_takes_their_steps(fixture: Callable[[str], Path]) -> None:
    """Ours averages over the images what they sum: an epsilon inside the root is divided by their number squared."""
    path = fixture("pcnnpp_cond")
    tensors, facts = load_file(path), json.loads(path.with_suffix(".json").read_text())
    model = pixelcnn_pp.build(facts["config"], form="openai").double()
    names = layout.parameter_names(model.causal, pixelcnn_pp.places(model))
    weights = {ours: layout.to_ours(ours, tensors[f"weights/{theirs}"], model.head) for theirs, ours in names.items()}
    model.causal.load_state_dict(weights)
    x, y, adam = layout.images(tensors["input/x_uint8"]), tensors["input/labels"].long(), facts["adam"]
    betas, epsilon = (adam["beta1"], adam["beta2"]), adam["eps_inside_sqrt"] / len(x) ** 2
    optimizer = AdamInsideRoot(model.parameters(), adam["base_lr"], betas, epsilon)
    for step in range(adam["steps"]):
        optimizer.param_groups[0]["lr"] = adam["base_lr"] * adam["lr_decay_applied_before_each_step"] ** (step + 1)
        optimizer.zero_grad()
        (-model.conditionals(x, y).log_prob(x).mean()).backward()
        optimizer.step()
    parameters = dict(model.causal.named_parameters())
    found = [name for name in tensors if name.startswith("adam/after3/")]
    assert found
    for name in found:
        ours = names[name.removeprefix("adam/after3/")]
        theirs = layout.to_ours(ours, tensors[name], model.head).double()
        torch.testing.assert_close(parameters[ours].detach(), theirs, rtol=0.0, atol=1e-6)

"""What every classifier promises, whatever it computes its logits with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from contract import CLASSES, names, shaken, some_images

import davi
from davi import recipes
from davi.cli import main
from davi.errors import OptionError, UserError
from davi.evidence import About, Kind
from davi.layers.checkpointed import Checkpointed
from davi.model import Classifier, DataInitialized
from davi.runs import load_model, save_model
from davi.training.prepare import prepare_blocks
from davi.training.sections import ComputeConfig
from davi.training.step_filter import StepFilter

_QUERY = {"attention.1.query.weight", "attention.1.query.bias", "attention.1.attention.scale"}

UNREACHABLE = dict.fromkeys(("resnet_attention_digits_tiny", "revnet_attention_digits_tiny"), _QUERY)
"""Recipe -> what has no gradient: the first reader is offered a single layer, which it reads whatever it asks for."""


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


@pytest.fixture(params=names(Classifier))
def model(request: pytest.FixtureRequest) -> Classifier:
    network = shaken(request.param)
    assert isinstance(network, Classifier)
    if isinstance(network, DataInitialized):
        network.initialize(some_images(network, 32))
    return network


def labels(n: int) -> torch.Tensor:
    return torch.arange(n) % CLASSES


def test_probabilities_sum_to_one(model: Classifier) -> None:
    model.double()
    log_p = model.log_class_probabilities(some_images(model, 7))
    assert log_p.shape == (7, CLASSES)
    # float32: what is reported of classes, in whatever precision the logits are
    torch.testing.assert_close(log_p.double().exp().sum(1), torch.ones(7, dtype=torch.float64), rtol=1e-6, atol=0.0)


def test_evidence_is_the_log_softmax_of_the_own_class(model: Classifier) -> None:
    x, y = some_images(model, 6), labels(6)
    evidence = model.evidence(x, y=y)
    logits = model.logits(x)
    expected = torch.stack([logits[i, y[i]] - logits[i].logsumexp(0) for i in range(6)])
    torch.testing.assert_close(evidence.log_px, expected, rtol=1e-5, atol=1e-6)
    assert (evidence.kind, evidence.about, evidence.deterministic) == (Kind.EXACT, About.Y_GIVEN_X, True)
    assert "bits" not in repr(evidence)
    with pytest.raises(ValueError, match=r"^dims: got None"):
        _ = evidence.bits_per_dim
    assert torch.equal(model(x), logits)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integers_are_images_and_labels(model: Classifier, dtype: torch.dtype) -> None:
    x, y = some_images(model, 4), labels(4)
    assert torch.equal(model.evidence(x.to(dtype), y=y.to(dtype)).log_px, model.evidence(x, y=y).log_px)


def test_an_image_does_not_depend_on_the_others(model: Classifier) -> None:
    assert not any(module.training for module in model.modules())
    model.double()
    first, second = some_images(model, 4), some_images(model, 4)
    second[0] = first[0]
    one, other = (model.logits(x) for x in (first, second))
    torch.testing.assert_close(one[0], other[0], rtol=1e-10, atol=1e-10)
    assert bool((one[1:] != other[1:]).any(1).all())


def test_missing_labels_and_too_few_classes_are_refused(model: Classifier) -> None:
    with pytest.raises(ValueError, match=r"^labels: got None, expected 2 class numbers from 0 to 2$"):
        model.evidence(some_images(model, 2))
    for classes in (0, 1):
        expected = rf"^classes: got {classes}, expected at least 2 for {model.name}: images with labels "
        with pytest.raises(OptionError, match=expected):
            type(model)(model.shape, model.levels, model.config, classes)


def test_gradients_reach_every_parameter(request: pytest.FixtureRequest, model: Classifier) -> None:
    model.train()
    model.evidence(some_images(model, 8), y=labels(8)).log_px.sum().backward()
    dead = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert dead == UNREACHABLE.get(request.node.callspec.params["model"], set())


def test_saved_and_loaded_it_is_the_same(model: Classifier, tmp_path: Path) -> None:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    x = some_images(model, 3)
    save_model(tmp_path / "model.safetensors", model, {"class_names": ["a", "b", "c"]})
    again = davi.load_classifier(tmp_path / "model.safetensors")
    assert torch.equal(again.logits(x), model.logits(x))
    assert not again.logits(x).requires_grad
    with pytest.raises(UserError, match=f"got {model.name}, a classifier, .*davi.load_classifier loads a classifier"):
        load_model(tmp_path)


Step = tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]


def step(model: Classifier, x: torch.Tensor, y: torch.Tensor) -> Step:
    """Log-probabilities, gradients and buffers after a step in training mode."""
    model.train()
    log_p = model.evidence(x, y=y).log_px
    log_p.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return log_p.detach(), gradients, dict(model.named_buffers())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, while it traces
@pytest.mark.parametrize("switch", ["channels_last", "recompute", "compile"])
def test_switches_keep_the_loss(model: Classifier, switch: str) -> None:
    blocks = list(model.blocks())
    if switch != "channels_last" and not blocks:
        return  # one matrix has no blocks
    if switch == "recompute" and not any(isinstance(block, Checkpointed) for block in blocks):
        return
    model.double()
    other = copy.deepcopy(model)
    if switch == "channels_last":
        other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    else:
        config = ComputeConfig(
            recompute=switch == "recompute", compile=switch == "compile", compile_backend="aot_eager"
        )
        prepare_blocks(other, config)
    x, y = some_images(model, 8), labels(8)
    plain, switched = step(model, x, y), step(other, x, y)
    for one, two in zip(plain, switched, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", names(Classifier))
def test_killed_and_resumed_it_is_bit_for_bit_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(toys.recipe(tmp_path, name)) if name in toys.TOYS else name
    assert recipes.load(recipe).data is not None
    words = ["--steps", "4", "--training.checkpoints.steps", "2", "--training.validate_every", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["train", recipe, "--run", str(whole), *words]) == 0
    judge, seen = StepFilter.judge, 0

    def dies(self: StepFilter, *given: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise SystemError("killed")
        return judge(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(StepFilter, "judge", dies)
        with pytest.raises(SystemError, match="killed"):
            main(["train", recipe, "--run", str(killed), *words])
    assert not (killed / "model.safetensors").exists()
    assert main(["train", "--run", str(killed), "--resume"]) == 0
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

"""Batch-norm statistics of a model's own draws: found once, kept, and never used by what is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import davi
from davi.cli import main
from davi.errors import UserError
from davi.models import NVAE
from davi.recalibration import recalibrate, recalibrated
from davi.runs import create_whole, load_model


@pytest.fixture
def model() -> NVAE:
    found = davi.build("nvae_digits_tiny")
    assert isinstance(found, NVAE)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found.eval()


@pytest.fixture
def run(model: NVAE, tmp_path: Path) -> Path:
    recipe = davi.recipes.load("nvae_digits_tiny").to_dict()
    create_whole(tmp_path / "run", recipe, model, {})
    return tmp_path / "run"


def test_statistics_are_means_over_the_draws(model: NVAE) -> None:
    """One layer's statistics, collected by a hook."""
    norm = model.postprocess[0].body[1]  # type: ignore[index]  # a Sequential of cells
    assert isinstance(norm, nn.BatchNorm2d)
    inputs: list[torch.Tensor] = []
    hook = norm.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    found = recalibrate(model, 0.7, passes=3, seed=4, batch_size=5)
    hook.remove()
    assert len(inputs) == 3
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
    # 1e-5: float32, sums in another order
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-5, atol=1e-5)
    assert torch.equal(found["postprocess.0.body.1.running_mean"], means.new_tensor(norm.running_mean.tolist()))
    assert norm.momentum == 0.05
    assert not model.training
    assert not norm.training


def test_it_follows_from_the_seed_and_leaves_the_way_up_alone(model: NVAE) -> None:
    before = {name: x.clone() for name, x in model.state_dict().items()}
    found = [recalibrate(model, 0.7, passes=2, seed=seed) for seed in (1, 1, 2)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])
    assert {name.partition(".")[0] for name in found[0]} == {"groups", "postprocess"}
    for name, x in model.state_dict().items():
        changes = name.startswith(("groups.", "postprocess.")) and "running" in name
        assert torch.equal(x, before[name]) or changes or name.endswith("num_batches_tracked")
    assert all(torch.equal(model.state_dict()[name], x) for name, x in before.items() if name.startswith("encoder."))


def test_norms_of_vectors_count_too() -> None:
    model = davi.build("ladder_vae_digits_tiny").eval()
    found = recalibrate(model, 0.7, passes=2)
    assert found
    assert all(torch.equal(model.state_dict()[name], x) for name, x in found.items())


def test_of_temperatures_by_layer_the_last_are_kept(model: NVAE, run: Path) -> None:
    layers = model.num_layers
    found = []
    for temperature in ([0.7] * layers, (0.7,) * layers, [0.7] * (layers - 1) + [0.0], [0.7] * layers):
        path, known = recalibrated(load_model(run)[0], run, temperature, passes=1)
        assert path == run / "derived" / "sampling-by-layer.safetensors"
        found.append(known)
    assert found == [False, True, False, False]


def test_statistics_are_found_once_and_kept(model: NVAE, run: Path) -> None:
    first, _ = load_model(run)
    again, _ = load_model(run)
    path, known = recalibrated(first, run, 0.7, passes=2)
    assert path == run / "derived" / "sampling-0.7.safetensors"
    assert not known
    written = path.read_bytes()
    assert recalibrated(again, run, 0.7, passes=2) == (path, True)
    assert path.read_bytes() == written
    for ours, theirs in zip(first.buffers(), again.buffers(), strict=True):
        assert torch.equal(ours, theirs) or not ours.is_floating_point()
    other, _ = load_model(run)
    assert recalibrated(other, run, 0.7, passes=3) == (path, False)  # asked for otherwise: found anew
    changed, _ = load_model(run)
    with torch.no_grad():
        next(changed.parameters()).add_(1.0)
    assert recalibrated(changed, run, 0.7, passes=3) == (path, False)  # of other weights


def test_a_damaged_file_is_named(run: Path) -> None:
    (run / "derived").mkdir()
    (run / "derived" / "sampling-1.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"sampling-1\.safetensors: not a complete safetensors file"):
        recalibrated(load_model(run)[0], run, 1.0)


def test_models_without_batch_norms(tmp_path: Path) -> None:
    model = davi.build("very_deep_vae_digits_tiny")
    assert recalibrate(model, passes=1) == {}
    assert recalibrated(model, tmp_path, 1.0) == (None, False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="passes: got 0"):
        recalibrate(model, passes=0)


def test_the_program_draws_with_them_and_evaluates_without(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = []
    for words in ([], ["--recalibrate"], ["--recalibrate"], []):
        assert main(["sample", str(run), "--n", "4", "--temperature", "0.7", "--device", "cpu", *words]) == 0
        pictures.append((run / "samples.png").read_bytes())
    told = capsys.readouterr().out.splitlines()
    assert "statistics found and kept in sampling-0.7.safetensors" in told[1]
    assert "statistics from sampling-0.7.safetensors" in told[2]
    assert pictures[0] == pictures[3] != pictures[1] == pictures[2]
    again = ["sample", str(run), "--n", "4", "--temperature", "0.7", "--device", "cpu", "--recalibrate", "--seed", "1"]
    assert main(again) == 0
    assert "statistics from sampling-0.7.safetensors" in capsys.readouterr().out  # one file for all seeds of draws
    assert (run / "samples.png").read_bytes() != pictures[1]

"""What ``--plan`` says is what the tensors say: closed forms, and a model small enough to count by hand."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from tiny import sets, vae
from torch import Generator, Tensor, nn

from davi.cli import main
from davi.errors import UserError
from davi.evidence import Evidence, Kind
from davi.model import Model, Temperature
from davi.training import TrainingConfig
from davi.training.plan import Plan, SavedTensors, plan
from davi.training.sections import ComputeConfig, OptimizerConfig

CONFIG = TrainingConfig(steps=12, batch_size=8, threads=1)
MIB = 2**20


class Counted(Model):
    """Its forward pass keeps two maps of [B, C, H, W] in float32: the images, for the product, and the exponentials."""

    name: ClassVar[str] = "counted"

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, shape: tuple[int, int, int], levels: int) -> None:
        super().__init__(shape, levels, Counted.Config())
        self.weight = nn.Parameter(torch.full(shape, -0.1))
        self.register_buffer("center", torch.full(shape, 0.5))

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        assert isinstance(self.center, Tensor)
        energy = ((x - self.center) * self.weight).exp()  # keeps x - center, and its own result
        return Evidence({"reconstruction": -energy.flatten(1).sum(1)}, Kind.ESTIMATE)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        return torch.zeros(n, *self.shape, dtype=torch.uint8)


def planned(model: Model, **changes: Any) -> Plan:
    return plan(model, sets(), dataclasses.replace(CONFIG, **changes))


def test_every_row_of_a_model_counted_by_hand() -> None:
    found = planned(Counted((1, 4, 4), 2))
    assert found.parameters == 16
    assert found.memory == {
        "parameters": 4 * 16,
        "buffers": 3 * 4 * 16,  # as they are, as they were before the step, and the mean over its parts
        "gradients": 4 * 16,
        "optimizer state": 2 * 4 * 16 + 4,  # two moments, and the number of steps as one float32
        "averaged weights": 2 * 4 * 16,  # of the weight and of the buffer
        "activations": 2 * 4 * 8 * 16,  # two maps of eight images
        "images": (40 + 12 + 12) * 16,  # training, validation, test: one byte each
    }


def test_images_in_a_file_take_no_memory() -> None:
    data = sets()
    mapped = dataclasses.replace(data, train=dataclasses.replace(data.train, mapped=True))
    assert plan(Counted((1, 4, 4), 2), mapped, CONFIG).memory["images"] == (12 + 12) * 16


def test_a_batch_norm_of_one_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"batch_size: got parts of 1 image of \[1, 1, 1\]"):
        plan(vae(size=1), sets(size=1), dataclasses.replace(CONFIG, batch_size=1))


def test_parts_of_a_batch_keep_a_part_of_the_activations() -> None:
    found = planned(Counted((1, 4, 4), 2), accumulate=4)
    assert found.memory["activations"] == 2 * 4 * 2 * 16
    assert found.batch_size == 8


@pytest.mark.parametrize(("optimizer", "moments"), [("adamax", 2), ("adamw", 2)])
def test_weights_and_moments_in_closed_form(optimizer: Literal["adamax", "adamw"], moments: int) -> None:
    model = vae()
    sizes = [parameter.numel() for parameter in model.parameters()]
    buffers = {name: buffer.nbytes for name, buffer in model.named_buffers()}
    found = planned(vae(), optimizer=OptimizerConfig(optimizer))
    assert found.parameters == sum(sizes)
    assert found.memory["parameters"] == found.memory["gradients"] == 4 * sum(sizes)
    assert found.memory["optimizer state"] == moments * 4 * sum(sizes) + 4 * len(sizes)
    counters = [size for name, size in buffers.items() if name.endswith("num_batches_tracked")]
    assert found.memory["buffers"] == 3 * sum(buffers.values()) - sum(counters)  # of counters there is no mean
    assert found.memory["averaged weights"] == 4 * sum(sizes) + sum(buffers.values())


def test_recomputed_and_narrow_activations_are_fewer() -> None:
    """Recomputation keeps the inputs of blocks alone; bfloat16 keeps the maps of convolutions in half the bytes."""
    whole, recomputed, narrow = (
        planned(vae(), compute=compute).memory["activations"]
        for compute in (ComputeConfig(), ComputeConfig(recompute=True), ComputeConfig(precision="bfloat16"))
    )
    assert recomputed < whole
    assert narrow < whole


def test_saved_tensors_count_storages_once_and_the_largest_block() -> None:
    x = torch.randn(10, requires_grad=True)
    saved = SavedTensors([x])
    for n in (3, 5, 2):
        y = torch.ones(n) * 2
        with saved:
            z = (y * x[:n]).sum() + (y[:2] * x[:2]).sum()  # y is kept by both products, the second time as a view
        z.backward()
    assert saved.most == 4 * 5
    assert x.grad is not None
    assert x.grad[:6].tolist() == [12, 12, 4, 2, 2, 0]  # what is unpacked is what was packed


def test_time_follows_from_the_second_step() -> None:
    by_steps, by_epochs, by_minutes, by_both = (
        planned(vae(), **{"steps": None, **budget})
        for budget in ({"steps": 12}, {"epochs": 3.0}, {"minutes": 1.0}, {"steps": 10**9, "minutes": 1.0})
    )
    assert (by_steps.steps_per_epoch, by_steps.total_steps) == (40 // 8, 12)
    assert by_epochs.total_steps == 3 * 5
    for found in (by_minutes, by_both):
        assert found.total_steps == max(1, round(60 / found.seconds_per_step))


def test_the_lines() -> None:
    memory = {"parameters": 3 * MIB, "activations": 5 * MIB // 2}
    found = Plan(torch.device("cpu"), 786432, memory, None, 32, 0.5, 120, 7200)
    assert found.lines() == [
        "memory on cpu, 32 images a step:",
        "  parameters               3.0 MiB (786,432)",
        "  activations              2.5 MiB",
        "  total                    5.5 MiB",
        "time: 0.5 s a step, 64 images/s",
        "  an epoch of 120 steps: 1m00s",
        "  the budget of 7,200 steps: 1h00m",
    ]
    on_cuda = dataclasses.replace(found, device=torch.device("cuda", 0), peak=7 * MIB).lines()
    assert on_cuda[0] == "memory on cuda:0, 32 images a step:"
    assert on_cuda[4] == "  peak on cuda:0           7.0 MiB"


def test_images_must_fit_the_model() -> None:
    with pytest.raises(UserError, match=r"data: got images \[1, 4, 4\] with 2 levels, expected \[1, 8, 8\]"):
        planned(vae(size=8))


def test_the_program_plans_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", "attentive_digits_tiny", "--plan", "--training.batch_size", "16", "--training.steps=100"]) == 0
    )
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  parameters") and line.endswith("0.1 MiB (13,465)") for line in said)
    assert said[-2].startswith(f"  an epoch of {1336 // 16} steps: ")
    assert said[-1].startswith("  the budget of 100 steps: ")
    assert not list(tmp_path.iterdir())

"""One optimizer call for each tensor does what one for each operation does."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny import sets, vae
from torch import Tensor

from davi.models.rbm import RBM, RBMConfig
from davi.runs import load_model
from davi.training import TrainingConfig, train
from davi.training.optimizer import make_optimizer, set_rate, update
from davi.training.sections import OptimizerConfig, ScheduleConfig


def two_steps(config: OptimizerConfig, start: Tensor, gradients: list[Tensor]) -> Tensor:
    """Where a weight stands after a step with each gradient."""
    layer = torch.nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(start)
    made = make_optimizer(layer, config, 0.1)
    for gradient in gradients:
        layer.weight.grad = gradient.clone()
        made.step()
    return layer.weight.detach()


START = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
GRADIENTS = [torch.tensor([[0.3, -4.0]], dtype=torch.float64), torch.tensor([[-0.2, 1e-4]], dtype=torch.float64)]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_adam_by_its_formula(inside: bool, decay: float) -> None:
    """With the epsilon inside or outside of the root; an epsilon so large that it matters which."""
    theta, eps, (b1, b2) = START.clone(), 0.2, (0.8, 0.95)
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for t, raw in enumerate(GRADIENTS, 1):
        g = raw + decay * theta
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mean, square = m / (1 - b1**t), v / (1 - b2**t)
        theta = theta - 0.1 * mean / ((square + eps).sqrt() if inside else square.sqrt() + eps)
    config = OptimizerConfig("adam", eps=eps, betas=(b1, b2), weight_decay=decay, eps_inside_root=inside)
    torch.testing.assert_close(two_steps(config, START, GRADIENTS), theta, rtol=1e-12, atol=0.0)


def test_sgd_by_its_formula() -> None:
    theta, velocity = START.clone(), torch.zeros_like(START)
    for raw in GRADIENTS:
        velocity = 0.7 * velocity + (raw + 0.5 * theta)
        theta = theta - 0.1 * velocity
    made = two_steps(OptimizerConfig("sgd", momentum=0.7, weight_decay=0.5), START, GRADIENTS)
    torch.testing.assert_close(made, theta, rtol=1e-12, atol=0.0)


def test_weight_decay_of_kernels_spares_the_rest() -> None:
    """A step with gradients of zero shrinks what is decayed, and nothing else."""
    cases: tuple[tuple[Literal["all", "kernels"], set[int]], ...] = (("all", {4, 2, 1}), ("kernels", {4, 2}))
    for of, shrunk in cases:
        layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 3)).double()
        config = OptimizerConfig("sgd", momentum=0.0, weight_decay=0.5, weight_decay_of=of)
        made = make_optimizer(layers, config, 0.1)
        before = [parameter.detach().clone() for parameter in layers.parameters()]
        for parameter in layers.parameters():
            parameter.grad = torch.zeros_like(parameter)
        made.step()
        for old, new in zip(before, layers.parameters(), strict=True):
            expected = old * (0.95 if old.ndim in shrunk else 1.0)
            torch.testing.assert_close(new.detach(), expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerConfig("sgd"),
        OptimizerConfig("sgd", weight_decay=0.1, weight_decay_of="kernels"),
        OptimizerConfig("sgd", momentum=0.0),  # without any state
        OptimizerConfig("sgd", initial_momentum=0.0, initial_momentum_steps=4),
        OptimizerConfig("adam"),
        OptimizerConfig("adam", eps_inside_root=True),
    ],
)
def test_each_optimizer_is_resumed_bit_for_bit(optimizer: OptimizerConfig, tmp_path: Path) -> None:
    """Killed after three of six steps."""
    constant = ScheduleConfig("constant")
    config = TrainingConfig(steps=6, batch_size=8, learning_rate=1e-3, optimizer=optimizer, schedule=constant)
    images, weights = sets(), []
    for run, lengths in ((tmp_path / "whole", (6,)), (tmp_path / "cut", (3, 6))):
        for resume, steps in enumerate(lengths):
            shorter = dataclasses.replace(config, steps=steps)
            torch.manual_seed(0)
            train(vae(), images, shorter, run, {"model": {"name": "tiny"}}, bool(resume), print_fn=[].append)
        weights.append(load_model(run)[0].state_dict())
    assert all(torch.equal(x, y) for x, y in zip(weights[0].values(), weights[1].values(), strict=True))


def test_epsilon_inside_the_root_is_of_adam_alone() -> None:
    with pytest.raises(ValueError, match="eps_inside_root: got true with the optimizer adamw, expected adam"):
        OptimizerConfig("adamw", eps_inside_root=True)


def test_momentum_may_begin_with_another_value() -> None:
    """Two steps with 0.5, and two with 0.9, along a gradient of 1."""
    config = OptimizerConfig("sgd", momentum=0.9, initial_momentum=0.5, initial_momentum_steps=2)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer, places = make_optimizer(model, config, 1.0), []
    for step in range(4):
        model.weight.grad = torch.ones(1, 1)
        set_rate(optimizer, config, 0.1, step)
        update(optimizer)
        places.append(-10.0 * model.weight.item())
    # Velocities: 1, 1 + .5 * 1, 1 + .9 * 1.5, 1 + .9 * 2.35
    assert places == pytest.approx([1.0, 2.5, 4.85, 7.965], rel=1e-6)
    with pytest.raises(ValueError, match="initial_momentum_steps: got 5 with the optimizer adam, expected sgd"):
        OptimizerConfig("adam", initial_momentum_steps=5)


def test_the_fused_step_is_the_plain_one() -> None:
    """In either layout of the memory, also after moments were put back; without weight decay of single numbers."""
    for layout in (torch.contiguous_format, torch.channels_last):
        model = vae().to(memory_format=layout)  # type: ignore[call-overload]  # missing in torch's annotations
        other = copy.deepcopy(model)
        config = OptimizerConfig("adamw", weight_decay=0.1)
        optimizer = make_optimizer(model, config, 0.01)
        groups = [
            {"params": [p for p in other.parameters() if p.ndim], "weight_decay": 0.1},
            {"params": [p for p in other.parameters() if not p.ndim], "weight_decay": 0.0},
        ]
        plain = torch.optim.AdamW(groups, lr=0.01, betas=config.betas, eps=config.eps, foreach=False)
        x = torch.randint(2, (4, 1, 4, 4), dtype=torch.uint8)
        for step in range(4):
            for one, its in ((model, optimizer), (other, plain)):
                torch.manual_seed(step)
                (-one(x).log_px.mean()).backward()
                its.step()
                its.zero_grad()
            if step == 1:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            # Four steps of 0.01; each rounds differently, and Adam divides small gradients by small numbers.
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-5)


def test_weight_decay_spares_the_fields_of_an_energy() -> None:
    for visible in ("binary", "potts"):
        model = RBM((1, 2, 2), 2, RBMConfig(3, visible=visible))
        groups = make_optimizer(model, OptimizerConfig("sgd", weight_decay=0.1), 0.01).param_groups
        decayed, spared = ({id(parameter) for parameter in group["params"]} for group in groups)
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        assert decayed == {id(model.weight)}
        assert spared == {id(model.b), id(model.c)}


def test_without_weight_decay_there_is_one_group_in_the_same_order() -> None:
    model = RBM((1, 2, 2), 2, RBMConfig(3))
    with_decay, without = (make_optimizer(model, OptimizerConfig("adamw", weight_decay=d), 0.01) for d in (0.1, 0.0))
    orders = [[id(p) for group in one.param_groups for p in group["params"]] for one in (with_decay, without)]
    assert orders[0] == orders[1]  # by which checkpoints number moments
    assert [group["weight_decay"] for group in without.param_groups] == [0.0]  # not torch's own

"""Reversible stacks of the hierarchies: the same loss and gradients, and memory that does not grow with their cells."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contract import shake
from tiny import RECIPE, same_files, sets, vae
from torch import nn

from davi.layers import LikelihoodConfig
from davi.layers.reversible import Reversible
from davi.model import Model
from davi.models import NVAE, AttentiveVAE, VeryDeepVAE
from davi.models.attentive_vae import AttentiveVAEConfig
from davi.models.nvae import NVAEConfig
from davi.models.very_deep_vae import VeryDeepVAEConfig
from davi.training import TrainingConfig, train
from davi.training.plan import saved_bytes
from davi.training.sections import CheckpointConfig, ScheduleConfig

LIKELIHOOD = LikelihoodConfig("logistic_mixture", 2)
SHAPE = (1, 8, 8)


def nvae(cells: int, reversible: bool = True, width: int = 4) -> NVAE:
    config = NVAEConfig((1, 2), 2, width, width, 1, cells + 1, cells + 1, cells, cells, likelihood=LIKELIHOOD)
    return NVAE(SHAPE, 4, replace(config, reversible=reversible))


def very_deep_vae(cells: int, reversible: bool = True, width: int = 4) -> VeryDeepVAE:
    encoder = f"8x{cells},8d2,4x{cells}"
    return VeryDeepVAE(
        SHAPE, 4, VeryDeepVAEConfig(encoder, "4,8m4", width, "", 2, reversible=reversible, likelihood=LIKELIHOOD)
    )


def attentive_vae(cells: int, reversible: bool = True, width: int = 4) -> AttentiveVAE:
    kept = (0,) * cells
    config = AttentiveVAEConfig((2,), 2, width, (*kept, -2), (2, *kept), cells, cells, 1, likelihood=LIKELIHOOD)
    return AttentiveVAE(SHAPE, 4, replace(config, reversible=reversible))


Build = Callable[..., Model]
every_model = pytest.mark.parametrize("build", [nvae, very_deep_vae, attentive_vae])


def rows(model: nn.Module) -> list[Reversible]:
    return [module for module in model.modules() if isinstance(module, Reversible)]


@every_model
def test_loss_gradients_and_statistics_do_not_depend_on_recomputation(build: Build) -> None:
    forgetful = shake(build(2)).double().train()
    kept = copy.deepcopy(forgetful)
    for row in rows(kept):
        row.recompute = False
    x = torch.randint(4, (3, *SHAPE))
    losses = []
    for model in (forgetful, kept):
        losses.append(-model.evidence(x, torch.Generator().manual_seed(1)).log_px.sum())
        losses[-1].backward()
    assert torch.equal(*losses)
    assert [name for name, weight in forgetful.named_parameters() if weight.grad is None] == []
    for one, other in zip(forgetful.parameters(), kept.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(one, other) for one, other in zip(forgetful.buffers(), kept.buffers(), strict=True))


@every_model
def test_saved_bytes_do_not_depend_on_the_cells_between_two_latents(build: Build) -> None:
    x = torch.randint(4, (3, *SHAPE))

    def bytes_of(model: Model) -> int:
        # In training NVAE's evidence has penalties as well, which keep matrices of weights.
        return saved_bytes(lambda: model.eval().evidence(x).log_px, model.parameters())

    assert bytes_of(build(2)) == bytes_of(build(8))
    grown = [bytes_of(build(cells, reversible=False)) for cells in (2, 4, 6)]
    assert grown[2] - grown[1] == grown[1] - grown[0] > 0


@every_model
def test_rows_are_blocks_and_what_is_in_them_is_not(build: Build) -> None:
    model = build(2)
    blocks = list(model.blocks())
    inside = {id(module) for row in rows(model) for module in row.modules() if module is not row}
    assert {id(row) for row in rows(model)} <= {id(block) for block in blocks}
    assert not inside & {id(block) for block in blocks}
    assert not rows(build(2, reversible=False))
    assert "latents" in repr(model)  # found by a pass without values


@every_model
def test_odd_widths_are_refused_in_one_line(build: Build) -> None:
    with pytest.raises(ValueError, match=r"^reversible: got residual cells of \d+ channels, expected an even number"):
        build(2, width=5)
    build(2, reversible=False, width=5)


def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    for name, budgets in (("whole", [6]), ("resumed", [3, 6])):
        for steps in budgets:
            config = TrainingConfig(
                steps=steps,
                batch_size=8,
                schedule=ScheduleConfig("constant"),
                checkpoints=CheckpointConfig(minutes=0.0, steps=3),
                threads=1,
            )
            silent: list[str] = []
            train(vae(reversible=True), sets(), config, tmp_path / name, RECIPE, resume=True, print_fn=silent.append)
    assert same_files(tmp_path / "whole", tmp_path / "resumed")

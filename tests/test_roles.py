"""Which parameters are generative, and steps that move only these or only the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from contract import TINY, class_of
from killed_runs import CONFIG
from tiny import RECIPE, Logistic, sets, vae
from torch import Generator, Tensor, nn

import davi
from davi.batch import Batch
from davi.distributions import Latent
from davi.errors import UserError
from davi.metrics import read_metrics
from davi.model import Hierarchy, Model, Network
from davi.objectives import (
    OBJECTIVES,
    EvidenceConfig,
    EvidenceObjective,
    Loss,
    Objective,
    ObjectiveConfig,
    Progress,
    Role,
)
from davi.training import loop, recorder, train
from davi.training.optimizer import update
from davi.training.prepare import check_fit, check_shares
from davi.training.roles import generative_parameters, keep_gradients
from davi.training.sections import OptimizerConfig, StepFilterConfig
from davi.training.state import State

HIERARCHIES = [name for name in TINY if issubclass(class_of(name), Hierarchy)]


def joint(model: Hierarchy, x: Tensor, latents: list[Tensor]) -> Tensor:
    """log p(x, z), put together from what the model tells of given latents."""
    terms = [model.decode(latents).log_prob(x).sum()]

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        terms.append(prior.expand(len(x)).log_prob(latents[layer]).sum())
        return latents[layer]

    model.top_down(choose)
    return torch.stack(terms).sum()


def shaken(name: str) -> tuple[Hierarchy, Tensor, list[Tensor]]:
    """A model whose weights are all random, so that no gate is closed; images, and their latents."""
    torch.manual_seed(2)
    model = davi.build(name).double()
    assert isinstance(model, Hierarchy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randint(model.levels, (3, *model.shape), dtype=torch.uint8)
    return model.eval(), x, model.latents(x, sample=True)


@pytest.mark.parametrize("name", HIERARCHIES)
def test_generative_is_what_moves_the_joint_density(name: str) -> None:
    """By gradients that are not zero, with random weights; what is not generative can be anything."""
    model, x, latents = shaken(name)
    found = generative_parameters(model)
    before = joint(model, x, latents)
    before.backward()
    named = dict(model.named_parameters())
    moving = {key for key, parameter in named.items() if parameter.grad is not None and parameter.grad.ne(0).any()}
    assert moving <= found
    # Where attention has a single layer to choose from, it does not depend on how it would choose.
    assert all("attention" in key for key in found - moving), found - moving
    with torch.no_grad():
        for key in named.keys() - found:
            named[key].normal_()
        assert torch.equal(joint(model, x, latents), before)
    assert 0 < len(found) < len(named)


@pytest.mark.parametrize("name", HIERARCHIES)
def test_initial_weights_do_not_matter(name: str) -> None:
    """Behind a gate that is closed at first gradients are zero; they are there all the same. Nothing is moved."""
    torch.manual_seed(2)
    model = davi.build(name).train()
    assert isinstance(model, Hierarchy)
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    found = generative_parameters(model)
    assert found == generative_parameters(shaken(name)[0])
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.manual_seed(2)
    davi.build(name)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("name", "generative", "inference"),
    [
        ("vae_digits_tiny", {"generative", "output"}, {"inference"}),
        ("vae_convolutional_digits_tiny", {"output"}, {"inference"}),
        ("ladder_vae_digits_tiny", {"down", "last", "output"}, {"up", "measure"}),
        (
            "ladder_vae_convolutional_digits_tiny",
            {"down", "last", "output"},
            {"up", "measure", "down_of_posterior"},
        ),
    ],
)
def test_by_hand(name: str, generative: set[str], inference: set[str]) -> None:
    """From the papers: the networks of p, and those of q; a ladder's way down is shared unless it has two."""
    model = davi.build(name)
    assert isinstance(model, Hierarchy)
    found = generative_parameters(model)
    everything = {key for key, _ in model.named_parameters()}
    assert {key.partition(".")[0] for key in found} == generative
    assert {key.partition(".")[0] for key in everything - found} == inference


def test_a_closed_gate_and_shared_weights() -> None:
    """Of the tiny attentive model, made by hand: a gate of zero keeps gradients from reaching what is behind it."""
    model = vae()
    gates = [parameter for parameter in model.parameters() if not parameter.ndim]
    assert gates
    with torch.no_grad():
        for gate in gates:
            gate.zero_()
    found = generative_parameters(model)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    joint(model, x, model.latents(x)).backward()
    silent = {key for key in found if not bool(dict(model.named_parameters())[key].grad.ne(0).any())}
    assert silent
    evidence = model(x)
    encoder = torch.autograd.grad(evidence.log_px.sum(), list(model.parameters()), allow_unused=True)
    used = {key for (key, _), grad in zip(model.named_parameters(), encoder, strict=True) if grad is not None}
    assert found < used  # training uses the generative ones, shared between the ways, and those of inference alone


def test_gradients_that_are_kept() -> None:
    module = nn.ModuleDict({"p": nn.Linear(1, 1), "q": nn.Linear(1, 1)})
    for role, kept in ((Role.ALL, "pq"), (Role.GENERATIVE, "p"), (Role.INFERENCE, "q")):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        keep_gradients(module, role, ["p.weight", "p.bias"])
        assert {key for key, parameter in module.named_parameters() if parameter.grad is not None} == {
            f"{name}.{of}" for name in kept for of in ("weight", "bias")
        }


@dataclass(frozen=True)
class AlternatingConfig(ObjectiveConfig):
    name: Literal["alternating"] = "alternating"


class Alternating(Objective):
    """The bound, for whose posteriors two of three steps are made."""

    name = "alternating"
    Config = AlternatingConfig
    wants: ClassVar[type] = Model

    def moves(self, at: Progress) -> Role:
        return (Role.INFERENCE, Role.GENERATIVE, Role.ALL)[at.step % 3]

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        evidence = network(batch.x)
        return Loss(-evidence.log_px.mean(), evidence.terms, evidence.kind)

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        return EvidenceObjective(EvidenceConfig()).validate(model, batch, generator)


@pytest.mark.parametrize("optimizer", ["adamax", "adamw", "sgd"])
def test_a_step_moves_what_the_objective_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Literal["adamax", "adamw", "sgd"]
) -> None:
    """Weights, also where they decay, and moments; and the norm that is logged is that of what moves."""
    monkeypatch.setitem(OBJECTIVES, Alternating.name, Alternating)
    config = replace(
        CONFIG,
        steps=6,
        objective=AlternatingConfig(),
        optimizer=OptimizerConfig(optimizer, weight_decay=0.01, momentum=0.9 if optimizer == "sgd" else 0.0),
        step_filter=StepFilterConfig(),
        log_every=1,
    )
    model = vae()
    names = [key for key, _ in model.named_parameters()]
    by_group = [key for key, p in model.named_parameters() if p.ndim] + [
        key for key, p in model.named_parameters() if not p.ndim
    ]
    generative = generative_parameters(model)
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    norms: list[float] = []

    def snapshot(state: State) -> None:
        weights = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        moments = {
            f"{by_group[int(key.partition('/')[0])]}/{key}": tensor.clone() for key, tensor in state.moments().items()
        }
        seen.append((weights, moments))

    enter, report = State.enter, recorder.Recorder.report

    def entered(self: State, place: int) -> None:
        enter(self, place)
        snapshot(self)

    def reported(self: recorder.Recorder, rate: float, at: Progress) -> None:
        snapshot(self.state)
        report(self, rate, at)

    def updated(optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        update(optimizer)

    monkeypatch.setattr(State, "enter", entered)
    monkeypatch.setattr(recorder.Recorder, "report", reported)
    monkeypatch.setattr(loop, "update", updated)
    train(model, sets(), config, tmp_path / "run", RECIPE, print_fn=[].append)
    assert len(seen) == 7
    allowed = {Role.ALL: {*names}, Role.GENERATIVE: {*generative}, Role.INFERENCE: {*names} - generative}
    for step, ((old, old_moments), (new, new_moments)) in enumerate(pairwise(seen)):
        role = Alternating(AlternatingConfig()).moves(Progress(step, 0, 0.0))
        moved = {key for key in names if not torch.equal(old[key], new[key])}
        assert moved <= allowed[role], step
        assert len(moved) > 0.5 * len(allowed[role]), step
        changed = {key.partition("/")[0] for key in new_moments if not _same(old_moments, new_moments, key)}
        assert changed <= allowed[role], step
        assert moved <= changed, step
    logged = [record["gradient_norm"] for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert logged == pytest.approx(norms, rel=1e-5)


def _same(old: Mapping[str, Tensor], new: Mapping[str, Tensor], key: str) -> bool:
    return key in old and torch.equal(old[key], new[key])


def test_a_model_without_roles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, Alternating.name, Alternating)
    with pytest.raises(UserError, match=r"^objective: got alternating for logistic, expected a hierarchy$"):
        check_fit(Logistic((1, 4, 4), 2), sets(), AlternatingConfig())
    check_fit(vae(), sets(), AlternatingConfig())
    with pytest.raises(UserError, match=r"^training.compute.shard: got true with alternating, expected false: not all"):
        check_shares(vae(), AlternatingConfig())

"""Lagging inference: the rules of its phase, what its steps move, that nothing of it is lost, and that it helps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killed_runs import CONFIG
from safetensors.torch import load_file
from tiny import RECIPE, same_files, sets, vae
from torch import Generator, Tensor, nn

import davi
from davi import recipes
from davi.cli import main
from davi.data import DataSets, Images
from davi.distributions import Bernoulli, Distribution, Normal
from davi.errors import UserError
from davi.evaluation import evaluate
from davi.evaluation.activity import ACTIVE_UNITS
from davi.evaluation.mutual_information import AggregatedPosterior
from davi.metrics import read_metrics
from davi.model import Choose, Hierarchy
from davi.model.joint import ask
from davi.objectives import EvidenceConfig, LaggingConfig, LaggingObjective, ObjectiveConfig, Progress, Role
from davi.objectives.lagging import Phase
from davi.runs import checkpoint_folders
from davi.training import CheckpointConfig, Interrupted, TrainingConfig, train
from davi.training.parallel import ObjectiveState, Processes
from davi.training.prepare import check_fit
from davi.training.roles import generative_parameters
from davi.training.sections import OptimizerConfig, ScheduleConfig, StepFilterConfig
from davi.training.signals import Signals
from davi.training.step_filter import StepFilter, Verdict

QUICK = LaggingConfig(inner_steps=3, window=2, patience=1, rounds=2, evidence=EvidenceConfig(kl_start=0.5, kl_steps=9))
NOW = Progress(0, 0, 0.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums are the same bit for bit only with the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The rules of the phase.


def test_an_inner_loop_has_at_most_so_many_updates() -> None:
    """Losses that keep falling: 99 updates, then the generative model's turn."""
    objective = LaggingObjective(LaggingConfig())
    for update in range(1, 100):
        assert objective.moves(NOW) is Role.INFERENCE
        objective.phase = objective.phase.after_inner(100.0 - update, objective.config)
    assert objective.moves(NOW) is Role.GENERATIVE
    objective.phase = objective.phase.after_round()
    assert objective.moves(NOW) is Role.INFERENCE
    assert objective.phase == Phase(rounds=1)


@pytest.mark.parametrize(
    ("losses", "updates"),
    [
        ([5.0] * 40, 20),  # no fall from the first ten to the next
        ([5.0] * 10 + [4.0] * 10 + [4.5] * 20, 30),
        ([5.0] * 10 + [4.0] * 10 + [3.0] * 10 + [math.nan] * 10, 40),
        ([9.0, *[1.0] * 9, *[1.5] * 10, 30.0, *[0.0] * 19], 30),  # means of ten: 1.8, 1.5, 3
    ],
)
def test_an_inner_loop_ends_when_the_mean_loss_does_not_fall(losses: list[float], updates: int) -> None:
    phase, config = Phase(), LaggingConfig()
    for number, loss in enumerate(losses, 1):
        phase = phase.after_inner(loss, config)
        assert phase.ended == (number == updates)
        if phase.ended:
            return
    raise AssertionError("the loop did not end")


def test_the_phase_ends_after_so_many_worse_measurements() -> None:
    """Whether or not a better one has come between them: the counter never goes back."""
    phase = Phase()
    seen = []
    for information in (-0.5, 1.0, 0.9, 2.0, 1.9, 2.0, 3.0, 2.0, 1.0):
        assert phase.aggressive
        phase = phase.after_measurement(information, 5)
        seen.append((phase.worse, phase.best))
    assert seen == [(0, -0.5), (0, 1), (1, 1), (1, 2), (2, 2), (3, 2), (3, 3), (4, 3), (5, 3)]
    assert not phase.aggressive
    objective = LaggingObjective(LaggingConfig())
    objective.phase = phase
    assert objective.moves(NOW) is Role.ALL
    model = davi.build("vae_digits_tiny")
    assert objective.reports(model, NOW) == {
        "kl_weight": 1.0,
        "aggressive": 0.0,
        "mutual_information": 1.0,
    }


def test_the_state_holds_all_of_the_phase() -> None:
    phase = Phase(True, True, 17, 3.25, 1 / 3, 4, 2, 1, -0.1, 2.5)
    objective, other = LaggingObjective(LaggingConfig()), LaggingObjective(LaggingConfig())
    objective.phase = phase
    other.load_state(objective.state())
    assert other.phase == phase
    assert isinstance(other.phase.aggressive, bool)


def test_options_that_make_no_sense() -> None:
    for name, value in (("inner_steps", -1), ("window", 0), ("patience", 0), ("rounds", -1)):
        with pytest.raises(ValueError, match=rf"^{name}: got {value}, expected at least {value + 1}$"):
            LaggingConfig(**{name: value})  # type: ignore[arg-type]  # names of the test


def test_models_and_images_that_do_not_fit_are_refused() -> None:
    alone = replace(sets(), validation=None)
    with pytest.raises(UserError, match=r"^objective: got lagging without validation images, expected some"):
        check_fit(vae(), alone, LaggingConfig())
    check_fit(vae(), alone, LaggingConfig(inner_steps=0))
    check_fit(vae(), sets(), LaggingConfig())
    told = (
        r"^objective: got lagging for biva, expected another posterior: the posterior of the top layer depends on draws"
    )
    with pytest.raises(UserError, match=told):
        LaggingObjective(LaggingConfig()).check(davi.build("biva_digits_tiny"))
    with pytest.raises(UserError, match=r"^objective: got lagging for vae with the prior vamp, expected another prior"):
        LaggingObjective(LaggingConfig()).check(davi.build("vae_lagging_digits_tiny", "model.prior.name=vamp"))
    with pytest.raises(UserError, match=r"^objective: got mutual_information_weight 1 for hvi"):
        LaggingObjective(LaggingConfig(evidence=EvidenceConfig(mutual_information_weight=1.0))).check(
            davi.build("hvi_digits_tiny")
        )


# In training.


def run(folder: Path, objective: ObjectiveConfig = QUICK, resume: bool = False, **changes: Any) -> Hierarchy:
    """Trained with accumulation, a strict step filter and batch norms."""
    model = vae()
    config = replace(CONFIG, **{"steps": 24, "objective": objective, "log_every": 1, **changes})
    train(model, sets(), config, folder, RECIPE, resume=resume, print_fn=list[str]().append)
    return model


def test_what_each_step_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner steps no generative parameter, the step after them no other; from the end of the phase on all. The step
    filter sees the norm of what moves."""
    seen: list[tuple[dict[str, Tensor], Role, Phase]] = []
    end_step = LaggingObjective.end_step
    norms: list[float] = []

    def ended(self: LaggingObjective, model: Any, at: Progress, outcome: Any) -> None:
        role = self.moves(at)
        squares = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
        norms.append(math.sqrt(squares))
        end_step(self, model, at, outcome)
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        seen.append((weights, role, self.phase))

    monkeypatch.setattr(LaggingObjective, "end_step", ended)
    start = {name: parameter.detach().clone() for name, parameter in vae().named_parameters()}
    run(tmp_path / "run", step_filter=StepFilterConfig(clip_norm=1e9, skip_factor=0.0))
    generative = generative_parameters(vae())
    expected = [Role.INFERENCE, Role.INFERENCE, Role.INFERENCE, Role.GENERATIVE]
    roles = [role for _, role, _ in seen]
    first_all = roles.index(Role.ALL)
    assert roles[:4] == expected
    assert set(roles[first_all:]) == {Role.ALL}
    before = start
    for weights, role, _ in seen:
        moved = {name for name, tensor in weights.items() if not torch.equal(tensor, before[name])}
        assert moved
        assert role is Role.ALL or (moved <= generative if role is Role.GENERATIVE else not moved & generative)
        before = weights
    records = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert [record["gradient_norm"] for record in records] == pytest.approx(norms, rel=1e-5)
    assert [record["aggressive"] for record in records] == [float(phase.aggressive) for _, _, phase in seen]
    losses = [record["loss"] for record in records]
    assert seen[0][2].total == losses[0]
    assert seen[1][2].before == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-12)  # a window of two
    assert records[0]["kl_weight"] == 0.5


def _stopped(signals: Signals) -> Signals:
    """As if SIGTERM had been received already."""
    signals.received = 15
    return signals


def test_stopped_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anywhere in an inner loop, before and after the phase, with steps that are refused among them."""
    quick = replace(QUICK, inner_steps=2, window=1, rounds=1)
    run(tmp_path / "whole", quick, steps=16)
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "__enter__", _stopped)
        for _ in range(1, 16):
            with pytest.raises(Interrupted):
                run(tmp_path / "run", quick, resume=True, steps=16)
    run(tmp_path / "run", quick, resume=True, steps=16)
    folders = [checkpoint_folders(tmp_path / name)[-1] for name in ("whole", "run")]
    assert same_files(*folders)
    told = [
        [(r["step"], r["aggressive"], r.get("mutual_information"), r["skipped"]) for r in read_metrics(tmp_path / name)
         if r["kind"] == "train"]
        for name in ("whole", "run")
    ]  # fmt: skip
    assert told[0] == told[1]
    assert {aggressive for _, aggressive, *_ in told[0]} == {0.0, 1.0}
    assert any(skipped for *_, skipped in told[0])


def test_a_refused_step_is_no_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = StepFilter.judge

    def refuse_the_second(self: StepFilter, loss: float, norm: float) -> Verdict:
        verdict = judge(self, loss, norm)
        return Verdict(False, "norm", math.inf, 0.0) if self.steps == 2 else verdict

    monkeypatch.setattr(StepFilter, "judge", refuse_the_second)
    plain = StepFilterConfig(skip_factor=0.0)
    run(tmp_path / "run", steps=5, step_filter=plain, checkpoints=CheckpointConfig(minutes=0.0, steps=1, keep=9))
    updates = [
        load_file(folder / "others.safetensors")["objective/phase"][2].item()
        for folder in checkpoint_folders(tmp_path / "run")
    ]
    assert updates[-5:] == [1, 1, 2, 3, 0]  # the fifth step was the generative model's


def test_the_validation_is_measured_with_the_same_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the current weights, on the validation images, in the batches of a validation."""
    measured: list[tuple[float, float]] = []
    end_step = LaggingObjective.end_step

    def watched(self: LaggingObjective, model: Any, at: Progress, outcome: Any) -> None:
        before = self.phase.measured
        end_step(self, model, at, outcome)
        if self.phase.measured > before:
            assert model.training
            x = sets().validation
            assert x is not None
            batches = list(outcome.validation())
            assert torch.equal(torch.cat([batch.x for batch in batches]), x.pixels)
            posterior, generator = AggregatedPosterior(), Generator().manual_seed(0)
            for batch in batches:
                posterior.add(ask(model, batch.x).posteriors[0], generator)
            measured.append((self.phase.last, float(posterior.information().mean())))

    monkeypatch.setattr(LaggingObjective, "end_step", watched)
    run(tmp_path / "run")
    assert measured
    assert all(own == other for own, other in measured)


def test_the_state_of_the_main_process_holds() -> None:
    class Second(Processes):
        count = 2

        def from_main(self, values: Tensor) -> Tensor:
            return torch.tensor([*values.tolist()[:-1], 7.0], dtype=values.dtype)

    objective = LaggingObjective(LaggingConfig())
    state = ObjectiveState(objective, Second())
    state.begin()
    state.share()
    assert objective.phase == Phase(last=7.0)


@pytest.mark.parametrize("options", [{}, {"draws": 3, "bound": "importance_weighted"}, {"kl_epochs": 1}])
def test_without_inner_steps_it_is_ordinary_training(tmp_path: Path, options: dict[str, Any]) -> None:
    """By the program: the same weights, bit for bit."""
    text = (resources.files(recipes) / "vae_digits_tiny.yaml").read_text()
    weights = []
    for name, objective in (
        ("plain", options),
        ("lagging", {"name": "lagging", "inner_steps": 0, "evidence": options}),
    ):
        recipe = yaml.safe_load(text)
        recipe["data"]["validation"] = 0
        recipe["training"] |= {"objective": objective, "steps": 6}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        assert main(["train", str(tmp_path / f"{name}.yaml"), "--run", str(tmp_path / name)]) == 0
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


# That it helps.


@dataclass(frozen=True)
class LinearConfig:
    """No options."""


class Linear(Hierarchy):
    """One latent that is read off nine pixels, and their logits, all linear. The posterior begins as the prior, and
    learns slowly, although the pixels depend on the latent from the start."""

    name = "linear"
    Config = LinearConfig
    num_layers = 1
    SLOW = 0.06

    def __init__(self) -> None:
        super().__init__((1, 3, 3), 2, LinearConfig())
        self.up = nn.Parameter(torch.zeros(9))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.down = nn.Parameter(torch.ones(9))
        self.bias = nn.Parameter(torch.zeros(9))

    def encode(self, x: Tensor) -> Tensor:
        return x.float() - 0.5

    def top_down(self, choose: Choose, context: Tensor | None = None) -> Distribution:
        posterior = None
        if context is not None:
            mean = self.SLOW * (context.flatten(1) @ self.up).view(-1, 1, 1, 1)
            posterior = Normal(mean, (self.SLOW * self.log_scale).exp().expand_as(mean))
        zero = self.bias.new_zeros(1, 1, 1, 1)
        z = choose(0, Normal(zero, zero + 1), posterior)
        return Bernoulli((z.flatten(1) * self.down + self.bias).view(-1, 1, 3, 3))


def two_kinds(n: int, seed: int) -> Images:
    """Dark and bright images, a quarter of whose pixels are flipped."""
    generator = Generator().manual_seed(seed)
    bright = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    flipped = torch.rand(n, 1, 3, 3, generator=generator) < 0.25
    return Images((bright ^ flipped).to(torch.uint8), 2, "two kinds")


@pytest.mark.parametrize(("objective", "active"), [(EvidenceConfig(), 0), (LaggingConfig(rounds=1), 1)])
def test_a_posterior_that_has_collapsed_recovers(tmp_path: Path, objective: ObjectiveConfig, active: int) -> None:
    """Plain training teaches the pixels to do without the latent before the posterior knows of it; in the same number
    of steps the inner loops find it."""
    images = DataSets(two_kinds(400, 0), two_kinds(200, 1), two_kinds(200, 2), {})
    config = TrainingConfig(
        steps=300,
        batch_size=20,
        learning_rate=0.5,
        schedule=ScheduleConfig("constant"),
        optimizer=OptimizerConfig("sgd", momentum=0.0),
        objective=objective,
        ema_decay=0.0,
        validate_every=0,
        checkpoints=CheckpointConfig(minutes=0.0),
        threads=1,
    )
    model = Linear()
    assert _active(model, images.test) == 0
    train(model, images, config, tmp_path / "run", RECIPE, print_fn=list[str]().append)
    assert _active(model, images.test) == active


def _active(model: Hierarchy, images: Images) -> float:
    measure = evaluate(model, images).measure(ACTIVE_UNITS)
    assert measure is not None
    return measure.value

"""Up-down: each of its three rules against the gradient of what it stands for, and runs of all stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contract import assert_frequencies, place, seeded
from golden_rbm import SHAPE, golden
from listed_dbn import bits, bounds, images, log_q, log_top, shaken, tied
from safetensors.torch import load_file
from tiny import same_files
from torch import Tensor
from with_labels import of

from davi import recipes
from davi.batch import Batch
from davi.errors import UserError
from davi.metrics import read_metrics
from davi.models.dbn import DBN
from davi.models.label_rbm import LabelRBM
from davi.objectives import Progress, UpDownConfig, UpDownObjective
from davi.objectives.up_down import passes
from davi.runs import checkpoint_folders
from davi.training import Interrupted, train
from davi.training.signals import Signals

DATA = torch.tensor([0, 3, 9, 27, 33, 60])
"""Numbers of some images."""


def gradients(network: DBN, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def expected(network: DBN, name: str) -> Tensor:
    """The mean of a term of the objective over the images and, with the probabilities of q, all hidden states."""
    q = log_q(network)[DATA].exp().detach()
    h, x = bits(4), bits(6)[DATA].view(-1, *SHAPE)
    wake = [x.repeat_interleave(16, 0), h.repeat(len(DATA), 1)]
    start = network.top_state(wake[1])
    terms: dict[str, Tensor] = network(wake, start, start, wake)
    return (q.flatten() * terms[name]).sum() / len(DATA)


def test_the_wake_update_is_the_gradient_of_the_bound() -> None:
    network = shaken()
    found = gradients(network, -expected(network, "generative"))
    assert found.keys() == {"layers.0.weight", "layers.0.b"}
    by_hand = gradients(network, bounds(network)[DATA].mean())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, by_hand[name], rtol=0.0, atol=1e-12)
    # The delta rule: what is there less what is expected, times what is above.
    first, q = network.lower[0], log_q(network)[DATA].exp().detach()
    rest = bits(6)[DATA][:, None] - (first.b.flatten() + bits(4) @ first.weight.T).sigmoid()  # [images, states, 6]
    delta = torch.einsum("xh,xhv,hj->vj", q, rest, bits(4)) / len(DATA)
    torch.testing.assert_close(found["layers.0.weight"], delta.detach(), rtol=0.0, atol=1e-12)


def test_the_sleep_update_is_the_delta_rule_of_the_recognition_weights() -> None:
    network = shaken()
    p = torch.rand(5, *SHAPE, generator=seeded(), dtype=torch.float64)  # pixels are probabilities
    h = bits(4)[:5]
    terms: dict[str, Tensor] = network([p, h], network.top_state(h), network.top_state(h), [p, h])
    found = gradients(network, -terms["recognition"].sum())
    assert found.keys() == {"layers.0.c", "recognition.0"}
    rest = h - (network.lower[0].c + p.flatten(1) @ network.recognition[0]).sigmoid()
    torch.testing.assert_close(found["recognition.0"], (p.flatten(1).T @ rest).detach(), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(found["layers.0.c"], rest.sum(0).detach(), rtol=0.0, atol=1e-12)


def steps_at_the_top(network: DBN) -> Tensor:
    """p(h' | h) of one step of the chain at the top, ``[16, 16]``, by the sum over the states of its hidden layer."""
    weight, above = network.top.get_parameter("weight"), bits(6)
    up = (network.top.hidden_field() + bits(4) @ weight).sigmoid()
    down = (network.top.visible_field().flatten() + above @ weight.T).sigmoid()
    p_up = up.log() @ above.T + (1 - up).log() @ (1 - above).T
    p_down = down.log() @ bits(4).T + (1 - down).log() @ (1 - bits(4)).T
    return (p_up.exp() @ p_down.exp()).detach()


def test_with_many_steps_the_top_learns_by_maximum_likelihood_on_draws_of_q() -> None:
    network = shaken()
    q = log_q(network)[DATA].exp().mean(0).detach()
    exact = gradients(network, q @ log_top(network))
    start, end = bits(4).repeat_interleave(16, 0), bits(4).repeat(16, 1)
    x = torch.zeros(256, *SHAPE, dtype=torch.float64)
    distances = []
    for k in (1, 3, 400):
        pairs = q[:, None] * torch.linalg.matrix_power(steps_at_the_top(network), k)
        terms = network([x, start], network.top_state(start), network.top_state(end), [x, start])
        found = gradients(network, -(pairs.flatten() * terms["top"]).sum())
        assert found.keys() == exact.keys() == {"layers.1.weight", "layers.1.b", "layers.1.c"}
        distances.append(max(float((found[name] - exact[name]).abs().max()) for name in exact))
    assert distances[0] > distances[1] > 1e-4
    assert distances[2] < 1e-12


def test_the_chain_begins_at_the_wake_state_and_the_way_down_at_its_end() -> None:
    network, n = shaken(), 20_000
    x = images()[37:38].repeat(n, 1, 1, 1)
    found = passes(network, Batch(x), 2, seeded())
    assert torch.equal(found.wake[0], x.double())
    assert torch.equal(found.start, network.top_state(found.wake[1]))
    q = log_q(network)[37].detach()
    assert_frequencies(place(found.wake[1].long(), 2), q)
    two = torch.linalg.matrix_power(steps_at_the_top(network), 2)
    end = network.top_bits(found.end)
    assert_frequencies(place(end.long(), 2), (q.exp() @ two).log())
    begun = place(found.wake[1].long(), 2) == int(q.argmax())
    assert_frequencies(place(end[begun].long(), 2), two[int(q.argmax())].log())
    assert torch.equal(found.sleep[1], end)
    means = (network.lower[0].b.flatten() + end @ network.lower[0].weight.T).sigmoid()
    torch.testing.assert_close(found.sleep[0].flatten(1), means.detach())


def test_in_the_chain_probabilities_stand_for_the_class() -> None:
    network = shaken(classes=3)
    top = network.top
    assert isinstance(top, LabelRBM)
    start = top.joined(bits(4), torch.arange(16) % 3)
    found = top.with_label_means(start, 1, seeded()).detach()
    generator = seeded()
    h = top.hidden.sample(top.hidden_input(start), generator)
    drawn = top.visible.first.sample(top.b + h @ top.weight.T, generator)
    p = (top.label_b + h @ top.label_weight.T).softmax(1)
    torch.testing.assert_close(found, torch.cat([drawn, p], 1).detach())
    again = top.with_label_means(start, 3, seeded())
    assert bool(((again[:, 4:] > 0.0) & (again[:, 4:] < 1.0)).all())
    assert set(again[:, :4].flatten().tolist()) == {0.0, 1.0}


def test_the_number_of_steps_grows_with_the_budget() -> None:
    objective = UpDownObjective(UpDownConfig(steps=(3, 6, 10)))
    shares, model = (0.0, 0.33, 0.34, 0.66, 0.67, 1.0), golden()
    found = [objective.reports(model, Progress(0, 0, share))["gibbs_steps"] for share in shares]
    assert found == [3, 3, 6, 6, 10, 10]


@pytest.mark.parametrize(
    ("untied", "steps", "words"),
    [
        (False, (1,), r"got up_down for a dbn with tied weights, expected one with recognition .* \(--model.untied"),
        (True, (), r"^objective.steps: got \[\], expected numbers from 1$"),
        (True, (3, 0), r"^objective.steps: got \[3, 0\], expected numbers from 1$"),
    ],
)
def test_what_cannot_be_trained_is_refused(untied: bool, steps: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        UpDownObjective(UpDownConfig(steps=steps)).check(tied(untied))


# Runs


def go(run: Path, words: Sequence[str] = (), resume: bool = False) -> None:
    """Trains the network with classes layer by layer, one step each, and then up-down, two steps."""
    recipe = recipes.load("dbn_digits_tiny", ["--model.hidden", "[8, 64]", *words])
    assert recipe.training is not None
    stages = [
        replace(stage, config=replace(stage.config, steps=count))
        for stage, count in zip(recipe.stages, (1, 1, 2), strict=True)
    ]
    sets = of("digits", binarization="threshold", validation=50)
    torch.manual_seed(1)
    model = recipes.build(recipe, sets.shape, sets.levels, len(sets.classes))
    told = recipe.to_dict()
    train(model, sets, recipe.training, run, told, resume=resume, print_fn=lambda line: None, stages=stages)


def interrupted(self: Signals) -> Signals:
    """A signal is there from the beginning."""
    self.received = 2
    return self


def test_stopped_at_every_step_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    go(whole)
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "__enter__", interrupted)
        for step in (1, 2, 3):
            with pytest.raises(Interrupted) as caught:
                go(run, resume=True)
            assert caught.value.step == step
    go(run, resume=True)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert same_files(checkpoint_folders(run)[-1], checkpoint_folders(whole)[-1])
    validations = [record for record in read_metrics(whole) if record["kind"] == "validation"]
    assert [record["stage"] for record in validations] == ["first", "second", "up_down"]
    assert 0.0 < validations[-1]["terms"]["error"] <= 1.0


def test_a_layer_begins_turned_round_and_keeps_what_its_images_say_of_the_class(tmp_path: Path) -> None:
    """With steps too small to see in the stages above the first."""
    words = ["--stages.second.learning_rate", "1e-30", "--stages.up_down.learning_rate", "1e-30"]
    go(tmp_path, words)
    found = load_file(tmp_path / "model.safetensors")
    first = "layers.0."
    torch.testing.assert_close(found["layers.1.weight"], found[f"{first}weight"].T)
    torch.testing.assert_close(found["layers.1.b"], found[f"{first}c"])
    torch.testing.assert_close(found["layers.1.c"], found[f"{first}b"].flatten())
    torch.testing.assert_close(found["recognition.0"], found[f"{first}weight"])
    assert found["layers.1.label_b"].softmax(0).tolist() == pytest.approx([0.1] * 10, abs=0.02)
    assert len(set(found["layers.1.label_b"].tolist())) > 5

"""Chib-style estimates: the chain over hidden states by its whole matrix, and what is expected of the estimates."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from contract import seeded
from listed_dbn import bits, images, log_joint, model_of, shaken, tied
from torch import Tensor

from davi.data import Images
from davi.data.subsets import positions
from davi.errors import UserError
from davi.evaluation import evaluate
from davi.evaluation.chib import CHIB, CHIB_IMAGES, CHIB_STEPS, HiddenChain, chib_log_likelihood
from davi.evidence import Kind
from davi.models.dbn import DBN

NETWORKS: dict[str, DBN] = {
    "two layers": shaken(),
    "three layers": shaken((2, 2, 3), seed=4),
    "classes": shaken((4, 3), classes=3),
}
IMAGE = 37


class Case:
    """A network, one image, and tables of all states of its hidden layers below the top."""

    def __init__(self, name: str) -> None:
        self.model = model_of(NETWORKS[name])
        network = self.model.network
        self.y = torch.tensor([2]) if network.classes else None
        self.x = images()[IMAGE : IMAGE + 1]
        sizes = list(network.config.hidden[:-1])
        self.count = 2 ** sum(sizes)
        self.states = list(bits(sum(sizes)).split(sizes, 1))
        self.chain = HiddenChain(self.model, *self.images(self.count))
        joint = self.chain.log_joint(self.states) - self.log_z
        self.log_px = float(joint.logsumexp(0))
        self.posterior = (joint - self.log_px).exp()  # [states]

    @property
    def log_z(self) -> float:
        assert self.model.partition is not None
        return self.model.partition.log_z

    def images(self, n: int) -> tuple[Tensor, Tensor | None]:
        return self.x.repeat(n, 1, 1, 1), None if self.y is None else self.y.repeat(n)

    def matrix(self, backward: bool) -> Tensor:
        """The probability of every state after every state, ``[before, after]``."""
        columns = []
        for column in range(self.count):
            target = [layer[column].expand(self.count, -1) for layer in self.states]
            ends, log_p = self.chain.pass_over(self.states, partial(_to, target), backward)
            assert all(torch.equal(end, wanted) for end, wanted in zip(ends, target, strict=True))
            columns.append(log_p.exp())
        return torch.stack(columns, 1)


def _to(target: list[Tensor], layer: int, unit: int, logit: Tensor) -> Tensor:
    return target[layer][:, unit]


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> Case:
    with torch.no_grad():
        return Case(request.param)


@torch.no_grad()
def test_the_joint_probability_is_that_of_the_list() -> None:
    for name, y in (("two layers", None), ("classes", 2)):
        case = Case(name)
        by_hand = log_joint(NETWORKS[name], y)[IMAGE]
        found = case.chain.log_joint(case.states) - case.log_z
        torch.testing.assert_close(found, by_hand, rtol=0.0, atol=1e-12)


@torch.no_grad()
def test_the_chain_leaves_the_posterior_alone_and_is_turned_round_backward(case: Case) -> None:
    forth, back = case.matrix(False), case.matrix(True)
    ones = torch.ones(case.count, dtype=torch.float64)
    for matrix in (forth, back):
        torch.testing.assert_close(matrix.sum(1), ones, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(case.posterior @ matrix, case.posterior, rtol=0.0, atol=1e-12)
    flow = case.posterior[:, None] * forth
    torch.testing.assert_close(flow, (case.posterior[:, None] * back).T, rtol=0.0, atol=1e-12)
    assert float((forth - back).abs().max()) > 1e-3


@torch.no_grad()
def test_with_one_step_the_expected_estimate_is_the_probability(case: Case) -> None:
    """By the sum over all states; whatever h* is."""
    forth, back = case.matrix(False), case.matrix(True)
    p = case.posterior * math.exp(case.log_px)
    for start in (0, 5, case.count - 1):
        estimates = p[start] / forth[:, start]
        assert float((back[start] * estimates).sum()) == pytest.approx(math.exp(case.log_px), rel=1e-12)
        assert float((back[start] * estimates.log()).sum()) < case.log_px


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 4])
def test_estimates_are_unbiased(case: Case, steps: int) -> None:
    """Over calls, each of which draws one s; from a start that is improbable, so that a biased one would be seen."""
    worst = int(case.posterior.argmin())
    generator = seeded()
    x, y = case.images(100)
    start = [layer[worst].expand(100, -1) for layer in case.states]
    found = [chib_log_likelihood(case.model, x, y, steps, generator, start) for _ in range(80)]
    ratios = (torch.stack(found) - case.log_px).exp().mean(1)  # one of each call
    assert abs(float(ratios.mean()) - 1.0) < 4.0 * float(ratios.std()) / 80**0.5
    assert float(ratios.std()) / 80**0.5 < 0.1
    assert float(torch.stack(found).mean()) < case.log_px


@torch.no_grad()
def test_long_chains_find_the_probability(case: Case) -> None:
    found = chib_log_likelihood(case.model, *case.images(30), 200, seeded())
    assert float(found.mean()) == pytest.approx(case.log_px, abs=0.02)
    assert torch.equal(found, chib_log_likelihood(case.model, *case.images(30), 200, seeded()))


@torch.no_grad()
def test_where_the_bound_is_tight_there_is_nothing_to_gain() -> None:
    model = model_of(tied())
    exact = model.evidence(images(), seeded()).log_weight
    found = chib_log_likelihood(model, images(), None, 300, seeded())
    assert exact is not None
    assert float((found - exact).mean()) == pytest.approx(0.0, abs=0.02)


def test_what_makes_no_estimate_is_refused() -> None:
    model = model_of(NETWORKS["two layers"])
    with pytest.raises(ValueError, match=r"^steps: got 0, expected at least 1$"):
        chib_log_likelihood(model, images(), steps=0)
    with pytest.raises(UserError, match=r"^dbn: got no partition function, expected one"):
        chib_log_likelihood(NETWORKS["two layers"].normalized(None), images())
    with pytest.raises(ValueError, match=r"^labels: got None, expected 64"):
        chib_log_likelihood(model_of(NETWORKS["classes"]), images())


def test_the_rule_says_what_the_estimate_is_about() -> None:
    """With classes it is the joint probability."""
    images_, few = images().to(torch.uint8), 4
    labels = torch.arange(few) % 3
    with_classes = Images(images_[:few], 2, "some", labels=labels, classes=("a", "b", "c"))
    for name, some, words in (
        ("two layers", Images(images_[:few], 2, "some"), "log p(x):"),
        ("classes", with_classes, "log p(x,y):"),
    ):
        found = evaluate(model_of(NETWORKS[name]), some).measure(CHIB)
        assert found is not None
        assert found.rule.startswith(words)
        assert f"at most {words[:-1]}, but" in found.rule


@torch.no_grad()
def test_the_measure_is_the_mean_over_all_images_though_few_are_estimated() -> None:
    network = NETWORKS["two layers"]
    exact = log_joint(network).logsumexp(1)
    evaluation = evaluate(model_of(network), Images(images().to(torch.uint8), 2, "all"), 200, batch_size=16)
    found = evaluation.measure(CHIB)
    assert found is not None
    assert (found.kind, found.images, found.draws) == (Kind.LOWER_BOUND, CHIB_IMAGES, CHIB_STEPS)
    assert found.value == pytest.approx(float(exact.mean()), abs=0.03)
    few = exact[positions(64, CHIB_IMAGES)].mean()
    assert abs(float(few - exact.mean())) > 0.035
    spread = float(exact.std()) / 8.0
    assert spread * 0.9 < (found.standard_error or 0.0) < spread * 1.2

"""Deep belief networks against lists of all their states."""

from __future__ import annotations

import itertools

import pytest
import torch
from contract import assert_frequencies, place, seeded
from golden_rbm import SHAPE, golden
from listed_dbn import bits, bounds, images, log_bernoulli, log_joint, log_q, log_top, model_of, shaken, tied
from torch import Tensor

from davi.batch import Batch
from davi.errors import OptionError, UserError
from davi.evaluation import importance_bound
from davi.evidence import About, Kind
from davi.model import Classifying, Partition
from davi.models.dbn import DBN
from davi.models.dbn_layers import DBNConfig
from davi.models.label_rbm import LabelRBM
from davi.models.rbm import RBMConfig


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance)


@torch.no_grad()
def golden_log_p() -> Tensor:
    """Of the golden machine, of all images, by the sum over its states."""
    negative = -golden().free_energy(images())
    return negative - negative.logsumexp(0)


@pytest.mark.parametrize("untied", [False, True])
@torch.no_grad()
def test_turned_round_it_is_the_machine_below_and_its_bound_is_tight(untied: bool) -> None:
    network, log_p = tied(untied), golden_log_p()
    assert float(log_p[0]) == pytest.approx(-4.575052655796, abs=1e-11)
    assert float(log_p[-1]) == pytest.approx(-4.274147081606, abs=1e-11)
    close(log_joint(network).logsumexp(1), log_p)
    close(bounds(network), log_p)
    weights = model_of(network).evidence(images(), seeded()).log_weight  # whatever is drawn, it is the posterior
    assert weights is not None
    close(weights, log_p)


@torch.no_grad()
def test_with_classes_that_change_nothing_it_is_so_as_well() -> None:
    network = tied(classes=3)
    assert isinstance(network.top, LabelRBM)
    network.top.label_weight.zero_()
    for y in range(3):
        close(bounds(network, y), golden_log_p() - torch.tensor(3.0).double().log())


@torch.no_grad()
def test_untied_the_bound_is_below_the_likelihood() -> None:
    for seed in range(4):
        network = shaken(seed=seed)
        gap = log_joint(network).logsumexp(1) - bounds(network)
        assert float(gap.min()) > 1e-4


def test_every_step_up_in_the_likelihood_of_the_top_lifts_the_bound() -> None:
    network = tied()
    data = torch.tensor([0, 3, 9, 27, 33, 60])
    q = log_q(network)[data].exp().detach()
    before = bounds(network)[data].mean().detach()
    close(before, golden_log_p()[data].mean())
    for _ in range(20):
        (q @ log_top(network)).mean().backward()
        with torch.no_grad():
            for parameter in network.top.parameters():
                assert parameter.grad is not None
                parameter.add_(0.3 * parameter.grad)
                parameter.grad = None
        after = bounds(network)[data].mean().detach()
        assert float(after) > float(before)
        likelihood = log_joint(network).logsumexp(1)[data].mean()
        assert float(likelihood.detach()) >= float(after)
        before = after


@torch.no_grad()
def test_the_evidence_is_the_bound_of_what_was_drawn() -> None:
    network = shaken()
    model, x = model_of(network), images()
    evidence = model.evidence(x, seeded())
    drawn = network.ascend(x, seeded()).states[1]
    column = place(drawn.long(), 2)
    rows = torch.arange(64)
    joint, q = log_joint(network), log_q(network)
    assert evidence.log_weight is not None
    close(evidence.log_weight, (joint - q)[rows, column])
    assert evidence.log_weight_fn is not None
    close(evidence.log_weight_fn(joint=True), joint[rows, column])
    assert list(evidence.terms) == ["reconstruction", "negative_free_energy", "entropy", "negative_log_z"]
    close(evidence.terms["entropy"], -(q.exp() * q).sum(1))
    close(evidence.log_px, joint[rows, column] + evidence.terms["entropy"])
    assert (evidence.kind, evidence.about, evidence.dims) == (Kind.LOWER_BOUND, About.X, 6)
    estimated = network.normalized(Partition(3.0, Kind.ESTIMATE))
    assert estimated.evidence(x, seeded()).kind is Kind.ESTIMATE
    assert estimated.claim is Kind.LOWER_BOUND
    close(estimated.evidence(x, seeded()).terms["negative_log_z"], torch.full((64,), -3.0).double())


@torch.no_grad()
def test_three_layers_by_hand() -> None:
    network = shaken((3, 2, 3))
    first, second = network.lower
    evidence = model_of(network).evidence(images(), seeded())
    _, one, two = network.ascend(images(), seeded()).states
    close(two, model_of(network).latents(images(), True, seeded())[0])
    p = [
        log_bernoulli(layer.b.flatten() + above @ layer.weight.T, below)
        for layer, above, below in ((first, one, bits(6)), (second, two, one))
    ]
    q = [
        log_bernoulli(layer.c + below @ weight, above)
        for layer, below, weight, above in (
            (first, bits(6), network.recognition[0], one),
            (second, one, network.recognition[1], two),
        )
    ]
    top = log_top(network)[place(two.long(), 2)]
    assert evidence.log_weight is not None
    expected = top + sum(table.diagonal() for table in p) - sum(table.diagonal() for table in q)
    close(evidence.log_weight, expected)
    close(evidence.terms["hidden/1"], p[1].diagonal())


@torch.no_grad()
def test_importance_sampling_lies_between_the_bound_and_the_likelihood() -> None:
    network = shaken()
    model, x = model_of(network), images()[5:6]
    q, joint = log_q(network)[5], log_joint(network)[5]
    w = joint - q
    two = (q[:, None] + q).exp() * (torch.logaddexp(w[:, None], w) - torch.tensor(2.0).log())
    exact = [float((q.exp() * w).sum()), float(two.sum()), float(joint.logsumexp(0))]
    assert exact == sorted(exact)
    assert exact[2] - exact[0] > 0.03
    found = importance_bound(model, x.repeat(20_000, 1, 1, 1), 2, seeded())
    assert abs(float(found.mean()) - exact[1]) < 4 * float(found.std()) / 20_000**0.5
    many = importance_bound(model, x.repeat(500, 1, 1, 1), 50, seeded())
    assert exact[1] < float(many.mean()) < exact[2] + 4 * float(many.std()) / 500**0.5


@torch.no_grad()
def test_samples_have_the_probabilities_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    network = shaken((4, 3))
    monkeypatch.setattr(type(network.top), "chain_steps", 40)
    drawn = network.normalized(None).sample(100_000, generator=seeded())
    assert_frequencies(place(drawn, 2), log_joint(network).logsumexp(1))


@torch.no_grad()
def test_samples_at_a_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """All energies are divided by it, those of the directed layers as well."""
    network, cool = shaken((4, 3)), shaken((4, 3))
    for parameter in cool.parameters():
        parameter.div_(2.0)
    monkeypatch.setattr(type(network.top), "chain_steps", 40)
    drawn = network.normalized(None).sample(20_000, 2.0, seeded())
    assert_frequencies(place(drawn, 2), log_joint(cool).logsumexp(1))
    with pytest.raises(UserError, match=r"^temperature: got 0, expected a number above 0"):
        network.normalized(None).sample(1, 0.0)


@torch.no_grad()
def test_the_way_down_alone_sums_to_one() -> None:
    network = shaken((3, 2, 3))
    one, two, x = bits(3), bits(2), bits(6).view(64, *SHAPE)
    for h in two:
        total = 0.0
        for g in one:
            inner = network.log_below(1, g[None], h[None])
            total += float((network.log_below(0, x, g.expand(64, -1)) + inner).exp().sum())
        assert total == pytest.approx(1.0, abs=1e-12)
    states = network.descend(two[1:2].repeat(20_000, 1), seeded())
    below = [network.log_below(0, x, g.expand(64, -1)) + network.log_below(1, g[None], two[1:2]) for g in one]
    assert_frequencies(place(states[0].long(), 2), torch.stack(below).logsumexp(0))
    means = network.descend(two, seeded(), means=True)
    first = network.lower[0]
    close(means[0].flatten(1), (first.b.flatten() + means[1] @ first.weight.T).sigmoid())


# Classes


@pytest.fixture
def labeled() -> DBN:
    return shaken((4, 3), classes=3)


@torch.no_grad()
def test_images_and_classes_together_sum_to_one(labeled: DBN) -> None:
    model = model_of(labeled)
    tables = [log_joint(labeled, y) for y in range(3)]
    assert float(torch.stack(tables).exp().sum()) == pytest.approx(1.0, abs=1e-12)
    for y in range(3):
        labels = torch.full((64,), y)
        evidence = model.evidence(images(), seeded(), labels)
        column = place(labeled.ascend(images(), seeded()).states[1].long(), 2)
        assert evidence.log_weight is not None
        close(evidence.log_weight, (tables[y] - log_q(labeled))[torch.arange(64), column])
        assert evidence.about is About.X_AND_Y


@torch.no_grad()
def test_the_classifier_is_that_of_the_list(labeled: DBN) -> None:
    """p(y | h) of all states of the layer below the top; and for images at the probabilities of the way up."""
    assert isinstance(labeled.top, LabelRBM)
    joint = torch.stack([log_top(labeled, y) for y in range(3)], 1)
    close(labeled.top.log_class_probabilities(bits(4)), joint.log_softmax(1))
    model = model_of(labeled)
    assert isinstance(model, Classifying)
    first = labeled.lower[0]
    p = (first.c + bits(6) @ labeled.recognition[0]).sigmoid()
    close(model.log_class_probabilities(images()), labeled.top.log_class_probabilities(p))
    own = torch.stack([log_joint(labeled, y).logsumexp(1) for y in range(3)], 1).log_softmax(1)
    assert float((own - model.log_class_probabilities(images())).abs().max()) > 0.01
    assert model.class_claim is Kind.ESTIMATE  # not log p(y | x) itself
    assert not isinstance(model_of(shaken()), Classifying)


@torch.no_grad()
def test_samples_of_a_class(labeled: DBN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(labeled.top), "chain_steps", 40)
    for y in range(3):
        log_p = log_joint(labeled, y).logsumexp(1)
        drawn = labeled.normalized(None).sample(10_000, generator=seeded(), y=torch.full((10_000,), y))
        assert_frequencies(place(drawn, 2), log_p - log_p.logsumexp(0))


@torch.no_grad()
def test_a_class_is_a_unit_of_the_top(labeled: DBN) -> None:
    top = labeled.top
    assert isinstance(top, LabelRBM)
    states = top.visible.states(0, 48, top.b)
    assert len({tuple(state) for state in states.tolist()}) == 48
    assert bool((states[:, 4:].sum(1) == 1.0).all())
    assert torch.equal(top.visible.states(7, 11, top.b), states[7:18])
    log_z = (-top.state_free_energy(states)).logsumexp(0)
    close(top.log_partition(), log_z)
    log_p = -top.state_free_energy(states) - log_z
    start = states[torch.multinomial(log_p.exp(), 40_000, True, generator=seeded(1))]
    moved = top.state_gibbs(start, 1, seeded())
    assert_frequencies(place(moved[:, :4].long(), 2) * 3 + moved[:, 4:].argmax(1), log_p[_order(states)])


def _order(states: Tensor) -> Tensor:
    """Where in the list of states stands each pair of bits and class, the class changing first."""
    return (place(states[:, :4].long(), 2) * 3 + states[:, 4:].argmax(1)).argsort()


@torch.no_grad()
def test_initial_fields_are_log_frequencies() -> None:
    top = LabelRBM(2, 3, RBMConfig(2)).double()
    states = torch.tensor([[1, 0, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0]])[:, None, None]
    top.initialize(states)
    close(top.b.sigmoid(), torch.tensor([4.5 / 8.0, 2.5 / 8.0]).double())
    close(top.label_b.softmax(0), (torch.tensor([2.0, 0.0, 1.0]).double() + 5 / 3) / 8.0)
    before = top.b.clone()
    top.initialize(states[:1], kept={"b"})
    close(top.b, before)


# Parts


def test_views_are_states_that_are_drawn_below(labeled: DBN) -> None:
    batch = Batch(images()[:20], torch.arange(20) % 3)
    bottom, top = (labeled.view(name, batch, seeded()) for name in ("layer_1", "layer_2"))
    assert torch.equal(bottom.x, batch.x)
    drawn = labeled.ascend(batch.x, seeded()).states[1]
    expected = torch.cat([drawn, torch.eye(3).double()[torch.arange(20) % 3]], 1)
    assert torch.equal(top.x.flatten(1), expected.long())
    assert torch.equal(labeled.energy_images(batch, seeded()), top.x)
    assert (bottom.y, top.y) == (None, None)
    with pytest.raises(ValueError, match=r"^labels: got None, expected 20 class numbers from 0 to 2$"):
        labeled.view("layer_2", batch._replace(y=None))


def test_a_layer_begins_with_what_is_below_it() -> None:
    network = tied()
    first, top = network.layers
    named = {"recognition.0", "layers.1.weight", "layers.1.b", "layers.1.c"}
    assert torch.equal(network.recognition[0], golden().weight)
    assert torch.equal(top.get_parameter("weight"), golden().weight.T)
    with torch.no_grad():
        first.get_parameter("weight").add_(1.0)
    assert network.begin_part("layer_2", {"layers.1.b"}) == named - {"layers.1.b"}
    assert torch.equal(network.recognition[0], golden().weight + 1.0)
    assert network.begin_part("layer_1") == frozenset()
    other = shaken((4, 5))
    before = other.top.get_parameter("weight").clone()
    assert other.begin_part("layer_2") == {"recognition.0"}
    assert torch.equal(other.top.get_parameter("weight"), before)


def test_filters_of_the_second_layer_are_combined(labeled: DBN) -> None:
    first, top = labeled.lower[0].weight.detach(), labeled.top.get_parameter("weight").detach()
    assert labeled.filter_layers == 2
    close(labeled.receptive_fields(1).flatten(1), first.T)
    close(labeled.receptive_fields(2).flatten(1), top.T @ first.T)


@pytest.mark.parametrize(("hidden", "words"), [((), r"\[\]"), ((3,), r"\[3\]")])
def test_one_layer_is_not_enough(hidden: tuple[int, ...], words: str) -> None:
    with pytest.raises(OptionError, match=f"^hidden: got {words}, expected at least two layers"):
        DBN(SHAPE, 2, DBNConfig(hidden))


@torch.no_grad()
def test_gray_pixels_are_one_hot_units() -> None:
    torch.manual_seed(3)
    network = DBN((1, 1, 2), 3, DBNConfig((2, 3), 0.7, untied=True)).double()
    model = model_of(network)
    x = torch.tensor(list(itertools.product(range(3), repeat=2))).view(9, 1, 1, 2)
    h = bits(2)
    table = torch.stack([network.log_below(0, network.lower[0].state(x), state.expand(9, -1)) for state in h], 1)
    close(table.exp().sum(0), torch.ones(4).double())
    assert float((table + log_top(network)).exp().sum()) == pytest.approx(1.0, abs=1e-12)
    close(model.decode([h[:1].expand(9, -1)]).log_prob(x), table[:, 0])
    states = network.ascend(x, seeded()).states[1]
    evidence = model.evidence(x, seeded())
    close(evidence.terms["reconstruction"], table[torch.arange(9), place(states.long(), 2)])
    model.check_images(model.reconstruct(x))
    model.check_images(model.sample(2, seed=1))

"""Perplexity, codes in use, and what codes take under three priors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from coded import coded, images
from inspected import DATA, MODEL

from davi.evaluation import Evaluation, evaluate
from davi.evaluation.activity import ACTIVE_UNITS
from davi.evaluation.codes import (
    CODE_PERPLEXITY,
    CODES_IN_USE,
    CODES_TRAINED,
    CODES_UNIFORM,
    CODES_UNIGRAM,
    UNIFORM_SHARE,
    CodeCounts,
    code_costs,
    prior_doubt,
    unigram,
)
from davi.model import Quantized
from davi.quantity import Quantity, Statistic
from davi.report import protocol_of, result_of, to_terminal


def measured(evaluation: Evaluation, name: str) -> float:
    found = evaluation.measure(name)
    assert found is not None
    return found.value


def entropy(codes: torch.Tensor) -> float:
    """Of the codes of a list, by NumPy."""
    _, counts = np.unique(codes.numpy(), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("books", [1, 2])
def test_perplexity_and_use_are_those_of_all_codes(layers: int, books: int) -> None:
    model, some = coded(layers, books=books), images(30)
    found = evaluate(model, some, batch_size=8)
    codes = model.autoencoder.codes(some.pixels)
    each = [[entropy(layer[:, book]) for book in range(books)] for layer in codes]
    measure = found.measure(CODE_PERPLEXITY)
    assert measure is not None
    assert measure.layers == pytest.approx([math.exp(np.mean(layer)) for layer in each])
    assert measure.out_of == (6.0,) * layers
    assert measure.value == pytest.approx(math.exp(np.mean(each)))
    used = found.measure(CODES_IN_USE)
    assert used is not None
    assert used.layers == tuple(float(sum(len(own.unique()) for own in layer.unbind(1))) for layer in codes)
    assert used.out_of == (6.0 * books,) * layers
    assert used.value == sum(used.layers)


def test_the_perplexity_of_three_and_one() -> None:
    counts = CodeCounts(coded(codes=2))
    counts.add([torch.tensor([[[[0, 0], [1, 0]]]])])
    assert counts.perplexities() == [pytest.approx(1.754765, abs=1e-6)]
    assert counts.in_use() == [2]


def test_codes_take_what_each_prior_says() -> None:
    model, some = coded(2, trained=True), images(20)
    found = evaluate(model, some, batch_size=7)
    positions = 2 * 2 + 4 * 4
    assert measured(found, CODES_UNIFORM) == pytest.approx(positions * math.log(6))
    plain = 0.0
    for layer, codes in enumerate(model.autoencoder.codes(some.pixels)):
        shares = model.autoencoder.quantizer(layer).frequencies[0].double()
        shares = (1 - UNIFORM_SHARE) * shares / shares.sum() + UNIFORM_SHARE / 6
        plain -= float(shares[codes].log().sum()) / len(some)
    assert measured(found, CODES_UNIGRAM) == pytest.approx(plain)
    assert measured(found, CODES_TRAINED) == pytest.approx(float(found.kl.sum(1).mean()))
    costs = code_costs(found.measures, found.dims)
    uniform = costs[CODES_UNIFORM].in_unit("bits_per_dim")
    assert uniform.mean == pytest.approx(positions * math.log2(6) / 64)
    assert uniform.standard_error is None
    trained = costs[CODES_TRAINED]
    assert trained.nats.standard_error == pytest.approx(float(found.kl.sum(1).std(ddof=1)) / math.sqrt(20))


def test_the_unigram_prior_is_one_and_never_infinite() -> None:
    quantizer = coded(books=2).autoencoder.quantizer(0)
    quantizer.frequencies[0] = torch.tensor([5.0, 0.0, 0.0, 0.0, 0.0, 3.0])
    log_p = unigram(quantizer)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(2, dtype=torch.float64))
    assert float(log_p.min()) == pytest.approx(math.log(UNIFORM_SHARE / 6))


def test_before_the_prior_is_trained_codes_take_the_log_of_their_number() -> None:
    found = evaluate(coded(2), images(5))
    assert found.measure(CODES_TRAINED) is None
    assert found.kl.sum(1) == pytest.approx([20 * math.log(6)] * 5)


def test_nothing_is_drawn_for_codes() -> None:
    """So a bound of many draws is the ELBO, and one of them is enough."""
    model, some = coded(trained=True), images(6)
    several, one = evaluate(model, some, samples=5, seed=1), evaluate(model, some)
    assert several.deterministic
    assert several.bound == pytest.approx(one.elbo)
    reasons = {left.name: left.reason for left in several.left_out}
    assert reasons[ACTIVE_UNITS] == "codes are names, not numbers, and have no variance"
    assert "rules out the model's own draws" in reasons["I(z; x) of the model"]


def costs_of(plain: float, trained: float | None) -> dict[str, Quantity]:
    values = {CODES_UNIGRAM: plain} | ({} if trained is None else {CODES_TRAINED: trained})
    return {name: Quantity(Statistic(value, None), None) for name, value in values.items()}


def test_a_prior_no_better_than_frequencies_is_doubted() -> None:
    assert prior_doubt(costs_of(10.0, 9.9)) == ""
    assert prior_doubt(costs_of(10.0, None)) == ""
    assert prior_doubt({}) == ""
    doubt = "the trained prior takes 10.0 nats for the codes of an image, no fewer than their frequencies alone (10.0)"
    assert prior_doubt(costs_of(10.0, 10.0)).startswith(doubt)


def table(model: Quantized) -> str:
    """What the program prints."""
    found = evaluate(model, images(10))
    return to_terminal(result_of(found, [], protocol_of(found, MODEL, DATA)))


def test_the_table_has_the_parts_and_the_warning() -> None:
    model = coded(2, trained=True)
    counts = CodeCounts(model)
    counts.add(model.autoencoder.codes(images(10).pixels))
    for layer, found in enumerate(counts.counts):
        model.autoencoder.quantizer(layer).frequencies.copy_(found / found.sum())
    text = table(model)
    lines = {line[:28].strip(): line[28:] for line in text.splitlines()}
    assert lines["codes, uniform prior"].split() == ["0.8078", "35.84"]
    assert {"codes, unigram prior", "codes, trained prior", "reconstruction"} <= lines.keys()
    assert lines["codes in use"].startswith("12 codes (by layer, top first: 6/6  6/6")
    assert "warning" in lines  # of a prior that has never been trained
    assert max(map(len, text.splitlines())) <= 80
    assert "trained prior" not in table(coded(2))


def test_a_result_without_codes_has_no_such_rows() -> None:
    found = evaluate(coded(), images(4))
    plain = replace(found, measures=())
    assert code_costs(plain.measures, 64) == {}
    assert "codes," not in to_terminal(result_of(plain, [], protocol_of(plain, MODEL, DATA)))

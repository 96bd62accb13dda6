"""The prior over codes, on pyramids so small that all of them can be listed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from contract import assert_frequencies, seeded, shake
from torch import Tensor

from davi.config import parse, to_dict
from davi.errors import OptionError, UserError
from davi.evidence import About, Kind
from davi.layers import LikelihoodConfig
from davi.layers.code_vectors import CodeVectors
from davi.layers.shifted import ShiftedConv2d
from davi.model import CodeGrid, CodePrior, CodePriorConfig
from davi.models.gated_pixelcnn import CausalConv2d, GatedLayer, GatedPixelCNNConfig
from davi.models.pixelcnn import PixelCNNConfig
from davi.models.pixelcnn_pp import PixelCNNPPConfig
from davi.models.pixelsnail import PixelSNAILConfig, SnailBlock

SNAIL = PixelSNAILConfig(blocks=1, resnets=1, width=6, key_width=3)
GATED = GatedPixelCNNConfig(width=6, layers=2, first_kernel=3, head_width=8)


def options(top: Any, below: Any = GATED) -> CodePriorConfig:
    """The section of two networks, whose options it gives their names."""
    return CodePriorConfig(top, below, embedding=3, width=5, blocks=1)


SMALL = options(SNAIL)
PLAIN = options(
    PixelCNNConfig(width=4, blocks=1, first_kernel=3, head_width=6), PixelCNNPPConfig(width=4, blocks=1, scales=1)
)

ONE = [CodeGrid((1, 2, 2), 4)]
TWO = [CodeGrid((1, 1, 2), 3), CodeGrid((1, 2, 2), 2)]
BOOKS = [CodeGrid((2, 1, 1), 3), CodeGrid((2, 1, 2), 2)]
THREE = [CodeGrid((1, 1, 1), 3), CodeGrid((1, 1, 2), 2), CodeGrid((1, 2, 3), 2)]
LARGE = [CodeGrid((1, 2, 2), 5), CodeGrid((2, 3, 4), 4), CodeGrid((1, 6, 7), 9)]
"""Not to be listed; the sides of one grid are no multiples of those of the other."""


def prior(grids: list[CodeGrid], config: CodePriorConfig = SMALL, classes: int = 0) -> CodePrior:
    torch.manual_seed(3)
    return shake(CodePrior(grids, config, classes).double())


def every(grids: list[CodeGrid]) -> Tensor:
    """All pyramids, ``[n, 1, 1, N]``."""
    sizes = [grid.size for grid in grids for _ in range(grid.shape[0] * grid.shape[1] * grid.shape[2])]
    return torch.tensor(list(itertools.product(*map(range, sizes))))[:, None, None]


def some(grids: list[CodeGrid], n: int) -> list[Tensor]:
    return [torch.randint(grid.size, (n, *grid.shape)) for grid in grids]


@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["small", "plain"])
@pytest.mark.parametrize("grids", [ONE, TWO, BOOKS, THREE], ids=["one", "two", "books", "three"])
@pytest.mark.parametrize("classes", [0, 2])
def test_all_pyramids_together_have_probability_one(
    grids: list[CodeGrid], config: CodePriorConfig, classes: int
) -> None:
    model, x = prior(grids, replace(config, below=None) if grids is ONE else config, classes), every(grids)
    for y in [None] if not classes else [torch.full((len(x),), k) for k in range(classes)]:
        with torch.no_grad():
            evidence = model.evidence(x, y=y)
        assert evidence.kind is Kind.EXACT
        assert evidence.about is (About.X_GIVEN_Y if classes else About.X)
        assert list(evidence.terms) == [f"codes/{layer:02d}" for layer in range(len(grids))]
        assert float(evidence.log_px.exp().sum()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("grids", [TWO, BOOKS, THREE], ids=["two", "books", "three"])
def test_the_codes_of_a_layer_have_probability_one_given_those_above(grids: list[CodeGrid]) -> None:
    model = prior(grids)
    for layer, grid in enumerate(grids):
        codes = every([grid]).view(-1, *grid.shape)
        above = [z.expand(len(codes), -1, -1, -1) for z in some(grids[:layer], 1)]
        law = model.latent(layer, above, len(codes))
        assert law.shape == codes.shape
        assert float(law.log_prob(codes).detach().exp().sum()) == pytest.approx(1.0, abs=1e-10)


def test_under_autocast_they_have_probability_one() -> None:
    model, x = prior(TWO).float(), every(TWO)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        log_p = model.evidence(x).log_px
    assert float(log_p.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("layer", range(3))
def test_a_code_tells_all_layers_below_and_none_above(layer: int) -> None:
    """Where it is in its grid plays no part: what comes down goes through residual blocks with 3 x 3 kernels."""
    model = prior(LARGE, replace(SMALL, blocks=2))
    codes = some(LARGE, 1)
    places = codes[layer].numel()
    changed = [z.repeat(places, 1, 1, 1) for z in codes]
    of_layer, each = changed[layer].flatten(1), torch.arange(places)
    of_layer[each, each] = (of_layer[each, each] + 1) % LARGE[layer].size
    with torch.no_grad():
        before, after = model.evidence(model.flatten(codes)).terms, model.evidence(model.flatten(changed)).terms
    for other, name in enumerate(before):
        if other < layer:
            torch.testing.assert_close(after[name], before[name].expand(places), rtol=1e-12, atol=0.0)
        else:
            assert bool(((after[name] - before[name]).abs() > 1e-9).all())


@pytest.mark.parametrize("grids", [TWO, BOOKS], ids=["two", "books"])
def test_numbers_of_codes_mean_nothing(grids: list[CodeGrid]) -> None:
    """Other numbers for the same vectors and the same logits change no probability."""
    model, codes = prior(grids, options(GATED)), some(grids, 5)
    expected = model.evidence(model.flatten(codes)).terms
    for layer, (channels, _, _) in enumerate(grid.shape for grid in grids):
        numbers = torch.stack([torch.randperm(grids[layer].size) for _ in range(channels)])  # [C, K]
        relabel(model, layer, numbers)
        codes[layer] = torch.stack([numbers[c][codes[layer][:, c]] for c in range(channels)], 1)
    found = model.evidence(model.flatten(codes)).terms
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term, rtol=1e-12, atol=0.0)


@torch.no_grad()
def relabel(model: CodePrior, layer: int, numbers: Tensor) -> None:
    """Give the codes of a layer other numbers, ``[C, K]``, wherever the prior sees them or tells of them."""
    old = numbers.argsort(1)
    tables = [network.vectors for number, network in enumerate(model.networks) if number == layer]
    tables += [above.vectors[layer] for above in model.above if layer < len(above.vectors)]  # type: ignore[arg-type,index]
    for table in tables:
        assert isinstance(table, CodeVectors)
        table.weight.copy_(torch.stack([rows[own] for rows, own in zip(table.weight, old, strict=True)]))
    last = model.networks[layer].last
    assert isinstance(last, CausalConv2d)
    for weight in (last.conv.weight, last.conv.bias):
        assert weight is not None
        logits = weight.view(numbers.shape[1], len(numbers), -1)  # [K, C, ...]
        weight.copy_(torch.stack([logits[own, c] for c, own in enumerate(old)], 1).view_as(weight))


def test_draws_have_their_probabilities() -> None:
    grids = [CodeGrid((1, 1, 1), 3), CodeGrid((1, 1, 2), 2)]
    model, x = prior(grids, classes=2), every(grids)
    for y in range(2):
        drawn = model.sample(2000, seed=y, y=torch.full((2000,), y))[:, 0, 0]
        with torch.no_grad():
            log_p = model.evidence(x, y=torch.full((len(x),), y)).log_px
        assert_frequencies(4 * drawn[:, 0] + 2 * drawn[:, 1] + drawn[:, 2], log_p)


def test_layers_are_drawn_from_the_top() -> None:
    """Those that are kept stay; what is drawn is what the whole draw makes of the same numbers."""
    model = prior(THREE)
    codes = model.draw(4, generator=seeded())
    assert [tuple(z.shape) for z in codes] == [(4, *grid.shape) for grid in THREE]
    assert torch.equal(model.sample(4, generator=seeded()), model.flatten(codes))
    generator = seeded()
    top = model.latent(0, [], 4).sample(generator)
    assert torch.equal(top, codes[0])
    again = model.draw(4, generator=generator, above=[top])
    assert again[0] is top
    assert all(torch.equal(a, b) for a, b in zip(codes, again, strict=True))


def test_at_temperature_zero_codes_are_the_most_probable() -> None:
    model = prior(TWO)
    codes = model.draw(2, [1.0, 0.0], seeded())
    assert torch.equal(codes[1], model.latent(1, codes[:1], 2).mode())
    with pytest.raises(ValueError, match=r"^temperature: got 3 numbers, expected one for each of 2 layers$"):
        model.draw(2, [1.0, 0.0, 0.5])


def test_codes_are_images_of_one_row() -> None:
    model, codes = prior(LARGE), some(LARGE, 3)
    x = model.flatten(codes)
    assert (model.shape, model.levels) == ((1, 1, 4 + 24 + 42), 9)
    assert all(torch.equal(a, b) for a, b in zip(model.unflatten(x), codes, strict=True))
    assert "codes, top first: [1, 2, 2] of 5, [2, 3, 4] of 4, [1, 6, 7] of 9" in repr(model)
    x[1, 0, 0, 4] = 4  # as the last layer may have it, but not the second one
    with pytest.raises(ValueError, match=r"^codes of layer 1: got values 0 to 4, expected 0 to 3$"):
        model.evidence(x)


def test_the_class_is_asked_for_where_it_matters() -> None:
    model, codes = prior(TWO, classes=2), some(TWO, 4)
    law = model.latent(1, codes[:1], 4)
    assert law.shape == (4, 1, 2, 2)
    asked: list[Callable[[], Tensor]] = [lambda: law.log_prob(codes[1]), law.sample, law.mode]
    for ask in asked:
        with pytest.raises(ValueError, match=r"^labels: got None, expected 4 class numbers from 0 to 1$"):
            ask()
    x, one, other = model.flatten(codes), torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 0, 1])
    differ = model.evidence(x, y=one).log_px != model.evidence(x, y=other).log_px
    assert differ.tolist() == [True, False, False, False]


def test_weights_that_follow_from_codes() -> None:
    """In the networks of all layers, given what comes from above; those that are lent stay."""
    model = CodePrior(LARGE, options(SNAIL, SNAIL), 3).double()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    assert model.images_wanted == SNAIL.init_images
    model.initialize(model.flatten(some(LARGE, 16)), {"networks.1.beside.g"})
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    layers = [name for name, module in model.named_modules() if isinstance(module, ShiftedConv2d)]
    expected = {f"{name}.{own}" for name in layers for own in ("g", "b")} - {"networks.1.beside.g"}
    assert changed == expected
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert CodePrior(TWO, options(GATED)).images_wanted == 0


def test_it_learns_what_classes_and_layers_tell() -> None:
    """The codes of the top are those of the class, and those below follow from the codes above them."""
    torch.manual_seed(0)
    grids = [CodeGrid((1, 1, 2), 3), CodeGrid((1, 2, 4), 4)]
    model = CodePrior(grids, options(GATED), 3)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(40):
        y = torch.randint(3, (32,))
        top = (y[:, None] + torch.tensor([0, 1])).view(-1, 1, 1, 2) % 3
        low = (top + 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
        loss = -model.evidence(model.flatten([top, low]), y=y).log_px.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05  # of 13.8 at first


OPTIONS: dict[str, Any] = {"top": {"name": "pixelsnail", "width": 8}, "below": {"name": "gated_pixelcnn"}}


def test_options_name_their_networks() -> None:
    config = parse(CodePriorConfig, {**OPTIONS, "embedding": 8}, "here")
    assert isinstance(config.top, PixelSNAILConfig)
    assert config.below is not None
    assert (config.top.width, config.below.name, config.embedding) == (8, "gated_pixelcnn", 8)
    assert parse(CodePriorConfig, to_dict(config), "here") == config
    assert to_dict(SMALL)["top"]["name"] == "pixelsnail"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"embedding": 0}, "embedding: got 0, expected at least 1"),
        ({"width": 0}, "width: got 0, expected at least 1"),
        ({"blocks": -1}, "blocks: got -1, expected at least 0"),
        ({"top": {"name": "vae"}}, "top.name: got 'vae', expected one of .*pixelsnail.*"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"^here: {words}$"):
        parse(CodePriorConfig, {**OPTIONS, **wrong}, "here")


def test_options_that_do_not_fit_codes_are_refused() -> None:
    mixture = replace(GATED, likelihood=LikelihoodConfig("logistic_mixture"))
    expected = r"^below.likelihood.family: got logistic_mixture, expected categorical for codes$"
    with pytest.raises(OptionError, match=expected):
        CodePrior(TWO, options(SNAIL, mixture))


def test_layers_below_have_a_network_if_there_are_some() -> None:
    alone = options(GATED, None)
    assert [type(block) for block in CodePrior(ONE, alone).blocks()] == [GatedLayer, GatedLayer]
    with pytest.raises(OptionError, match=r"^below: got nothing, expected a causal network, by its name, for layer 1$"):
        CodePrior(TWO, alone)
    with pytest.raises(OptionError, match=r"^below: got gated_pixelcnn, expected null: the codes have one layer$"):
        CodePrior(ONE, SMALL)


def test_blocks_are_those_of_all_networks() -> None:
    assert [type(block) for block in prior(TWO).blocks()] == [SnailBlock, GatedLayer, GatedLayer]

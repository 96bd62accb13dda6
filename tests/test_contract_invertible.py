"""What every flow promises: a bijection with its determinant, and bounds on integrals of a density over cells.

On images of two values with three levels. Where a flow does not pad them, its density is integrated over the nine cells
by quadrature. Of every flow the share of its own draws that fall into an image's cell, the padding within its range, is
the probability of the image: no density is needed to count them, and weights and bounds are compared with that.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import toys
from contract import all_images, assert_frequencies, class_of, names, place, recipe, seeded, shake
from torch import Tensor, nn

from davi.errors import UserError
from davi.evaluation import importance_bound
from davi.evidence import About, Kind
from davi.flows import Bijection, Logit, Scale, Sequential
from davi.flows.noise import DequantizationConfig, UniformConfig, VariationalConfig
from davi.flows.variational import VariationalNoise
from davi.model import Invertible

LEVELS, SHAPE, CELLS = 3, (1, 1, 2), 9
DRAWS, WEIGHTS = 20_000, 2_000
"""Draws of a model, and weights of each image."""
SIGMAS = 5.0
"""Standard errors: a hundred comparisons, with fixed seeds."""


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


every_flow = pytest.mark.parametrize("name", names(Invertible))


def of(
    name: str,
    shape: tuple[int, int, int] = SHAPE,
    levels: int = LEVELS,
    noise: DequantizationConfig = UniformConfig(),  # noqa: B008  # frozen
) -> Invertible:
    """The flow of a recipe or a toy for other images, with weights that are neutral nowhere but in learned noise;
    float64, eval mode.

    Initialized from images where it has layers for that: else hardly a draw of one that pads them would be within the
    range.
    """
    cls = class_of(name)
    config = cls.Config() if name in toys.TOYS else recipe(name).model
    found = cls(shape, levels, dataclasses.replace(config, dequantization=noise))
    assert isinstance(found, Invertible)
    found.initialize(torch.randint(levels, (found.images_wanted, *shape)))
    learned = found.dequantization.noise
    calm = {} if not isinstance(learned, nn.Module) else {name: x.clone() for name, x in learned.state_dict().items()}
    shake(found)
    if isinstance(learned, nn.Module):
        learned.load_state_dict(calm)
    return found.double()


class Shares(NamedTuple):
    """Probabilities and their standard errors, ``[images]`` both."""

    p: Tensor
    error: Tensor

    def agree(self, other: Shares) -> bool:
        error = (self.error.square() + other.error.square()).sqrt()
        return bool(((self.p - other.p).abs() <= SIGMAS * error).all())

    def total(self) -> Shares:
        return Shares(self.p.sum(), self.error.square().sum().sqrt())


@torch.no_grad()
def counted(model: Invertible, n: int = DRAWS) -> tuple[Shares, Shares]:
    """By draws: the probabilities of all images, and of what is outside of the range."""
    y, _ = model.bijection.inverse(model.base(n).sample(seeded()))
    low, high = (float(end) for end in ends(model))
    inside = ((y >= low) & (y < high)).flatten(1).all(1)
    at = place(model.dequantization.quantize(y), model.levels)
    p = torch.bincount(at[inside], minlength=model.levels**model.dims).double() / n
    error = (p * (1.0 - p) / n).sqrt().clamp_min(1.0 / n)  # what has not been seen may have been bad luck
    outside = 1.0 - p.sum()
    return Shares(p, error), Shares(outside, (outside * (1.0 - outside) / n).sqrt())


def ends(model: Invertible) -> tuple[float, float]:
    """Of the range of y."""
    found = model.dequantization
    return found.low, found.low + found.step * found.levels


@torch.no_grad()
def weighted(model: Invertible, n: int = WEIGHTS, seed: int = 6) -> tuple[Shares, Shares]:
    """By weights: the probabilities of all images; and means of their logarithms, which are the bounds."""
    x = all_images(model)
    evidence = model.evidence(x.repeat(n, 1, 1, 1), seeded(seed))
    assert evidence.log_weight is not None
    log_w = evidence.log_weight.view(n, len(x))
    first, second = (Shares(t.mean(0), t.std(0) / n**0.5) for t in (log_w.exp(), log_w))
    return first, second


@every_flow
def test_the_bijection_has_the_determinants_of_its_jacobians(name: str) -> None:
    model = of(name, (1, 2, 2))
    y, *_ = model.dequantization(torch.randint(LEVELS, (3, *model.shape)), seeded(), torch.float64)
    z, there = model.bijection(y)
    dims = y[0].numel()
    # Images do not mix, as is tested below: the Jacobian of a sum over the batch has those of all images.
    jacobians = torch.autograd.functional.jacobian(lambda y: model.bijection(y)[0].sum(0), y)
    expected = torch.linalg.slogdet(jacobians.view(dims, len(y), dims).transpose(0, 1)).logabsdet
    # 1e-9: float64, and a few hundred operations
    torch.testing.assert_close(there.flatten(1).sum(1), expected, rtol=1e-9, atol=1e-9)
    again, back = model.bijection.inverse(z)
    assert (there.shape, back.shape) == (y.shape, z.shape)
    # 1e-8: an inverse may be found by bisection
    torch.testing.assert_close(again, y, rtol=0.0, atol=1e-8)
    torch.testing.assert_close(back.flatten(1).sum(1), -expected, rtol=1e-7, atol=1e-7)
    one, log_det = model.bijection(y[1:2])
    torch.testing.assert_close(one, z[1:2], rtol=0.0, atol=1e-9)
    torch.testing.assert_close(log_det, there[1:2], rtol=0.0, atol=1e-9)


class Density(NamedTuple):
    """The density of a flow of two values at places with weights for quadrature, ``[N]`` each."""

    mass: Tensor
    """Of p(y)."""
    log_p: Tensor
    area: Tensor
    """Of the places themselves."""
    inside: Tensor
    cell: Tensor
    """The image of each place; outside of the range, that of the nearest one."""

    def masses(self, everywhere: bool = False) -> Tensor:
        """Of the cells, ``[9]``; everywhere: with what is outside, which goes to the cells at the ends."""
        mass = self.mass if everywhere else torch.where(self.inside, self.mass, 0.0)
        return torch.zeros(CELLS, dtype=torch.float64).index_add(0, self.cell, mass)

    def means(self) -> Tensor:
        """Of log p(y) over each cell, ``[9]``."""
        cell, area = self.cell[self.inside], self.area[self.inside]
        totals = torch.zeros(CELLS, 2, dtype=torch.float64)
        totals.index_add_(0, cell, torch.stack((area * self.log_p[self.inside], area), 1))
        torch.testing.assert_close(totals[:, 1], torch.full_like(totals[:, 1], 1.0 / CELLS), rtol=1e-6, atol=0.0)
        return totals[:, 0] / totals[:, 1]


def to_line(bijection: Bijection) -> Bijection:
    """From y to coordinates on the whole line. Flows that begin with a logit have a density on an interval only, but it
    is smooth in that logit."""
    first = next(iter(bijection), bijection) if isinstance(bijection, Sequential) else bijection
    return first if isinstance(first, Logit) else Sequential()


def nodes(low: float, high: float, cuts: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre quadrature from low to high, on pieces that no cut goes through: places and masses."""
    between = cuts[(cuts > low) & (cuts < high)]
    borders = np.unique(np.concatenate((np.linspace(low, high, 31), between.numpy())))
    at, mass = np.polynomial.legendre.leggauss(8)
    half = np.diff(borders)[:, None] / 2
    return torch.tensor((borders[:-1, None] + half + half * at).ravel()), torch.tensor((half * mass).ravel())


@functools.cache
@torch.no_grad()
def known(name: str) -> tuple[Invertible, Density]:
    """A flow of two values and its density."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = of(name)
    line = to_line(model.bijection)
    drawn, _ = line(model.bijection.inverse(model.base(DRAWS).sample(seeded()))[0])
    low, high = ends(model)
    cuts, _ = line(torch.linspace(low, high, LEVELS + 1, dtype=torch.float64).view(-1, 1))
    margin = 0.3 * (drawn.max() - drawn.min())  # beyond all draws: what is left out is far below their share of one
    t, weight = nodes(float(drawn.min() - margin), float(drawn.max() + margin), cuts.flatten())
    y, log_dt = line.inverse(torch.cartesian_prod(t, t).view(-1, *SHAPE))
    z, log_det = model.bijection(y)
    log_p = model.base(len(y)).log_prob(z) + log_det.flatten(1).sum(1)
    area = torch.outer(weight, weight).flatten() * log_dt.flatten(1).sum(1).exp()
    inside = ((y >= low) & (y < high)).flatten(1).all(1)
    return model, Density(area * log_p.exp(), log_p, area, inside, place(model.dequantization.quantize(y), LEVELS))


every_flat_flow = pytest.mark.parametrize(
    "name", [name for name in names(Invertible) if of(name).base(1).shape.numel() == 2]
)
"""Those that do not pad images of two values."""


@every_flat_flow
def test_probabilities_and_what_lies_outside_sum_to_one(name: str) -> None:
    _, density = known(name)
    assert float(density.mass.sum()) == pytest.approx(1.0, abs=1e-4)
    assert 0.01 < float(density.masses().sum()) < 1.0


@every_flat_flow
def test_evidence_is_a_bound_whose_mean_is_known(name: str) -> None:
    """Its mean over the noise is the mean of log p(y) over the cell, minus log q, which is that of the cell's area."""
    model, density = known(name)
    _, mean = weighted(model, 2 * WEIGHTS)
    exact = density.means() - 2 * math.log(LEVELS / (ends(model)[1] - ends(model)[0]))
    assert bool((mean.error < 0.05).all())
    assert mean.agree(Shares(exact, torch.zeros(())))
    assert bool((exact < density.masses().log()).all())


@every_flat_flow
def test_mean_weights_are_the_probabilities(name: str) -> None:
    model, density = known(name)
    assert weighted(model, 2 * WEIGHTS)[0].agree(Shares(density.masses(), torch.zeros(())))


@every_flat_flow
def test_draws_fall_into_their_cells(name: str) -> None:
    """What lies outside of the range goes to the cells at its ends."""
    model, density = known(name)
    masses = density.masses(everywhere=True)
    assert_frequencies(place(model.sample(DRAWS, generator=seeded()), LEVELS), (masses / masses.sum()).log())


@every_flow
def test_evidence_is_a_bound(name: str) -> None:
    """Its mean and that of bounds of several draws lie below the probabilities, which are counted."""
    model = of(name)
    p, outside = counted(model)
    w, bound = weighted(model)
    assert w.agree(p)
    assert Shares(*(t[None] for t in w.total())).agree(Shares(1.0 - outside.p[None], outside.error[None]))
    few = importance_bound(model, all_images(model).repeat(100, 1, 1, 1), 20, seeded()).view(100, CELLS)
    several = Shares(few.mean(0), few.std(0) / 100**0.5)
    log_p = w.p.log()  # of other draws: means of the same would keep the order whatever they are
    assert bool((several.p < log_p + SIGMAS * (several.error + w.error / w.p)).all())
    assert bool((several.p > bound.p - SIGMAS * (several.error + bound.error)).all())
    assert float((log_p - several.p).sum()) < 0.5 * float((log_p - bound.p).sum())  # most of the gap is closed


VARIATIONAL = VariationalConfig(steps=2, width=4, blocks=1, heads=1, components=2, context_width=4, context_blocks=1)


@every_flow
def test_learned_noise_gives_the_same_probabilities(name: str) -> None:
    """By its weights, also where more is drawn than is wanted. Before it is trained, noise is seldom found at the ends
    of its interval, and weights would have no variance: it has its initial weights here, and is spread out."""
    model = of(name, (1, 1, 3), 2, VARIATIONAL)
    noise = model.dequantization.noise
    assert isinstance(noise, VariationalNoise)
    steps, sigmoid = noise.flow
    spread = Scale((1, 1, 1)).double()
    nn.init.constant_(spread.raw, 0.5)
    noise.flow = Sequential(steps, spread, sigmoid)
    assert weighted(model)[0].agree(counted(model)[0])


@every_flow
def test_what_evidence_says_of_itself(name: str) -> None:
    model = of(name)
    x = all_images(model)
    first, other = (model.evidence(x, seeded(seed)) for seed in (5, 6))
    assert (first.kind, first.about) == (Kind.LOWER_BOUND, About.X)
    assert bool((first.log_px != other.log_px).any())
    assert first.log_weight is not None
    assert first.log_weight_fn is not None
    assert torch.equal(first.log_weight, first.log_px)
    joint = first.log_weight_fn(joint=True)
    # The padding is drawn from a range of length one: only the real pixels count.
    torch.testing.assert_close(joint - first.log_weight, torch.full_like(joint, 2 * math.log(LEVELS)))


@every_flow
def test_probabilities_of_one_pixel(name: str) -> None:
    """They sum to the share of the range, by bounds of 10,000 draws, and by one draw to less."""
    model, draws = of(name, (1, 1, 1), 4), 10_000
    _, outside = counted(model)
    w, bound = weighted(model)
    many = float(importance_bound(model, all_images(model), draws, seeded(7), chunk=DRAWS).exp().sum())
    error = float(w.total().error) * (WEIGHTS / draws) ** 0.5
    assert many <= 1.0 + SIGMAS * error
    assert abs(many - 1.0 + float(outside.p)) <= SIGMAS * math.hypot(error, float(outside.error))
    assert float(bound.p.exp().sum()) < many + SIGMAS * float(bound.total().error)


@every_flow
def test_at_temperature_zero_the_noise_is_at_its_center(name: str) -> None:
    model = of(name)
    z = model.base(2).center()
    expected = model.dequantization.quantize(model.bijection.inverse(z)[0])
    assert torch.equal(model.sample(2, temperature=0.0), expected)


@every_flow
def test_encoded_images_come_back(name: str) -> None:
    """The very integers, the first and the last level among them."""
    model = of(name)
    x = all_images(model)
    latents = model.encode(x)
    assert [tuple(part.shape[1:]) for part in latents] == list(model.latent_shapes)
    assert all(torch.equal(a, b) for a, b in zip(latents, model.encode(x), strict=True))  # nothing is drawn
    assert torch.equal(model.decode(latents), x)
    with pytest.raises(ValueError, match=r"latents: got shapes \[\], expected"):
        model.decode([])
    with pytest.raises(UserError, match="inverse of the flow: got infinite pixels in 9 of 9 images"):
        model.decode([torch.full_like(part, math.nan) for part in latents])

"""NICE: what its couplings and its scale do to a volume, what depends on what, and the published numbers' units."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from contract import seeded, shake
from torch import Tensor

import davi
from davi.distributions import Logistic, Normal
from davi.evidence import bits_per_dim
from davi.flows import Coupling, Scale
from davi.models import NICE
from davi.models.nice import NICEConfig

Shape = tuple[int, int, int]


def nice(shape: Shape = (1, 2, 3), levels: int = 4, **options: Any) -> NICE:
    """In float64, with no weight at its first value."""
    config = NICEConfig(**{"hidden_layers": (1, 2, 1, 1), "width": 24, **options})
    return shake(NICE(shape, levels, config)).double().requires_grad_(False)


def points(model: NICE, n: int = 3) -> Tensor:
    x = torch.randint(model.levels, (n, *model.shape), generator=seeded())
    return model.dequantization(x, seeded(), torch.float64).y


def jacobian(model: NICE, y: Tensor) -> Tensor:
    """Of one image, ``[D, D]``."""
    dims = y.numel()
    found: Tensor = torch.autograd.functional.jacobian(lambda y: model.bijection(y[None])[0][0], y)
    return found.view(dims, dims)


def scale_of(model: NICE) -> Scale:
    (found,) = [part for part in model.bijection if isinstance(part, Scale)]
    return found


@pytest.mark.parametrize("partition", ["alternating", "halves"])
@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 1, 1), (2, 3, 1), (1, 1, 1)])
def test_the_log_determinant_is_the_sum_of_the_scales(shape: Shape, partition: str) -> None:
    """Exactly, every variable with its own, for every image alike; and that of autograd's Jacobian."""
    model = nice(shape, partition=partition)
    y = points(model)
    z, log_det = model.bijection(y)
    s = scale_of(model).log_scale
    assert z.shape == y.shape
    assert torch.equal(log_det, s.expand_as(y))
    for one in y:
        assert float(torch.linalg.slogdet(jacobian(model, one)).logabsdet) == pytest.approx(float(s.sum()), abs=1e-9)
    evidence = model.evidence(torch.zeros(2, *shape, dtype=torch.long))
    assert torch.equal(evidence.terms["log_det"], s.expand(2, *s.shape).sum((1, 2, 3)))


@pytest.mark.parametrize("partition", ["alternating", "halves"])
def test_the_inverse(partition: str) -> None:
    model = nice((3, 5, 4), 256, partition=partition, low=-1.0)
    y = points(model, 5)
    z, _ = model.bijection(y)
    torch.testing.assert_close(model.bijection.inverse(z)[0], y, rtol=0.0, atol=1e-12)
    assert float((z - y).abs().max()) > 0.1


@pytest.mark.parametrize("partition", ["alternating", "halves"])
@pytest.mark.parametrize(("couplings", "entries"), [(1, 16 + 8), (2, 32 + 16 + 4), (3, 64), (4, 64)])
def test_after_three_couplings_everything_depends_on_everything(partition: str, couplings: int, entries: int) -> None:
    """Of the 8 x 8 entries of the Jacobian one coupling fills a quarter beside the diagonal. After two, what was
    changed last depends on all, the rest on itself and on the other half. Networks so wide leave no entry zero by
    chance."""
    model = nice((1, 2, 4), partition=partition, hidden_layers=(1,) * couplings, width=64)
    assert int((jacobian(model, points(model)[0]) != 0).sum()) == entries


def test_which_variables_are_changed() -> None:
    """In turns: first the odd places of the row of all numbers, or its second half."""
    for partition, second in (("alternating", [1, 3, 5]), ("halves", [3, 4, 5])):
        model = nice((2, 1, 3), partition=partition)
        y = points(model)
        couplings = [part for part in model.bijection if isinstance(part, Coupling)]
        changed = [(part(y)[0] != y).any(0).flatten().nonzero().flatten().tolist() for part in couplings]
        first = sorted(set(range(6)) - set(second))
        assert changed == [second, first, second, first]


@pytest.mark.parametrize(("prior", "kind"), [("logistic", Logistic), ("normal", Normal)])
def test_the_density_is_that_of_the_formula(prior: str, kind: type) -> None:
    model = nice(prior=prior)
    x = torch.randint(4, (5, *model.shape), generator=seeded())
    evidence = model.evidence(x, seeded())
    y, *_ = model.dequantization(x, seeded(), torch.float64)
    z = model.bijection(y)[0].requires_grad_()
    cdf = z.sigmoid() if prior == "logistic" else torch.special.ndtr(z)
    (slope,) = torch.autograd.grad(cdf.sum(), z)
    expected = slope.log().sum((1, 2, 3)) + scale_of(model).log_scale.sum() - model.dims * math.log(4)
    torch.testing.assert_close(evidence.log_px, expected, rtol=1e-10, atol=1e-10)
    assert isinstance(model.base(2), kind)


@pytest.mark.parametrize(
    ("nats", "shape", "low", "bits"),
    [(5371.78, (3, 32, 32), -1.0, 4.4773), (1980.50, (1, 28, 28), 0.0, 4.3555)],
    ids=["CIFAR-10", "MNIST"],
)
def test_the_published_densities_in_bits(nats: float, shape: Shape, low: float, bits: float) -> None:
    """The constant is the model's own: log 128 for the range [-1, 1], log 256 for [0, 1], for each value."""
    model = NICE(shape, 256, NICEConfig((1,), 1, low=low)).double()
    evidence = model.evidence(torch.zeros(1, *shape, dtype=torch.uint8))
    constant = float(evidence.terms["dequantization"].double())
    assert bits_per_dim(nats + constant, model.dims) == pytest.approx(bits, abs=1e-4)


def test_255_for_256_would_be_seen() -> None:
    """In bits/dim, log2(256 / 255)."""
    models = [NICE((1, 1, 2), levels, NICEConfig((1,), 1)).double() for levels in (255, 256)]
    x = torch.zeros(1, 1, 1, 2, dtype=torch.uint8)
    fewer, right = (float(model.evidence(x).terms["dequantization"]) for model in models)
    assert bits_per_dim(right - fewer, 2) == pytest.approx(0.0056466, abs=5e-8)


def test_it_begins_as_a_scale_that_the_images_have_set() -> None:
    """The couplings do nothing yet; each variable leaves with the standard deviation of its prior."""
    x = torch.randint(256, (40, 1, 2, 3), generator=seeded())
    x[:, 0, 0, 0] = 7
    for config, deviation in (
        (NICEConfig(width=4), math.pi / math.sqrt(3.0)),
        (NICEConfig(width=4, prior="normal"), 1.0),
    ):
        model = NICE((1, 2, 3), 256, config).double().requires_grad_(False)
        torch.manual_seed(0)
        model.initialize(x)
        torch.manual_seed(0)
        y, *_ = model.dequantization(x, dtype=torch.float64)
        z, _ = model.bijection(y)
        torch.testing.assert_close(z.std(0), torch.full_like(z[0], deviation), rtol=1e-9, atol=0.0)
        torch.testing.assert_close(z, y * scale_of(model).log_scale.exp(), rtol=1e-12, atol=1e-12)


def test_what_leaves_the_scales_alone() -> None:
    x = torch.randint(256, (40, 1, 2, 3), generator=seeded())
    as_published = NICE((1, 2, 3), 256, NICEConfig(width=4, initial_scale="one"))
    assert as_published.images_wanted == 0
    model = NICE((1, 2, 3), 256, NICEConfig(width=4))
    as_published.initialize(x)
    model.initialize(x[:1])  # one image has no standard deviation
    assert not any(bool(scale_of(one).raw.any()) for one in (as_published, model))
    model.initialize(torch.zeros_like(x), kept=["bijection.4.raw"])
    assert not bool(scale_of(model).raw.any())


def test_scales_are_bounded() -> None:
    scale = Scale((2,), deviation=1.0, bound=20.0).double()
    with torch.no_grad():
        scale.raw.copy_(torch.tensor([1e9, -1e9]))
    assert scale.log_scale.tolist() == [20.0, -20.0]
    x = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(scale.inverse(scale(x)[0])[0], x, rtol=1e-12, atol=0.0)
    with torch.no_grad():
        scale.set_from(torch.stack((torch.zeros(3), torch.tensor([-1e30, 0.0, 1e30])), 1).double())
    torch.testing.assert_close(scale.log_scale, torch.tensor([18.0, -18.0], dtype=torch.float64))


def test_integers_come_back_in_single_precision() -> None:
    model = shake(NICE((3, 6, 6), 256, NICEConfig(width=30, low=-1.0)))
    x = torch.randint(256, (4, 3, 6, 6), generator=seeded())
    x[0], x[1] = 0, 255
    (z,) = model.encode(x)
    assert z.shape == x.shape
    assert torch.equal(model.decode([z]), x)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("nice_mnist", 19_158_352), ("nice_cifar10", 72_617_216), ("nice_cifar10_program", 93_591_360)],
)
def test_published_configurations(name: str, parameters: int) -> None:
    """By hand: of each coupling the matrices and biases from half of the numbers and back to half of them."""
    with torch.device("meta"):
        model = davi.build(name)
    assert isinstance(model, NICE)
    half, width = model.dims // 2, model.config.width
    expected = model.dims + sum(
        (half + 1) * width + (layers - 1) * (width + 1) * width + (width + 1) * half
        for layers in model.config.hidden_layers
    )
    assert sum(p.numel() for p in model.parameters()) == expected == parameters
    assert len(list(model.blocks())) == len(model.config.hidden_layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_layers": ()}, r"hidden_layers: got \[\], expected at least 1 for each coupling"),
        ({"hidden_layers": (2, 0)}, r"hidden_layers: got \[2, 0\], expected at least 1 for each coupling"),
        ({"width": 0}, "width: got 0, expected at least 1"),
        ({"high": -1.0}, "high: got -1.0, expected a finite number above low, 0.0"),
        ({"low": -math.inf}, "high: got 1.0, expected a finite number above low, -inf"),
    ],
)
def test_options_that_make_no_model(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        dataclasses.replace(NICEConfig(), **options)

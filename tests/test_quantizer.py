"""Quantizers against brute force and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from davi.config import parse
from davi.errors import UserError
from davi.layers import nearest as nearest_module
from davi.layers.codebook import embedding
from davi.layers.from_data import set_from_data
from davi.layers.nearest import k_means, nearest
from davi.layers.quantizer import (
    Codebook,
    FiniteScalarConfig,
    Quantizer,
    QuantizerConfig,
    ResidualQuantizerConfig,
    VectorQuantizerConfig,
    make_quantizer,
    perplexity,
    quantizer_configs,
    usage,
)

CONFIGS: dict[str, QuantizerConfig] = {
    "vector": VectorQuantizerConfig(codes=6, dims=4),
    "books": VectorQuantizerConfig(codes=5, dims=4, books=2),
    "gradient": VectorQuantizerConfig(codes=6, dims=4, update="gradient"),
    "residual": ResidualQuantizerConfig(codes=5, dims=4, depth=3),
    "shared": ResidualQuantizerConfig(codes=5, dims=4, depth=3, shared=True),
    "finite": FiniteScalarConfig(levels=(4, 3, 2, 5)),
}


def made(name: str) -> Quantizer:
    torch.manual_seed(3)
    return make_quantizer(CONFIGS[name]).double()


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=list(CONFIGS))
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return made(request.param)


def test_codes_stand_for_what_is_seen(quantizer: Quantizer) -> None:
    features = some(3, 4, 2, 5)
    assigned = quantizer(features)
    assert assigned.codes.dtype == torch.int64
    assert assigned.codes.shape == (3, quantizer.books, 2, 5)
    assert 0 <= assigned.codes.min() <= assigned.codes.max() < quantizer.size
    assert torch.equal(assigned.embedded, quantizer.embed(assigned.codes))
    assert torch.equal(assigned.straight_through(), assigned.embedded)
    assert assigned.straight_through().stride() == quantizer.embed(assigned.codes).stride()
    one = quantizer(features[1:2, :, 1:, 2:3])  # each position for itself
    assert torch.equal(one.codes, assigned.codes[1:2, :, 1:, 2:3])


def test_straight_through_is_the_identity_to_gradients(quantizer: Quantizer) -> None:
    x = some(2, 4, 3, 3).requires_grad_()
    assigned = quantizer(x)
    weights = some(2, 4, 3, 3, seed=1)
    (gradient,) = torch.autograd.grad((weights * assigned.straight_through().square()).sum(), assigned.features)
    assert torch.equal(gradient, 2.0 * weights * assigned.embedded)
    assert isinstance(quantizer, Codebook) == torch.equal(assigned.features, x)


def test_commitment_moves_features_alone() -> None:
    quantizer = made("gradient")
    assert isinstance(quantizer, Codebook)
    x = some(2, 4, 3, 3).requires_grad_()
    assigned = quantizer(x)
    commitment, distortion = quantizer.commitment(assigned), quantizer.distortion(assigned)
    assert torch.allclose(commitment, (x - assigned.embedded).square().sum((1, 2, 3)), rtol=1e-12)
    assert torch.equal(commitment, distortion)
    both = (x, quantizer.vectors)
    of_commitment = torch.autograd.grad(commitment.sum(), both, allow_unused=True)
    assert [gradient is None for gradient in of_commitment] == [False, True]
    assert torch.allclose(of_commitment[0], 2.0 * (x - assigned.embedded), rtol=1e-12)
    of_distortion = torch.autograd.grad(distortion.sum(), both, allow_unused=True)
    assert [gradient is None for gradient in of_distortion] == [True, False]
    of_vectors = of_distortion[1]
    rows, codes = x.detach().permute(0, 2, 3, 1).reshape(-1, 4), assigned.codes.flatten()
    for code, vector in enumerate(quantizer.vectors[0].detach()):
        own = rows[codes == code]
        assert torch.allclose(of_vectors[0, code], 2.0 * (len(own) * vector - own.sum(0)), atol=1e-12)


def test_nearest_is_that_of_brute_force() -> None:
    x, vectors = some(200, 3), some(11, 3, seed=1)
    assert torch.equal(nearest(x, vectors), torch.cdist(x, vectors).argmin(1))


def test_far_from_zero_small_distances_count() -> None:
    center = torch.tensor([3000.0, -2000.0, 1000.0])
    x, vectors = (center + some(size, 3, seed=size).float() for size in (400, 20))
    brute = torch.cdist(x.double(), vectors.double()).argmin(1)
    assert torch.equal(nearest(x, vectors), brute)
    expanded = (vectors.square().sum(1) - 2.0 * x @ vectors.T).argmin(1)
    assert not torch.equal(expanded, brute)


def test_the_lowest_of_equally_near() -> None:
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [-3.0, 3.0], [0.0, -2.0]])
    assert nearest(x, vectors).tolist() == [5, 0, 0, 1, 4]


@pytest.mark.parametrize("size", [9, 33, 65])
def test_the_first_of_vectors_that_are_the_same(size: int) -> None:
    """In single precision, in which a matrix product rounds its last columns in another way."""
    generator = torch.Generator().manual_seed(5)
    for width in (2, 8, 33, 64):
        half = torch.randn(size // 2 + 1, width, generator=generator)
        x = 3.0 * torch.randn(200, width, generator=generator)
        assert int(nearest(x, half[:1].expand(size, -1)).max()) == 0
        twice = torch.cat([half, half])[:size]
        assert torch.equal(nearest(x, twice), torch.cdist(x.double(), half.double()).argmin(1))


@pytest.mark.parametrize("offset", [0, 1000])
def test_ties_of_many_vectors_are_exact(offset: int) -> None:
    """Vectors at the corners of a grid and others between them, in single precision, where every distance is exact."""
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randint(-3, 4, (23, 2), generator=generator) + offset
    x = torch.randint(-6, 7, (300, 2), generator=generator) + 2 * offset
    distances = (x[:, None] - 2 * vectors).square().sum(2)  # four times the squared distance
    assert (distances == distances.min(1, keepdim=True).values).sum() > 450
    assert torch.equal(nearest(x / 2.0, vectors.float()), distances.argmin(1))


def test_many_vectors_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, vectors = some(50, 3), some(7, 3, seed=1)
    whole = nearest(x, vectors)
    monkeypatch.setattr(nearest_module, "CELLS", 20)
    assert torch.equal(nearest(x, vectors), whole)


def test_distances_are_of_single_precision_under_autocast() -> None:
    quantizer = made("vector").float()
    features = some(4, 4, 6, 6).bfloat16()
    exact = quantizer(features.float())
    with torch.autocast("cpu", torch.bfloat16):
        assigned = quantizer(features)
    assert torch.equal(assigned.codes, exact.codes)
    assert assigned.straight_through().dtype == torch.float32


@pytest.mark.parametrize("name", ["vector", "books", "residual", "shared"])
def test_the_order_of_vectors_is_of_no_account(name: str) -> None:
    one, other = made(name), made(name)
    assert isinstance(one, Codebook)
    assert isinstance(other, Codebook)
    order = torch.randperm(one.size, generator=torch.Generator().manual_seed(1))
    other.vectors.copy_(one.vectors[:, order])
    x = some(3, 4, 4, 4)
    first, second = one(x), other(x)
    assert torch.equal(first.embedded, second.embedded)
    assert torch.equal(first.codes, order[second.codes])
    assert torch.equal(one.commitment(first), other.commitment(second))


def test_each_book_has_its_part() -> None:
    quantizer = made("books")
    assert isinstance(quantizer, Codebook)
    x = some(2, 4, 3, 3)
    assigned = quantizer(x)
    for book in range(2):
        single = make_quantizer(VectorQuantizerConfig(codes=5, dims=2)).double()
        assert isinstance(single, Codebook)
        single.vectors.copy_(quantizer.vectors[book : book + 1])
        own = single(x[:, 2 * book : 2 * book + 2])
        assert torch.equal(own.codes[:, 0], assigned.codes[:, book])
        assert torch.equal(own.embedded, assigned.embedded[:, 2 * book : 2 * book + 2])
    replaced, codes = quantizer.replaced(assigned)
    assert torch.equal(replaced[1, :, 0], x[:, 2].flatten())
    assert torch.equal(codes[1], assigned.codes[:, 1].flatten())


@pytest.mark.parametrize("name", ["residual", "shared"])
def test_each_depth_replaces_what_is_left(name: str) -> None:
    quantizer = made(name)
    assert isinstance(quantizer, Codebook)
    x = some(2, 4, 3, 3)
    assigned = quantizer(x)
    left, commitment = x.permute(0, 2, 3, 1).reshape(-1, 4), torch.zeros(2, dtype=torch.float64)
    total = torch.zeros_like(left)
    replaced, answers = (part.view(3, 18, -1) for part in quantizer.replaced(assigned))
    for depth in range(3):
        vectors = quantizer.vectors[0 if name == "shared" else depth]
        codes = torch.cdist(left, vectors).argmin(1)
        assert torch.equal(codes, assigned.codes[:, depth].flatten())
        assert torch.equal(codes, answers[depth, :, 0])
        assert torch.allclose(left, replaced[depth], atol=1e-14)
        left, total = left - vectors[codes], total + vectors[codes]
        commitment += left.square().sum(1).view(2, 9).sum(1)
    assert torch.allclose(assigned.embedded.permute(0, 2, 3, 1).reshape(-1, 4), total, atol=1e-14)
    assert torch.allclose(quantizer.commitment(assigned), commitment, rtol=1e-12)


def test_levels_of_finite_scalars() -> None:
    config = FiniteScalarConfig(levels=(8, 5, 2))
    quantizer = make_quantizer(config).double()
    codes = torch.arange(80).view(80, 1, 1, 1)
    vectors = quantizer.embed(codes)
    assert (quantizer.dims, quantizer.books, quantizer.size) == (3, 1, 80)
    assert vectors[:8, 0].flatten().tolist() == [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75]  # the first digit
    assert vectors[::8, 1][:5].flatten().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert vectors[::40, 2].flatten().tolist() == [-1.0, 0.0]
    # Features that are bounded to a vector have its code.
    levels, offsets = torch.tensor([8.0, 5.0, 2.0]).double(), torch.tensor([0.5, 0.0, 0.5]).double()
    half = (levels - 1.0) * 1.001 / 2.0
    bounded = vectors[..., 0, 0] * (levels // 2)
    features = ((bounded + offsets) / half).atanh() - (offsets / half).atanh()
    assigned = quantizer(features[..., None, None])
    assert torch.equal(assigned.codes, codes)
    assert torch.allclose(assigned.features, vectors, atol=1e-9)
    assert not quantizer.commitment(assigned).any()


@pytest.mark.parametrize("levels", [(2, 1000), (501,), (2048,), (256, 256), (65536,)])
def test_no_feature_is_beyond_the_outer_levels(levels: tuple[int, ...]) -> None:
    quantizer = make_quantizer(FiniteScalarConfig(levels=levels))
    assigned = quantizer(torch.tensor([-1e9, 1e9]).view(2, 1, 1, 1).expand(2, len(levels), 1, 1))
    assert assigned.codes.flatten().tolist() == [0, quantizer.size - 1]
    assert quantizer(torch.zeros(1, len(levels), 1, 1)).embedded.eq(0.0).all()


def test_finite_scalars_round_the_bounded_and_pass_its_gradient() -> None:
    quantizer = make_quantizer(FiniteScalarConfig(levels=(5,))).double()
    x = torch.linspace(-9.0, 9.0, 41, dtype=torch.float64).view(41, 1, 1, 1).requires_grad_()
    assigned = quantizer(x)
    bounded = 2.0 * 1.001 * x.tanh()
    assert torch.equal(assigned.embedded, bounded.round() / 2.0)
    (gradient,) = torch.autograd.grad(assigned.straight_through().sum(), x)
    assert torch.allclose(gradient, 1.001 * (1.0 - x.tanh().square()), rtol=1e-12)


def test_what_is_no_number_has_a_code_and_spoils_the_loss(quantizer: Quantizer) -> None:
    features = some(1, 4, 2, 2)
    features[0, 0, 1, 1] = math.nan
    assigned = quantizer(features)
    assert 0 <= assigned.codes.min() <= assigned.codes.max() < quantizer.size
    assert assigned.straight_through().isnan().any()


def test_k_means_is_that_of_scikit_learn() -> None:
    x = some(150, 2) + 8.0 * torch.randint(3, (150, 1), generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    means, shares = k_means(x, 3)
    theirs = KMeans(3, n_init=4, random_state=0).fit(x.numpy())
    order, their_order = means[:, 0].argsort(), torch.from_numpy(theirs.cluster_centers_)[:, 0].argsort()
    assert torch.allclose(means[order], torch.from_numpy(theirs.cluster_centers_)[their_order], atol=1e-9)
    counts = torch.from_numpy(theirs.labels_).long().bincount()
    assert torch.allclose(shares[order] * 150, counts[their_order].double())


def test_k_means_of_fewer_vectors_than_means() -> None:
    x = some(3, 2)
    means, shares = k_means(x, 5)
    assert torch.equal(means[:3].unique(dim=0), x.unique(dim=0))
    assert float(shares.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["vector", "books", "gradient", "residual", "shared"])
def test_vectors_are_set_by_the_first_features(name: str) -> None:
    quantizer = made(name)
    x = 5.0 + some(20, 4, 3, 3)
    before = quantizer(x)
    torch.manual_seed(0)
    set_from_data(quantizer, lambda: quantizer(x))
    after = quantizer(x)
    assert (after.embedded - x).square().sum() < 0.1 * (before.embedded - x).square().sum()
    sums = quantizer.frequencies.sum(1)
    assert torch.allclose(sums, torch.ones_like(sums))
    assert not torch.equal(quantizer.frequencies, torch.full_like(quantizer.frequencies, 1.0 / quantizer.size))
    kept = {key: value.clone() for key, value in quantizer.state_dict().items()}
    set_from_data(nn.ModuleList([quantizer]), lambda: quantizer(x), kept=["0.vectors"])  # lent by another model
    assert all(torch.equal(value, kept[key]) for key, value in quantizer.state_dict().items())


def test_normal_vectors_stay_what_they_are() -> None:
    torch.manual_seed(0)
    quantizer = make_quantizer(VectorQuantizerConfig(codes=4000, dims=2, initialize="normal"))
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    set_from_data(quantizer, lambda: quantizer(some(20, 2, 3, 3)))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    assert before["vectors"].square().mean() == pytest.approx(1.0, abs=0.08)
    assert not quantizer.initialized_from_data


def test_vectors_are_weights_or_buffers() -> None:
    assert {name for name, _ in made("gradient").named_parameters()} == {"vectors"}
    assert not list(made("vector").parameters())
    assert set(made("vector").state_dict()) == {"vectors", "frequencies"}


def test_embedding_of_one_list_for_all_books() -> None:
    codes, vectors = torch.tensor([[[[0]], [[1]]]]), some(1, 2, 3)
    assert torch.equal(embedding(codes, vectors)[0, :, :, 0, 0], vectors[0])


def test_perplexity_and_usage() -> None:
    assert float(perplexity(torch.tensor([3, 1]))) == pytest.approx(1.754765, abs=1e-6)
    assert perplexity(torch.tensor([[5, 5, 5], [0, 7, 0], [0, 0, 0]])).tolist() == pytest.approx([3.0, 1.0, 1.0])
    assert usage(torch.tensor([[0, 2, 1, 9], [0, 0, 0, 0]])).tolist() == [0.75, 0.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "vector", "codes": 1}, "codes: got 1, expected at least 2"),
        ({"name": "vector", "dims": 9, "books": 2}, "dims: got 9, expected a multiple of books, 2"),
        ({"name": "vector", "books": 0}, "books: got 0, expected at least 1"),
        ({"name": "residual", "depth": 0}, "depth: got 0, expected at least 1"),
        ({"name": "finite_scalar", "levels": [1, 4]}, "levels: got [1, 4], expected numbers from 2 with a product of"),
        ({"name": "finite_scalar", "levels": [2] * 17}, "a product of at most 65536"),
    ],
)
def test_options_that_cannot_be(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(quantizer_configs()[str(values["name"])], values, "recipe")
    assert said in str(caught.value)

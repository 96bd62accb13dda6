"""Moving averages of codebooks: values by hand, a step of Lloyd's algorithm, vectors without hits, dead ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from davi.layers.quantizer import Codebook, ResidualQuantizerConfig, VectorQuantizerConfig, make_quantizer
from davi.objectives.vector_averages import AverageOptions, Place, VectorAverages


def codebook(*vectors: list[float]) -> Codebook:
    """One list of these vectors, in double precision."""
    config = VectorQuantizerConfig(codes=len(vectors), dims=len(vectors[0]), initialize="normal")
    quantizer = make_quantizer(config).double()
    assert isinstance(quantizer, Codebook)
    quantizer.vectors.copy_(torch.tensor(vectors, dtype=torch.float64)[None])
    return quantizer


def images(*values: float) -> Tensor:
    """Each an image of one position, with a number."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def step(quantizer: Codebook, averages: VectorAverages, x: Tensor) -> None:
    averages.add(quantizer, quantizer(x), Place(0, len(x), len(x)))
    averages.end_step(quantizer)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("cut", [0, 2])
def test_two_codes_by_hand(cut: int) -> None:
    """The batch as a whole, and in two processes whose states are added."""
    quantizer, x = codebook([0.0], [1.0]), images(0.2, 0.4, 0.9)
    averages = VectorAverages(quantizer, AverageOptions(decay=0.9), 3)
    before = {name: tensor.clone() for name, tensor in averages.state().items()}
    moved = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    for own in (x[:cut], x[cut:]) if cut else (x,):
        averages.load_state(before)
        averages.add(quantizer, quantizer(own), Place(0 if own is x[:cut] else cut, len(own), 3))
        moved = {name: moved[name] + averages.state()[name] - tensor for name, tensor in before.items()}
    averages.load_state({name: before[name] + moved[name] for name in before})
    averages.end_step(quantizer)
    assert averages.counts.flatten().tolist() == pytest.approx([1.1, 1.0], abs=1e-15)
    assert averages.sums.flatten().tolist() == pytest.approx([0.06, 0.99], abs=1e-15)
    assert quantizer.vectors.flatten().tolist() == pytest.approx([0.0545455, 0.99], abs=5e-8)


def test_without_memory_a_step_is_one_of_lloyd() -> None:
    config = VectorQuantizerConfig(codes=7, dims=4, books=2, initialize="normal")
    torch.manual_seed(1)
    quantizer = make_quantizer(config).double()
    assert isinstance(quantizer, Codebook)
    averages = VectorAverages(quantizer, AverageOptions(decay=0.0), 90)
    for seed in range(3):
        x, before = random(10, 4, 3, 3, seed=seed), quantizer.vectors.clone()
        codes = quantizer(x).codes
        step(quantizer, averages, x)
        for book in range(2):
            rows = x[:, 2 * book : 2 * book + 2].permute(0, 2, 3, 1).reshape(-1, 2)
            for code in range(7):
                own = rows[codes[:, book].flatten() == code]
                expected = own.mean(0) if len(own) else before[book, code]
                assert torch.allclose(quantizer.vectors[book, code], expected, atol=1e-14)


def test_vectors_without_hits_stay_to_the_last_digit() -> None:
    quantizer = codebook([0.1], [5.3], [1.7])
    averages = VectorAverages(quantizer, AverageOptions(decay=0.7), 2)
    for seed in range(40):
        step(quantizer, averages, 0.3 + 0.1 * random(2, 1, 1, 1, seed=seed))
    assert quantizer.vectors[0, 1:].flatten().tolist() == [5.3, 1.7]
    assert averages.counts[0, 1:].tolist() == pytest.approx([0.7**40] * 2)
    assert averages.sums[0, 1:].flatten().tolist() == pytest.approx([5.3 * 0.7**40, 1.7 * 0.7**40])
    step(quantizer, averages, images(5.0, 5.0))  # N and m have decayed together: what it was hardly counts
    assert float(quantizer.vectors[0, 1]) == pytest.approx(5.0, abs=1e-6)


def test_a_hit_moves_a_vector_by_its_share() -> None:
    quantizer = codebook([0.0, 0.0], [10.0, 0.0])
    averages = VectorAverages(quantizer, AverageOptions(decay=0.99), 1)
    counts, sums = 1.0, torch.zeros(2, dtype=torch.float64)
    for seed in range(30):
        x = random(1, 2, 2, 2, seed=seed)
        step(quantizer, averages, x)
        counts, sums = 0.99 * counts + 0.01 * 4, 0.99 * sums + 0.01 * x.sum((0, 2, 3))
        assert torch.allclose(quantizer.vectors[0, 0], sums / counts, atol=1e-14)


def test_smoothing() -> None:
    quantizer = codebook([0.0], [1.0])
    averages = VectorAverages(quantizer, AverageOptions(decay=0.9, smoothing=0.5), 3)
    step(quantizer, averages, images(0.2, 0.4, 0.9))
    smoothed = [(count + 0.5) / (2.1 + 1.0) * 2.1 for count in (1.1, 1.0)]
    expected = [0.06 / smoothed[0], 0.99 / smoothed[1]]
    assert quantizer.vectors.flatten().tolist() == pytest.approx(expected, abs=1e-14)


def test_without_bias_the_first_step_gives_means_and_zero() -> None:
    quantizer = codebook([0.0], [1.0], [7.0])
    averages = VectorAverages(quantizer, AverageOptions(decay=0.9, debias=True), 3)
    step(quantizer, averages, images(0.2, 0.4, 0.9))
    assert quantizer.vectors.flatten().tolist() == pytest.approx([0.3, 0.9, 0.0], abs=1e-15)
    step(quantizer, averages, images(0.8))
    known = 1.0 - 0.9**2
    counts, sums = (0.9 * 0.1 + 0.1) / known, (0.9 * 0.1 * 0.9 + 0.1 * 0.8) / known
    assert quantizer.vectors.flatten().tolist() == pytest.approx([0.3, sums / counts, 0.0], abs=1e-14)


def test_the_dead_are_replaced_and_stay_until_they_are_hit() -> None:
    quantizer = codebook([0.0], [100.0], [1.0], [-100.0])
    averages = VectorAverages(quantizer, AverageOptions(decay=0.5, revive_below=0.4), 8)
    x = images(0.1, 0.2, 0.3, 0.15, 0.25, 1.1, 1.2, 0.9)
    step(quantizer, averages, x)  # N: 3, 0.5, 2, 0.5, of which the mean is 1.5
    revived = quantizer.vectors[0, 1::2].flatten()
    assert quantizer.vectors[0, ::2].abs().max() < 2.0
    assert all(bool((x == value).any()) for value in revived)
    assert averages.counts.flatten().tolist() == [3.0, 1.5, 2.0, 1.5]
    assert torch.equal(averages.sums[0, 1::2, 0], 1.5 * revived)
    quantizer.vectors[0, ::2] = torch.tensor([[5.0], [6.0]], dtype=torch.float64)
    step(quantizer, averages, images(5.0, 6.0))
    assert torch.equal(quantizer.vectors[0, 1::2].flatten(), revived)


def test_nothing_is_revived_unless_asked_for() -> None:
    quantizer = codebook([0.0], [100.0])
    averages = VectorAverages(quantizer, AverageOptions(decay=0.1), 1)
    for _ in range(400):
        step(quantizer, averages, images(0.0))
    assert averages.counts.tolist()[0][1] == 0.0
    assert float(quantizer.vectors[0, 1]) == 100.0
    assert "candidates" not in averages.state()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_candidates_are_vectors_of_the_batch(shared: bool, parts: int) -> None:
    """Every one is of what its list replaces, whatever the parts, and no part chooses for a vector of another."""
    config = ResidualQuantizerConfig(codes=5, dims=2, depth=2, shared=shared, initialize="normal")
    torch.manual_seed(0)
    quantizer = make_quantizer(config).double()
    assert isinstance(quantizer, Codebook)
    averages = VectorAverages(quantizer, AverageOptions(revive_below=0.9), 28)
    x = random(7, 2, 2, 2)
    replaced, _ = quantizer.replaced(quantizer(x))
    start = 0
    for own in x.tensor_split(parts):
        left = averages.candidates.clone()
        averages.add(quantizer, quantizer(own), Place(start, len(own), 7))
        start += len(own)
        assert not ((left != 0.0) & (left != averages.candidates)).any()
    for every, candidates in zip(replaced, averages.candidates, strict=True):
        assert all((candidate == every).all(1).any() for candidate in candidates)
        assert len(candidates.unique(dim=0)) == 5


def test_counts_begin_as_k_means_has_left_them() -> None:
    torch.manual_seed(0)
    quantizer = make_quantizer(VectorQuantizerConfig(codes=4, dims=2)).double()
    assert isinstance(quantizer, Codebook)
    quantizer.set_from(random(30, 2, 2, 2))
    averages = VectorAverages(quantizer, AverageOptions(), positions=80)
    assert torch.allclose(averages.counts, 80.0 * quantizer.frequencies)
    assert torch.allclose(averages.sums, averages.counts[..., None] * quantizer.vectors)


def test_shared_lists_count_all_depths() -> None:
    config = ResidualQuantizerConfig(codes=4, dims=2, depth=3, shared=True, initialize="normal")
    torch.manual_seed(0)
    quantizer = make_quantizer(config).double()
    assert isinstance(quantizer, Codebook)
    averages, x = VectorAverages(quantizer, AverageOptions(), 24), random(6, 2, 2, 2)
    averages.add(quantizer, quantizer(x), Place(0, 6, 6))
    assert averages.hits.shape == (1, 4)
    assert float(averages.hits.sum()) == 72.0


def test_vectors_with_a_gradient_are_revived_but_not_moved() -> None:
    config = VectorQuantizerConfig(codes=2, dims=1, update="gradient", initialize="normal")
    quantizer = make_quantizer(config).double()
    assert isinstance(quantizer, Codebook)
    with torch.no_grad():
        quantizer.vectors.copy_(torch.tensor([[[0.0], [50.0]]]))
    averages = VectorAverages(quantizer, AverageOptions(decay=0.5, revive_below=0.5), 4)
    step(quantizer, averages, images(0.1, 0.2, 0.3, 0.4))
    assert float(quantizer.vectors.detach()[0, 0]) == 0.0
    assert 0.0 < float(quantizer.vectors.detach()[0, 1]) < 0.5

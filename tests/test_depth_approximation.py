"""Approximations of depth-wise attention: exact at their full settings, by hand elsewhere, and right derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from davi.config import parse
from davi.errors import UserError
from davi.layers import DepthApproximation, DepthAttention, LayerMemory
from davi.layers.context_attention import ContextAttention, ContextAttentionOptions
from davi.layers.depth_approximation import from_cells, in_cells
from davi.layers.depth_attention import DepthAttentive, DepthWiseAttention
from davi.layers.depth_reading import Attended, read_approximately
from davi.layers.pixel_head import LikelihoodConfig
from davi.models.attentive_vae import AttentiveVAE, AttentiveVAEConfig

D, N = 4, 5
IDENTITY = 1e-12  # float64, numbers of order one
EXACT = DepthApproximation()

SOME = {
    "window": DepthApproximation(window=2),
    "rank": DepthApproximation(key_rank=2),
    "pooled": DepthApproximation(key_pool=2),
    "shared": DepthApproximation(share_keys=True),
    "top": DepthApproximation(top_k=2),
    "all": DepthApproximation(window=4, key_rank=3, key_pool=2, top_k=2),
    "shared top": DepthApproximation(share_keys=True, top_k=3),
}


def maps(
    size: tuple[int, int] = (4, 5), batches: Sequence[int] = (2,) * N
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    query = torch.randn(2, D, *size, dtype=torch.float64)
    keys = [torch.randn(b, D, *size, dtype=torch.float64) for b in batches]
    return query, keys, [torch.randn(b, 6, *size, dtype=torch.float64) for b in batches]


def by_hand(
    options: DepthApproximation, query: Tensor, keys: list[Tensor], values: list[Tensor], moved: DepthAttention
) -> tuple[Tensor, Tensor]:
    """One pixel and one image after the other."""
    span = options.span(len(keys))
    keys, values = keys[span], values[span]
    result, weights = torch.zeros_like(values[-1]), torch.zeros(2, len(keys), *query.shape[2:], dtype=torch.float64)
    rows, columns = query.shape[2:]
    f = max(rows, columns) if options.share_keys else options.key_pool
    for b in range(2):
        for y in range(rows):
            for x in range(columns):
                top, left = y // f * f, x // f * f
                cells = [key[b % len(key), :, top : top + f, left : left + f].mean((1, 2)) for key in keys]
                s = moved.project(query[b, :, y, x].view(1, D, 1, 1)).flatten()
                scores = torch.stack([moved.scale * (s @ cell) for cell in cells])
                if options.top_k:
                    scores[scores < scores.sort(descending=True).values[: options.top_k][-1]] = -torch.inf
                weights[b, :, y, x] = w = scores.softmax(0)
                result[b, :, y, x] = sum(w[j] * values[j][b % len(values[j]), :, y, x] for j in range(len(keys)))
    return result, weights


@pytest.mark.parametrize("name", SOME)
def test_readings_by_hand(name: str) -> None:
    options = SOME[name]
    attention = DepthAttention(options, D).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    query, keys, values = maps(batches=(1, 2, 2, 1, 2))
    project = options.projection(D).double()
    projected = [project(key) for key in keys]
    with torch.no_grad():
        expected, weights = by_hand(options, query, projected, values, attention)
        found = attention(query, projected, values)
    torch.testing.assert_close(found.result, expected, rtol=IDENTITY, atol=IDENTITY)
    torch.testing.assert_close(found.weights, weights, rtol=IDENTITY, atol=IDENTITY)


def results(options: DepthApproximation, *given: Any) -> tuple[Attended, tuple[Tensor, ...]]:
    query, keys, values = given
    leaves = [x.clone().requires_grad_() for x in (query, *keys, *values)]
    attention = DepthAttention(options, D).double()
    project = options.projection(D).double()
    found = attention(leaves[0], [project(key) for key in leaves[1 : N + 1]], leaves[N + 1 :])
    target = torch.arange(found.result.numel(), dtype=torch.float64).view_as(found.result)
    return found, torch.autograd.grad((found.result * target.cos()).sum(), [*leaves, attention.scale])


@pytest.mark.parametrize(
    "full",
    [
        DepthApproximation(window=N),
        DepthApproximation(top_k=N),
        DepthApproximation(key_rank=D),
        DepthApproximation(window=N + 1, top_k=N + 3, key_rank=D),
    ],
)
def test_full_settings_are_the_exact_attention_bit_for_bit(full: DepthApproximation) -> None:
    given = maps()
    for a, b in zip((*results(full, *given)[0], *results(full, *given)[1]), flat(results(EXACT, *given)), strict=True):
        assert torch.equal(a, b)


def flat(found: tuple[Attended, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return (*found[0], *found[1])


def test_shared_keys_are_exact_on_a_grid_of_one_pixel() -> None:
    given = maps((1, 1))
    for a, b in zip(flat(results(SOME["shared"], *given)), flat(results(EXACT, *given)), strict=True):
        assert torch.equal(a, b)


def test_the_approximate_path_with_nothing_left_out_is_exact() -> None:
    """Cells of one pixel, and as many layers as there are: what the dispatch above never runs."""
    query, keys, values = maps()
    expected = DepthAttention()(query, keys, values)
    for top_k in (0, N):
        found = read_approximately(query, keys, values, (1, 1), top_k)
        torch.testing.assert_close(found.result, expected.result, rtol=IDENTITY, atol=IDENTITY)
        torch.testing.assert_close(found.weights, expected.weights, rtol=IDENTITY, atol=IDENTITY)


@pytest.mark.parametrize("name", SOME)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    options = SOME[name]
    attention, project = DepthAttention(options, 3).double(), options.projection(3).double()
    query, keys, values = maps((2, 3))
    few = [x[:1, :3] for x in (query, *keys[:4], *values[:4])]

    def read(scale: Tensor, query: Tensor, *rest: Tensor) -> Tensor:
        keys = [project(key) for key in rest[:4]]
        found: Tensor = torch.func.functional_call(attention, {"scale": scale}, (query, keys, rest[4:])).result
        return found

    leaves = [x.clone().requires_grad_() for x in (torch.tensor(0.8).double(), *few)]
    # Choices among layers do not change within 1e-6: scores of random numbers are further apart.
    assert torch.autograd.gradcheck(read, leaves, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["exact", *SOME])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bf16_autocast(name: str, dtype: torch.dtype) -> None:
    options = SOME.get(name, EXACT)
    attention, project = DepthAttention(options, D), options.projection(D)
    query, keys, values = maps()
    leaves = [query.bfloat16(), *(key.bfloat16() for key in keys), *(value.to(dtype) for value in values)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(leaves[0], [project(key) for key in leaves[1 : N + 1]], leaves[N + 1 :])
    found.result.sum().backward()
    read = leaves[N + 1 :][options.span(N)]
    assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in (leaves[0], *read))
    # 8 bits: weights are off by some hundredths
    expected = DepthAttention(options, D).double()(query, [project.double()(key) for key in keys], values)
    if options.top_k == 0:
        torch.testing.assert_close(found.result.double(), expected.result, rtol=0.1, atol=0.1)


def test_only_the_top_layers_of_a_pixel_have_weight() -> None:
    weights = DepthAttention(SOME["top"])(*maps()).weights
    assert bool(((weights > 0).sum(1) == 2).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 4, 5).double(), rtol=IDENTITY, atol=IDENTITY)


def test_the_window_holds_the_nearest_layers() -> None:
    query, keys, values = maps()
    last = DepthAttention(SOME["window"])(query, keys, values)
    first = DepthAttention(SOME["window"], nearest_first=True)(query, keys, values)
    assert torch.equal(last.result, DepthAttention()(query, keys[-2:], values[-2:]).result)
    assert torch.equal(first.result, DepthAttention()(query, keys[:2], values[:2]).result)
    assert last.weights.shape[1] == first.weights.shape[1] == 2


@pytest.mark.parametrize("cell", [(1, 1), (2, 2), (4, 3), (5, 7)])
def test_cells_and_back(cell: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 5, 7)
    cells = in_cells(x, cell)
    assert (cells.shape[3], cells.shape[5]) == cell
    assert torch.equal(from_cells(cells, (5, 7)), x)


def test_a_memory_pools_a_key_once_per_grid() -> None:
    memory = LayerMemory(SOME["pooled"])
    key, value = torch.arange(15.0).view(1, 1, 3, 5), torch.randn(1, 2, 3, 5)
    memory.offer(key, value)
    (pooled,), (same,) = memory.read((3, 5))
    assert same is value
    # cells of 2 x 2 pixels, cut off at the borders: (0 + 1 + 5 + 6) / 4, ..., (4 + 9) / 2; (10 + 11) / 2, ...
    assert pooled.tolist() == [[[[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]]]
    assert memory.read((3, 5))[0][0] is pooled
    assert memory.read((6, 10))[0][0].shape == (1, 1, 3, 5)
    assert memory.repeat_images(2).read((3, 5))[0][0].shape == (2, 1, 2, 3)
    # Pooled in the memory or by the reader: the same.
    query = torch.randn(1, 1, 3, 5)
    attention = DepthAttention(SOME["pooled"])
    assert torch.equal(
        attention(query, [pooled] * 2, [value] * 2).result, attention(query, [key] * 2, [value] * 2).result
    )


def test_pooled_keys_do_not_keep_what_they_were_made_of() -> None:
    kept: list[int] = []
    key = torch.randn(2, 3, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda x: x):
        SOME["pooled"].pool(key, (4, 4))
    assert max(kept) <= 4  # the sizes of the cells


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"window": -1}, "window: got -1, expected at least 0"),
        ({"key_pool": 0}, "key_pool: got 0, expected at least 1"),
        ({"share_keys": True, "key_pool": 2}, "key_pool: got 2, expected 1 where share_keys leaves one key for a map"),
        ({"key_rank": 9}, "key_rank: got 9, expected at most key_channels, 4"),
    ],
)
@pytest.mark.parametrize("options", [DepthWiseAttention, ContextAttentionOptions])
def test_refusals(options: type, section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        parse(options, {"key_channels": 4, "approximation": section}, "here")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("options", [DepthWiseAttention, ContextAttentionOptions])
def test_there_must_be_an_attention(options: type) -> None:
    expected = "approximation: got window 2, top_k 1, expected none where key_channels is 0"
    with pytest.raises(UserError, match=expected):
        parse(options, {"approximation": {"window": 2, "top_k": 1}}, "here")


# --- in models


def attentive(approximation: DepthApproximation, layers: tuple[int, ...] = (2, 3)) -> AttentiveVAE:
    attention = DepthWiseAttention(4, approximation=approximation)
    options = AttentiveVAEConfig(
        layers=layers,
        latent_channels=2,
        width=4,
        preprocess=(0,),
        postprocess=(0,),
        encoder_blocks=1,
        decoder_blocks=1,
        nodes=1,
        generative_attention=attention,
        inference_attention=attention,
        likelihood=LikelihoodConfig("bernoulli"),
    )
    torch.manual_seed(5)
    return opened(AttentiveVAE((1, 4, 6), 2, options).double().eval())


def opened(model: AttentiveVAE) -> AttentiveVAE:
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            nn.init.constant_(parameter, 0.5)
    return model


def evidence_of(model: AttentiveVAE, x: Tensor) -> Tensor:
    return model.evidence(x, torch.Generator().manual_seed(1)).log_px


@pytest.fixture
def images() -> Tensor:
    return torch.randint(2, (3, 1, 4, 6))


def test_a_model_at_the_full_setting_is_the_exact_one(images: Tensor) -> None:
    exact, full = attentive(EXACT), attentive(DepthApproximation(window=6, top_k=6, key_rank=4))
    full.load_state_dict({**full.state_dict(), **exact.state_dict()})
    assert torch.equal(evidence_of(full, images), evidence_of(exact, images))


@pytest.mark.parametrize("name", SOME)
def test_models_read_what_the_approximation_leaves(name: str, images: Tensor) -> None:
    model = attentive(SOME[name])
    exact = attentive(EXACT)
    exact.load_state_dict({key: model.state_dict()[key] for key in exact.state_dict()})
    seen: dict[DepthAttention, int] = {}
    for site in model.depth_attentions():
        site.attention.register_forward_hook(lambda module, _, found: seen.update({module: found.weights.shape[1]}))
    value = evidence_of(model, images)
    assert not torch.equal(value, evidence_of(exact, images))
    assert [seen[site.attention] for site in model.depth_attentions()] == counts(model)
    (-value.sum()).backward()
    unused = [key for key, p in model.named_parameters() if "project" in key and p.grad is None]
    assert not unused


def counts(model: DepthAttentive) -> list[int]:
    return [len(site.sources) for site in model.depth_attentions()]


def test_windows_of_a_model() -> None:
    sites = {(site.side, site.layer): site.sources for site in attentive(SOME["window"]).depth_attentions()}
    assert sites[("generative", 1)] == (0,)
    assert sites[("generative", 4)] == (2, 3)
    assert sites[("inference", 0)] == (0, 1)
    assert sites[("inference", 4)] == (4, 5)


def chain(approximation: DepthApproximation) -> Iterator[ContextAttention]:
    parts = ContextAttentionOptions(4, 3, approximation).parts([5, 6, 7, 8])
    for part in parts:
        if part.gate is not None:
            nn.init.constant_(part.gate, 0.5)
        yield part.double()


@pytest.mark.parametrize("name", SOME)
def test_context_attention_reads_what_the_approximation_leaves(name: str) -> None:
    parts, memory = list(chain(SOME[name])), ContextAttentionOptions(4, 3, SOME[name]).memory()
    contexts = [torch.randn(2, 5 + i, 4, 4, dtype=torch.float64) for i in range(4)]
    last = [part(context, memory) for part, context in zip(parts, contexts, strict=True)][-1]
    attention, query = parts[-1].attention, parts[-1].query
    result = parts[-1].result
    assert attention is not None
    assert query is not None
    assert result is not None
    offered = LayerMemory()  # of everything, as it is
    for part, context in zip(parts[:-1], contexts[:-1], strict=True):
        assert part.key is not None
        assert part.value is not None
        offered.offer(SOME[name].projection(4).double()(part.key(context)), part.value(context))
    read = attention(query(contexts[-1]), *offered.read((4, 4))).result
    expected = contexts[-1] + 0.5 * result(read)
    torch.testing.assert_close(last, expected, rtol=IDENTITY, atol=IDENTITY)

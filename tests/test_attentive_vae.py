"""The Deep Attentive VAE: published sizes, what may depend on what, and the terms of its bound."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from davi.distributions import Normal
from davi.evidence import Kind
from davi.layers import DepthAttention, LayerMemory, LikelihoodConfig, NonLocalBlock, SqueezeExcite
from davi.layers.depth_attention import DepthWiseAttention
from davi.layers.raw_normal import GaussianOptions
from davi.models.attentive_vae import AttentiveVAE, AttentiveVAEConfig, SpatialAttention

SMALL: dict[str, Any] = {
    "layers": (4,),
    "latent_channels": 2,
    "width": 4,
    "preprocess": (0, -2),
    "postprocess": (2, 0),
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "generative_attention": DepthWiseAttention(2),
    "inference_attention": DepthWiseAttention(2),
    "likelihood": LikelihoodConfig("logistic_mixture", 2),
}
EVERYWHERE = SpatialAttention(2, 2, 2, 2, 2, 2)


def build(
    shape: tuple[int, int, int] = (1, 4, 4), levels: int = 17, gates: float = 0.0, **options: Any
) -> AttentiveVAE:
    """A small model in float64 and eval mode with all gates at the given value."""
    model = AttentiveVAE(shape, 17, AttentiveVAEConfig(**{**SMALL, **options})).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in {"gate", "gamma"} and parameter.ndim == 0:
                parameter.fill_(gates)
    return model


def images(model: AttentiveVAE, n: int = 3) -> Tensor:
    return torch.randint(model.levels, (n, *model.shape), generator=torch.Generator().manual_seed(9))


def walk(model: AttentiveVAE, latents: list[Tensor], x: Tensor | None = None) -> list[tuple[Normal, Normal | None]]:
    """Priors and posteriors of every layer where the latents are the given ones."""
    seen: list[tuple[Normal, Normal | None]] = []

    def choose(layer: int, prior: Normal, posterior: Normal | None) -> Tensor:
        seen.append((prior, posterior))
        return latents[layer]

    model.top_down(choose, None if x is None else model.encode(x))
    return seen


def attentions(model: nn.Module) -> Iterator[tuple[str, DepthAttention]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, DepthAttention))


# --- published sizes

CIFAR = AttentiveVAEConfig(
    layers=(16,),
    latent_channels=20,
    width=128,
    preprocess=(0, -2),
    postprocess=(2, 0),
    encoder_blocks=2,
    decoder_blocks=2,
    nodes=2,
    pad=0,
    spatial_attention=SpatialAttention(preprocess=32, encoder=32, decoder=32),
    generative_attention=DepthWiseAttention(20, layer_norm=True),
    inference_attention=DepthWiseAttention(20, layer_norm=True),
    prior_bounds=GaussianOptions(-1.0, 5.0, 0.001),
    posterior_bounds=GaussianOptions(-5.0, 5.0, 0.001),
    likelihood=LikelihoodConfig("logistic_mixture", 5),
)
BASELINE = AttentiveVAEConfig(
    layers=(16,),
    latent_channels=20,
    width=128,
    preprocess=(0, -2),
    postprocess=(2, 0),
    encoder_blocks=2,
    decoder_blocks=2,
    nodes=2,
    pad=0,
    likelihood=LikelihoodConfig("logistic_mixture", 5),
)
OMNIGLOT = AttentiveVAEConfig(
    layers=(15,),
    latent_channels=20,
    width=32,
    preprocess=(0, 0, -2),
    postprocess=(2, 0, 0),
    encoder_blocks=2,
    decoder_blocks=2,
    nodes=2,
    pad=2,
    spatial_attention=SpatialAttention(postprocess=8, inference_merge=8, generative_merge=8),
    generative_attention=DepthWiseAttention(8, layer_norm=True),
    inference_attention=DepthWiseAttention(8, layer_norm=False),
    likelihood=LikelihoodConfig("bernoulli"),
)


@pytest.mark.parametrize(
    ("config", "shape", "levels", "published", "scales"),
    [
        (CIFAR, (3, 32, 32), 256, 118_974_679, 15 + 16),
        (BASELINE, (3, 32, 32), 256, 79_206_420, 0),
        (OMNIGLOT, (1, 28, 28), 2, 7_875_675, 14 + 15),
    ],
    ids=["cifar10", "baseline", "omniglot"],
)
def test_published_parameter_counts(
    config: AttentiveVAEConfig, shape: tuple[int, int, int], levels: int, published: int, scales: int
) -> None:
    """The official code never trains the scale of a depth-wise attention, so its counts lack these scalars."""
    with torch.device("meta"):
        model = AttentiveVAE(shape, levels, config)
    ours = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for _, a in attentions(model) for p in a.parameters()) == scales
    assert ours - scales == published


# --- depth-wise attention


def scrambled(model: AttentiveVAE) -> AttentiveVAE:
    """The same model with other queries and keys in every depth-wise attention."""
    model = copy.deepcopy(model)

    def scramble(module: nn.Module, inputs: tuple[Tensor, list[Tensor], list[Tensor]]) -> tuple[Any, ...]:
        query, keys, values = inputs
        return query + torch.randn_like(query), [key + torch.randn_like(key) for key in keys], values

    for _, module in attentions(model):
        module.register_forward_pre_hook(scramble)
    return model


@pytest.mark.parametrize("layer_norm", [True, False])
def test_with_gates_at_zero_queries_and_keys_do_not_matter(layer_norm: bool) -> None:
    options = {k: DepthWiseAttention(2, layer_norm) for k in ("generative_attention", "inference_attention")}
    x = images(build())
    for gates in (0.0, 0.5):
        model = build(gates=gates, **options)
        found = [
            m.evidence(x, torch.Generator().manual_seed(1)).terms.values() for m in (model, scrambled(model), model)
        ]
        ours, other, again = (torch.stack(list(terms)) for terms in found)
        assert torch.equal(ours, again)
        assert torch.equal(ours, other) == (gates == 0)


def test_with_gates_at_zero_gates_alone_learn_from_the_attention() -> None:
    model = build()
    model.evidence(images(model)).log_px.sum().backward()
    top_key = model.top.constant.grad[:, model.top.split[0] :]
    assert top_key.numel() > 0
    assert not top_key.any()  # a key of the top layer is nothing but a key
    assert all(not a.scale.grad.any() for _, a in attentions(model))
    gates = [p.grad for name, p in model.named_parameters() if name.endswith(".gate")]
    assert len(gates) == 3 + 4
    assert all(grad.abs() > 0 for grad in gates)


def test_attention_weights_are_a_distribution_over_the_right_layers() -> None:
    model = build(gates=0.5)
    weights: dict[str, Tensor] = {}
    for name, module in attentions(model):
        module.register_forward_hook(lambda m, i, out, name=name: weights.__setitem__(name, out.weights))
    model.evidence(images(model))
    # generative layer i reads i layers above; inference layer i itself and the features below, the input's last
    counts = {f"generative.{i - 1}.attention": i for i in range(1, 4)}
    counts |= {f"inference.{i}.attention": 4 - i + 1 for i in range(4)}
    assert {name: w.shape[1] for name, w in weights.items()} == counts
    for w in weights.values():
        assert w.min() >= 0
        torch.testing.assert_close(w.sum(1), torch.ones_like(w[:, 0]), rtol=1e-12, atol=1e-12)
    assert torch.equal(weights["generative.0.attention"], torch.ones_like(weights["generative.0.attention"]))
    assert weights["generative.2.attention"].std() > 0.05  # not merely uniform


def test_attended_values_reach_prior_and_posterior() -> None:
    """A gate changes its own layer's prior and posterior and, the latents given, those of no other layer."""
    model = build(gates=0.5)
    x = images(model)
    latents = model.latents(x)
    before = walk(model, latents, x)
    for layer in range(4):
        for side, index in (("generative", layer - 1), ("inference", layer)):
            if index < 0:
                continue
            changed = copy.deepcopy(model)
            nn.init.constant_(getattr(changed, side)[index].gate, 0.7)
            after = walk(changed, latents, x)
            priors = [i for i in range(4) if not torch.equal(before[i][0].mean, after[i][0].mean)]
            posteriors = [i for i in range(4) if not torch.equal(before[i][1].mean, after[i][1].mean)]
            assert priors == ([layer] if side == "generative" else [])
            assert posteriors == [layer]


@torch.no_grad()
def test_what_a_layer_reads_by_hand() -> None:
    """The contexts of the layers above, the last one included and its own left out."""
    model = build(gates=0.5, generative_attention=DepthWiseAttention(2, layer_norm=False))
    top, memory = model.top(), LayerMemory()
    waiting, grid = [top], tuple(top.context.shape[2:])
    first, second = (torch.randn(2, model.config.latent_channels, *grid, dtype=torch.float64) for _ in range(2))
    one = model.generative[0](top, first, memory, waiting)
    torch.testing.assert_close(one.result, top.context.expand_as(one.result), rtol=1e-14, atol=0.0)  # of one: weight 1
    waiting.append(one)
    layer = model.generative[1]
    two = layer(one, second, memory, waiting)
    widths = (top.context.shape[1], top.key.shape[1])
    value, key = layer.norm_stack(torch.cat([top.context, top.key], 1)).split(widths, 1)
    scores = torch.stack([(two.query * k).sum(1) for k in (key, one.key)], 1)  # [B, 2, h, w]
    weights = scores.softmax(1)
    torch.testing.assert_close(two.weights, weights, rtol=1e-12, atol=1e-14)
    expected = weights[:, :1] * value + weights[:, 1:] * one.context
    torch.testing.assert_close(two.result, expected, rtol=1e-12, atol=1e-14)


# --- what may depend on what


@pytest.mark.parametrize("layers", [(4,), (2, 2)])
@pytest.mark.parametrize("with_images", [False, True])
def test_a_later_layer_never_influences_an_earlier_one(layers: tuple[int, ...], with_images: bool) -> None:
    model = build(gates=0.5, layers=layers, spatial_attention=EVERYWHERE)
    x = images(model)
    latents = [(z + 0.1 * torch.randn_like(z)).requires_grad_() for z in model.latents(x)]
    for i, (prior, posterior) in enumerate(walk(model, latents, x if with_images else None)):
        outputs = [prior.mean, prior.scale]
        if posterior is not None:
            outputs += [posterior.mean, posterior.scale]
        for output in outputs:
            for j, z in enumerate(latents):
                grad = None
                if output.requires_grad:
                    (grad,) = torch.autograd.grad(
                        (output * torch.randn_like(output)).sum(), z, retain_graph=True, allow_unused=True
                    )
                influenced = grad is not None and bool(grad.any())
                assert influenced == (j < i), (i, j)


def test_rows_of_a_batch_do_not_mix() -> None:
    model = build(gates=0.5, spatial_attention=EVERYWHERE, squeeze_excite=True)
    x = images(model)
    latents = [z.requires_grad_() for z in model.latents(x)]
    for j, terms in enumerate(zip(*(posterior.kl(prior) for prior, posterior in walk(model, latents, x)), strict=True)):
        grads = torch.autograd.grad(sum(terms), latents, retain_graph=True, allow_unused=True)
        for grad in grads[:-1]:  # the last latent reaches the pixels only
            rows = grad.flatten(1).any(1).tolist()
            assert rows == [row == j for row in range(3)]
        assert grads[-1] is None
    (grad,) = torch.autograd.grad(model.decode(latents).log_prob(x)[1], latents[-1])
    assert grad.flatten(1).any(1).tolist() == [False, True, False]
    # and an image alone gives what it gives in company, up to the order of sums
    alone = model.latents(x[1:2])
    for own, all_rows in zip(alone, latents, strict=True):
        torch.testing.assert_close(own, all_rows[1:2].detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layers", [(1,), (4,), (2, 2)])
def test_sampling_and_inference_have_the_same_prior(layers: tuple[int, ...]) -> None:
    model = build(gates=0.5, layers=layers)
    x = images(model)
    latents = model.latents(x, sample=True)
    for (prior, posterior), (same, absent) in zip(walk(model, latents, x), walk(model, latents), strict=True):
        assert posterior is not None
        assert absent is None
        assert torch.equal(prior.mean, same.mean)
        assert torch.equal(prior.scale, same.scale)


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("layers", [(4,), (2, 2)])
def test_every_parameter_that_can_learn_does(layers: tuple[int, ...], layer_norm: bool) -> None:
    model = build(
        (1, 8, 8),  # a single pixel at the top would leave its spatial attention nothing to choose from
        gates=0.5,
        layers=layers,
        spatial_attention=EVERYWHERE,
        squeeze_excite=True,
        generative_attention=DepthWiseAttention(2, layer_norm),
        inference_attention=DepthWiseAttention(2, layer_norm),
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SqueezeExcite):  # of two opposite units one is always on the ramp of the relu
                module.squeeze.weight[1] = -module.squeeze.weight[0]
    # In eval mode: in training, batch norm removes the bias of a convolution before it.
    model.evidence(images(model)).log_px.sum().backward()
    # The softmax removes what is the same for all pixels, and one layer alone has weight one, whatever its score.
    key_biases = {f"{name}.key.bias" for name, m in model.named_modules() if isinstance(m, NonLocalBlock)}
    assert key_biases
    dead = set()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if parameter.grad.abs().max() < 1e-13:  # what rounding leaves of zero; the others are 1e-9 and more
            dead.add(name)
    exceptions = (key_biases & set(dict(model.named_parameters()))) | {"generative.0.attention.scale"}
    assert dead == exceptions


# --- the bound


def test_terms_of_the_bound() -> None:
    model = build(gates=0.5)
    x = images(model)
    evidence = model.evidence(x, torch.Generator().manual_seed(3))
    assert evidence.kind is Kind.LOWER_BOUND
    assert list(evidence.terms) == ["reconstruction", "kl/00", "kl/01", "kl/02", "kl/03"]
    latents = model.latents(x, sample=True, generator=torch.Generator().manual_seed(3))  # the same draws
    steps = walk(model, latents, x)

    def torchs(normal: Normal) -> torch.distributions.Normal:
        return torch.distributions.Normal(normal.mean, normal.scale)

    reconstruction = model.decode(latents).log_prob(x)
    torch.testing.assert_close(evidence.terms["reconstruction"], reconstruction, rtol=1e-12, atol=1e-12)
    log_weight = reconstruction
    for i, ((prior, posterior), z) in enumerate(zip(steps, latents, strict=True)):
        assert posterior is not None
        kl = torch.distributions.kl_divergence(torchs(posterior), torchs(prior)).sum((1, 2, 3))
        torch.testing.assert_close(evidence.terms[f"kl/{i:02d}"], -kl, rtol=1e-10, atol=1e-10)
        assert (kl > 0).all()
        ratio = torchs(prior).log_prob(z) - torchs(posterior).log_prob(z)
        log_weight = log_weight + ratio.sum((1, 2, 3))
    assert evidence.log_px.shape == (3,)
    torch.testing.assert_close(evidence.log_weight, log_weight, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_weights_average_to_the_bound() -> None:
    """E_q[log p(x, z) - log q(z | x)] is the bound: with analytic divergences or with drawn ones."""
    model = build(gates=0.5, layers=(3,))
    x = images(model, 1).expand(2000, -1, -1, -1)
    evidence = model.evidence(x, torch.Generator().manual_seed(4))
    assert evidence.log_weight is not None
    difference = evidence.log_weight - evidence.log_px
    assert difference.std() > 0.1  # they are two estimates, not one
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(2000)  # four standard errors


def test_forward_is_the_evidence() -> None:
    model = build()
    x = images(model)
    torch.manual_seed(1)
    first = model(x).log_px
    torch.manual_seed(1)
    assert torch.equal(first, model.evidence(x).log_px)


def test_noise_acts_in_training_only() -> None:
    options = {"prior_bounds": GaussianOptions(noise=0.1), "posterior_bounds": GaussianOptions(noise=0.1)}
    for noisy in (False, True):
        model = build(**(options if noisy else {}))
        x = images(model)
        latents = model.latents(x)
        for training in (False, True):
            model.train(training)
            first, second = walk(model, latents, x), walk(model, latents, x)
            for i in range(4):
                assert torch.equal(first[i][0].mean, second[i][0].mean)  # never in the mean
                prior_moved = not torch.equal(first[i][0].scale, second[i][0].scale)
                posterior_moved = not torch.equal(first[i][1].scale, second[i][1].scale)
                assert prior_moved == (noisy and training and i > 0)  # the top prior is a standard normal
                assert posterior_moved == (noisy and training)


@pytest.mark.parametrize("training", [True, False])
def test_recomputation_changes_no_bit(training: bool) -> None:
    kept = build(gates=0.5, spatial_attention=EVERYWHERE).train(training)
    recomputed = copy.deepcopy(kept)
    assert len(list(recomputed.blocks())) == 2 + 4 + 3 + 2
    for block in recomputed.blocks():
        block.recompute = True
    for model in (kept, recomputed):
        model.evidence(images(model), torch.Generator().manual_seed(2)).log_px.sum().backward()
    pairs = zip(kept.named_parameters(), recomputed.parameters(), strict=True)
    assert [name for (name, a), b in pairs if not torch.equal(a.grad, b.grad)] == []
    assert all(torch.equal(a, b) for a, b in zip(kept.buffers(), recomputed.buffers(), strict=True))


def test_bf16_autocast_keeps_the_claim_in_float32() -> None:
    model = build(gates=0.5, spatial_attention=EVERYWHERE).float()
    x = images(model)
    with torch.no_grad():
        expected = model.evidence(x, torch.Generator().manual_seed(1)).log_px
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evidence = model.evidence(x, torch.Generator().manual_seed(1))
    assert all(term.dtype == torch.float32 for term in evidence.terms.values())
    evidence.log_px.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(evidence.log_px.detach(), expected, rtol=0.05, atol=0.05)  # bf16: 3 digits a step

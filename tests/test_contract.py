"""What every model promises, for every ``_tiny`` recipe: a new model is tested by adding its recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import davi
from davi import Hierarchy, Kind, LatentModel, Model, recipes
from davi.distributions import Distribution, Latent, Normal
from davi.layers import DepthAttention
from davi.repetition import repeat_images
from davi.runs import load_model, save_model

TINY = [name for name in recipes.names() if name.endswith("_tiny")]

UNREACHABLE = {
    # The second layer has one layer above it; a softmax over one entry is 1 whatever its scale.
    "attentive_digits_tiny": {"generative.0.attention.scale"},
    # The same; its query matters as little.
    "nvae_digits_tiny": {"attention.1.attention.scale", "attention.1.query.weight", "attention.1.query.bias"},
    # The same; the query plays no part either.
    "very_deep_vae_digits_tiny": {
        f"decoder.1.attention.{name}" for name in ("attention.scale", "query.weight", "query.bias")
    },
}
"""Parameters without influence on the evidence, and why."""


def shaken(name: str) -> Model:
    """The model of a recipe with every weight moved, so that no gate or bias is at its neutral value."""
    model = davi.build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def some_images(model: Model, n: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(model.levels, (n, *model.shape)).to(dtype)


def seeded(seed: int = 5) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(params=TINY)
def model(request: pytest.FixtureRequest) -> Model:
    return shaken(request.param)


@pytest.fixture(params=[name for name in TINY if isinstance(davi.build(name), LatentModel)])
def latent_model(request: pytest.FixtureRequest) -> LatentModel:
    found = shaken(request.param)
    assert isinstance(found, LatentModel)
    return found


@pytest.fixture(params=[name for name in TINY if isinstance(davi.build(name), Hierarchy)])
def hierarchy(request: pytest.FixtureRequest) -> Hierarchy:
    found = shaken(request.param)
    assert isinstance(found, Hierarchy)
    return found


def test_there_is_a_tiny_recipe_for_every_model() -> None:
    from davi.models import MODELS

    assert {recipes.load(name).model_name for name in TINY} == set(MODELS)


def test_terms_are_nats_per_image_that_sum_to_the_claim(model: Model) -> None:
    evidence = model.evidence(some_images(model, 3))
    assert isinstance(evidence.kind, Kind)
    assert evidence.log_px.shape == (3,)
    assert all(term.shape == (3,) and bool(term.isfinite().all()) for term in evidence.terms.values())
    total = torch.stack([term.double() for term in evidence.terms.values()]).sum(0)
    torch.testing.assert_close(evidence.log_px.double(), total, rtol=1e-6, atol=0.0)  # sums of float32 in another order
    assert all(penalty.ndim == 0 for penalty in evidence.penalties.values())
    assert all(torch.equal(evidence.terms[name], -kl.flatten(1).sum(1)) for name, kl in evidence.kl_maps.items())


def test_divergences_in_closed_form_are_never_negative(hierarchy: Hierarchy) -> None:
    closed: list[Tensor] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        if prior is not None and isinstance(posterior, Normal):
            closed.append(posterior.closed_kl_map(prior))
        return posterior.sample()

    hierarchy.top_down(choose, hierarchy.encode(some_images(hierarchy, 3)))
    # 1e-5: cancellation where posterior and prior nearly agree.
    assert all(bool((kl >= -1e-5).all()) for kl in closed)


def test_evidence_is_a_function_of_images_and_generator(model: Model) -> None:
    x = some_images(model, 4)
    first, again, other = (model.evidence(x, seeded(seed)).log_px for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert isinstance(model, LatentModel) == (not torch.equal(first, other))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64])
def test_any_integers_are_images(model: Model, dtype: torch.dtype) -> None:
    x = some_images(model, 2)
    expected = model.evidence(x, seeded()).log_px
    assert torch.equal(model.evidence(x.to(dtype), seeded()).log_px, expected)


def test_forward_is_evidence(model: Model) -> None:
    x = some_images(model, 2)
    torch.manual_seed(3)
    expected = model.evidence(x).log_px
    torch.manual_seed(3)
    assert torch.equal(model(x).log_px, expected)


def test_several_draws_of_each_image(model: Model) -> None:
    x = some_images(model, 2)
    torch.manual_seed(3)
    found = model(x, 3)
    torch.manual_seed(3)
    expected = model.evidence(repeat_images(x, 3))
    assert found.log_px.shape == (6,)
    for name, term in expected.terms.items():
        # Terms of a batch of 2 and of a batch of 6: float32 sums in another order. atol: divergences that cancel.
        torch.testing.assert_close(found.terms[name], term, rtol=1e-5, atol=1e-4)


def test_several_draws_need_one_way_up(hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = hierarchy.encode
    monkeypatch.setattr(hierarchy, "encode", lambda x: seen.append(len(x)) or encode(x))
    assert hierarchy(some_images(hierarchy, 2), 3).log_px.shape == (6,)
    assert seen == [2]


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda x, levels: x.float(), TypeError, "float32, expected an integer tensor"),
        (lambda x, levels: x.bool(), TypeError, "bool, expected an integer tensor"),
        (lambda x, levels: x.tolist(), TypeError, "list, expected an integer tensor"),
        (lambda x, levels: x[0], ValueError, r"expected \[B, "),
        (lambda x, levels: x[..., :-1], ValueError, r"expected \[B, "),
        (lambda x, levels: torch.cat([x, x], 1), ValueError, r"expected \[B, "),
        (lambda x, levels: x + levels, ValueError, "expected 0 to "),
        (lambda x, levels: x - levels, ValueError, "expected 0 to "),
    ],
)
def test_what_is_no_image_is_refused(
    model: Model, spoil: Callable[[Tensor, int], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        model.evidence(spoil(some_images(model, 2), model.levels))
    assert "\n" not in str(caught.value)


def test_samples_are_images_and_follow_the_generator(model: Model) -> None:
    first = model.sample(5, generator=seeded())
    assert first.shape == (5, *model.shape)
    assert not first.is_floating_point()
    model.check_images(first)
    assert torch.equal(first, model.sample(5, generator=seeded()))
    assert not torch.equal(first, model.sample(5, generator=seeded(6)))
    assert not first.requires_grad


@pytest.mark.parametrize(("n", "temperature"), [(0, 1.0), (-1, 1.0), (2, -0.5), (2, float("nan")), (2, float("inf"))])
def test_impossible_samples_are_refused(model: Model, n: int, temperature: float) -> None:
    with pytest.raises(ValueError, match=r"^(n|temperature): got "):
        model.sample(n, temperature)


def test_gradients_reach_every_parameter(request: pytest.FixtureRequest, model: Model) -> None:
    model.train()
    model.evidence(some_images(model, 8)).log_px.sum().backward()
    dead = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert dead == UNREACHABLE.get(request.node.callspec.params["model"], set())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_every_block_is_part_of_the_model(model: Model) -> None:
    modules = set(model.modules())
    assert all(block in modules for block in model.blocks())


def test_saved_and_loaded_it_is_the_same_model(model: Model, tmp_path: Path) -> None:
    # As loaded weights lie in memory: sums in another order would round differently.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    x = some_images(model, 3)
    expected, drawn = model.evidence(x, seeded()).log_px, model.sample(3, generator=seeded())
    save_model(tmp_path / "model.safetensors", model)
    again, _ = load_model(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert not again.training
    claim = again.evidence(x, seeded()).log_px
    assert torch.equal(claim, expected)
    assert not claim.requires_grad  # nobody who only measures pays for a graph
    assert again.requires_grad_(True).evidence(x, seeded()).log_px.requires_grad
    assert torch.equal(again.sample(3, generator=seeded()), drawn)


def test_repr_names_layers_grids_and_parameters_in_a_few_lines(model: Model) -> None:
    first, *lines = repr(model).splitlines()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert first.startswith(f"{type(model).__name__} for images {list(model.shape)} with {model.levels} levels")
    assert first.endswith(f"{count:,} parameters")
    assert len(lines) <= 2
    parts = dict(re.findall(r"(\w+) ([\d,]+)(?:, |$)", lines[-1].partition(": ")[2]))
    assert sum(int(number.replace(",", "")) for number in parts.values()) <= count
    assert all(f"({name}): " in torch.nn.Module.__repr__(model) for name, _ in model.named_children())


def test_shapes_of_latents_are_those_of_the_posterior_means(hierarchy: Hierarchy) -> None:
    before = [z.clone() for z in hierarchy.state_dict().values()]
    shapes = hierarchy.latent_shapes()
    assert shapes == [tuple(z.shape[1:]) for z in hierarchy.latents(some_images(hierarchy, 2))]
    assert all(str(list(shape)) in repr(hierarchy) for shape in shapes)
    assert all(torch.equal(a, b) for a, b in zip(before, hierarchy.state_dict().values(), strict=True))


def test_a_seed_is_a_generator_of_its_own(model: Model) -> None:
    expected = model.sample(3, generator=seeded(7))
    state = torch.random.get_rng_state()
    assert torch.equal(model.sample(3, seed=7), expected)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"^seed: got 7 beside a generator, expected one of the two$"):
        model.sample(3, generator=seeded(7), seed=7)


def test_bits_per_dim_are_one_number_for_each_image(model: Model) -> None:
    x = some_images(model, 3)
    evidence = model.evidence(x, seeded())
    bits = model.bits_per_dim(x, seed=5)
    assert bits.shape == (3,)
    assert not bits.requires_grad
    assert torch.equal(bits, model.bits_per_dim(x, seeded()))
    torch.testing.assert_close(bits, -evidence.log_px.detach() / (model.dims * math.log(2.0)))
    assert torch.equal(bits, evidence.bits_per_dim)
    assert len(repr(evidence).splitlines()) <= 6


def test_latents_decode_to_the_reconstruction(latent_model: LatentModel) -> None:
    x = some_images(latent_model, 3)
    latents = latent_model.latents(x)
    assert all(len(z) == 3 and not z.requires_grad for z in latents)
    made = latent_model.reconstruct(x)
    latent_model.check_images(made)
    assert made.shape == x.shape
    assert torch.equal(made, latent_model.decode(latents).mode())
    drawn = [latent_model.latents(x, sample=True, generator=seeded(seed)) for seed in (5, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))


def test_log_weight_is_the_ratio_of_the_drawn_densities(hierarchy: Hierarchy) -> None:
    """log p(x, z) - log q(z | x), summed up by a walk of our own over the same draws."""
    x, generator = some_images(hierarchy, 3), seeded()
    ratio = torch.zeros(3, dtype=torch.float64)

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        nonlocal ratio
        assert posterior is not None
        z = posterior.sample(generator)
        if prior is None:  # drawn on the way up; its turn comes later
            return z
        ratio = ratio + prior.log_prob(z).double() - posterior.log_prob(z).double()
        return z

    reconstruction = hierarchy.top_down(choose, hierarchy.encode(x)).log_prob(x).double()
    weight = hierarchy.evidence(x, seeded()).log_weight
    assert weight is not None
    # 1e-5: the model adds the same numbers up in float32.
    torch.testing.assert_close(weight.double(), reconstruction + ratio, rtol=1e-5, atol=1e-4)


def test_terms_that_are_no_divergences_are_those_of_latents_drawn_on_the_way_up(hierarchy: Hierarchy) -> None:
    early = set()

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        if prior is None:
            early.add(f"kl/{layer:02d}")
        return posterior.sample()

    x = some_images(hierarchy, 2)
    hierarchy.top_down(choose, hierarchy.encode(x))
    assert hierarchy.evidence(x).no_divergence == early
    assert bool(early) == (hierarchy.name == "biva" or (hierarchy.name == "vae" and hierarchy.num_layers > 1))


def test_the_walk_is_the_same_with_and_without_the_image(hierarchy: Hierarchy) -> None:
    """Priors and p(x | z) depend on the latents alone, whether inference chose them or somebody else."""
    hierarchy.double()
    x = some_images(hierarchy, 3)
    latents = hierarchy.latents(x, sample=True, generator=seeded())
    walks: list[tuple[list[Normal], Distribution]] = []
    for context in (hierarchy.encode(x), None):
        priors: list[Normal] = []

        def choose(layer: int, prior: Latent | None, posterior: Latent | None, seen: list[Normal] = priors) -> Tensor:
            if prior is not None:
                seen.append(prior)
            return latents[layer]

        walks.append((priors, hierarchy.top_down(choose, context)))
    for with_image, without in zip(walks[0][0], walks[1][0], strict=True):
        assert torch.equal(with_image.mean, without.mean)
        assert torch.equal(with_image.scale, without.scale)
    decoded = hierarchy.decode(latents).log_prob(x)
    assert torch.equal(walks[0][1].log_prob(x), decoded)
    assert torch.equal(walks[1][1].log_prob(x), decoded)


def test_at_temperature_zero_latents_are_the_prior_means(hierarchy: Hierarchy) -> None:
    generator = seeded()
    asked: list[int] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        asked.append(layer)
        assert prior is not None
        assert posterior is None
        prior.expand(2).sample(generator, 0.0)  # takes as many random numbers as the model's own walk
        return prior.mean.expand(2, -1, -1, -1)

    pixels = hierarchy.top_down(choose).sample(generator)
    assert asked == list(range(hierarchy.num_layers))
    assert torch.equal(pixels, hierarchy.sample(2, temperature=0.0, generator=seeded()))


def test_decode_wants_one_latent_for_each_layer(hierarchy: Hierarchy) -> None:
    latents = hierarchy.latents(some_images(hierarchy, 2))
    assert len(latents) == hierarchy.num_layers
    with pytest.raises(ValueError, match=f"got {len(latents) - 1} tensors, expected one for each of {len(latents)}"):
        hierarchy.decode(latents[:-1])


def test_rows_of_a_batch_do_not_mix_in_eval_mode(hierarchy: Hierarchy) -> None:
    """With latents at the posterior mean, what is found for an image does not depend on its neighbors."""
    hierarchy.double()
    first, second = some_images(hierarchy, 4), some_images(hierarchy, 4)
    second[1] = first[1]

    def measure(x: Tensor) -> Tensor:
        divergences: list[Tensor] = []

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert posterior is not None
            z = posterior.center()
            if prior is not None:
                divergences.append(posterior.kl_map(prior, z)[0].flatten(1).sum(1))
            return z

        pixels = hierarchy.top_down(choose, hierarchy.encode(x))
        return torch.stack([pixels.log_prob(x), *divergences])  # [1 + layers, B]

    one, other = measure(first), measure(second)
    # 1e-10: float64, and kernels may add up in another order.
    torch.testing.assert_close(one[:, 1], other[:, 1], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(one[:, 0], other[:, 0])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("origin", ["built", "loaded"])
def test_evidence_does_not_depend_on_the_other_images(name: str, origin: str, tmp_path: Path) -> None:
    """As the models come from ``davi.build`` and ``davi.load``: nobody has to think of a mode. An imported checkpoint
    is loaded as any run is."""
    model = shaken(name)
    if origin == "loaded":
        save_model(tmp_path / "model.safetensors", model.train())
        model = davi.load(tmp_path / "model.safetensors")
    assert not any(module.training for module in model.modules())
    model.double()
    first, second = some_images(model, 4), some_images(model, 4)
    second[0] = first[0]
    # The same seed and the same number of images: each place in the batch has the same noise.
    one, other = (model.evidence(x, seeded()).log_px for x in (first, second))
    # 1e-10: float64, and kernels may add up in another order. Batch norms in training mode differ by whole nats.
    torch.testing.assert_close(one[0], other[0], rtol=1e-10, atol=1e-10)
    assert bool((one[1:] != other[1:]).all())


def test_shaken_models_use_their_depth_attention() -> None:
    """The tests above would say little about attention with its gates at their initial zero."""
    model = shaken("attentive_digits_tiny")
    gates = [p for name, p in model.named_parameters() if name.endswith(".gate")]
    assert gates
    assert all(float(gate.detach()) != 0.0 for gate in gates)
    assert any(isinstance(module, DepthAttention) for module in model.modules())

"""What every model promises: claims in nats that follow from images and draws, and draws that are images."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from contract import model_of, names, seeded, shaken, some_images
from torch import Tensor

import davi
from davi import Kind, Model
from davi.layers import DepthAttention
from davi.model import Network, Unnormalized
from davi.repetition import repeat_images
from davi.runs import load_model, save_model

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


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


@pytest.fixture(params=[*names(Model), *names(Unnormalized)])
def network(request: pytest.FixtureRequest) -> Network:
    return shaken(request.param)


@pytest.fixture
def model(network: Network) -> Model:
    """The network, or what an energy is with its partition function."""
    return model_of(network)


def test_terms_are_nats_per_image_that_sum_to_the_claim(model: Model) -> None:
    evidence = model.evidence(some_images(model, 3))
    assert isinstance(evidence.kind, Kind)
    assert evidence.log_px.shape == (3,)
    assert all(term.shape == (3,) and bool(term.isfinite().all()) for term in evidence.terms.values())
    total = torch.stack([term.double() for term in evidence.terms.values()]).sum(0)
    torch.testing.assert_close(evidence.log_px.double(), total, rtol=1e-6, atol=0.0)  # sums of float32 in another order
    assert all(penalty.ndim == 0 for penalty in evidence.penalties.values())
    assert all(torch.equal(evidence.terms[name], -kl.flatten(1).sum(1)) for name, kl in evidence.kl_maps.items())


def test_evidence_is_a_function_of_images_and_generator(model: Model) -> None:
    """Claims that depend on draws have weights, which say by how much; an exact one depends on nothing."""
    x = some_images(model, 4)
    evidence = model.evidence(x, seeded())
    again, other = (model.evidence(x, seeded(seed)).log_px for seed in (5, 6))
    assert torch.equal(evidence.log_px, again)
    assert torch.equal(evidence.log_px, other) == (evidence.log_weight is None or evidence.deterministic)
    assert (evidence.kind is Kind.EXACT) == (evidence.log_weight is None)


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
    assert len(repr(evidence).splitlines()) <= 6


@pytest.mark.parametrize(("n", "temperature"), [(0, 1.0), (-1, 1.0), (2, -0.5), (2, float("nan")), (2, float("inf"))])
def test_impossible_samples_are_refused(model: Model, n: int, temperature: float) -> None:
    with pytest.raises(ValueError, match=r"^(n|temperature): got "):
        model.sample(n, temperature)


def test_gradients_reach_every_parameter(request: pytest.FixtureRequest, model: Model) -> None:
    model.train()
    model.evidence(some_images(model, 8)).log_px.sum().backward()
    dead = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    recipe = request.node.callspec.params["network"].replace("_autoregressive", "")  # the same latents
    assert dead == UNREACHABLE.get(recipe, set())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_saved_and_loaded_it_is_the_same_model(model: Model, tmp_path: Path) -> None:
    # As loaded weights lie in memory: sums in another order would round differently.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    x = some_images(model, 3)
    expected, drawn = model.evidence(x, seeded()).log_px, model.sample(3, generator=seeded())
    save_model(tmp_path / "model.safetensors", model.saved)
    again, _ = load_model(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert not again.training
    claim = again.evidence(x, seeded()).log_px
    assert torch.equal(claim, expected)
    assert not claim.requires_grad  # nobody who only measures pays for a graph
    assert again.requires_grad_(True).evidence(x, seeded()).log_px.requires_grad
    assert torch.equal(again.sample(3, generator=seeded()), drawn)


@pytest.mark.parametrize("origin", ["built", "loaded"])
def test_evidence_does_not_depend_on_the_other_images(model: Model, origin: str, tmp_path: Path) -> None:
    """As the models come from ``davi.build`` and ``davi.load``: nobody has to think of a mode. An imported checkpoint
    is loaded as any run is."""
    if origin == "loaded":
        save_model(tmp_path / "model.safetensors", model.saved.train())
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

"""Quantized models on images so small that all of them, and all codes, can be listed; rates; what a walk sees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from contract import all_images, seeded, shake
from torch import Tensor

from davi.batch import Batch
from davi.distributions import Latent, Point
from davi.errors import OptionError
from davi.evidence import About, Kind
from davi.layers import LikelihoodConfig
from davi.layers.quantizer import FiniteScalarConfig, QuantizerConfig, ResidualQuantizerConfig, VectorQuantizerConfig
from davi.model import CodeAutoencoder, CodePriorConfig, DataInitialized, Quantized, QuantizedEvidence
from davi.models import VQVAE, VQVAE2
from davi.models.gated_pixelcnn import GatedPixelCNNConfig
from davi.models.pixelsnail import PixelSNAILConfig
from davi.models.vq_vae import VQVAEConfig
from davi.models.vq_vae2 import VQVAE2Config

GATED = GatedPixelCNNConfig(width=4, layers=1, first_kernel=3, head_width=4)
SNAIL = PixelSNAILConfig(blocks=1, resnets=0, width=4, key_width=2)
ONE = CodePriorConfig(GATED, embedding=2)  # type: ignore[arg-type]  # it adds the name
TWO = CodePriorConfig(SNAIL, GATED, embedding=2, width=4, blocks=1)  # type: ignore[arg-type]  # it adds the names
SMALL: dict[str, Any] = {"width": 6, "residual_width": 4, "blocks": 1, "halvings": 1}
VECTORS = VectorQuantizerConfig(codes=3, dims=2)
QUANTIZERS: dict[str, QuantizerConfig] = {
    "vector": VECTORS,
    "books": VectorQuantizerConfig(codes=3, dims=4, books=2),
    "gradient": VectorQuantizerConfig(codes=3, dims=2, update="gradient"),
    "residual": ResidualQuantizerConfig(codes=3, dims=2, depth=2),
    "finite_scalar": FiniteScalarConfig(levels=(3, 2)),
}


def one_layer(shape: tuple[int, int, int] = (1, 2, 3), levels: int = 2, classes: int = 0, **options: Any) -> VQVAE:
    torch.manual_seed(4)
    config = VQVAEConfig(**{**SMALL, "quantizer": VECTORS, "prior": ONE, **options})
    return shaken(VQVAE(shape, levels, config, classes))


def layers(
    number: int, shape: tuple[int, int, int] = (1, 2, 3), levels: int = 2, classes: int = 0, **options: Any
) -> VQVAE2:
    torch.manual_seed(4)
    config = VQVAE2Config(**{**SMALL, "layers": number, "quantizer": VECTORS, "prior": TWO, **options})
    return shaken(VQVAE2(shape, levels, config, classes))


def shaken(model: Any) -> Any:
    """Vectors are where the features of images are; nothing else is neutral."""
    shake(model.double())
    autoencoder = model.autoencoder
    if autoencoder.images_wanted:
        x = torch.randint(model.levels, (autoencoder.images_wanted, *model.shape))
        autoencoder.train().initialize(x)
    model.prior_begun.fill_(False)
    return model.eval()


MODELS: dict[str, Any] = {
    "one": one_layer,
    "two": lambda **options: layers(2, **options),
    "three": lambda **options: layers(3, **options),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Quantized:
    found: Quantized = MODELS[request.param]()
    return found


def all_codes(model: Quantized) -> list[Tensor]:
    """Every pyramid of codes once."""
    grids = model.autoencoder.code_grids()
    sizes = [grid.size for grid in grids for _ in range(math.prod(grid.shape))]
    x = torch.tensor(list(itertools.product(*map(range, sizes))))[:, None, None]
    return model.prior.unflatten(x)


def log_joint(model: Quantized, codes: list[Tensor], y: Tensor | None = None) -> Tensor:
    """log p(x, z) of every image and all codes, ``[images, codes]``."""
    x, n = all_images(model), len(codes[0])
    log_p = torch.zeros(n, dtype=torch.float64)

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        nonlocal log_p
        assert prior is not None
        log_p = log_p + prior.expand(n).log_prob(codes[layer])
        return codes[layer]

    with torch.no_grad():
        pixels = model.top_down_given(y, choose)
        return torch.stack([pixels.log_prob(image.expand(n, -1, -1, -1)) + log_p for image in x])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("begun", [False, True])
def test_claims_about_all_images_sum_to_at_most_one(quantizer: str, begun: bool) -> None:
    """An image's own codes are one of all those that can lead to it."""
    model = one_layer((1, 1, 4), quantizer=QUANTIZERS[quantizer])
    model.prior_begun.fill_(begun)
    joint = log_joint(model, all_codes(model))
    log_p = joint.logsumexp(1)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    evidence = model.evidence(all_images(model))
    assert evidence.kind is Kind.LOWER_BOUND
    assert evidence.deterministic
    assert bool((evidence.log_px < log_p).all())
    assert float(evidence.log_px.detach().exp().sum()) < 1.0
    assert bool((evidence.log_px[:, None] - joint).abs().amin(1).max() < 1e-12)  # it is one of the summands


@pytest.mark.parametrize("classes", [0, 2])
def test_claims_of_two_layers_sum_to_at_most_one(classes: int) -> None:
    model = layers(2, (1, 1, 2), classes=classes, quantizer=replace(VECTORS, codes=2))
    model.begin_part("prior")
    codes, x = all_codes(model), all_images(model)
    for k in range(classes) if classes else [None]:
        y = None if k is None else torch.full((len(codes[0]),), k)
        log_p = log_joint(model, codes, y).logsumexp(1)
        assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-9)
        evidence = model.evidence(x, y=None if y is None else y[: len(x)])
        assert evidence.about is (About.X_GIVEN_Y if classes else About.X)
        assert bool((evidence.log_px < log_p).all())


def test_before_its_training_the_prior_is_uniform_and_its_networks_are_left_alone(model: Quantized) -> None:
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.fill_(float("nan"))
    evidence = model.evidence(all_images(model)[:7])
    for layer, grid in enumerate(model.autoencoder.code_grids()):
        expected = math.prod(grid.shape) * math.log(grid.size)
        assert (-evidence.terms[f"kl/{layer:02d}"]).tolist() == pytest.approx([expected] * 7, rel=1e-12)
    total = -sum(float(term[0]) for name, term in evidence.terms.items() if name.startswith("kl/"))
    assert model.autoencoder.uniform_nats() == pytest.approx(total, rel=1e-12)
    assert bool(model.sample(3, generator=seeded()).lt(2).all())


def test_the_prior_takes_part_from_the_beginning_of_its_stage_on(model: Quantized) -> None:
    x = all_images(model)[10:20]
    uniform = model.evidence(x).terms
    assert model.begin_part("autoencoder") == frozenset()
    assert not model.prior_begun
    assert model.begin_part("prior") == {"prior_begun"}
    terms = model.evidence(x).terms
    own = model.prior.evidence(model.view("prior", Batch(x)).x).terms
    assert torch.equal(terms["reconstruction"], uniform["reconstruction"])
    for layer in range(model.num_layers):
        torch.testing.assert_close(terms[f"kl/{layer:02d}"], own[f"codes/{layer:02d}"], rtol=1e-12, atol=0.0)
        assert not torch.equal(terms[f"kl/{layer:02d}"], uniform[f"kl/{layer:02d}"])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_what_codes_say_is_bit_for_bit_what_images_say(quantizer: str) -> None:
    model = layers(2, quantizer=QUANTIZERS[quantizer])
    x = all_images(model)[::5]
    codes = model.latents(x)
    assert [tuple(z.shape[1:]) for z in codes] == model.latent_shapes()
    assert all(z.dtype == torch.int64 for z in codes)
    assert all(torch.equal(a, b) for a, b in zip(codes, model.autoencoder.codes(x), strict=True))
    assert torch.equal(model.decode(codes).log_prob(x), model.evidence(x).terms["reconstruction"])
    assert torch.equal(model.decode(codes).mode(), model.reconstruct(x))


def test_evidence_for_training_is_the_same_with_what_was_assigned(model: Quantized) -> None:
    x, autoencoder = all_images(model)[::7], model.autoencoder
    plain, found = autoencoder.evidence(x), autoencoder(x)
    assert isinstance(found, QuantizedEvidence)
    assert torch.equal(found.log_px, plain.log_px)
    assert all(torch.equal(a.codes, z) for a, z in zip(found.assigned, autoencoder.codes(x), strict=True))
    assert [tuple(a.codes.shape[1:]) for a in found.assigned] == model.latent_shapes()
    twice = autoencoder(x, 2)
    assert torch.equal(twice.log_px, plain.log_px.repeat_interleave(2))
    assert len(twice.assigned) == model.num_layers


def test_the_encoder_is_given_the_gradient_of_the_vectors(model: Quantized) -> None:
    """What the reconstruction says of the vectors that the decoder sees, the features are told."""
    autoencoder, x = model.autoencoder, all_images(model)[3:9]
    evidence = autoencoder(x)
    features = [assigned.features for assigned in evidence.assigned]
    found = torch.autograd.grad(evidence.terms["reconstruction"].sum(), features[-1], retain_graph=True)
    vectors = [assigned.embedded.detach() for assigned in evidence.assigned]
    vectors[-1].requires_grad_()
    pixels = autoencoder.head(autoencoder.last_map(vectors))
    expected = torch.autograd.grad(pixels.log_prob(x).sum(), vectors[-1])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert bool(expected[0].any())


def test_codes_near_the_image_depend_on_those_above() -> None:
    model = layers(2, (1, 4, 4)).autoencoder
    context = model.encode(torch.randint(2, (4, 1, 4, 4)))
    found = []
    for k in range(3):

        def choose(layer: int, prior: Latent | None, posterior: Latent | None, k: int = k) -> Tensor:
            assert isinstance(posterior, Point)
            return torch.full_like(posterior.value, k) if layer == 0 else posterior.value

        model.top_down(choose, context)
        found.append(context.assigned[1].features)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_each_layer_has_half_the_resolution_of_the_next() -> None:
    model = layers(3, (1, 32, 32), levels=2)
    assert model.latent_shapes() == [(1, 4, 4), (1, 8, 8), (1, 16, 16)]
    assert layers(2, (1, 28, 28), halvings=2).latent_shapes() == [(1, 4, 4), (1, 8, 8)]  # 28 is padded to 32
    assert one_layer((1, 7, 5), halvings=2).latent_shapes() == [(1, 2, 2)]


def bits_per_dim(model: Quantized) -> float:
    return model.autoencoder.uniform_nats() / (model.dims * math.log(2.0))


def on_paper(cls: Any, config: Any, size: int) -> Quantized:
    with torch.device("meta"):
        found: Quantized = cls((3, size, size), 256, config)
    return found


def test_rates_of_the_papers() -> None:
    books = VectorQuantizerConfig(codes=512, dims=20, books=10)
    assert bits_per_dim(on_paper(VQVAE, VQVAEConfig(quantizer=books, prior=ONE), 32)) == pytest.approx(1.875, abs=1e-12)
    two = VQVAE2Config(quantizer=VectorQuantizerConfig(codes=512, dims=4), prior=TWO)
    assert bits_per_dim(on_paper(VQVAE2, two, 256)) == pytest.approx(0.234375, abs=1e-12)


def test_the_representation_says_what_codes_take() -> None:
    assert "codes of equal probability: 2.197 nats, 0.5283 bits/dim" in repr(one_layer())
    assert "codes of equal probability: 2.197 nats" in repr(one_layer().autoencoder)


def tensors(model: Quantized) -> Iterator[Tensor]:
    yield from (x.clone() for x in model.state_dict().values())


def test_nothing_moves_when_nothing_is_trained(model: Quantized) -> None:
    before = [*tensors(model)]
    x = all_images(model)[:5]
    model.evidence(x)
    model.autoencoder.train()(x)
    model.view("prior", Batch(x))
    model.sample(2)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(model), strict=True))


def test_labels_are_for_the_prior_alone() -> None:
    model = layers(2, classes=3)
    batch = Batch(all_images(model)[:6], torch.arange(6) % 3)
    assert model.view("autoencoder", batch).y is None
    assert model.view("prior", batch).y is batch.y
    assert one_layer().view("prior", batch).y is None


def test_initial_vectors_follow_from_images_unless_they_are_lent() -> None:
    model = layers(2).autoencoder
    assert isinstance(model, DataInitialized)
    x = torch.randint(2, (256, *model.shape))
    before = [model.quantizer(layer).state_dict()["vectors"].clone() for layer in (0, 1)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.train().initialize(x, kept={"quantizers.1.vectors"})
    after = [model.quantizer(layer).state_dict()["vectors"] for layer in (0, 1)]
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert {int(k) for k in model.codes(x)[0].unique()} == {0, 1, 2}


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "logistic_mixture"])
def test_any_likelihood_will_do(family: Any) -> None:
    model = one_layer(likelihood=LikelihoodConfig(family, 2))
    assert model.pixel_head.likelihood.family == family
    assert float(log_joint(model, all_codes(model)).exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_an_autoregressive_likelihood_sees_what_codes_lead_to() -> None:
    network = PixelSNAILConfig(blocks=1, resnets=1, width=4, key_width=2, init_images=16)
    likelihood = LikelihoodConfig("autoregressive", network=network, features=3)  # type: ignore[arg-type]  # it adds the name
    model = one_layer(likelihood=likelihood)
    assert float(log_joint(model, all_codes(model)).exp().sum()) == pytest.approx(1.0, abs=1e-9)
    assert isinstance(model.autoencoder, CodeAutoencoder)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: one_layer(prior=TWO), r"^prior.below: got gated_pixelcnn, expected null"),
        (lambda: layers(2, prior=ONE), r"^prior.below: got nothing, expected a causal network"),
        (lambda: one_layer(levels=3, likelihood=LikelihoodConfig("bernoulli")), r"^likelihood.family: got bernoulli"),
    ],
)
def test_options_that_do_not_fit(build: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"halvings": 0}, r"^halvings: got 0, expected at least 1$"),
        ({"width": 1}, r"^width: got 1, expected at least 2$"),
        ({"layers": 1}, r"^layers: got 1, expected at least 2 \(vq_vae has one\)$"),
        ({"likelihood": LikelihoodConfig("logistic_mixture", form="openai")}, "got form openai, expected exact"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQVAE2Config(**options)


def test_other_codes_are_refused() -> None:
    model = one_layer(quantizer=QUANTIZERS["books"])
    (codes,) = model.latents(all_images(model)[:2])
    for wrong in (3, -1):  # with a list for each book, 3 would be the first vector of the next one
        with pytest.raises(ValueError, match=rf"^codes of layer 0: got values .*{wrong}.*, expected 0 to 2$"):
            model.decode([torch.full_like(codes, wrong)])
    with pytest.raises(TypeError, match=r"^codes of layer 0: got torch.float32, expected an integer tensor"):
        model.decode([codes.float()])
    with pytest.raises(ValueError, match=r"^latents: got \[2, 1, 1, 2\] for layer 0, expected \[B, 2, 1, 2\]$"):
        model.decode([codes[:, :1]])
    assert torch.equal(model.decode([codes.to(torch.uint8)]).mode(), model.decode([codes]).mode())

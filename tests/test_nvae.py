"""NVAE: its size, its cells and flows, its penalties, and what is the same with attention closed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import RECIPE, sets
from torch import Tensor, nn

from davi import recipes
from davi.data import geometry_of
from davi.flows import ShiftPairs
from davi.layers import LikelihoodConfig
from davi.layers.context_attention import ContextAttentionOptions
from davi.layers.nvae_cells import Cell, CellBody, KernelConv2d, decoder_cell, encoder_cell
from davi.layers.spectral import SpectralNorms
from davi.models import NVAE
from davi.models.nvae import NVAEConfig
from davi.objectives import EvidenceConfig, balancing, objective
from davi.runs import load_model
from davi.training import TrainingConfig
from davi.training.loop import train
from davi.training.sections import CheckpointConfig, ScheduleConfig

SMALL = NVAEConfig(
    groups=(1, 2),
    latent_channels=2,
    encoder_width=4,
    decoder_width=2,
    halvings=1,
    preprocess_cells=1,
    postprocess_cells=1,
    encoder_cells=1,
    decoder_cells=1,
    likelihood=LikelihoodConfig("logistic_mixture", 2),
)


def small(shape: tuple[int, int, int] = (1, 8, 8), levels: int = 4, **options: object) -> NVAE:
    """A small model in eval mode with every weight and running statistic away from its neutral value."""
    model = NVAE(shape, levels, replace(SMALL, **options))  # type: ignore[arg-type]  # options by name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.2)
    return model.eval()


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        ("nvae_mnist", 33_363_134),
        ("nvae_cifar10", 130_852_480),
        ("nvae_celeba64", 153_281_364),
        ("nvae_imagenet32", 268_509_444),
        ("nvae_celeba_hq256", 330_798_664),
    ],
)
def test_published_configurations_have_the_official_number_of_parameters(recipe: str, parameters: int) -> None:
    loaded = recipes.load(recipe)
    assert loaded.data is not None
    with torch.device("meta"):
        model = NVAE(*geometry_of(loaded.data), loaded.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_test_configuration_has_the_official_number_of_parameters() -> None:
    config = NVAEConfig((4,), 20, 16, 16, halvings=1, preprocess_cells=2, postprocess_cells=2)
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in NVAE((3, 32, 32), 256, c).parameters()) for c in (config, replace(config, shifts=1))
        ]
    assert sizes == [377_600, 595_840]


@pytest.mark.parametrize(
    ("options", "shape", "levels"),
    [
        ({"groups": (1,), "encoder_width": 4, "decoder_width": 4}, (1, 8, 8), 4),  # one group: no towers
        ({"groups": (1,), "encoder_width": 4, "decoder_width": 4, "shifts": 1}, (3, 8, 8), 256),
        ({"groups": (1, 1, 2)}, (1, 8, 8), 4),
        ({"residual_posterior": False, "squeeze_excite": False}, (2, 8, 8), 4),
        ({"halvings": 2, "groups": (2,)}, (3, 7, 10), 16),  # neither side a multiple of 4
        ({"likelihood": LikelihoodConfig("bernoulli"), "pad": 2, "halvings": 2}, (1, 4, 4), 2),
        ({"halvings": 0, "groups": (3,)}, (1, 3, 5), 4),
        ({"encoder_cells": 0, "decoder_cells": 0}, (1, 8, 8), 4),
    ],
)
def test_every_configuration_explains_and_draws(
    options: dict[str, object], shape: tuple[int, int, int], levels: int
) -> None:
    model = small(shape, levels, **options)
    x = torch.randint(levels, (3, *shape))
    evidence = model.train().evidence(x)
    assert evidence.log_px.shape == (3,)
    assert bool(evidence.log_px.isfinite().all())
    assert len(evidence.kl_maps) == sum(model.config.groups)
    (objective(evidence, EvidenceConfig(penalty_weight=0.1)) * 1.0).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval().check_images(model.sample(2))
    assert [tuple(z.shape[1:]) for z in model.latents(x)] == [tuple(kl.shape[1:]) for kl in evidence.kl_maps.values()]


def test_the_top_prior_is_a_little_wider_than_standard() -> None:
    """exp(0) + 0.01, as in the authors' program."""
    seen = []
    small().top_down(lambda layer, prior, posterior: seen.append(prior) or prior.mean)  # type: ignore[func-returns-value]
    assert torch.equal(seen[0].mean, torch.zeros(1, 2, 2, 2))
    torch.testing.assert_close(seen[0].scale, torch.full((1, 2, 2, 2), 1.01), rtol=0, atol=1e-7)


def test_a_residual_of_zero_is_the_prior() -> None:
    model = small()
    for group in (model.top, *model.groups):
        head = group.get_submodule("posterior")
        assert isinstance(head, KernelConv2d)
        assert head.log_g is not None
        assert head.bias is not None
        with torch.no_grad():
            head.log_g.fill_(-60.0)
            head.bias.zero_()
    kls = model.evidence(torch.randint(4, (2, 1, 8, 8))).kl_maps.values()
    assert all(float(kl.detach().abs().max()) < 1e-6 for kl in kls)


def test_zeros_around_the_image_are_those_of_a_larger_image() -> None:
    """Padding changes what is counted, not what is computed."""
    padded = small((1, 4, 4), 2, likelihood=LikelihoodConfig("bernoulli"), pad=2, halvings=1)
    whole = NVAE((1, 8, 8), 2, replace(padded.config, pad=0)).eval()
    whole.load_state_dict(padded.state_dict())
    x = torch.randint(2, (3, 1, 4, 4))
    z, larger = padded.latents(x), whole.latents(F.pad(x, (2, 2, 2, 2)))
    assert all(torch.equal(a, b) for a, b in zip(z, larger, strict=True))
    inside = whole.decode(z).log_prob_map(F.pad(x, (2, 2, 2, 2)))[..., 2:-2, 2:-2]
    torch.testing.assert_close(padded.decode(z).log_prob(x), inside.flatten(1).sum(1), rtol=1e-6, atol=1e-5)


def reference_cell(cell: Cell, x: Tensor, up: bool, decoder: bool) -> Tensor:
    """A cell written out with torch's own modules, for cells without change of resolution or with doubling."""

    def conv(module: nn.Module, y: Tensor, padding: int, groups: int = 1) -> Tensor:
        assert isinstance(module, KernelConv2d)
        w = module.v
        if module.log_g is not None:
            w = torch.stack(
                [g.exp() * k / (k.square().sum().sqrt() + 1e-5) for g, k in zip(module.log_g, w, strict=True)]
            )
        return F.conv2d(y, w, module.bias, padding=padding, groups=groups)

    skip = x
    y, layers = x, list(cell.body)
    if up:
        skip = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        skip = conv(cell.skip.conv, skip, 0)  # type: ignore[arg-type]  # a submodule
        y, layers = x.repeat_interleave(2, 2).repeat_interleave(2, 3), layers[1:]
    if decoder:
        y = conv(layers[1], layers[0](y), 0)
        y = conv(layers[4], F.silu(layers[2](y)), 2, groups=y.shape[1])
        y = layers[8](conv(layers[7], F.silu(layers[5](y)), 0))
    else:
        y = conv(layers[5], F.silu(layers[3](conv(layers[2], F.silu(layers[0](y)), 1))), 1)
    excite = cell.squeeze_excite
    if excite is not None:
        hidden = F.relu(F.linear(y.mean((2, 3)), excite.squeeze.weight, excite.squeeze.bias))
        y = y * torch.sigmoid(F.linear(hidden, excite.excite.weight, excite.excite.bias))[:, :, None, None]
    return skip + 0.1 * y


@pytest.mark.parametrize(("decoder", "up"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("excite", [False, True])
def test_cells_are_the_papers(decoder: bool, up: bool, excite: bool) -> None:
    cell = decoder_cell(8, 3, excite, "double" if up else "keep") if decoder else encoder_cell(8, excite)
    cell.double()
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    cell(x)  # moves the running statistics
    cell.eval()
    # 1e-12: float64, sums in another order
    torch.testing.assert_close(cell(x), reference_cell(cell, x, up, decoder), rtol=1e-12, atol=1e-12)
    assert cell(x).shape == ((2, 4, 8, 12) if up else x.shape)


def test_recomputed_cells_give_the_same_gradients_and_statistics() -> None:
    x = torch.randint(4, (4, 1, 8, 8))
    results = []
    for recompute in (False, True):
        torch.manual_seed(2)
        model = small().train()
        for block in model.blocks():
            block.recompute = recompute  # type: ignore[assignment]  # a plain switch
        loss = -model.evidence(x, torch.Generator().manual_seed(1)).log_px.mean()
        loss.backward()
        results.append([p.grad for p in model.parameters()] + list(model.buffers()))
    for plain, again in zip(*results, strict=True):
        assert (plain is None and again is None) or torch.equal(plain, again)  # type: ignore[arg-type]  # both tensors


def test_the_prior_is_not_drawn_through_the_shifts() -> None:
    z = torch.randn(2, 3, 4, 4)
    assert not torch.equal(ShiftPairs(3, 2)(z)[0], z)
    plain, bent = small(shifts=0), small(shifts=1)
    bent.load_state_dict({**bent.state_dict(), **{k: v for k, v in plain.state_dict().items() if "spectral" not in k}})
    draws = [model.sample(3, generator=torch.Generator().manual_seed(1)) for model in (plain, bent)]
    assert torch.equal(*draws)


def test_spectral_norms_converge_to_the_largest_singular_values() -> None:
    shapes = [(3, 5), (4, 4), (3, 5), (6, 1)]
    matrices = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    norms = SpectralNorms(shapes).double()
    exact = torch.stack([torch.linalg.svdvals(matrix)[0] for matrix in matrices]).sum()
    assert float(norms.total(matrices).detach()) < float(exact.detach())  # from below, always
    norms.iterate(matrices, 2000)
    total = norms.total(matrices, 1)
    torch.testing.assert_close(total, exact, rtol=1e-10, atol=0.0)
    for ours, theirs in zip(torch.autograd.grad(total, matrices), torch.autograd.grad(exact, matrices), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_penalties_are_those_of_all_convolutions_and_batch_norms() -> None:
    model = small(shifts=1, depth_attention=ContextAttentionOptions(2, 3)).double()
    for _ in range(15):
        model.initialize(torch.empty(0))
    found = {name: penalty.detach() for name, penalty in model.penalties().items()}
    convolutions = [module for module in model.modules() if isinstance(module, KernelConv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].weight[0], norms[1].weight[-1] = -3.0, 2.0  # a gain is as large as its absolute value
    found["batch_norm_gain"] = model.penalties()["batch_norm_gain"].detach()
    sigma = sum(torch.linalg.svdvals(conv.kernels().detach().flatten(1))[0] for conv in convolutions)
    assert float(found["spectral_norm"]) == pytest.approx(float(sigma), rel=1e-4)
    gains = sum(float(norm.weight.detach().abs().max()) for norm in norms)
    assert float(found["batch_norm_gain"]) == pytest.approx(gains, rel=1e-12)


def test_penalties_are_for_training_alone_and_their_vectors_are_kept() -> None:
    model = small()
    assert not model.evidence(torch.zeros(2, 1, 8, 8).int()).penalties
    before = {name: x.clone() for name, x in model.state_dict().items() if name.startswith("spectral.")}
    assert set(model.train().evidence(torch.zeros(2, 1, 8, 8).int()).penalties) == {"spectral_norm", "batch_norm_gain"}
    assert before
    assert all(not torch.equal(x, model.state_dict()[name]) for name, x in before.items() if x.shape[1] > 1)


def test_the_weight_of_the_penalties() -> None:
    config = EvidenceConfig(kl_fraction=0.3, penalty_weight=0.01, penalty_start=1.0)
    # exp((1 - beta) log 1 + beta log 0.01)
    assert [config.penalty_weight_at(beta) for beta in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.1, 0.01], rel=1e-12)
    assert EvidenceConfig(penalty_weight=0.3).penalty_weight_at(0.2) == 0.3
    evidence = small().train().evidence(torch.zeros(2, 1, 8, 8).int())
    plain = objective(evidence, EvidenceConfig(kl_fraction=0.3, penalty_weight=0.0), 0.5).detach()
    added = sum(float(x.detach()) for x in evidence.penalties.values())
    total = objective(evidence, config, 0.5).detach()
    assert float(total - plain) == pytest.approx(0.1 * added, rel=1e-4)  # a difference of float32 numbers
    for wrong in ({"penalty_weight": -1.0}, {"penalty_start": 1.0}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: got "):
            EvidenceConfig(**wrong)


def test_balancing_by_hand() -> None:
    """One group at the coarse scale, two at the fine one: alpha is 1 and 4 / 2."""
    evidence = small().evidence(torch.randint(4, (5, 1, 8, 8)))
    costs = [float(evidence.terms[f"kl/{i:02d}"].detach().abs().mean()) + 0.01 for i in range(3)]
    shares = [cost / alpha for cost, alpha in zip(costs, (1.0, 2.0, 2.0), strict=True)]
    expected = [3.0 * share / sum(shares) for share in shares]
    assert [float(x) for x in balancing(evidence).values()] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shifts", [0, 1])
def test_closed_attention_is_the_plain_model(shifts: int) -> None:
    plain, reading = small(shifts=shifts), small(shifts=shifts, depth_attention=ContextAttentionOptions(2, 3))
    reading.load_state_dict({**reading.state_dict(), **plain.state_dict()})
    sites = list(reading.depth_attentions())
    assert [(site.layer, site.sources) for site in sites] == [(1, (0,)), (2, (0, 1))]
    with torch.no_grad():
        for site in sites:
            site.gate.zero_()
    x = torch.randint(4, (3, 1, 8, 8))
    one, other = (model.train().evidence(x, torch.Generator().manual_seed(1)) for model in (plain, reading))
    assert all(torch.equal(one.terms[name], other.terms[name]) for name in one.terms)
    assert all(torch.equal(one.penalties[name], other.penalties[name]) for name in one.penalties)
    with torch.no_grad():
        sites[-1].gate.fill_(0.5)
    assert not torch.equal(one.log_px, reading.evidence(x, torch.Generator().manual_seed(1)).log_px)
    assert not list(plain.depth_attentions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ()}, "groups: got [], expected at least one group at each scale"),
        ({"groups": (2, 0)}, "groups: got [2, 0], expected"),
        ({"latent_channels": 0}, "latent_channels: got 0, expected at least 1"),
        ({"halvings": -1}, "halvings: got -1, expected at least 0"),
        ({"pad": -1}, "pad: got -1, expected at least 0"),
        ({"groups": (1,)}, "decoder_width: got 2, expected 4, the encoder's, for one group"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="got") as caught:
        replace(SMALL, **options)  # type: ignore[arg-type]  # options by name
    assert str(caught.value).startswith(message)
    for name, attention in itertools.product(("key_channels", "value_channels"), (-1,)):
        with pytest.raises(ValueError, match=f"^{name}: got -1"):
            ContextAttentionOptions(**{name: attention})


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    """With the vectors of the spectral penalty, which go on from where they were."""
    images = sets(binarization="none", size=8)
    often = CheckpointConfig(minutes=0, steps=3)
    config = TrainingConfig(steps=6, batch_size=8, checkpoints=often, schedule=ScheduleConfig("constant"))

    def model() -> NVAE:
        torch.manual_seed(1)
        return NVAE((1, 8, 8), 16, SMALL)

    def run(name: str, steps: int, resume: bool = False) -> None:
        shorter = replace(config, steps=steps)
        train(model(), images, shorter, tmp_path / name, RECIPE, resume=resume, print_fn=lambda line: None)

    run("whole", 6)
    run("halves", 3)
    run("halves", 6, resume=True)
    one, other = (load_model(tmp_path / name)[0].state_dict() for name in ("whole", "halves"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    fresh = model().state_dict()
    assert all(not torch.equal(one[name], x) for name, x in fresh.items() if "spectral" in name and x.shape[1] > 1)


BODIES = [
    {"encoder_body": "separable"},
    {"decoder_body": "regular"},
    {"normalization": "weight", "activation": "elu"},
    {"encoder_body": "separable", "decoder_body": "regular", "activation": "elu", "reversible": True},
]


@pytest.mark.parametrize("options", BODIES)
def test_every_weight_of_other_bodies_is_trained(options: dict[str, object]) -> None:
    model = small(**options).double().train()
    x = torch.randint(0, 4, (3, 1, 8, 8))
    evidence = model.evidence(x, generator=torch.Generator().manual_seed(1))
    (-evidence.log_px.mean() + sum(evidence.penalties.values())).backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert missing == []


def test_bodies_of_cells_by_hand() -> None:
    """Kernel sizes, groups and what stands between the convolutions."""

    def told(body: CellBody, channels: int, width: int) -> list[str]:
        return [
            f"{module.v.shape[-1]}x{module.groups}/{module.stride}"
            if isinstance(module, KernelConv2d)
            else type(module).__name__
            for module in body.build(channels, width)
        ]

    norm, swish, elu = "BatchNorm2d", "SiLU", "ELU"
    assert told(CellBody("regular"), 2, 4) == [norm, swish, "3x1/2", norm, swish, "3x1/1"]
    assert told(CellBody("regular", activation="elu"), 4, 2) == ["Upsample", norm, elu, "3x1/1", norm, elu, "3x1/1"]
    wide = CellBody("separable", expansion=3)
    assert told(wide, 2, 2) == [norm, "1x1/1", norm, swish, "5x6/1", norm, swish, "1x1/1", norm]
    assert told(CellBody("separable", "weight", expansion=3), 2, 4) == ["1x1/1", swish, "5x6/2", swish, "1x1/1"]
    plain = [conv for conv in CellBody("separable").build(2, 2) if isinstance(conv, KernelConv2d)]
    normed = [conv for conv in CellBody("separable", "weight").build(2, 2) if isinstance(conv, KernelConv2d)]
    assert [conv.log_g is None and conv.bias is None for conv in plain] == [True] * 3
    assert [conv.log_g is None or conv.bias is None for conv in normed] == [False] * 3

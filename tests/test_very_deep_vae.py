"""The Very Deep VAE: its texts, its initial scales, any images, attention between its layers, and its recipes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import davi
from davi import data, recipes
from davi.distributions import Latent, Normal
from davi.layers.bottleneck import Bottleneck, Residual, Sizes
from davi.layers.context_attention import ContextAttentionOptions
from davi.models.very_deep_vae import (
    Entry,
    Rows,
    VeryDeepVAE,
    VeryDeepVAEConfig,
    parse_blocks,
)
from davi.objectives import objective
from davi.training.optimizer import make_optimizer
from davi.training.sections import StepFilterConfig
from davi.training.step_filter import StepFilter

SMALL: dict[str, Any] = {
    "encoder": "8x2,8d2,4x1,4d4,1x1",
    "decoder": "1x1,4m1,4x1,8m4,8x1",
    "width": 8,
    "latent_channels": 3,
    "bottleneck": 0.5,
    "mixture_components": 2,
}


def small(shape: tuple[int, int, int] = (3, 8, 8), levels: int = 256, **options: Any) -> VeryDeepVAE:
    return VeryDeepVAE(shape, levels, VeryDeepVAEConfig(**{**SMALL, **options}))


def shaken(model: VeryDeepVAE) -> VeryDeepVAE:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_texts_are_rows_of_blocks() -> None:
    assert parse_blocks("encoder", "32x2, 32d4,8", "xd") == (Entry(32), Entry(32), Entry(32, pool=4), Entry(8))
    assert parse_blocks("decoder", "1x1,4m1", "xm") == (Entry(1), Entry(4, source=1))
    rows = Rows(VeryDeepVAEConfig(encoder="8d2,4d2,2x3", decoder="2,8m2", width=4, custom_widths="2:6, 4:5"))
    assert (rows.finest, rows.reached, rows.widths, rows.unit) == (8, [8, 4, 2], {8: 4, 4: 5, 2: 6}, 4)
    assert rows.grid(2, (8, 16)) == (2, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "8y2"}, "encoder: got '8y2', expected RxN, RdK or R"),
        ({"encoder": ""}, "encoder: got '', expected"),
        ({"encoder": "8x2,,4"}, "encoder: got '', expected"),
        ({"encoder": "8x0"}, "encoder: got '8x0'"),
        ({"encoder": "8d0"}, "encoder: got '8d0'"),
        ({"encoder": "8m4"}, "encoder: got '8m4'"),
        ({"decoder": "8d2"}, "decoder: got '8d2', expected RxN, RmS or R"),
        ({"encoder": "8x-1"}, "encoder: got '8x-1'"),
        ({"encoder": "8x9999"}, "expected at most 4096 blocks"),
        ({"encoder": "8x1,4x1"}, "encoder: got a block at resolution 4 where the map has 8"),
        ({"encoder": "8d2,4d3"}, "encoder: got 4d3, expected a factor that divides 4"),
        (
            {"decoder": "2x1,8m2"},
            "decoder: got a block at resolution 2, expected one that the encoder reaches, 8, 4, 1",
        ),
        ({"decoder": "4m1,8m4"}, "decoder: got 4m1, expected a coarser resolution that has a block before it"),
        ({"decoder": "8x1,4m8"}, "decoder: got 4m8, expected a coarser"),
        ({"decoder": "1x1,4m1"}, "decoder: got no block at resolution 8"),
        ({"custom_widths": "4"}, "custom_widths: got '4', expected RESOLUTION:CHANNELS"),
        ({"custom_widths": "4:9,4:9"}, "custom_widths: got '4:9'"),
        ({"custom_widths": "16:9"}, "custom_widths: got resolution 16, expected one of 8, 4, 1"),
        ({"custom_widths": "8:9"}, "custom_widths: got 8:9, expected 8, which is width"),
        ({"custom_widths": "4:12"}, "custom_widths: got 8 channels at resolution 1, expected at least the 12 of"),
        ({"bottleneck": 0.1}, "bottleneck: got 0.1, expected at least one channel inside 8"),
        ({"bottleneck": 0.0}, "bottleneck: got 0.0"),
        ({"width": 0}, "width: got 0, expected at least 1"),
        ({"latent_channels": 0}, "latent_channels: got 0"),
        ({"bias_up_to": -1}, "bias_up_to: got -1"),
        ({"input_deviation": 0.0}, "input_deviation: got 0.0"),
        ({"input_mean": math.inf}, "input_mean: got inf"),
    ],
)
def test_texts_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="got") as caught:
        VeryDeepVAEConfig(**{**SMALL, **options})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_attention_widths_are_checked() -> None:
    with pytest.raises(ValueError, match="value_channels: got -1"):
        ContextAttentionOptions(2, -1)


@pytest.mark.parametrize(
    ("name", "parameters", "keys", "encoder", "decoder"),
    [
        ("cifar10", 39_145_700, 1393, 33, 43),
        ("imagenet32", 119_280_868, 2423, 48, 78),
        ("imagenet64", 125_005_860, 2482, 65, 75),
        ("ffhq256", 114_874_852, 2272, 68, 66),
        ("ffhq1024", 109_366_904, 2392, 70, 70),
    ],
)
def test_published_configurations(name: str, parameters: int, keys: int, encoder: int, decoder: int) -> None:
    """Counted in the authors' program."""
    with torch.device("meta"):
        model = davi.build(f"very_deep_vae_{name}")
    assert isinstance(model, VeryDeepVAE)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == keys
    assert (len(model.encoder), len(model.decoder)) == (encoder, decoder)


@pytest.mark.parametrize(
    ("name", "mean", "deviation", "rate", "batch", "clip", "skip"),
    [
        ("cifar10", 120.63838 / 255, 64.16736 / 255, 2e-4, 32, 200, 400),
        ("imagenet32", 116.2373 / 255, 69.37404 / 255, 1.5e-4, 256, 200, 300),
        ("imagenet64", 115.92961967 / 255, 69.37404 / 255, 1.5e-4, 128, 220, 380),
        ("ffhq256", (112.8666757481 - 3.5) / 248, 69.84780273 / 248, 1.5e-4, 32, 130, 180),
        ("ffhq1024", 0.4387, 0.2743, 7e-5, 32, 360, 500),
    ],
)
def test_published_hyperparameters(
    name: str, mean: float, deviation: float, rate: float, batch: int, clip: float, skip: float
) -> None:
    """Thresholds and epsilon are the authors', for nats per dimension, times the dimensions of an image."""
    recipe = recipes.load(f"very_deep_vae_{name}")
    training = recipe.training
    assert training is not None
    assert recipe.data is not None
    dims = math.prod(data.geometry_of(recipe.data)[0])
    assert recipe.model.input_mean == pytest.approx(mean, abs=1e-8)
    assert recipe.model.input_deviation == pytest.approx(deviation, abs=1e-8)
    assert (training.learning_rate, training.batch_size) == (rate, batch)
    optimizer, schedule, step_filter = training.optimizer, training.schedule, training.step_filter
    assert (step_filter.clip_norm, step_filter.skip_norm, step_filter.skip_factor) == (clip * dims, skip * dims, 0.0)
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == ("adamw", (0.9, 0.9), 0.01)
    assert optimizer.eps == pytest.approx(1e-8 * dims, rel=1e-12)
    assert (schedule.name, schedule.warmup_steps) == ("constant", 100)
    assert not training.objective.warms_up
    assert recipe.data.flip == "none"


def test_sets_that_cannot_be_loaded_by_name_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    from davi.cli import main

    for name in ("imagenet32", "imagenet64", "ffhq256", "ffhq1024"):
        assert main(["train", f"very_deep_vae_{name}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"davi: data.set: got {name}, which cannot be loaded by name, expected --data PATH")
        assert said.count("\n") == 1
    assert data.geometry_of(data.DataConfig(set="ffhq256")) == ((3, 256, 256), 256)
    assert data.geometry_of(data.DataConfig(set="ffhq256", levels=32)) == ((3, 256, 256), 32)


def test_initial_scales() -> None:
    torch.manual_seed(3)
    model = small(width=64, custom_widths="")
    encoder, decoder = len(model.encoder), len(model.decoder)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            assert not module.bias.any()

    def spread(weight: Tensor) -> float:
        """Largest entry in units of torch's own bound, 1/sqrt(inputs)."""
        return float(weight.detach().abs().max()) * math.sqrt(weight[0].numel())

    block: Any
    layer: Any
    for block in model.encoder:
        assert spread(block.body.c4.weight) == pytest.approx(encoder**-0.5, rel=0.02)  # the largest of 2,048
        assert spread(block.body.c1.weight) == pytest.approx(1.0, rel=0.02)
    for layer in model.decoder:
        assert not layer.prior.c4.weight.any()
        assert spread(layer.posterior.c4.weight) == pytest.approx(1.0, rel=0.1)  # of 192
        assert spread(layer.project.weight) == pytest.approx(decoder**-0.5, rel=0.1)
        assert spread(layer.residual.body.c4.weight) == pytest.approx(decoder**-0.5, rel=0.02)
    assert all(not start.any() for start in model.start)
    assert bool((model.gain == 1).all())
    assert not model.bias.any()
    # So at first all priors are standard normal, whatever the latents.
    asked: list[Normal] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        asked.append(prior)
        return prior.expand(2).sample()

    model.top_down(choose)
    assert all(not prior.mean.any() and bool((prior.scale == 1).all()) for prior in asked)


def test_kernels_and_learned_maps_follow_the_grid() -> None:
    model: Any = small(bias_up_to=4)
    assert [tuple(start.shape) for start in model.start] == [(1, 8, 1, 1), (1, 8, 4, 4)]
    assert [layer.prior.c2.kernel_size for layer in model.decoder] == [(1, 1)] + 4 * [(3, 3)]
    assert [block.body.c2.kernel_size for block in model.encoder] == 5 * [(3, 3)] + [(1, 1)]


def test_several_inputs_are_their_concatenation() -> None:
    block = Bottleneck(12, Sizes(6, 5, 3), 7).double()
    x, a = torch.randn(1, 6, 4, 4, dtype=torch.float64), torch.randn(3, 6, 4, 4, dtype=torch.float64)
    expected = block(torch.cat([x.expand(3, -1, -1, -1), a], 1))
    torch.testing.assert_close(block(x, a), expected, rtol=1e-12, atol=1e-14)  # float64 sums in another order


def test_pooling_is_the_mean() -> None:
    block, plain = Residual(Sizes(4, 2, 3), 1, 4), Residual(Sizes(4, 2, 3), 1)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), plain(x).unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5)))


@pytest.mark.parametrize("shape", [(1, 5, 11), (3, 8, 16), (2, 9, 3), (4, 17, 8)])
def test_any_size_and_channels(shape: tuple[int, int, int]) -> None:
    model = shaken(small(shape, 10))
    x = torch.randint(10, (2, *shape))
    evidence = model.evidence(x)
    assert evidence.log_px.shape == (2,)
    assert bool(evidence.log_px.isfinite().all())
    assert model.sample(2).shape == (2, *shape)
    rows, columns = model.padding.padded
    assert (rows % 8, columns % 8) == (0, 0)
    assert [tuple(z.shape[2:]) for z in model.latents(x)][:2] == [(rows // 8, columns // 8), (rows // 2, columns // 2)]


def test_pixels_of_any_depth_look_the_same_to_the_encoder() -> None:
    deep, shallow = small(levels=65536, likelihood_form="exact"), small(levels=2, likelihood="bernoulli")
    shallow.load_state_dict({**shallow.state_dict(), "stem.weight": deep.stem.weight, "stem.bias": deep.stem.bias})
    seen: list[Tensor] = []
    for model in (deep, shallow):
        model.stem.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        model.encode(torch.full((1, 3, 8, 8), model.levels - 1))
    assert torch.equal(seen[0], seen[1])
    assert bool((seen[0] == 2.0).all())


@pytest.mark.parametrize("values", [0, 5])
def test_closed_gates_are_the_plain_model_exactly(values: int) -> None:
    plain = shaken(small())
    attentive = small(depth_attention=ContextAttentionOptions(4, values))
    state = {**attentive.state_dict(), **plain.state_dict()}
    attentive.load_state_dict(state)
    x = torch.randint(256, (2, 3, 8, 8))
    first, second = (model.evidence(x, torch.Generator().manual_seed(1)) for model in (plain, attentive))
    assert all(torch.equal(term, second.terms[name]) for name, term in first.terms.items())
    sites = list(attentive.depth_attentions())
    assert [(site.layer, site.sources) for site in sites] == [(i, tuple(range(i))) for i in range(1, 5)]
    with torch.no_grad():
        sites[-1].gate.fill_(0.5)
    assert not torch.equal(attentive.evidence(x, torch.Generator().manual_seed(1)).log_px, first.log_px)


def test_a_single_layer_needs_no_attention() -> None:
    model = VeryDeepVAE((1, 4, 4), 4, VeryDeepVAEConfig("4", "4", 8, depth_attention=ContextAttentionOptions(2)))
    assert not list(model.depth_attentions())
    assert model.evidence(torch.randint(4, (2, 1, 4, 4))).log_px.shape == (2,)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    model, x = shaken(small()).double().train(), torch.randint(256, (2, 3, 8, 8))
    gradients = []
    for recompute in (False, True):
        for block in model.blocks():
            block.recompute = recompute  # type: ignore[assignment]
        torch.manual_seed(1)
        (loss,) = torch.autograd.grad(-model.evidence(x).log_px.sum(), [model.stem.weight])
        gradients.append(loss)
    assert torch.equal(*gradients)


def test_thirty_steps_of_the_mnist_recipe_train() -> None:
    """On images that need no files: bars, half of which are drawn."""
    recipe = recipes.load("very_deep_vae_mnist", ["--model.width=8", "--model.latent_channels=2"])
    assert recipe.training is not None
    torch.manual_seed(0)
    model = recipes.build(recipe, (1, 28, 28), 2).train()
    x = torch.zeros(16, 1, 28, 28, dtype=torch.int64)
    for i in range(16):
        x[i, :, :, i : i + 6] = 1
    optimizer, losses = make_optimizer(model, recipe.training.optimizer, recipe.training.learning_rate), []
    for _ in range(30):
        loss = objective(model(x), recipe.training.objective, 1.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    # 543 nats are log 2 a pixel, where it begins; blank images with the share of the bars would cost 408.
    assert losses[0] == pytest.approx(784 * math.log(2), rel=0.05)
    assert losses[-1] < 400


PUBLISHED = StepFilterConfig(clip_norm=200.0, skip_norm=400.0, skip_factor=0.0)


def test_the_published_rule_can_be_said() -> None:
    """Clip at one norm; skip above another, or if the loss is not finite; -1 there is 0 here."""
    step_filter = StepFilter(PUBLISHED)
    for loss, norm, update in ((1.0, 10.0, True), (1.0, 399.0, True), (1.0, 401.0, False), (math.nan, 1.0, False)):
        verdict = step_filter.judge(loss, norm)
        assert (verdict.update, verdict.limit if verdict.update else 200.0) == (update, 200.0)
    off = StepFilter(replace(PUBLISHED, skip_norm=0.0))
    assert all(off.judge(1.0, 10.0**i).update for i in range(30))


def test_a_stream_of_large_gradients_does_not_stall_it() -> None:
    """There, norms that stay above the threshold ended the training in silence."""
    step_filter = StepFilter(replace(PUBLISHED, skip_limit=10))
    verdicts = [step_filter.judge(1.0, 1000.0 + i) for i in range(110)]
    forced = [i for i, verdict in enumerate(verdicts) if verdict.update]
    assert forced == list(range(10, 110, 11))
    assert all(verdicts[i].reason == "forced" and verdicts[i].limit == 200.0 for i in forced)

"""Measuring: streams of numbers, toy models whose numbers are known by hand, and the rules of a measurement."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from davi import files
from davi.data import Images
from davi.data.protocol import digest
from davi.data.subsets import positions
from davi.distributions import Categorical, Distribution, Normal
from davi.errors import UserError
from davi.evaluation import LogMeanExp, evaluate, importance_bound, measuring
from davi.evaluation.activity import ACTIVE_UNITS, RunningCovariance, active_units
from davi.evidence import Evidence, Kind
from davi.layers import LikelihoodConfig
from davi.model import Choose, Hierarchy, LatentModel, Model, Temperature
from davi.models.attentive_vae import AttentiveVAE, AttentiveVAEConfig


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Thousands of operations on a handful of numbers each: a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Toy(Hierarchy):
    """Latent N(slope * x, 1) in the first layer, N(z_0, 1) in the second; uniform pixels whatever the latents."""

    num_layers = 2

    def __init__(self, slope: float = 0.0, levels: int = 3) -> None:
        super().__init__((1, 1, 2), levels, None)
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.part = nn.Dropout()
        self.encoded: list[int] = []
        self.modes: list[tuple[bool, bool]] = []

    def encode(self, x: Tensor) -> Tensor:
        self.check_images(x)
        self.encoded.append(len(x))
        self.modes.append((self.training, torch.is_grad_enabled()))
        return x.double() * self.slope  # [B, 1, 1, 2]

    def top_down(self, choose: Choose, context: Any = None) -> Distribution:
        standard = Normal(torch.zeros(1, 1, 1, 2).double(), torch.ones(1, 1, 1, 2).double())
        z = choose(0, standard, None if context is None else Normal(context, torch.ones_like(context)))
        below = choose(1, standard, None if context is None else Normal(z, torch.ones_like(z)))
        return Categorical(below.new_zeros(len(below), self.levels, *self.shape))


class Exact(Model):
    """Independent pixels: p(x) = prod_j share[x_j]. Its claim is log p itself."""

    def __init__(self, kind: Kind = Kind.EXACT) -> None:
        super().__init__((1, 1, 2), 3, None)
        self.share = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        self.kind = kind
        self.asked = 0

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        self.asked += 1
        log_p = self.share.log()[x.long()].flatten(1)  # [B, 2]
        return Evidence({"left": log_p[:, 0], "right": log_p[:, 1]}, self.kind)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        return torch.multinomial(self.share, 2 * n, replacement=True, generator=generator).view(n, *self.shape)


class Weighted(Exact):
    """One draw of a latent u ~ U(0, 1) with the weight 2 u p(x): unbiased, its mean log is log p(x) + ln 2 - 1."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[weakref.ref[Tensor]] = []
        self.most_alive = 0

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        log_p = super().evidence(x).log_px
        log_u = torch.rand(len(x), dtype=torch.float64, generator=generator).log()
        weight = log_p + math.log(2.0) + log_u
        self.alive = [kept for kept in self.alive if kept() is not None]
        self.alive.append(weakref.ref(weight))
        self.most_alive = max(self.most_alive, len(self.alive))
        return Evidence({"log_p": log_p, "latent": math.log(2.0) + log_u}, Kind.LOWER_BOUND, lambda: weight)


class Single(LatentModel):
    """A latent model that is no hierarchy; its posterior means are ``latents``."""

    def __init__(self) -> None:
        super().__init__((1, 1, 2), 3, None)

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        return Evidence({"reconstruction": torch.full((len(x),), -2.0)}, Kind.LOWER_BOUND)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        return torch.zeros(n, *self.shape, dtype=torch.long)

    def latents(self, x: Tensor, sample: bool = False, generator: Generator | None = None) -> list[Tensor]:
        return [x * torch.tensor([1.0, 0.0])]

    def decode(self, latents: Sequence[Tensor]) -> Distribution:
        return Categorical(torch.zeros(len(latents[0]), 3, *self.shape))


def images(n: int = 6, levels: int = 3) -> Images:
    """Both pixels run through 0, 1, 2, 0, 1, 2, ...: their variance over three images is 1."""
    values = torch.arange(n).remainder(3).clamp_max(levels - 1).to(torch.uint8)
    return Images(values.view(n, 1, 1, 1).repeat(1, 1, 1, 2), levels, "toy/test")


def bumpy_vae() -> AttentiveVAE:
    torch.manual_seed(0)
    config = AttentiveVAEConfig(layers=(2,), width=4, latent_channels=2, likelihood=LikelihoodConfig("categorical"))
    model = AttentiveVAE((1, 2, 2), 3, config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 1, 6]])
def test_log_mean_exp_in_any_chunks(sizes: list[int]) -> None:
    values = 300.0 * torch.randn(12, 5, dtype=torch.float64)
    values[:, 0] = -1e6  # exp underflows
    values[:, 1] += 1e6  # exp overflows
    values[:7, 2] = -torch.inf  # weights of zero, first of all
    values[:, 3] = -torch.inf  # nothing but them
    stream = LogMeanExp()
    for part in values.split(sizes):
        stream.add(part)
    expected = torch.logsumexp(values, 0) - math.log(12)
    assert float(expected[3]) == -math.inf
    torch.testing.assert_close(stream.result(), expected, rtol=1e-14, atol=1e-12)  # float64 rounding of numbers to 1e6


def test_log_mean_exp_is_in_float64() -> None:
    """A million float32 values of 0 and one of ln 2: in float32 the sum would lose the last one's share of the mean."""
    stream = LogMeanExp()
    stream.add(torch.zeros(2**20, 1))
    stream.add(torch.full((1, 1), math.log(2.0)))
    expected = math.log1p(1.0 / (2**20 + 1))  # (2^20 + 2) / (2^20 + 1)
    assert float(stream.result()) == pytest.approx(expected, rel=1e-7, abs=0)  # ln 2 was given in float32


def test_streams_need_values() -> None:
    with pytest.raises(ValueError, match="log-mean-exp: got no values, expected at least one"):
        LogMeanExp().result()
    covariance = RunningCovariance()
    covariance.add(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="covariance: got 1 values, expected at least 2"):
        covariance.covariance()


def test_terms_of_a_toy_by_hand() -> None:
    """Uniform pixels: reconstruction = -2 ln 3. KL(N(m, 1) || N(0, 1)) = m^2 / 2, first layer m = 0.5 x."""
    result = evaluate(Toy(0.5), images(), samples=4, batch_size=4)
    assert result.reconstruction is not None
    assert result.reconstruction.tolist() == pytest.approx([-2 * math.log(3.0)] * 6, rel=1e-6)
    assert result.kl.shape == (6, 2)
    assert result.kl[:, 0].tolist() == pytest.approx([0.0, 0.25, 1.0, 0.0, 0.25, 1.0], abs=1e-12)
    assert result.elbo.tolist() == pytest.approx((result.reconstruction - result.kl.sum(1)).tolist(), abs=1e-12)
    assert result.kind is Kind.LOWER_BOUND
    assert (result.elbo.dtype, result.bound.dtype) == (np.float64, np.float64)
    assert (len(result), result.dims, result.precision, result.device) == (6, 2, "float64", "cpu")


def test_kl_is_averaged_over_the_draws() -> None:
    """Second layer: m = z_0 ~ N(0, 1) for slope 0, so its KL is z^2 / 2 over two units: mean 1, variance 1."""
    result = evaluate(Toy(), images(300), samples=100, batch_size=300)
    mean = result.kl[:, 1].mean()
    assert abs(mean - 1.0) < 4 / math.sqrt(300 * 100)
    assert result.kl[:, 1].std() < 0.15  # 1 / sqrt(100) = 0.1 with the average over draws, 1 without


def test_one_sample_is_the_elbo() -> None:
    result = evaluate(Toy(0.5), images(), samples=1)
    assert result.bound.tolist() == result.elbo.tolist()


def test_bound_is_that_of_importance_bound() -> None:
    model, some = bumpy_vae(), Images(torch.randint(3, (10, 1, 2, 2), dtype=torch.uint8), 3, "toy/test")
    result = evaluate(model, some, samples=6, batch_size=10, seed=5)
    bound = importance_bound(model, some.pixels, 6, Generator().manual_seed(5))
    assert result.bound.tolist() == bound.tolist()
    assert (result.bound > result.elbo).mean() > 0.5  # not a theorem for each image, but far from a coin's throw


def test_a_small_batch_is_repeated() -> None:
    """Twelve draws of two images with room for eight: four copies at once, one bottom-up pass."""
    model = Toy(0.5)
    bound = importance_bound(model, images(2).pixels, 12, Generator().manual_seed(0), chunk=9)
    assert model.encoded == [2]
    assert bound.shape == (2,)
    # The same draws one after the other: the noise of the copies is drawn per layer, so only the distribution is equal.
    x = images(3).pixels[1:2].repeat(2000, 1, 1, 1)
    apart = importance_bound(model, x, 4, Generator().manual_seed(1))
    together = torch.cat([importance_bound(model, x[:10], 4, Generator().manual_seed(i), 40) for i in range(2, 202)])
    error = math.sqrt(float(apart.var() + together.var()) / 2000)
    assert abs(float(apart.mean() - together.mean())) < 4 * error < 0.2


def test_copies_belong_to_their_images() -> None:
    """Images of different probability in one batch: mixed-up copies would give them one another's weights."""
    model, x = bumpy_vae(), torch.tensor([[0, 0, 0, 0], [2, 2, 2, 2], [0, 1, 2, 0]]).view(3, 1, 2, 2)
    together = importance_bound(model, x, 2000, Generator().manual_seed(0), chunk=1500)
    apart = torch.cat([importance_bound(model, x[i : i + 1], 2000, Generator().manual_seed(i), 500) for i in range(3)])
    noise = float((together - apart).abs().max())
    assert float(apart.sort().values.diff().min()) > 5 * noise  # the images differ by far more than two estimates


def test_bound_of_a_model_that_is_no_hierarchy() -> None:
    x = torch.tensor([[0, 0], [2, 2], [0, 2]]).view(3, 1, 1, 2)
    bound = importance_bound(Weighted(), x, 4000, Generator().manual_seed(0))
    log_p = Exact().evidence(x).log_px
    assert (bound - log_p).abs().max() < 4 / math.sqrt(3 * 4000)  # the weight 2 u has mean 1 and variance 1/3


def test_memory_does_not_depend_on_k() -> None:
    model = Weighted()
    importance_bound(model, images().pixels, 50, Generator().manual_seed(0))
    assert model.asked == 50
    assert model.most_alive <= 2  # the last draw and, for a moment, the one before


def test_encoder_runs_once_for_all_draws() -> None:
    model = Toy()
    importance_bound(model, images(6).pixels, 25)
    assert model.encoded == [6]


def test_an_exact_claim_needs_one_pass() -> None:
    model, some = Exact(), images()
    seen: list[tuple[int, int]] = []
    result = evaluate(model, some, samples=7, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    expected = [2 * math.log(share) for share in (0.5, 0.3, 0.2)] * 2
    assert result.elbo.tolist() == pytest.approx(expected, abs=1e-14)
    assert result.bound.tolist() == pytest.approx(expected, abs=1e-14)
    assert (result.kind, result.measures, result.reconstruction) == (Kind.EXACT, (), None)
    assert result.kl.shape == (6, 0)
    assert model.asked == 2  # one per batch
    assert seen[-1] == (42, 42)
    assert importance_bound(model, some.pixels, 3).tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("kind", [Kind.LOWER_BOUND, Kind.ESTIMATE])
def test_a_model_without_weights_has_no_importance_bound(kind: Kind) -> None:
    model = Exact(kind)
    assert evaluate(model, images(), samples=1).kind is kind
    for measure in (lambda: evaluate(model, images(), samples=2), lambda: importance_bound(model, images().pixels, 2)):
        with pytest.raises(UserError, match="samples: got 2, expected 1: Exact has no importance weights"):
            measure()


@pytest.mark.parametrize(("slope", "active"), [(0.0, 0), (0.0999, 0), (0.1001, 2), (-0.101, 2), (3.0, 2)])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_active_units(slope: float, active: int, batch_size: int) -> None:
    """Three images of variance 1: active iff slope^2 > 0.01. The second layer's mean is a draw of the first, whose
    noise does not count: its mean over all draws is slope x as well."""
    result = evaluate(Toy(slope), images(3), batch_size=batch_size)
    assert result.measure(ACTIVE_UNITS) == active_units((active, active), (2, 2), images=3, draws=16)


def test_active_units_of_a_model_that_is_no_hierarchy() -> None:
    assert evaluate(Single(), images()).measures == (active_units((1,), (2,), images=6, draws=1),)


def test_one_image_has_no_variance() -> None:
    assert evaluate(Toy(1.0), images(1)).measure(ACTIVE_UNITS) is None


def test_modes_are_restored() -> None:
    model = Toy().train()
    model.part.eval()
    evaluate(model, images(), samples=2)
    importance_bound(model, images().pixels, 2)
    assert set(model.modes) == {(False, False)}  # eval mode and no gradients inside
    assert (model.training, model.part.training) == (True, False)
    with pytest.raises(KeyError), measuring(model):
        raise KeyError
    assert (model.training, model.part.training) == (True, False)


def test_the_result_can_be_used_in_autograd() -> None:
    bound = importance_bound(Toy(), images().pixels, 2)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (bound * scale).sum().backward()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(float(bound.sum()))


def test_a_seed_fixes_everything_and_the_global_state_stays() -> None:
    model, some = bumpy_vae(), Images(torch.randint(3, (10, 1, 2, 2), dtype=torch.uint8), 3, "toy/test")
    state = torch.get_rng_state()
    first, again, other = (evaluate(model, some, samples=3, batch_size=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("elbo", "bound", "kl"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_limit_takes_images_from_all_over_the_set() -> None:
    model, some = bumpy_vae(), Images(torch.randint(3, (10, 1, 2, 2), dtype=torch.uint8), 3, "toy/test")
    chosen = positions(10, 4)
    assert chosen[-1] >= 7
    apart = evaluate(model, some.subset(chosen), samples=2, batch_size=2)
    part = evaluate(model, some, samples=2, batch_size=2, limit=4)
    assert part.elbo.tolist() == apart.elbo.tolist()
    assert part.bound.tolist() == apart.bound.tolist()
    assert part.images_sha256 == apart.images_sha256 == digest(some.subset(chosen))
    assert (len(part), part.limit, part.available) == (4, 4, 10)
    assert part.subset == "4 of 10 images, spread evenly, seed 0"
    assert evaluate(model, some, seed=3, limit=4).images_sha256 == part.images_sha256  # whatever the draws
    whole = evaluate(model, some, limit=11)
    assert (len(whole), whole.subset, whole.images_sha256) == (10, None, digest(some))


def test_the_files_of_patches_and_the_weights_are_kept() -> None:
    model, groups = bumpy_vae(), torch.tensor([0, 0, 3, 3, 3, 9])
    some = Images(torch.randint(3, (6, 1, 2, 2), dtype=torch.uint8), 3, "toy/test", groups=groups)
    found = evaluate(model, some, limit=4)
    assert found.groups is not None
    assert found.groups.tolist() == groups[positions(6, 4)].tolist()
    assert evaluate(Toy(), images()).groups is None
    assert found.weights_sha256 == files.digest(model.state_dict())
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert evaluate(model, some).weights_sha256 != found.weights_sha256


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(Toy(), images(), samples=3, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    # A batch of four, three times; then two images, of which one copy alone divides K = 3.
    assert seen == [(4, 18), (8, 18), (12, 18), (14, 18), (16, 18), (18, 18)]


@pytest.mark.parametrize("option", ["samples", "batch_size", "limit"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_options_are_checked(option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(UserError, match=rf"^{option}: got {value}, expected a whole number from 1$"):
        evaluate(Toy(), images(), **options)


@pytest.mark.parametrize(("shape", "levels"), [((1, 1, 2), 4), ((1, 2, 1), 3)])
def test_foreign_images_are_refused(shape: tuple[int, int, int], levels: int) -> None:
    some = Images(torch.zeros(2, *shape, dtype=torch.uint8), levels, "other/test")
    line = (
        rf"other/test: got images \[C, H, W\] = \[{', '.join(map(str, shape))}\] with {levels} levels, expected \[1, "
    )
    with pytest.raises(UserError, match=line):
        evaluate(Toy(), some)


def test_damaged_weights_are_named() -> None:
    with pytest.raises(UserError, match=r"^toy/test: image 0 has the ELBO nan \(6 of 6 images\), expected finite"):
        evaluate(Toy(math.nan), images(), samples=2)

"""What lies between the ELBO and log p(x): bounds for every K from the same draws, and optimized posteriors."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import seeded, shaken, some_images
from test_bounds import FOUR_STATE, JOINT
from torch import Tensor
from toys.belief_net import BeliefNet, BeliefNetConfig
from toys.linear_gaussian import BEST_MEAN_FIELD, LOG_PX, LinearGaussian, observed

import davi
from davi import gaps, records
from davi.cli import main
from davi.data import Images
from davi.distributions import Codes, Distribution, Latent, Normal
from davi.errors import UserError
from davi.evaluation import importance_bound, optimized
from davi.evaluation.curve import BoundCurve, sizes
from davi.evaluation.gap import Gap, measure_gap
from davi.evaluation.gap_result import GapResult
from davi.evaluation.optimized import STARTS, FreePosterior, fit, optimize, walk, why_not
from davi.evidence import Kind
from davi.model import Choose, Hierarchy, Model

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("samples", [3, 4, 6])
def test_the_curve_of_four_states_by_enumeration(samples: int, chunk: int) -> None:
    """Over all sequences of draws, which are equally probable, the mean of the estimates is the bound: no bias."""
    log_w = [math.log(4.0 * p) for p in JOINT]
    sequences = torch.tensor(list(itertools.product(log_w, repeat=samples)), dtype=torch.float64).T
    curve = BoundCurve(samples)
    for part in sequences.split(chunk):
        curve.add(part)
    found = dict(zip(curve.sizes, curve.result().mean(1).tolist(), strict=True))
    assert found == pytest.approx({k: FOUR_STATE[k] for k in sizes(samples)}, abs=1e-10)


@pytest.mark.parametrize("samples", [2, 7, 8, 13])
def test_the_curve_is_made_of_groups_that_do_not_overlap(samples: int) -> None:
    log_w = torch.randn(samples, 3, generator=seeded(), dtype=torch.float64)
    curve = BoundCurve(samples)
    for part in log_w.split([1, samples - 1]):
        curve.add(part)
    for k, groups, estimate in zip(curve.sizes, curve.groups(), curve.result(), strict=True):
        assert groups == samples // k
        whole = log_w[: groups * k].unflatten(0, (groups, k))
        torch.testing.assert_close(estimate, (whole.logsumexp(1) - math.log(k)).mean(0), rtol=0, atol=1e-12)
    doubling = curve.result()[: (8 if samples == 8 else 4).bit_length()]
    if samples in (2, 8):  # where all groups are whole, the estimate never falls
        assert bool((doubling.diff(dim=0) >= 0).all())


def test_too_few_draws_are_no_curve() -> None:
    curve = BoundCurve(4)
    curve.add(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="got fewer than 4, expected 4 of each image"):
        curve.result()


def mean_field_bound(model: Hierarchy, x: Tensor, posterior: FreePosterior) -> Tensor:
    """The ELBO, exactly: the mean over q of a quadratic function is its mean over mean +- sqrt(2) scale e_i."""
    r, values = math.sqrt(2.0), []
    for shift in ((r, 0.0), (-r, 0.0), (0.0, r), (0.0, -r)):
        left = iter(shift)

        def draw(q: Latent, left: Any = left) -> Tensor:
            assert isinstance(q, Normal)
            return q.mean + next(left) * q.scale

        values.append(walk(model, model.encode(x), x, posterior, draw).log_weight())
    return torch.stack(values).mean(0)


@pytest.mark.parametrize("start", STARTS[1:], ids=lambda start: start.name)
def test_linear_gaussian_posteriors_reach_the_best_of_their_family(start: optimized.Start) -> None:
    """From q = the prior, 11.7 nats below: each image by itself, and its gap to log p(x) is that of the family."""
    model, x = LinearGaussian("prior"), observed(3)
    posterior = FreePosterior(3, start, seeded())
    fit(model, model.encode(x), x, posterior, 500, seeded())
    found = mean_field_bound(model, x, posterior)
    near = 2e-3 if start.perturbed else 1e-4  # the former begins tens of nats below and has gone further
    assert found.tolist() == pytest.approx([BEST_MEAN_FIELD] * 3, abs=near)
    assert bool((found <= BEST_MEAN_FIELD + 1e-9).all())
    assert (LOG_PX - found).tolist() == pytest.approx([6.7889e-4] * 3, abs=near)


def test_the_value_is_measured_by_draws_of_its_own() -> None:
    model, x = LinearGaussian("prior"), observed(2)
    shares: list[float] = []
    found = optimize(model, x, 300, 4000, seeded(), 1000, shares.append)
    # The log weights have a standard deviation of 0.04 at the optimum.
    assert found.elbo.tolist() == pytest.approx([BEST_MEAN_FIELD] * 2, abs=3e-3)
    assert set(found.chosen.tolist()) <= {1, 2, 3}
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_encoders_posterior_stays_where_nothing_is_better() -> None:
    """One step from the best mean-field posterior only adds noise."""
    found = optimize(LinearGaussian("best"), observed(2), 1, 4000, seeded(), 1000, lambda share: None)
    assert found.chosen.tolist() == [0, 0]


def digits(name: str, n: int = 3) -> tuple[Model, Images]:
    model = shaken(name)
    assert isinstance(model, Model)
    return model, Images(some_images(model, n, torch.uint8), model.levels, "made up")


def measured(name: str, n: int = 3, **options: Any) -> tuple[Model, Images, Gap]:
    """With a batch size at which the draws that judge the starts, 200 of each image, take one pass."""
    model, images = digits(name, n)
    chosen = {"samples": 12, "steps": 40, "batch_size": 600, "seed": 3, **options}
    return model, images, measure_gap(model, images, **chosen)


def test_the_curve_ends_where_the_importance_bound_is() -> None:
    """Layers inferred on the way up; draws of one generator, image by image the same numbers."""
    model, images, found = measured("vae_digits_tiny", steps=1, batch_size=3)
    last = importance_bound(model, images.pixels, 12, seeded(3))
    assert found.sizes == (1, 2, 4, 8, 12)
    np.testing.assert_allclose(found.curve[-1], last.numpy(), rtol=0, atol=1e-9)
    generator = seeded(3)
    first = torch.stack([importance_bound(model, images.pixels, 1, generator) for _ in range(12)]).mean(0)
    np.testing.assert_allclose(found.curve[0], first.numpy(), rtol=0, atol=1e-9)


NAMES = ("vae_digits_tiny", "attentive_digits_tiny", "iaf_vae_digits_tiny", "biva_digits_tiny", "nvae_digits_tiny")


@pytest.mark.parametrize("name", NAMES)
def test_a_measurement_changes_nothing_and_can_be_repeated(name: str) -> None:
    model, images = digits(name)
    model.train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    default = torch.get_rng_state()
    found, again = (measure_gap(model, images, 12, 3, batch_size=600, seed=1) for _ in range(2))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), default)
    assert found.optimized is not None
    assert again.optimized is not None
    assert found.optimized.elbo.tolist() == again.optimized.elbo.tolist()
    assert found.curve.tolist() == again.curve.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_optimized_posteriors_are_better(name: str) -> None:
    """The encoders are not trained, so there is much to win: nats, of means that err by tenths."""
    _, _, found = measured(name, 2, samples=60, steps=12)
    assert found.amortization is not None
    assert found.family is not None
    assert bool((found.amortization > 0).all())
    np.testing.assert_allclose(found.amortization + found.family, found.curve[-1] - found.curve[0], atol=1e-9)


def test_flows_have_a_free_context_for_each_image() -> None:
    model, images = digits("iaf_vae_digits_tiny")
    assert isinstance(model, Hierarchy)
    posterior = FreePosterior(3, STARTS[1])
    x = images.pixels
    walk(model, model.encode(x), x, posterior, lambda q: q.sample())
    free = posterior.parameters()
    assert len(free) == 3 * model.num_layers
    assert all(len(tensor) == 3 for tensor in free)
    fit(model.eval(), model.encode(x), x, posterior, 3, seeded())
    assert all(bool(tensor.any()) for tensor in posterior.parameters())


class Coded(Hierarchy):
    """A latent code whose posterior is uniform."""

    num_layers = 1

    def __init__(self) -> None:
        super().__init__((1, 2, 2), 2, None)
        self.net = BeliefNet((1, 2, 2), 2, BeliefNetConfig())

    def encode(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 3, 1, 1, 1)

    def top_down(self, choose: Choose, context: Any = None) -> Distribution:
        z = choose(0, Codes(torch.zeros(1, 3, 1, 1, 1)), None if context is None else Codes(context))
        return self.net.conditionals(z.new_zeros(len(z), 1, 2, 2))


def test_other_posteriors_have_a_curve_and_a_reason() -> None:
    model = Coded()
    images = Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), 2, "made up")
    assert why_not(model, images.pixels) == "the posterior of layer 0 is a Codes, expected a Normal or a flow of one"
    found = measure_gap(model, images, 4)
    assert found.optimized is None
    assert found.amortization is None
    assert found.why_not == why_not(model, images.pixels)
    np.testing.assert_allclose(found.curve, np.broadcast_to(found.curve[0], found.curve.shape), atol=1e-6)


def test_a_constant_rate_is_not_given_up() -> None:
    """Its posterior may be a Normal, but one with free parameters would be of a larger family."""
    model = davi.build("vae_2d_digits", "model.constant_rate.name=fixed_normal")
    assert isinstance(model, Hierarchy)
    found = why_not(model, torch.zeros(1, *model.shape, dtype=torch.uint8))
    assert found == "the posterior of layer 0 has a constant rate, which a Normal with free parameters would leave"


def test_models_without_weights_are_refused() -> None:
    model = BeliefNet((1, 2, 2), 2, BeliefNetConfig())
    images = Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), 2, "made up")
    message = "gap: got BeliefNet, whose claim is exact without importance weights; expected a model with latents"
    with pytest.raises(UserError, match=message):
        measure_gap(model, images)


@pytest.mark.parametrize(("option", "value", "least"), [("samples", 1, 2), ("steps", 0, 1), ("limit", 0, 1)])
def test_options_out_of_range(option: str, value: int, least: int) -> None:
    model, images = digits("vae_digits_tiny")
    with pytest.raises(UserError, match=f"{option}: got {value}, expected a whole number from {least}"):
        measure_gap(model, images, **{"samples": 4, "steps": 1, option: value})


def test_progress_ends_at_the_whole() -> None:
    told: list[tuple[int, int]] = []
    measured("vae_digits_tiny", steps=2, progress=lambda done, total: told.append((done, total)))
    done = [first for first, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]


def say(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gap") / "run"
    assert say("train", "vae_digits_tiny", "--run", folder, "--steps", 1) == 0
    assert say("evaluate", folder, *SMALL) == 0
    return folder


SMALL = ("--gap", "--gap-images", 5, "--gap-steps", 2, "--gap-samples", 6)


def test_the_file_is_read_back(run: Path, tmp_path: Path) -> None:
    found = gaps.read(run)
    assert [point.samples for point in found.curve] == [1, 2, 4, 6]
    assert [point.groups for point in found.curve] == [6, 3, 1, 1]
    assert found.kind is Kind.LOWER_BOUND
    parts = found.parts
    assert parts is not None
    assert (parts.amortization.kind, parts.family.kind) == (Kind.LOWER_BOUND, Kind.ESTIMATE)
    assert parts.total.nats.mean == pytest.approx(found.curve[0].below.nats.mean, rel=1e-9)
    assert sum(start.images for start in parts.starts) == found.protocol.images == 5
    assert gaps.write(tmp_path, found) == tmp_path / "gap.json"
    assert gaps.read(tmp_path) == found
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format: got 2, expected 1"),
        ({"curve": []}, r"curve: got K = \[\], expected at least two in rising order"),
        ({"kind": "MAYBE"}, "kind: got 'MAYBE', expected one of EXACT, LOWER_BOUND, ESTIMATE"),
        ({"protocol": None}, "protocol: got nothing, expected a mapping"),
    ],
)
def test_a_damaged_file_is_told(run: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = json.loads((run / "gap.json").read_text())
    (tmp_path / "gap.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=message):
        gaps.read(tmp_path)


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: found no gap.json; davi evaluate {tmp_path} --gap writes it"):
        gaps.read(tmp_path)


def test_the_program_prints_json_and_the_same_numbers(run: Path, capsys: Capture) -> None:
    before = gaps.read(run)
    assert say("evaluate", run, *SMALL, "--json") == 0
    found = records.read(GapResult, json.loads(capsys.readouterr().out), "printed")
    assert (found.curve, found.parts) == (before.curve, before.parts)


def test_the_table(run: Path) -> None:
    text = gaps.to_terminal(gaps.read(run))
    assert max(map(len, text.splitlines())) <= 80
    for words in ("ELBO, which is L_1", "L_6", "amortization gap", "family gap", "both: L_6 - ELBO", "best start"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gap-images", 3), "--gap-images: got 3 without --gap, expected --gap beside --gap-images"),
        (("--gap", "--limit", 3), "--limit: got 3 with --gap, expected --gap-images"),
        (("--gap", "--importance-samples", 9), "--importance-samples: got 9 with --gap, expected --gap-samples"),
        (("--gap", "--gap-samples", 1), "--gap-samples: got '1', expected a whole number from 2"),
    ],
)
def test_options_that_do_not_go_together(run: Path, words: tuple[object, ...], message: str, capsys: Capture) -> None:
    assert say("evaluate", run, *words) == 2
    assert capsys.readouterr().err.strip() == f"davi: {message}"


def test_in_python_and_on_the_page(run: Path, tmp_path: Path) -> None:
    found = davi.Run(run).gap(gap_images=4, gap_steps=1, gap_samples=4, seed=2)
    assert found.protocol.seed == 2
    assert say("inspect", run, "--limit", 4, "--no-figures", "--out", tmp_path / "with.html") == 0
    assert "How the gap divides" in (tmp_path / "with.html").read_text()
    kept = (run / "gap.json").read_bytes()
    sentences = {b"{": "Left out: gap.json cannot be read;", None: "Not measured: davi evaluate"}
    for content, sentence in sentences.items():
        (run / "gap.json").unlink() if content is None else (run / "gap.json").write_bytes(content)
        assert say("inspect", run, "--limit", 4, "--no-figures", "--out", tmp_path / "without.html") == 0
        assert sentence in (tmp_path / "without.html").read_text()
    (run / "gap.json").write_bytes(kept)
    other = kept.replace(found.protocol.model.weights_sha256.encode(), b"0" * 64)  # type: ignore[union-attr]
    (run / "gap.json").write_bytes(other)
    assert say("inspect", run, "--limit", 4, "--no-figures", "--out", tmp_path / "without.html") == 0
    assert "gap.json is of other weights than the run holds now" in (tmp_path / "without.html").read_text()
    (run / "gap.json").write_bytes(kept)

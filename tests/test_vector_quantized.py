"""The objective of vector quantization: its value and gradients, its state over parts and steps, what it reports."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny import RECIPE, sets
from torch import Tensor

from davi.batch import Batch
from davi.config import parse
from davi.errors import UserError
from davi.layers.quantizer import (
    Codebook,
    FiniteScalarConfig,
    QuantizerConfig,
    ResidualQuantizerConfig,
    VectorQuantizerConfig,
    perplexity,
)
from davi.metrics import read_metrics
from davi.model import CodeAutoencoder
from davi.models.vq_vae import VQVAEAutoencoder, VQVAEConfig
from davi.models.vq_vae2 import VQVAE2Autoencoder, VQVAE2Config
from davi.objectives import EvidenceConfig, Outcome, Progress, VectorQuantizedConfig, VectorQuantizedObjective
from davi.training import TrainingConfig, train
from davi.training.prepare import check_fit
from davi.training.sections import CheckpointConfig, ScheduleConfig
from davi.training.step_filter import StepFilter, Verdict

AT = Progress(0, 0, 0.0)
SPARSE = VectorQuantizerConfig(codes=8, dims=3, initialize="normal")


def autoencoder(quantizer: QuantizerConfig = SPARSE) -> VQVAEAutoencoder:
    """Of images [1, 4, 4], with 2 x 2 codes; initial weights are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = VQVAEConfig(width=4, residual_width=2, blocks=1, halvings=1, quantizer=quantizer)
        return VQVAEAutoencoder((1, 4, 4), 2, config)


def images(n: int = 6) -> Tensor:
    return torch.randint(2, (n, 1, 4, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def begun(model: CodeAutoencoder, commitment: float = 0.25, revive_below: float = 0.0) -> VectorQuantizedObjective:
    """For batches of six."""
    objective = VectorQuantizedObjective(VectorQuantizedConfig(commitment=commitment, revive_below=revive_below))
    objective.begin(model, 6)
    return objective


def outcome(batches_per_epoch: int = 10) -> Outcome:
    return Outcome(0.0, batches_per_epoch, lambda: iter(()))


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_value_and_gradients(update: str) -> None:
    model = autoencoder(VectorQuantizerConfig(codes=8, dims=3, initialize="normal", update=update))  # type: ignore[arg-type]  # one of the two
    model.double()
    x, quantizer = images(), model.quantizer(0)
    assert isinstance(quantizer, Codebook)
    loss = begun(model, commitment=0.7).loss(model, model, Batch(x), AT)
    evidence = model(x)
    (assigned,) = evidence.assigned
    squares = (assigned.features - assigned.embedded).square().sum((1, 2, 3))
    weight = 0.7 + (update == "gradient")
    torch.testing.assert_close(loss.value, (-evidence.log_px + weight * squares).mean(), rtol=1e-12, atol=0.0)
    assert torch.allclose(-evidence.terms["kl/00"], torch.full((6,), 4 * math.log(8), dtype=torch.float64))
    assert dict(loss.terms).keys() == evidence.terms.keys()
    loss.value.backward()
    if update == "gradient":
        rows, codes = assigned.features.detach().permute(0, 2, 3, 1).reshape(-1, 3), assigned.codes.flatten()
        for code in range(8):
            own = rows[codes == code]
            expected = 2.0 * (len(own) * quantizer.vectors[0, code] - own.sum(0)) / 6
            assert quantizer.vectors.grad is not None
            assert torch.allclose(quantizer.vectors.grad[0, code], expected, atol=1e-12)
    found = {name: weight.grad for name, weight in model.named_parameters() if name != "quantizers.0.vectors"}
    model.zero_grad()
    (-evidence.log_px.mean() + 0.7 * (assigned.features - assigned.embedded.detach()).square().sum() / 6).backward()
    for name, gradient in found.items():  # the vectors' own term gives the encoder nothing
        assert gradient is not None, name
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-10, atol=1e-12, msg=name)


def test_parts_of_a_batch_add_up() -> None:
    whole, cut = (begun(autoencoder(), revive_below=0.1) for _ in range(2))
    model, x = autoencoder(), images()
    whole.loss(model, model, Batch(x), AT)
    for part in Batch(x).parts(4):
        cut.loss(model, model, part, AT)
    expected = whole.state()
    for name, tensor in cut.state().items():
        if not name.endswith("candidates"):  # they are drawn anew for each part
            assert torch.allclose(tensor.double(), expected[name].double(), atol=1e-12), name
    for objective, other in ((whole, model), (cut, autoencoder())):
        objective.end_step(other, AT, outcome())
        assert not objective.state()["00/hits"].any()
        assert not objective.state()["00/usage"].any()


def test_validation_moves_nothing() -> None:
    model = autoencoder().eval()
    objective = begun(model, revive_below=0.5)
    before = {name: tensor.clone() for name, tensor in (model.state_dict() | objective.state()).items()}
    loss = objective.validate(model, Batch(images()), torch.Generator())
    assert torch.equal(loss.value, -model.evidence(images()).log_px.mean())
    assert all(torch.equal(tensor, before[name]) for name, tensor in (model.state_dict() | objective.state()).items())


def test_a_whole_pass_is_reported() -> None:
    """Steps of a pass add up; the next pass is reported when it has ended."""
    model = autoencoder(FiniteScalarConfig(levels=(3, 3)))
    objective, x = begun(model), images(12)
    counts = []
    for step, own in enumerate(x.split(6) + x[:6].split(6)):
        objective.loss(model, model, Batch(own), AT)
        codes = model.codes(own)[0].flatten()
        counts.append(codes.bincount(minlength=9))
        before = model.quantizer(0).frequencies.clone()
        objective.end_step(model, Progress(step, step // 2, 0.0), outcome(batches_per_epoch=2))
        expected = 0.99 * before + 0.01 * counts[-1] / 24
        assert torch.allclose(model.quantizer(0).frequencies, expected, atol=1e-7)
        seen = counts[0] if step == 0 else counts[0] + counts[1]
        told = objective.reports(model, AT)
        assert told["code_perplexity/00"] == pytest.approx(float(perplexity(seen)))
        assert told["code_usage/00"] == pytest.approx(int((seen > 0).sum()) / 9)


def test_every_layer_has_a_state_and_a_report() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizerConfig(codes=4, dims=3, depth=2, initialize="normal")
    model = VQVAE2Autoencoder((1, 8, 8), 2, VQVAE2Config(width=4, residual_width=2, blocks=1, quantizer=quantizer))
    objective, x = begun(model), torch.randint(2, (6, 1, 8, 8), dtype=torch.uint8)
    loss = objective.loss(model, model, Batch(x), AT)
    objective.end_step(model, AT, outcome())
    assert loss.value.isfinite()
    layers = range(model.num_layers)
    assert len(layers) > 1
    names = {f"{name}/{layer:02d}" for layer in layers for name in ("code_perplexity", "code_usage")}
    assert objective.reports(model, AT).keys() == names
    again = begun(model)
    kept = {name: tensor.clone() for name, tensor in objective.state().items()}
    again.load_state(kept)
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in kept.items())
    assert all(
        bool(kept[f"{layer:02d}/current"].sum(1).eq(6 * math.prod(model.grids[layer])).all()) for layer in layers
    )


def config(**options: object) -> TrainingConfig:
    given = {"objective": VectorQuantizedConfig(), **options}
    return TrainingConfig(
        steps=4,
        batch_size=6,
        schedule=ScheduleConfig("constant"),
        validate_every=0,
        checkpoints=CheckpointConfig(minutes=0.0, steps=2),
        log_every=1,
        threads=1,
        **given,  # type: ignore[arg-type]  # by name
    )


def go(run: Path, model: VQVAEAutoencoder, **options: object) -> None:
    train(model, sets(), config(**options), run, RECIPE, print_fn=[].append)


def test_vectors_without_hits_stay_whatever_the_parts(tmp_path: Path) -> None:
    """A third of a number, three times, need not be the number: buffers that no part moves are left alone."""
    model = autoencoder(VectorQuantizerConfig(codes=32, dims=3, initialize="normal"))
    quantizer = model.quantizer(0)
    assert isinstance(quantizer, Codebook)
    before = quantizer.vectors.clone()
    go(tmp_path / "run", model, accumulate=3)
    records = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert 0.0 < records[-1]["code_usage/00"] < 0.9
    moved = (quantizer.vectors != before).any(2)
    assert int(moved.sum()) == round(32 * records[-1]["code_usage/00"])


def test_a_refused_step_leaves_vectors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = StepFilter.judge

    def refuse(self: StepFilter, loss: float, norm: float) -> Verdict:
        judge(self, loss, norm)
        return Verdict(False, "norm", math.inf, 0.0)

    monkeypatch.setattr(StepFilter, "judge", refuse)
    model = autoencoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    go(tmp_path / "run", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_vectors_begin_at_clusters_of_features(tmp_path: Path) -> None:
    model = autoencoder(VectorQuantizerConfig(codes=4, dims=3))
    quantizer = model.quantizer(0)
    assert isinstance(quantizer, Codebook)
    before = quantizer.vectors.clone()
    go(tmp_path / "run", model)
    assert (quantizer.vectors != before).any(2).all()
    assert [record["code_usage/00"] for record in read_metrics(tmp_path / "run") if record["kind"] == "train"][-1] == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"commitment": -1.0}, "commitment: got -1.0, expected a number >= 0"),
        ({"decay": 1.0}, "decay: got 1.0, expected from 0 to below 1"),
        ({"revive_below": 0.1, "debias": True}, "revive_below: got 0.1 with debias, expected 0"),
    ],
)
def test_options_that_cannot_be(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(VectorQuantizedConfig, values, "recipe")
    assert said in str(caught.value)


def test_vectors_that_nobody_would_move_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^objective: got evidence for vq_vae_autoencoder, whose vectors would not fo"):
        go(tmp_path / "run", autoencoder(), objective=EvidenceConfig())
    check_fit(autoencoder(FiniteScalarConfig(levels=(3, 3))), sets(), EvidenceConfig())  # nothing to move

"""One loop: what it computes, what it writes, what it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import RECIPE, Logistic, sets, vae
from torch import Tensor

from davi.data import Sampler
from davi.errors import UserError
from davi.files import read_tensors
from davi.metrics import read_metrics
from davi.model import Model
from davi.runs import checkpoint_folders, load_model
from davi.training import Interrupted, TrainingConfig, TrainingResult, checkpoint, train
from davi.training.sections import CheckpointConfig, ComputeConfig, ScheduleConfig, StepFilterConfig
from davi.training.validation import validate

QUIET: dict[str, Any] = {
    "batch_size": 8,
    "learning_rate": 0.02,
    "log_every": 4,
    "validate_every": 0,
    "checkpoints": CheckpointConfig(minutes=0.0),
}

CONSTANT = ScheduleConfig("constant")


def saved_every(steps: int) -> CheckpointConfig:
    return CheckpointConfig(minutes=0.0, steps=steps)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On networks this small several threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def go(model: Model, run: Path, data: Any = None, **options: Any) -> tuple[TrainingResult, list[str]]:
    lines: list[str] = []
    config = TrainingConfig(**{**QUIET, **options})
    return train(model, data or sets(), config, run, RECIPE, print_fn=lines.append), lines


def kind(run: Path, name: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run) if record["kind"] == name]


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    trained = vae()
    result, lines = go(trained, run, steps=12, validate_every=5)
    assert not any(module.training for module in trained.modules())
    assert (result.step, result.epoch, result.budget) == (12, 2, "steps")  # 5 batches of 8 in 40 images
    assert {p.name for p in run.iterdir()} == {"recipe.yaml", "metrics.jsonl", "checkpoints", "model.safetensors"}
    assert [r["step"] for r in kind(run, "train")] == [4, 8, 12]
    assert [r["step"] for r in kind(run, "validation")] == [5, 10, 12]
    record = kind(run, "train")[-1]
    assert record["nats"] == pytest.approx(-sum(record["terms"].values()), rel=1e-12)
    assert record["kl"] == pytest.approx(-record["terms"]["kl/00"] - record["terms"]["kl/01"], rel=1e-12)
    # 16 pixels: bits/dim = nats / (16 ln 2)
    assert record["bits_per_dim"] == pytest.approx(record["nats"] / 11.090354888959125, rel=1e-12)
    assert record["loss"] == pytest.approx(record["nats"], rel=1e-5)  # float32 sums in another order
    assert any("step 12/12" in line and "bits/dim" in line for line in lines)
    model, info = load_model(run)
    assert (info["step"], info["ema"], info["protocol"]["binarization"]) == (12, True, "dynamic")
    images = sets().validation
    assert images is not None
    again = validate(model, images, 8, seed=0)
    assert result.validation is not None
    assert again["nats"] == result.validation["nats"] == kind(run, "validation")[-1]["nats"]


def test_it_learns_what_there_is_to_learn(tmp_path: Path) -> None:
    data = sets(n=64, binarization="none", flip="none", size=2)
    data.train.pixels.fill_(3)  # every image is the same: log p can rise to 0
    result, _ = go(Logistic((1, 2, 2), 16), tmp_path / "run", data, steps=200, learning_rate=0.1, ema_decay=0.9)
    first, last = (kind(tmp_path / "run", "train")[i] for i in (0, -1))
    assert first["terms"]["reconstruction"] < -8.0  # near 4 ln(1/16) = -11.1 at the start
    assert last["terms"]["reconstruction"] > -1.0
    assert last["terms"]["kl/00"] > first["terms"]["kl/00"]
    assert result.step == 200


@pytest.mark.parametrize("clip_norm", [0.0, 1e-3])
def test_one_update_is_the_optimizers(tmp_path: Path, clip_norm: float) -> None:
    """The loop's arithmetic against a plain update written out here."""
    data = sets(binarization="none", flip="none", size=2)
    model, twin = (Logistic((1, 2, 2), 16).double() for _ in range(2))
    options = {"schedule": CONSTANT, "step_filter": StepFilterConfig(clip_norm=clip_norm)}
    go(model, tmp_path / "run", data, steps=1, ema_decay=0.0, **options)
    x = data.train.pixels[next(Sampler(40, 8, 0))]
    twin.evidence(x).log_px.mean().neg().backward()
    if clip_norm:
        assert float(torch.nn.utils.clip_grad_norm_(twin.parameters(), clip_norm)) > clip_norm
    torch.optim.Adamax(twin.parameters(), lr=0.02, eps=1e-3).step()
    torch.testing.assert_close(model.logits, twin.logits, rtol=1e-14, atol=0)
    torch.testing.assert_close(model.gate, twin.gate, rtol=1e-14, atol=0)
    tensors, _ = read_tensors(tmp_path / "run" / "model.safetensors")
    assert torch.equal(tensors["logits"], model.logits)


def test_accumulated_parts_equal_the_whole_batch(tmp_path: Path) -> None:
    data, weights, records = sets(binarization="none", size=2), [], []
    for parts in (1, 2, 4):
        model, run = Logistic((1, 2, 2), 16).double(), tmp_path / str(parts)
        go(model, run, data, steps=6, batch_size=16, accumulate=parts, step_filter=StepFilterConfig(clip_norm=0.5))
        weights.append(model.logits.detach())
        records.append(kind(run, "train")[-1]["loss"])
    # float64: sums of the same numbers in another order
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-12, atol=1e-14)
    assert records[1:] == pytest.approx([records[0]] * 2, rel=1e-6)  # the log's sums are float32


def test_parts_of_unequal_size_are_weighted(tmp_path: Path) -> None:
    data, weights = sets(n=7, binarization="none", size=2), []  # one batch is all 7 images, cut into 4 + 3
    for parts in (1, 2):
        model = Logistic((1, 2, 2), 16).double()
        go(model, tmp_path / str(parts), data, steps=5, accumulate=parts)
        weights.append(model.logits.detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-12, atol=1e-14)


def test_too_few_images_for_the_parts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="accumulate: got 4, expected at most 3"):
        go(Logistic((1, 2, 2), 16), tmp_path / "run", sets(n=3, binarization="none", size=2), steps=1, accumulate=4)


def test_annealing_weighs_the_divergence_only_in_the_loss(tmp_path: Path) -> None:
    objective = TrainingConfig(steps=1).objective.__class__(kl_start=0.5, kl_epochs=10)
    go(vae(), tmp_path / "run", steps=2, log_every=1, objective=objective)
    record = kind(tmp_path / "run", "train")[0]
    assert record["kl_weight"] == 0.5
    assert record["loss"] == pytest.approx(-record["terms"]["reconstruction"] + 0.5 * record["kl"], rel=1e-5)
    assert record["nats"] == pytest.approx(-record["terms"]["reconstruction"] + record["kl"], rel=1e-12)


# torch's compiler warns of its own use of torch.jit, and of tensors it looks at while tracing.
torchs_own_warnings = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.mark.parametrize(
    ("switch", "tolerance"),
    [
        # The same operations in another order: float32 rounding, amplified a little by six steps.
        (ComputeConfig(channels_last=True), 1e-4),
        (ComputeConfig(recompute=True), 1e-6),
        pytest.param(ComputeConfig(compile=True, compile_backend="aot_eager"), 1e-4, marks=torchs_own_warnings),
        # bfloat16 has 8 bits of mantissa; on a network this small 2 % of a nat or so remains of it.
        (ComputeConfig(precision="bfloat16"), 2e-2),
    ],
    ids=["channels_last", "recompute", "compile", "bfloat16"],
)
def test_switches_leave_the_loss_alone(tmp_path: Path, switch: ComputeConfig, tolerance: float) -> None:
    for name, compute in (("plain", ComputeConfig()), ("switched", switch)):
        go(vae(), tmp_path / name, steps=6, log_every=1, compute=compute)
    plain, switched = ([r["loss"] for r in kind(tmp_path / name, "train")] for name in ("plain", "switched"))
    assert switched == pytest.approx(plain, rel=tolerance)
    tensors, _ = read_tensors(tmp_path / "switched" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32, torch.int64}


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_blocks_compute_the_same(tmp_path: Path) -> None:
    for name, on in (("plain", False), ("compiled", True)):
        go(vae(), tmp_path / name, steps=2, log_every=1, compute=ComputeConfig(compile=on))
    plain, compiled = ([r["loss"] for r in kind(tmp_path / name, "train")] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)  # fused float32 operations round differently


def test_a_bad_batch_is_skipped_logged_and_forgotten(tmp_path: Path) -> None:
    model, data = Logistic((1, 2, 2), 16), sets(binarization="none", size=2)
    model.faults = {3: float("nan"), 14: 1e6, 16: float("inf")}
    go(model, tmp_path / "run", data, steps=20, log_every=20)
    skips = kind(tmp_path / "run", "skip")
    assert [(r["step"], r["reason"]) for r in skips] == [(4, "loss"), (15, "norm"), (17, "loss")]
    assert skips[0]["where"] == "first in the term reconstruction"
    assert skips[1]["norm"] > skips[1]["threshold"] > 0
    train_record = kind(tmp_path / "run", "train")[0]
    assert train_record["skipped"] == 3
    assert train_record["loss"] is not None
    assert model.norm.num_batches_tracked is not None
    assert int(model.norm.num_batches_tracked) == 17  # three batches forgotten
    assert all(bool(t.isfinite().all()) for t in model.state_dict().values())


def test_a_skipped_step_changes_nothing(tmp_path: Path) -> None:
    states = []
    for steps in (2, 3):
        model = Logistic((1, 2, 2), 16)
        model.faults = {2: float("nan")}
        go(model, tmp_path / str(steps), sets(binarization="none", size=2), steps=steps, schedule=CONSTANT)
        states.append(model.state_dict())
        states.append(read_tensors(tmp_path / str(steps) / "model.safetensors")[0])
    for before, after in (states[0::2], states[1::2]):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_lasting_nonfinite_loss_ends_with_a_diagnosis(tmp_path: Path) -> None:
    model, run = Logistic((1, 2, 2), 16), tmp_path / "run"
    model.faults = dict.fromkeys(range(7, 100), float("nan"))
    strict = StepFilterConfig(nonfinite_limit=4)
    with pytest.raises(UserError) as caught:
        go(model, run, sets(binarization="none", size=2), steps=50, checkpoints=saved_every(6), step_filter=strict)
    message = str(caught.value)
    assert "4 steps in a row" in message
    assert "up to step 11" in message
    assert "term reconstruction" in message
    assert str(run / "checkpoints" / "step-00000006") in message
    assert "\n" not in message
    assert not (run / "model.safetensors").exists()
    tensors, info = read_tensors(run / "checkpoints" / "step-00000006" / "average.safetensors")
    assert info["step"] == 6
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_a_budget_of_minutes_ends(tmp_path: Path) -> None:
    result, _ = go(vae(), tmp_path / "run", minutes=0.01, log_every=1)
    assert result.budget == "minutes"
    assert result.step >= 1
    assert result.seconds >= 0.6


def test_rate_and_time_left_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes 2 s a step, and is read before a step counts as done."""
    monkeypatch.setattr("davi.training.recorder.Recorder.clock", lambda self: 2.0 * self.state.step)
    go(vae(), tmp_path / "run", steps=12)
    records = kind(tmp_path / "run", "train")
    assert [(r["step"], r["seconds"]) for r in records] == [(4, 6.0), (8, 14.0), (12, 22.0)]
    assert [r["images_per_second"] for r in records] == pytest.approx([4 * 8 / 6, 4 * 8 / 8, 4 * 8 / 8])
    assert [r["seconds_left"] for r in records] == pytest.approx([8 * 6 / 4, 4 * 14 / 8, 0.0])


def test_images_must_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data: got images \[1, 4, 4\] with 2 levels, expected \[1, 8, 8\]"):
        go(vae(size=8), tmp_path / "run", steps=1)
    assert not (tmp_path / "run").exists()


def test_what_has_no_blocks_recomputes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compute\.recompute: got true for logistic, expected false: it has no blocks"):
        go(Logistic((1, 4, 4), 2), tmp_path / "run", steps=1, compute=ComputeConfig(recompute=True))
    assert not (tmp_path / "run").exists()


def test_old_checkpoints_go(tmp_path: Path) -> None:
    go(vae(), tmp_path / "run", steps=10, checkpoints=CheckpointConfig(minutes=0.0, steps=3, keep=2))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000009", "step-00000010"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    run, model, forward = tmp_path / "run", vae(), type(vae()).forward
    calls: list[int] = []

    def forward_and_signal(self: Model, x: Tensor, draws: int = 1) -> Any:
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), number)
        return forward(self, x, draws)

    before = signal.getsignal(number)
    monkeypatch.setattr(type(model), "forward", forward_and_signal)
    with pytest.raises(Interrupted) as caught:
        go(model, run, steps=50)
    assert caught.value.exit_code == code
    assert (caught.value.step, caught.value.checkpoint.name) == (5, "step-00000005")  # the step was finished
    assert signal.getsignal(number) is before
    assert not (run / "model.safetensors").exists()


def test_a_full_disk_is_one_line_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, write = tmp_path / "run", checkpoint.write_tensors
    go(vae(), run, steps=4)

    def full(path: Path, tensors: Any, info: Any) -> None:
        if path.name == checkpoint.OPTIMIZER:
            raise OSError(28, "No space left on device")
        write(path, tensors, info)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    config = TrainingConfig(**{**QUIET, "steps": 9, "checkpoints": saved_every(3)})
    with pytest.raises(UserError) as caught:
        train(vae(), sets(), config, run, RECIPE, resume=True, print_fn=[].append)
    assert "No space left on device" in str(caught.value)
    assert "last good checkpoint: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]


class Terminal(io.StringIO):
    """Standard output that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_a_pipe_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stream in (("terminal", Terminal()), ("pipe", io.StringIO())):
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERM", "xterm")
        config = TrainingConfig(**{**QUIET, "steps": 8})
        train(vae(), sets(), config, tmp_path / name, RECIPE)
        monkeypatch.undo()
        text = stream.getvalue()
        assert "validation at step 8:" in text
        assert "step 8/8" in text
        assert "left" in text
        assert ("100%" in text) == (name == "terminal")
        if name == "pipe":
            assert [line.split()[0] for line in text.splitlines()] == ["step", "step", "validation", "trained"]


def test_metrics_are_json_without_nan(tmp_path: Path) -> None:
    model = Logistic((1, 2, 2), 16)
    model.faults = {1: float("nan")}
    go(model, tmp_path / "run", sets(binarization="none", size=2), steps=4)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert {"kind", "step"} <= json.loads(line, parse_constant=refuse).keys()


def test_what_is_not_finite_pushes_no_good_checkpoint_out(tmp_path: Path) -> None:
    """The first update spoils the weights; what comes after it is never saved."""
    config = TrainingConfig(
        steps=20,
        batch_size=8,
        learning_rate=1e30,
        schedule=CONSTANT,
        step_filter=StepFilterConfig(nonfinite_limit=5),
        checkpoints=CheckpointConfig(steps=1),
    )
    with pytest.raises(UserError, match="5 steps in a row without finite loss"):
        train(vae(), sets(), config, tmp_path / "run", RECIPE, print_fn=[].append)
    assert [path.name for path in checkpoint_folders(tmp_path / "run")] == ["step-00000001"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_spoiled_by_the_last_update_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """The loss of the step was finite; only the update made something of the weights that is no number."""
    run, step, calls = tmp_path / "run", torch.optim.Adamax.step, []

    def spoil(self: torch.optim.Adamax, closure: None = None) -> None:
        step(self)
        calls.append(1)
        if len(calls) == 6:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[-1] = value

    monkeypatch.setattr(torch.optim.Adamax, "step", spoil)
    for steps, saved in ((50, ["step-00000003"]), (6, ["step-00000003"])):  # in the middle, and at the end of the run
        calls.clear()
        shutil.rmtree(run, ignore_errors=True)
        data = sets(binarization="none", size=2)
        with pytest.raises(UserError) as caught:
            go(Logistic((1, 2, 2), 16), run, data, steps=steps, checkpoints=saved_every(3))
        last = run / "checkpoints" / "step-00000003"
        assert str(caught.value) == (
            f"training: the weights after step 6 are not finite, first in logits; the last good checkpoint is {last}"
        )
        assert [path.name for path in checkpoint_folders(run)] == saved
        assert not (run / "model.safetensors").exists()


def test_large_weights_are_finite(tmp_path: Path) -> None:
    """Their squares overflow in float32, but they themselves are numbers."""
    model = Logistic((1, 2, 2), 16)
    with torch.no_grad():
        model.gate.fill_(-1.0)  # the logits have no effect
        model.logits.mul_(1e30)
    go(
        model,
        tmp_path / "run",
        sets(binarization="none", size=2),
        steps=1,
        step_filter=StepFilterConfig(skip_factor=0.0),
    )
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_training_that_is_half_not_finite_ends(tmp_path: Path) -> None:
    model = Logistic((1, 2, 2), 16)
    model.faults = dict.fromkeys(range(1, 100, 2), float("nan"))
    strict = StepFilterConfig(nonfinite_limit=4)
    with pytest.raises(UserError, match="4 of the last 8 steps without finite loss and gradient up to step 8, the"):
        go(model, tmp_path / "run", sets(binarization="none", size=2), steps=50, step_filter=strict)


def test_the_model_remembers_the_decay_of_its_average(tmp_path: Path) -> None:
    for decay in (0, 0.75):  # a whole number as well
        go(vae(), tmp_path / str(decay), steps=1, ema_decay=decay)
        _, info = load_model(tmp_path / str(decay))
        assert (info["ema"], info["ema_decay"]) == (decay > 0, decay)


def test_a_batch_norm_of_one_value_is_refused(tmp_path: Path) -> None:
    config = TrainingConfig(steps=1, batch_size=1)
    with pytest.raises(UserError, match=r"batch_size: got parts of 1 image of \[1, 1, 1\]"):
        train(vae(size=1), sets(size=1), config, tmp_path / "run", RECIPE, print_fn=[].append)

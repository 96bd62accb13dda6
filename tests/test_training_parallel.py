"""Two processes train as one does: the same losses, over kills and resumptions, and nobody is left waiting."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import forked
import parallel_runs
import pytest
import torch
from parallel_runs import config, model_of, stages_of
from safetensors.torch import load_file
from tiny import RECIPE, sets, vae
from torch import nn

import davi
from davi.errors import UserError
from davi.metrics import read_metrics
from davi.objectives import EvidenceConfig
from davi.runs import checkpoint_folders, load_model
from davi.training import train
from davi.training.parallel import Processes, RunningStatistics, noise_seed, parts_of_batch
from davi.training.prepare import check_shares, cut
from davi.training.stages import single
from davi.training.state import State


def alone(run: Path, accumulate: int, steps: int, *options: str) -> list[str]:
    lines: list[str] = []
    model, chosen = model_of(*options), config(accumulate, steps, *options)
    stages = stages_of(chosen, *options)
    train(model, sets(), chosen, run, RECIPE, resume=True, print_fn=lines.append, stages=stages)
    return lines


def numbers(run: Path) -> list[tuple[str, int, float]]:
    """Losses of every step, and the validations."""
    records = [record for record in read_metrics(run) if record["kind"] in ("train", "validation")]
    return [(record["kind"], record["step"], record.get("loss", record["nats"])) for record in records]


def check_same(run: Path, expected: Path) -> None:
    """The same records, and the same model.

    float32 sums in another order differ by 1e-7; nine steps do not amplify that a hundredfold.
    """
    assert [entry[:2] for entry in numbers(run)] == [entry[:2] for entry in numbers(expected)]
    assert [entry[2] for entry in numbers(run)] == pytest.approx([entry[2] for entry in numbers(expected)], rel=1e-5)
    (model, info), (other, _) = load_model(run), load_model(expected)
    assert info["step"] == 9
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def check_weights(run: Path, expected: Path) -> None:
    """The same weights, but for sums in another order."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (run, expected))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine steps by one process that cuts its batches in two, in ``single``; and all launches of two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    alone(folder / "single", 2, 9)
    alone(folder / "single-adamw", 2, 9, "adamw")
    alone(folder / "single-lagging", 2, 9, "lagging")
    alone(folder / "single-chains", 2, 9, "chains")
    alone(folder / "single-codes", 2, 9, "codes")
    for name in ("onward", "onward-in-shares"):
        shutil.copytree(folder / "single", folder / name)
        shutil.rmtree(folder / name / "checkpoints" / "step-00000009")
        (folder / name / "model.safetensors").unlink()
    launches = ["killed:1:6:kill", "killed:1:6", "onward:2:9", "signal:1:9:signal", "disk:1:9:disk"]
    launches += ["shares:1:6:kill:shard", "shares:1:6:shard", "onward-in-shares:2:9:shard"]
    launches += ["adamw-in-shares:1:9:shard:adamw", "chains:1:6:chains", "chains:1:9:chains"]
    launches += ["reversible:1:4:reversible", "reversible:1:9:reversible"]
    launches += ["stages:1:3:stages", "stages:1:5:stages", "lagging:1:5:lagging", "lagging:1:9:lagging"]
    launches += ["codes:1:6:codes", "codes:1:9:codes"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}.items():
            patch.setenv(name, value)
        done = forked.call(parallel_runs.main, folder, launches, folder=folder)
    assert (done.status, done.out) == (0, ""), done.out + done.err
    return folder


@pytest.mark.parametrize("name", ["killed", "shares"])
def test_two_processes_compute_what_one_does_over_a_kill(folder: Path, name: str) -> None:
    """The main process is killed without warning, the run goes on with two, and ends with one."""
    run, said = folder / name, (folder / f"{name}.said").read_text()
    assert f"resuming {run} after step 3" in said
    assert said.count("validation at step 6") == 1  # one process speaks
    assert said.count("status 0") == 2
    lines = alone(run, 1, 9)
    assert lines[0] == f"resuming {run} after step 6"
    assert not any("parts" in line for line in lines)  # one process cuts batches as the two did
    # The shorter budget ended with a validation that the other run has not.
    text = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in text if '"validation", "step": 6' not in line))
    check_same(run, folder / "single")


@pytest.mark.parametrize("name", ["onward", "onward-in-shares"])
def test_a_run_of_one_process_goes_on_with_two(folder: Path, name: str) -> None:
    assert f"resuming {folder / name} after step 6" in (folder / f"{name}.said").read_text()
    check_same(folder / name, folder / "single")


def test_adamw_in_shares(folder: Path) -> None:
    """Its fused step gets shares as well; the recipes' other optimizer is in the runs above."""
    check_same(folder / "adamw-in-shares", folder / "single-adamw")


def test_activations_are_created_again_by_two_processes(folder: Path) -> None:
    """Each for itself, over a resumption; with shares of the weights they are refused."""
    assert (folder / "reversible.said").read_text().count("status 0") == 4
    alone(folder / "single-reversible", 2, 9, "reversible")
    check_same(folder / "reversible", folder / "single-reversible")
    with pytest.raises(
        UserError, match=r"^training.compute.shard: got true for attentive_vae, expected false: its rev"
    ):
        check_shares(vae(reversible=True), EvidenceConfig())


def test_the_state_of_an_objective_is_changed_by_all(folder: Path) -> None:
    """Each process moves the chains of its part; over a resumption they are those of one process with two parts."""
    kept = [
        load_file(checkpoint_folders(folder / name)[-1] / "others.safetensors") for name in ("chains", "single-chains")
    ]
    for name in ("chains", "trajectory/states"):
        moved, expected = (tensors[f"objective/{name}"] for tensors in kept)
        assert torch.equal(moved, expected)
        assert moved.flatten(1).any(1).all()
    own, other = ({name: x for name, x in tensors.items() if name.startswith("objective/")} for tensors in kept)
    for name, tensor in own.items():  # sums in another order
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    assert own["objective/accepted"][1, 0] == 60.0  # twelve chains, every other step
    check_weights(folder / "chains", folder / "single-chains")


def test_vectors_are_averages_over_all_processes(folder: Path) -> None:
    """Each counts the codes of its part; dead vectors are replaced by the same ones in both, over a resumption too."""
    own, other = (
        load_file(checkpoint_folders(folder / name)[-1] / "others.safetensors") for name in ("codes", "single-codes")
    )
    assert own["objective/00/current"].sum() > 0
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, msg=name)
    check_weights(folder / "codes", folder / "single-codes")


def test_two_processes_agree_on_what_moves(folder: Path) -> None:
    """Both go through the phase of an objective as one process does, and over a resumption in it."""
    check_weights(folder / "lagging", folder / "single-lagging")
    phases = [
        [record["aggressive"] for record in read_metrics(folder / name) if record["kind"] == "train"]
        for name in ("lagging", "single-lagging")
    ]
    assert phases[0] == phases[1]
    assert phases[0][0] == 1.0


def test_stages_of_two_processes(folder: Path) -> None:
    """The first launch goes into the second stage, and the second one on in it."""
    run, said = folder / "stages", (folder / "stages.said").read_text()
    assert said.count("stage 2 of 2: second, which trains bottom") == 2
    assert said.count("status 0") == 4
    alone(folder / "single-stages", 2, 5, "stages")
    weights, others = (load_file(each / "model.safetensors") for each in (run, folder / "single-stages"))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-5, msg=name)
    records = [(record["kind"], record["step"], record["stage"]) for record in read_metrics(run) if "stage" in record]
    assert ("train", 4, "first") in records
    assert ("train", 9, "second") in records
    assert records.count(("stage", 4, "first")) == 1


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^training.compute.shard: got true for nvae, expected false: its penalties need all weights"
    ):
        check_shares(davi.build("nvae_digits_tiny"), EvidenceConfig())
    double = EvidenceConfig(draws=2, bound="importance_weighted", gradient="doubly_reparameterized")
    with pytest.raises(
        UserError, match=r"^training.compute.shard: got true with the doubly reparameterized gradient, expected false$"
    ):
        check_shares(vae(), double)
    check_shares(vae(), EvidenceConfig())


def test_each_keeps_its_share(folder: Path) -> None:
    """Vectors and matrices with an odd number of rows leave the first process one row more; gates are kept by both."""
    kept = [int(n) for n in re.findall(r"keeps (\d+) weights", (folder / "onward-in-shares.said").read_text())]
    sizes = [(parameter.numel(), parameter.shape[:1]) for parameter in vae().parameters()]
    first = sum(size // rows[0] * -(-rows[0] // 2) if rows else 1 for size, rows in sizes)
    second = sum(size // rows[0] * (rows[0] // 2) if rows else 1 for size, rows in sizes)
    assert sorted(kept) == sorted([first, second])


def test_a_signal_to_one_process_saves_and_ends_all(folder: Path) -> None:
    run, said = folder / "signal", (folder / "signal.said").read_text()
    for process in (0, 1):
        assert f"process {process}: SIGTERM: saved {run}/checkpoints/step-00000004 after step 4" in said
        assert f"process {process}: status 143" in said
    alone(run, 1, 9)
    check_same(run, folder / "single")


def test_what_goes_wrong_in_one_process_ends_all(folder: Path) -> None:
    said = (folder / "disk.said").read_text()
    for process in (0, 1):
        assert f"process {process}: checkpoint: cannot be written (No space left on device)" in said
        assert f"process {process}: status 2" in said
    assert "Traceback" not in said


def test_another_number_of_parts_is_said(tmp_path: Path) -> None:
    """A run of one process with whole batches cannot go on with two as if nothing had changed."""
    state = State(vae(), sets(), single(config(1, 9)), torch.device("cpu"))
    processes, lines = Processes(), list[str]()
    state.step = 3
    assert cut(state, 8, processes, lines.append) == 1
    assert not lines
    state.accumulate = 2
    assert cut(state, 8, processes, lines.append) == 2
    assert lines == ["batches are cut into 2 parts from here on, no longer 1: batch norms and draws differ"]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes", "begun", "parts"),
    [(8, 1, 1, 1, 1), (8, 2, 1, 1, 2), (8, 1, 2, 1, 2), (8, 2, 2, 1, 2), (8, 1, 1, 2, 2), (12, 2, 3, 1, 6)],
)
def test_parts(batch_size: int, accumulate: int, processes: int, begun: int, parts: int) -> None:
    assert parts_of_batch(batch_size, accumulate, processes, begun) == parts


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UserError, match=r"batch_size: got 8 for 3 processes and 1 parts, expected a multiple of 3"):
        parts_of_batch(8, 1, 3)


@pytest.mark.parametrize("what", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_more_than_data_parallelism_is_refused(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{what}", "true")
    with pytest.raises(UserError, match=rf"^training: got {what} from the launcher, expected data-parallel"):
        Processes()


def test_seeds_differ() -> None:
    keys = [(), (0,), (1,), (0, 0), (0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (2**63 - 1, 5, 1)]
    seeds = [noise_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_running_statistics_are_means_over_the_parts() -> None:
    norm = nn.BatchNorm1d(1, momentum=0.5).double()
    statistics = RunningStatistics(norm, Processes())
    statistics.begin()
    for part, weight in (([[0.0], [2.0]], 0.25), ([[10.0], [30.0]], 0.75)):
        statistics.begin_part()
        norm(torch.tensor(part, dtype=torch.float64))
        statistics.end_part(weight)
    statistics.end()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # Each part moves the mean 0 and the variance 1 half of the way to its own: 1 and 2, 20 and 200.
    assert norm.running_mean.item() == pytest.approx(0.25 * 0.5 + 0.75 * 10.0, rel=1e-15)
    assert norm.running_var.item() == pytest.approx(0.25 * 1.5 + 0.75 * 100.5, rel=1e-15)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 1
    statistics.undo()
    assert (norm.running_mean.item(), norm.running_var.item(), norm.num_batches_tracked.item()) == (0.0, 1.0, 0)


def test_nobody_waits_for_a_single_process() -> None:
    processes = Processes()
    assert (processes.count, processes.main, processes.share(1), processes.gather(2)) == (1, True, 1, [2])
    assert processes.main_first(lambda: 3) == 3
    assert processes.sum_to_host(torch.tensor([1.0]), [2.0]) == [1.0, 2.0]

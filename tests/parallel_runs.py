"""Trains with two processes that know of each other: what the tests of data parallelism call in a process of its own.

A launch is ``RUN:ACCUMULATE:STEPS[:FAULT][:shard]``. They come one after the other: two processes are forked that
train, or go on, in FOLDER/RUN. What they say goes to FOLDER/RUN.said, in the end with their exit status. The
environment is that which torchrun gives. A fault is ``signal`` (the second process receives SIGTERM in step 4),
``kill`` (the first is killed in step 5) or ``disk`` (the first cannot write its second checkpoint). With ``shard`` each
keeps a share of the weights; with ``chains`` a Boltzmann machine is trained, whose objective has chains of all kinds;
with ``stages`` a model of two parts, four steps of which are for the first; with ``lagging`` most of the steps move the
inference network alone; with ``reversible`` residual blocks re-create their activations; with ``codes`` a quantized
autoencoder, whose vectors are moving averages and some of which are dead.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every first optimizer step imports it: once here is enough for all forks
from tiny import RECIPE, sets, vae
from toys.halves import Halves, HalvesConfig

from davi.errors import UserError
from davi.layers.quantizer import VectorQuantizerConfig
from davi.model import Hierarchy, Network
from davi.models.rbm import RBM, RBMConfig
from davi.models.vq_vae import VQVAEAutoencoder, VQVAEConfig
from davi.objectives import ContrastiveConfig, EvidenceConfig, LaggingConfig, ObjectiveConfig, VectorQuantizedConfig
from davi.training import Interrupted, TrainingConfig, checkpoint, train
from davi.training.parallel import Processes
from davi.training.sections import CheckpointConfig, ComputeConfig, OptimizerConfig, ScheduleConfig, StepFilterConfig
from davi.training.sharded import local
from davi.training.stages import Stage


def config(accumulate: int, steps: int, *options: str) -> TrainingConfig:
    """What the runs have in common; the schedule is flat so that a longer run begins as a shorter one."""
    return TrainingConfig(
        steps=steps,
        batch_size=8,
        accumulate=accumulate,
        optimizer=OptimizerConfig("adamw" if "adamw" in options else "adamax"),
        objective=objective_of(*options),
        schedule=ScheduleConfig("constant"),
        step_filter=StepFilterConfig(clip_norm=6.0),  # some gradients are longer, and some are not
        ema_decay=0.9,
        compute=ComputeConfig(shard="shard" in options),
        validate_every=4,
        checkpoints=CheckpointConfig(minutes=0.0, steps=3),
        log_every=1,
        threads=1,
    )


def objective_of(*options: str) -> ObjectiveConfig:
    """What is minimized."""
    if "chains" in options:
        return ContrastiveConfig(chains=12, tempering_levels=3, trajectory_chains=4, centered=True, sparsity_target=0.1)
    if "codes" in options:
        return VectorQuantizedConfig(decay=0.8, revive_below=0.5)
    return LaggingConfig(inner_steps=2, window=1, rounds=1, patience=1) if "lagging" in options else EvidenceConfig()


def model_of(*options: str) -> Network:
    """The model; its initial weights are always the same."""
    if not {"chains", "stages", "codes"} & {*options}:
        return vae(reversible="reversible" in options)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if "stages" in options:
            return Halves((1, 4, 4), 2, HalvesConfig())
        if "codes" in options:
            quantizer = VectorQuantizerConfig(codes=12, dims=3)
            config = VQVAEConfig(width=4, residual_width=2, blocks=1, halvings=1, quantizer=quantizer)
            return VQVAEAutoencoder((1, 4, 4), 2, config)
        return RBM((1, 4, 4), 2, RBMConfig(5))


def stages_of(config: TrainingConfig, *options: str) -> tuple[Stage, ...]:
    """What is trained, if not the whole."""
    if "stages" not in options:
        return ()
    second = replace(config, batch_size=12, optimizer=OptimizerConfig("sgd"))
    return Stage(replace(config, steps=4), "first", "top"), Stage(second, "second", "bottom")


def arm(options: Sequence[str], rank: int) -> None:
    """Let something go wrong in one of the processes."""
    calls = 0
    forward, save = Hierarchy.forward, checkpoint.save

    def forward_or_fail(self: Hierarchy, x: torch.Tensor, draws: int = 1) -> Any:
        nonlocal calls
        calls += 1
        if "signal" in options and rank == 1 and calls == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        if "kill" in options and rank == 0 and calls == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, x, draws)

    def save_or_fail(run: Path, state: Any, *rest: Any) -> Path:
        if "disk" in options and state.step == 6:
            raise UserError("checkpoint: cannot be written (No space left on device)")
        return save(run, state, *rest)

    Hierarchy.forward = forward_or_fail  # type: ignore[method-assign]
    checkpoint.save = save_or_fail


def work(rank: int, run: Path, accumulate: int, steps: int, *options: str) -> int:
    """Train as one of the processes; the exit status is that of the program ``davi``."""
    processes = Processes()
    arm(options, processes.rank)
    model = model_of(*options)
    with processes.one_voice():
        try:
            chosen = config(accumulate, steps, *options)
            train(model, sets(), chosen, run, RECIPE, resume=True, stages=stages_of(chosen, *options))
        except Interrupted as interrupted:
            print(f"process {rank}: {interrupted}", file=sys.stderr)
            return interrupted.exit_code
        except UserError as error:
            print(f"process {rank}: {error}", file=sys.stderr)
            return 2
    kept = sum(tensor.numel() for tensor in local(list(model.parameters())))
    print(f"process {rank} keeps {kept} weights", file=sys.stderr)
    return 0


def launch(folder: Path, run: str, accumulate: str, steps: str, *options: str) -> None:
    """Fork the processes and wait for them; when one is killed the other is, too, as launchers do it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for rank in (0, 1):
        children.append(os.fork())
        if not children[-1]:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            os.environ.update(address, **{name: str(number) for name, number in numbers.items()})
            said = os.open(folder / f"{run}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            status = 1
            try:
                status = work(rank, folder / run, int(accumulate), int(steps), *options)
                print(f"process {rank}: status {status}", file=sys.stderr)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
    while children:
        child, status = os.wait()
        children.remove(child)
        if os.WIFSIGNALED(status):
            for other in children:
                os.kill(other, signal.SIGKILL)


def main(folder: Path, launches: Sequence[str]) -> None:
    """Go through launches."""
    torch.set_num_threads(1)
    for argument in launches:
        launch(folder, *argument.split(":"))

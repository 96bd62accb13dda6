"""What is settled before the first step of a run, or the next one of a resumed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from davi.data import DataSets
from davi.distributions import Drawn, Latent, Normal
from davi.errors import UserError
from davi.evidence import Evidence
from davi.model import DataInitialized, Hierarchy, Model
from davi.objectives import ObjectiveConfig
from davi.renamed import read
from davi.runs import RECIPE, PrintFunction, flat, write_recipe
from davi.training.config import TrainingConfig
from davi.training.parallel import Processes, noise_seed, parts_of_batch
from davi.training.sections import ComputeConfig
from davi.training.start import read_start
from davi.training.state import BatchLoader, State


def check_fit(model: Model, sets: DataSets, config: ObjectiveConfig) -> None:
    """Refuse images that the model was not built for, an objective that it cannot be trained with, and what is no
    likelihood.

    Raises:
        UserError: one line.
    """
    if (model.shape, model.levels) != (sets.shape, sets.levels):
        raise UserError(
            f"data: got images {list(sets.shape)} with {sets.levels} levels, expected {list(model.shape)} with "
            f"{model.levels} levels, for which the model was built"
        )
    if (form := getattr(model.config, "likelihood_form", "exact")) != "exact":
        raise UserError(
            f"model.likelihood_form: got {form}, expected exact: no probabilities, only there to run published weights "
            "(--model.likelihood_form exact)"
        )
    _check_objective(model, config)


def _check_objective(model: Model, config: ObjectiveConfig) -> None:
    plain = ObjectiveConfig()
    options = ("draws", "bound", "free_nats", "kl_balance")
    wanted = [name for name in options if getattr(config, name) != getattr(plain, name)]
    if wanted:
        evidence = _evidence(model)
        given = ", ".join(f"{name} {getattr(config, name)}" for name in wanted)
        if evidence.log_weight_fn is None:
            raise UserError(f"objective: got {given} for {model.name}, expected a model with importance weights")
        if not evidence.kl_maps and {"free_nats", "kl_balance"} & {*wanted}:
            raise UserError(f"objective: got {given} for {model.name}, expected a model with layers of latents")
    if config.gradient == "doubly_reparameterized" and isinstance(model, Hierarchy):
        _check_posteriors(model)


@torch.no_grad()
def _evidence(model: Model) -> Evidence:
    """What the model says about an image of zeros: it tells what an objective can count on. Nothing is moved by it."""
    training, device = model.training, _device(model)
    model.eval()
    try:
        zeros = torch.zeros(1, *model.shape, dtype=torch.uint8, device=device)
        return model.evidence(zeros, Generator(device).manual_seed(0))
    finally:
        model.train(training)


@torch.no_grad()
def _check_posteriors(model: Hierarchy) -> None:
    """The doubly reparameterized gradient needs densities at any place; a flow knows those of its draws."""

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        own = posterior.posterior if isinstance(posterior, Drawn) else posterior
        if not isinstance(own, Normal):
            raise UserError(
                f"doubly reparameterized gradient: {model.name} has a posterior of type {type(own).__name__}, expected "
                "Normal posteriors only"
            )
        return own.mean

    training = model.training
    model.eval()  # no running statistics are moved
    try:
        model.top_down(choose, model.encode(torch.zeros(1, *model.shape, dtype=torch.uint8, device=_device(model))))
    finally:
        model.train(training)


def check_shares(model: Model, config: ObjectiveConfig) -> None:
    """Refuse what needs weights at a time when the processes have put only some of them together.

    Raises:
        UserError: one line.
    """
    if isinstance(model, Hierarchy) and type(model).penalties is not Hierarchy.penalties:
        raise UserError(
            f"training.compute.shard: got true for {model.name}, expected false: its penalties need all weights at once"
        )
    if config.gradient == "doubly_reparameterized":
        raise UserError("training.compute.shard: got true with the doubly reparameterized gradient, expected false")


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device


def begin(run: Path, model: Model, loader: BatchLoader, config: TrainingConfig, processes: Processes) -> dict[str, str]:
    """Give a model the weights with which its run begins, in all processes the same; what the protocol says of them."""
    start = processes.main_first(lambda: read_start(run, model))
    processes.share_weights(model)
    initialize(model, loader, config, processes, frozenset() if start is None else start.kept)
    return {} if start is None else start.protocol()


@torch.no_grad()
def initialize(
    model: Model, loader: BatchLoader, config: TrainingConfig, processes: Processes, kept: frozenset[str] = frozenset()
) -> None:
    """Show a model that wants to see them some training images before its first step; weights in ``kept`` stay.

    They are chosen and presented with generators of their own: those of the run are not touched.
    """
    if not isinstance(model, DataInitialized) or not model.images_wanted:
        return
    seed = noise_seed(config.seed, 0, 0, 0)  # one number more than those of a step
    chosen = torch.randperm(len(loader.augment), generator=Generator().manual_seed(seed))[: model.images_wanted]
    generator = Generator(loader.generator.device).manual_seed(seed)
    torch.manual_seed(seed)
    model.initialize(loader.augment(chosen, generator).to(loader.device), kept)
    processes.share_weights(model)


def prepare_blocks(model: Model, config: ComputeConfig) -> None:
    """Switches of the blocks. The averaged model is a copy made before and stays as it is."""
    blocks = list(model.blocks())
    if config.compile:
        # Blocks of one class share their compiled forms, one for each width and shape. Beyond its limit (8) torch would
        # run the remaining kinds uncompiled and say so only in a warning.
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 2 * len(blocks))
    for block in blocks:
        if config.recompute:
            block.recompute = True  # type: ignore[assignment]  # a plain switch, not a submodule
        if config.compile:
            block.compile(backend=config.compile_backend)


def replicated(accelerator: Accelerator, state: State) -> tuple[nn.Module, Any]:
    """The model as every process calls it, whose gradients are averaged, and the optimizer.

    DDP's way with buffers, to overwrite them by the main process's before each forward pass, would make the running
    statistics depend on the number of processes. :class:`davi.training.parallel.RunningStatistics` averages them.
    """
    network, optimizer = accelerator.prepare(state.model, state.optimizer)
    if isinstance(network, DistributedDataParallel):
        network.broadcast_buffers = False
    return network, optimizer


@contextmanager
def enough_for_batch_norms(state: State) -> Iterator[None]:
    """Turns the complaint of a batch norm that gets a single value per channel into one line about the batch."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        part = state.loader.sampler.batch_size // state.parts
        raise UserError(
            f"batch_size: got parts of {part} image of {list(state.model.shape)}, of which a single pixel is left at "
            "the coarsest scale; expected at least 2 images, whose statistics a batch norm needs"
        ) from None


def cut(state: State, batch_size: int, processes: Processes, print_fn: PrintFunction) -> int:
    """Into how many parts batches of a recipe's size are cut: as many as before if the processes can share these."""
    before, size = state.parts, state.loader.sampler.batch_size
    parts = parts_of_batch(batch_size, state.accumulate, processes.count, before)
    if size < parts:
        raise UserError(f"batch_size: got {size} images, the whole set, expected one for each of {parts} parts")
    if state.step and parts != before:
        print_fn(f"batches are cut into {parts} parts from here on, before {before}: batch norms and draws differ")
    return parts


def say_resumed(
    run: Path, recipe: Mapping[str, Any], state: State, found: bool, processes: Processes, print_fn: PrintFunction
) -> None:
    """Say from where a run goes on, and with which other options than before; they are its options from now on."""
    print_fn(f"resuming {run} after step {state.step}" if found else f"nothing to resume in {run}: from the beginning")
    with processes.together():
        if processes.main:
            before = read(run / RECIPE)
            write_recipe(run, recipe)
            if changes := _changes(flat(before), flat(read(run / RECIPE))):
                print_fn(f"changed in its recipe: {changes}")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {old[name]} -> {new[name]}" for name in new if name in old and old[name] != new[name])

"""Preparation of a run before its first step, or before the next one of a resumed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Generator, nn
from torch.nn.parallel import DistributedDataParallel

from davi.batch import Batch
from davi.data import DataSets
from davi.errors import UserError
from davi.layers import PixelLikelihood
from davi.layers.checkpointed import Checkpointed
from davi.layers.reversible import Reversible
from davi.model import Classifier, DataInitialized, Hierarchy, Invertible, Network, Staged
from davi.objectives import ContrastiveConfig, EvidenceConfig, Objective, ObjectiveConfig, make_objective
from davi.renamed import read
from davi.runs import RECIPE, PrintFunction, flat, write_recipe
from davi.training.parallel import Processes, noise_seed, parts_of_batch
from davi.training.sections import ComputeConfig
from davi.training.stages import Stage
from davi.training.start import kept_weights, read_start
from davi.training.state import BatchLoader, State


def check_fit(model: Network, sets: DataSets, *configs: ObjectiveConfig, stages: Sequence[Stage] = ()) -> None:
    """Refuse images that the model was not built for, objectives and options that it cannot be trained with, and what
    is no likelihood.

    Arguments:
        model: the whole network.
        sets: the images.
        configs: objectives of the whole.
        stages: further objectives and options, of the parts that they train.

    Raises:
        UserError: one line.
    """
    if (model.shape, model.levels) != (sets.shape, sets.levels):
        raise UserError(
            f"data: got images {list(sets.shape)} with {sets.levels} levels, expected {list(model.shape)} with "
            f"{model.levels} levels, for which the model was built"
        )
    if model.classes not in (0, len(sets.classes)):
        raise UserError(
            f"data: got images of {len(sets.classes)} classes, expected {model.classes}, for which the model was built"
        )
    if isinstance(model, PixelLikelihood) and (form := model.head.likelihood.form) != "exact":
        raise UserError(
            f"model.likelihood.form: got {form}, expected exact: no probabilities, only there to run published weights "
            "(--model.likelihood.form exact)"
        )
    for config, part in [(c, model) for c in configs] + [(s.config.objective, s.trained(model)) for s in stages]:
        objective = make_objective(config)
        wanted = Hierarchy if _chooses(objective) and not issubclass(objective.wants, Hierarchy) else objective.wants
        if not isinstance(part, wanted):
            raise UserError(f"objective: got {objective.name} for {part.name}{_instead(part, wanted)}")
        if sets.validation is None and objective.wants_validation():
            raise UserError(
                f"objective: got {objective.name} without validation images, expected some (--data.validation 0.1)"
            )
        objective.check(part)
    for stage in stages:
        part = stage.trained(model)
        if stage.config.compute.recompute and not any(isinstance(block, Checkpointed) for block in part.blocks()):
            raise UserError(
                f"training.compute.recompute: got true for {part.name}, expected false: it has no blocks that can "
                "recompute their activations"
            )


def _chooses(objective: Objective) -> bool:
    """Whether its steps may move some of the parameters only."""
    return type(objective).moves is not Objective.moves


def _instead(part: Network, wanted: type) -> str:
    """What an objective was expected to be given, or which objective a classifier is trained with."""
    if isinstance(part, Classifier):
        return ", a classifier; expected cross_entropy (--training.objective.name cross_entropy)"
    return f", expected {_words(wanted)}"


def _words(kind: type) -> str:
    """A capability in words: ``a latent model``."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in kind.__name__).strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def check_shares(model: Network, config: ObjectiveConfig) -> None:
    """Refuse what needs weights at a time when the processes have put only some of them together.

    Raises:
        UserError: one line.
    """
    hierarchy = isinstance(model, Hierarchy) and type(model).penalties is not Hierarchy.penalties
    flow = isinstance(model, Invertible) and type(model).penalties is not Invertible.penalties
    if hierarchy or flow:
        raise UserError(
            f"training.compute.shard: got true for {model.name}, expected false: its penalties need all weights at once"
        )
    if any(isinstance(part, Reversible) and part.recompute for part in model.modules()):
        raise UserError(
            f"training.compute.shard: got true for {model.name}, expected false: its reversible rows need all weights "
            "again in the backward pass"
        )
    if isinstance(config, EvidenceConfig) and config.gradient == "doubly_reparameterized":
        raise UserError("training.compute.shard: got true with the doubly reparameterized gradient, expected false")
    if isinstance(config, EvidenceConfig) and config.mutual_information_weight:
        raise UserError("training.compute.shard: got true with mutual_information_weight, expected false")
    if isinstance(config, ContrastiveConfig):
        raise UserError(f"training.compute.shard: got true with {config.name}, expected false: chains need all weights")
    if _chooses(make_objective(config)):
        raise UserError(f"training.compute.shard: got true with {config.name}, expected false: not all weights move")


def begin(
    run: Path, model: Network, sets: DataSets, stage: Stage, device: torch.device, processes: Processes
) -> dict[str, str]:
    """Give a model the weights with which its run begins, in all processes the same; what the protocol says of them."""
    start = processes.main_first(lambda: read_start(run, model))
    processes.share_weights(model)
    loader = BatchLoader(sets, stage.config, device)
    initialize(model, loader, stage, processes, frozenset() if start is None else start.kept)
    return {} if start is None else start.protocol()


@torch.no_grad()
def initialize(
    model: Network, loader: BatchLoader, stage: Stage, processes: Processes, kept: frozenset[str] = frozenset()
) -> None:
    """Set what follows from the parts before it, and show some training images to a network with data-dependent
    initialization, before the first step of its stage.

    Weights of the whole model that are in ``kept`` stay.

    The images are chosen and presented with generators of their own: those of the run are not touched.
    """
    part = stage.trained(model)
    if stage.part is not None and isinstance(model, Staged):
        kept = kept | model.begin_part(stage.part, kept)
    if not isinstance(part, DataInitialized) or not part.images_wanted:
        return
    seed = noise_seed(stage.config.seed, 0, 0, 0)  # one number more than those of a step
    model.eval()  # what shows the part its images is not trained with it
    chosen = torch.randperm(len(loader.augment), generator=Generator().manual_seed(seed))[: part.images_wanted]
    generator = Generator(loader.generator.device).manual_seed(seed)
    torch.manual_seed(seed)
    labels = loader.augment.labels(chosen)
    y = None if labels is None else labels.to(loader.device)
    batch = stage.view(model, Batch(loader.augment(chosen, generator).to(loader.device), y))
    part.train()
    stay = {id(tensor) for name, tensor in model.state_dict(keep_vars=True).items() if name in kept}
    own = frozenset(name for name, tensor in part.state_dict(keep_vars=True).items() if id(tensor) in stay)
    part.initialize(batch.x, own)
    processes.share_weights(model)


def next_stage(run: Path, state: State, processes: Processes, print_fn: PrintFunction) -> None:
    """Go from a stage that has used up its budget to the one after it."""
    state.leave()
    state.enter(state.place + 1)
    kept = processes.main_first(lambda: kept_weights(run, state.model))
    initialize(state.model, state.loader, state.stage, processes, kept)
    state.enter(state.place)  # the average begins with the weights that have just been set
    say_stage(state, print_fn)


def say_stage(state: State, print_fn: PrintFunction) -> None:
    """Say which stage begins or goes on, in a run of several."""
    stage, count = state.stage, len(state.stages)
    if count > 1:
        print_fn(f"stage {state.place + 1} of {count}: {stage.name}, which trains {stage.part or 'the whole model'}")


def prepare_blocks(model: Network, config: ComputeConfig) -> None:
    """Switches of the blocks. The averaged model is a copy made before and stays as it is."""
    blocks = list(model.blocks())
    if config.compile:
        # Blocks of one class share their compiled forms, one for each width and shape. Beyond its limit (8) torch would
        # run the remaining kinds uncompiled and say so only in a warning.
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 2 * len(blocks))
    for block in blocks:
        if config.recompute and isinstance(block, Checkpointed):
            block.recompute = True
        if config.compile:
            block.compile(backend=config.compile_backend)


class Prepared(NamedTuple):
    """What a stage is trained with.

    Arguments:
        network: the part as every process calls it, whose gradients are averaged.
        optimizer: of its weights, as the state holds it. Accelerate's wrapper would look for optional packages in every
            step, and has nothing to add: losses are not scaled, and gradients are summed over parts by the loop.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer


def prepared(accelerator: Accelerator, state: State, processes: Processes, print_fn: PrintFunction) -> Prepared:
    """Get a stage ready for its first step, or for its next one in a resumed run.

    DDP's way with buffers, to overwrite them by the main process's before each forward pass, would make the running
    statistics depend on the number of processes. :class:`davi.training.parallel.RunningStatistics` averages them.
    """
    state.parts = cut(state, state.config.batch_size, processes, print_fn)
    prepare_blocks(state.trained, state.config.compute)
    if state.sharers is not None:
        return Prepared(state.model, state.optimizer)
    network = accelerator.prepare(state.trained)
    if isinstance(network, DistributedDataParallel):
        network.broadcast_buffers = False
    return Prepared(network, state.optimizer)


@contextmanager
def enough_for_batch_norms(state: State) -> Iterator[None]:
    """Turns the error of a batch norm that gets a single value per channel into one line about the batch."""
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
        print_fn(f"batches are cut into {parts} parts from here on, no longer {before}: batch norms and draws differ")
    return parts


def say_resumed(
    run: Path, recipe: Mapping[str, Any], state: State, found: bool, processes: Processes, print_fn: PrintFunction
) -> None:
    """Print where a run resumes and which options have changed; these are its options from now on."""
    print_fn(f"resuming {run} after step {state.step}" if found else f"nothing to resume in {run}: from the beginning")
    with processes.together():
        if processes.main:
            before = read(run / RECIPE)
            write_recipe(run, recipe)
            if changes := _changes(flat(before), flat(read(run / RECIPE))):
                print_fn(f"changed in its recipe: {changes}")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {old[name]} -> {new[name]}" for name in new if name in old and old[name] != new[name])

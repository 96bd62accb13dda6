"""``davi train``: from a recipe to a run folder."""

from __future__ import annotations

import dataclasses
import io
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from davi import recipes
from davi.cli.loading import device_of
from davi.cli.options import Request
from davi.cli.sets import adapted, anchored, load_told, needing_labels, of_run
from davi.cli.starting import Source, check_same_source, open_source
from davi.data import DataSets
from davi.errors import UserError
from davi.model import Classifier, Conditional
from davi.models import MODELS
from davi.recipes import Recipe
from davi.runs import RECIPE, check_can_go_on
from davi.training import Interrupted, train
from davi.training.parallel import Processes
from davi.training.plan import plan
from davi.training.stages import check_stages, single
from davi.training.start import take_over


def run(request: Request) -> int:
    """Train; the exit status, which is 130 or 143 if a signal ended it."""
    with _computing_on(request.options.device):
        processes = Processes()
        with processes.one_voice():
            return _train(request, processes)


@contextmanager
def _computing_on(name: str | None) -> Iterator[None]:
    """Have Accelerate compute on the device of that name while the block lasts; on the one that it finds if None.

    Raises:
        UserError: if there is no such device, or a launcher has given each process its own.
    """
    if name is None:
        yield
        return
    device = device_of(name)
    if "LOCAL_RANK" in os.environ:
        raise UserError(f"--device: got {name!r}, expected none: the launcher of these processes gives each its own")
    wanted = {"ACCELERATE_TORCH_DEVICE": str(device), "ACCELERATE_USE_CPU": str(device.type == "cpu").lower()}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            os.environ.update({} if value is None else {key: value})


def _train(request: Request, processes: Processes) -> int:
    recipe, folder, source, told = _asked(request)
    if recipe.data is None:
        raise UserError(
            f"{recipe.name}: got no section data, expected one in a recipe that is to be trained, or --data SET"
        )
    if recipe.training is None:
        raise UserError(
            f"{recipe.name}: got no section training, expected one in a recipe that is to be trained, or a budget: "
            "--minutes, --steps or --epochs"
        )
    data, training = anchored(recipe.data), recipe.training
    whole = dataclasses.replace(recipe, data=data).to_dict()
    if training.threads:
        torch.set_num_threads(training.threads)
    notes = io.StringIO()
    with needing_labels(recipe.model_name if issubclass(MODELS[recipe.model_name], Classifier) else None):
        sets = processes.main_first(lambda: load_told(data, notes))
    torch.manual_seed(training.seed)  # the initial weights
    model = recipes.build(recipe, sets.shape, sets.levels, _classes(recipe, sets, notes))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = "x".join(map(str, sets.shape))
    if not request.options.plan:  # not before: what has failed up to here leaves no folder
        print(f"run {folder}")
    print("".join(f"{line}\n" for line in told) + notes.getvalue(), end="")
    print(f"recipe {recipe.name}: {recipe.model_name}, {parameters:,} parameters")
    print(f"data {data.set}: {len(sets.train)} training images of {shape} with {sets.levels} levels")
    start = None
    if source is not None:
        start, lines = take_over(model, source.model, source.name, source.has_other_classes(sets.classes))
        print("\n".join(lines))
    if request.options.plan:
        stages = recipe.stages or single(training)
        check_stages(model, stages)
        for stage in stages:
            if stage.name:
                print(f"stage {stage.name}, which trains {stage.part or 'the whole model'}:")
            print("\n".join(plan(model, sets, training, stage).lines()))
        return 0
    try:
        train(model, sets, training, folder, whole, request.options.resume, start=start, stages=recipe.stages)
    except Interrupted as interrupted:
        if processes.main:
            print(f"davi: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    print(f"next: davi evaluate {shlex.quote(str(folder))}")
    return 0


def _classes(recipe: Recipe, sets: DataSets, notes: TextIO) -> int:
    """The number of classes of the model: those of the images, if it can use them."""
    if not sets.classes or issubclass(MODELS[recipe.model_name], Conditional):
        return len(sets.classes)
    print(f"labels of {len(sets.classes)} classes were read, of which {recipe.model_name} makes no use", file=notes)
    return 0


def _asked(request: Request) -> tuple[Recipe, Path, Source | None, list[str]]:
    """The recipe with all overrides, the folder of the run, the weights to begin with, if the run is new, and what was
    found on the way."""
    options = request.options
    if options.resume and options.run is None:
        raise UserError("--resume: got no --run DIR, expected the folder of the run to go on with")
    folder = None if options.run is None else Path(options.run)
    begun = options.resume and folder is not None and (folder / RECIPE).is_file()
    if options.resume and folder is not None:
        check_can_go_on(folder)  # before images are decoded for nothing
    if begun and folder is not None and options.source is not None:
        check_same_source(folder, options.source)
    told: list[str] = []
    source = None if begun or options.source is None else open_source(request, told.append)
    if options.recipe is not None:
        recipe = adapted(partial(recipes.load, options.recipe), request.assignments, told.append)
    elif source is not None:
        recipe = adapted(source.load, request.assignments, told.append)
    elif folder is None or not options.resume:
        raise UserError("recipe: got nothing, expected its name or the path of a .yaml file (davi recipes lists names)")
    elif begun:
        recipe = of_run(folder / RECIPE, request.assignments)
    else:
        raise UserError(f"run: {folder} holds no {RECIPE}, expected the folder of a run, or a recipe to begin with")
    folder = _free_folder(recipe.name) if folder is None else folder
    return recipe, folder, source, told


def _free_folder(name: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that does not exist."""
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder

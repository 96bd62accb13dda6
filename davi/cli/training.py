"""``davi train``: from a recipe to a run folder."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from davi import recipes
from davi.cli.options import Request
from davi.cli.sets import adapted, anchored, load_told, of_run
from davi.errors import UserError
from davi.recipes import Recipe
from davi.runs import RECIPE
from davi.training import Interrupted, train
from davi.training.parallel import Processes
from davi.training.plan import plan


def run(request: Request) -> int:
    """Train; the exit status, which is 130 or 143 if a signal ended it."""
    processes = Processes()
    with processes.one_voice():
        return _train(request, processes)


def _train(request: Request, processes: Processes) -> int:
    recipe, folder = _recipe(request)
    if recipe.data is None or recipe.training is None:
        missing = "data" if recipe.data is None else "training"
        raise UserError(f"{recipe.name}: got no section {missing}, expected one in a recipe that is to be trained")
    data, training = anchored(recipe.data), recipe.training
    whole = dataclasses.replace(recipe, data=data).to_dict()
    if training.threads:
        torch.set_num_threads(training.threads)
    sets = processes.main_first(lambda: load_told(data, sys.stdout))
    torch.manual_seed(training.seed)  # the initial weights
    model = recipes.build(recipe, sets.shape, sets.levels)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = "x".join(map(str, sets.shape))
    print(f"recipe {recipe.name}: {recipe.model_name}, {parameters:,} parameters")
    print(f"data {data.set}: {len(sets.train)} training images of {shape} with {sets.levels} levels")
    if request.options.plan:
        print("\n".join(plan(model, sets, training).lines()))
        return 0
    try:
        train(model, sets, training, folder, whole, request.options.resume)
    except Interrupted as interrupted:
        if processes.main:
            print(f"davi: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    return 0


def _recipe(request: Request) -> tuple[Recipe, Path]:
    """The recipe with all overrides, and the folder of the run."""
    options = request.options
    if options.resume and options.run is None:
        raise UserError("--resume: got no --run DIR, expected the folder of the run to go on with")
    if options.recipe is not None:
        recipe = adapted(options.recipe, request.assignments, print)
        return recipe, _free_folder(recipe.name) if options.run is None else Path(options.run)
    if not options.resume:
        raise UserError("recipe: got nothing, expected its name or the path of a .yaml file (davi recipes lists names)")
    folder = Path(options.run)
    if not (folder / RECIPE).is_file():
        raise UserError(f"run: {folder} holds no {RECIPE}, expected the folder of a run, or a recipe to begin with")
    return of_run(folder / RECIPE, request.assignments), folder


def _free_folder(name: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that does not exist."""
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder

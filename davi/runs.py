"""The folder of a run, and its files of weights, with digests.

Layout::

    recipe.yaml                    the complete recipe
    metrics.jsonl                  one JSON object per line: what happened, in the order of the steps (davi.metrics)
    images.npz                     its images, if a Python program handed them over (davi.run)
    start.safetensors              the weights it begins with, if these are another model's (davi.training.start)
    checkpoints/step-00001234/     everything a resumed run needs (davi.training.checkpoint)
    model.safetensors              the trained model: averaged weights and buffers
    derived/                       what follows from its weights and takes long to find (davi.derived)

Names never stand for half a file (:mod:`davi.files`). The metadata of a file of weights holds the model's ``name``,
``shape``, ``levels`` and ``config`` (and ``classes``, if it has some) and whatever else the writer adds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from davi import __version__
from davi.config import parse, to_dict
from davi.data import which_images
from davi.errors import UserError
from davi.files import read_tensors, replace_text, stated_digest, sync_folder, write_tensors, writing
from davi.kept import IMAGES, portable
from davi.model import Claiming, Classifier, Model, Network, Unnormalized
from davi.model.meta import LARGEST, at_most, largest, on_meta
from davi.models import MODELS
from davi.partition import normalized
from davi.renamed import read, upgraded
from davi.run_folder import CHECKPOINTS as CHECKPOINTS
from davi.run_folder import LOCK as LOCK
from davi.run_folder import MODEL as MODEL
from davi.run_folder import RECIPE as RECIPE
from davi.run_folder import START as START
from davi.run_folder import check_can_go_on as check_can_go_on
from davi.run_folder import check_free
from davi.run_folder import in_use as in_use

AVERAGE = "average.safetensors"
"""Within a checkpoint: the averaged model, in the same form as the final one."""

_KINDS: dict[type, str] = {
    int: "parameters step rollbacks",
    bool: "ema",
    float: "ema_decay",
    dict: "protocol",
    str: "version imported",
}
_WORDS = {int: "a whole number", bool: "true or false", float: "a number", dict: "a mapping", str: "text"}

PrintFunction = Callable[[str], None]


def create(run: Path, recipe: Mapping[str, Any], resume: bool = False, first: Callable[[], None] | None = None) -> None:
    """Make a run's folder and write its recipe.

    Arguments:
        run: the folder; new or empty, unless ``resume``.
        recipe: what to write as ``recipe.yaml``.
        resume: go on in a folder that holds a run of the same recipe; its ``training`` section may differ, so that a
            run can be prolonged, and ``data.root``, since the images can have moved. Its file stays as it is:
            :func:`write_recipe` replaces it once all else has been found to fit, or else a refused resumption would
            leave a run that can never be resumed.
        first: writes what a new run needs besides; called before the recipe is written, with which the run has begun.

    Raises:
        UserError: if the folder is in use, cannot be written, or holds a run of another recipe.
    """
    if not resume:
        check_free(run)
    elif in_use(run):
        check_can_go_on(run)
        if (run / RECIPE).exists():
            _same_recipe(run, recipe)
            return
        if {path.name for path in run.iterdir()} - {RECIPE + ".new", LOCK, START, START + ".new", IMAGES}:
            raise UserError(f"run: {run} holds no {RECIPE}, so there is no run to resume")
    with writing(f"{run}"):
        run.mkdir(parents=True, exist_ok=True)
    if first is not None:
        first()
    write_recipe(run, recipe)


def create_whole(run: Path, recipe: Mapping[str, Any], model: Network, extra: Mapping[str, Any]) -> None:
    """Make the folder of a run that needs no training: recipe and model appear together, or not at all.

    Arguments:
        run: the folder, new or empty.
        recipe: what to write as ``recipe.yaml``.
        model: what to write as ``model.safetensors``.
        extra: what its file shall say besides the model's description.

    Raises:
        UserError: if the folder is in use or cannot be written.
    """
    if in_use(run):
        raise UserError(f"run: {run} is not empty; choose another folder")
    target = run.resolve()
    beside = target.with_name(f".{target.name}.new")
    with writing(f"{run}"):
        shutil.rmtree(beside, ignore_errors=True)  # of an attempt that was killed
        beside.mkdir(parents=True)
        try:
            write_recipe(beside, recipe)
            save_model(beside / MODEL, model, extra)
            beside.replace(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def write_recipe(run: Path, recipe: Mapping[str, Any]) -> None:
    """Write a run's ``recipe.yaml``, or replace it by that of a resumption.

    Raises:
        UserError: if it cannot be written.
    """
    text = yaml.safe_dump(_plain(portable(recipe, run)), sort_keys=False, allow_unicode=True)
    with writing(f"{run}"):
        replace_text(run / RECIPE, text)


def _plain(value: Any) -> Any:
    """Dicts, lists and scalars alone: YAML would write a tuple as a tagged object, a shared list as an alias."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _same_recipe(run: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse a recipe for another model or other images than the folder's. The first option that differs is named."""
    path = run / RECIPE
    old, new = (flat(_compared(sections, f"{path}")) for sections in (read(path), _plain(recipe)))
    differing = [key for key in {**new, **old} if (key in new, new.get(key)) != (key in old, old.get(key))]
    # Another model has other options as well, and another recipe may have another model.
    for key in sorted(differing, key=lambda key: (key != "model.name", key == "name")):
        got, expected = (_shown(values, key) for values in (new, old))
        raise UserError(f"{key}: got {got}, expected {expected}, with which {run} was begun")


def _compared(sections: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What has to be the same in a resumed run: not how it is trained, nor where and how the images are read (that they
    are the same images, their hashes say). Options that an older version has not written have their defaults."""
    model = sections.get("model")
    if isinstance(model, Mapping) and (name := model.get("name")) in list(MODELS):
        options = {key: value for key, value in model.items() if key != "name"}
        model = {"name": name, **to_dict(parse(MODELS[name].Config, options, where))}
    given = sections.get("stages")
    stages = [(stage.get("name"), stage.get("part")) for stage in given] if isinstance(given, list) else None
    told = {"data": which_images(sections.get("data")), "name": sections.get("name")}
    return {"model": model, **told, "stages": None if stages is None else str(stages)}


def _shown(values: Mapping[str, Any], key: str) -> str:
    return "nothing" if values.get(key) is None else str(values[key])[:100]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested sections as one mapping with dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {inner: x for key in value for inner, x in flat(value[key], f"{name}.{key}" if name else key).items()}


def describe(model: Network) -> dict[str, Any]:
    """What a model is built from, as JSON can hold it: ``name``, ``shape``, ``levels``, ``config``, and its size."""
    return {
        "name": model.name,
        "shape": list(model.shape),
        "levels": model.levels,
        "config": to_dict(model.config),
        **({"classes": model.classes} if model.classes else {}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "version": __version__,
    }


def save_model(
    path: Path, model: Network, extra: Mapping[str, Any] | None = None, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model's weights and buffers, with all that is needed to build it again.

    Arguments:
        path: the file; its folder exists.
        model: the model; its name must be registered in :data:`davi.models.MODELS` for :func:`load_model` to find it.
        extra: more to remember, as JSON can hold it: ``step``, ``protocol``, ``ema``, ...
        weights: the tensors to write, named as the model's; its own when None.

    Raises:
        UserError: if the file cannot be written.
    """
    if isinstance(model, Claiming):
        model = model.saved  # a partition function is no weight
    with writing(str(path)):
        write_tensors(path, model.state_dict() if weights is None else weights, {**(extra or {}), **describe(model)})


def load_network(path: Path | str, print_fn: PrintFunction | None = None) -> tuple[Network, dict[str, Any]]:
    """The trained network of a run or a file, in eval mode on the CPU, and what the file says about it.

    All or nothing: the names, shapes and types of all tensors must be those of the model that the file describes, and
    their bytes those that were written.

    Arguments:
        path: a run's folder or a ``.safetensors`` file. For a run that has not ended, its newest whole checkpoint.
        print_fn: receives a line when a checkpoint stands in for the final model.

    Returns:
        The network; and ``name``, ``shape``, ``levels``, ``config``, ``parameters``, ``version``, ``source`` (the file)
        and what the writer added.

    Raises:
        UserError: one line, if there is no model, or the file is damaged, of another program, or contradicts itself.
    """
    path = Path(path)
    if not path.is_dir():
        return _load(path)
    if (path / MODEL).exists():
        return _load(path / MODEL)
    trouble = f"{path}: no {MODEL} and no checkpoint in this folder; expected a run of davi train"
    for folder in reversed(checkpoint_folders(path)):
        try:
            model, info = _load(folder / AVERAGE)
        except UserError as error:
            trouble = str(error)
            continue
        if print_fn is not None:
            print_fn(f"{path}: training has not ended; using the checkpoint of step {info.get('step')}")
        return model, info
    raise UserError(trouble)


def load_claiming(path: Path | str, print_fn: PrintFunction | None = None) -> tuple[Claiming, dict[str, Any]]:
    """:func:`load_network` as what can be evaluated: a classifier, or a model of images; an energy comes with its
    partition function.

    Raises:
        UserError: as there, and if what is found makes no claim.
    """
    network, info = load_network(path, print_fn)
    if isinstance(network, Unnormalized):
        path = Path(path)
        return normalized(network, path if path.is_dir() else path.parent), info
    if not isinstance(network, Claiming):
        raise UserError(f"{path}: got {network.name}, which has no likelihood, expected a model that has one")
    return network, info


def load_model(path: Path | str, print_fn: PrintFunction | None = None) -> tuple[Model, dict[str, Any]]:
    """:func:`load_claiming` for models of images.

    Raises:
        UserError: as there, and if what is found says nothing about the probability of images.
    """
    network, info = load_claiming(path, print_fn)
    if not isinstance(network, Model):
        raise UserError(
            f"{path}: got {network.name}, a classifier, which says nothing about how probable an image is; expected a "
            "model of images (davi.load_classifier loads a classifier)"
        )
    return network, info


def load_classifier(path: Path | str, print_fn: PrintFunction | None = None) -> tuple[Classifier, dict[str, Any]]:
    """:func:`load_network` for classifiers. What the file says has also ``class_names``.

    Raises:
        UserError: as there, and if what is found is no classifier.
    """
    network, info = load_network(path, print_fn)
    if not isinstance(network, Classifier):
        raise UserError(f"{path}: got {network.name}, expected a classifier (davi.load loads a model of images)")
    return network, info


def weights_of(run: Path) -> str | None:
    """:func:`davi.files.digest` of the weights that :func:`load_model` would take of a run, as their file states it.

    None where the run holds no file of weights that can be read.
    """
    final = run / MODEL
    paths = [final] if final.exists() else [folder / AVERAGE for folder in reversed(checkpoint_folders(run))]
    for path in paths:
        with suppress(UserError):
            return stated_digest(path)
    return None


def _load(path: Path) -> tuple[Network, dict[str, Any]]:
    tensors, info = read_tensors(path)
    _check_info(path, info)
    build = _builder(path, info)
    wanted = on_paper(f"{path}", build, len(tensors))
    _compare(path, tensors, wanted)
    with torch.random.fork_rng(devices=[]):  # the initialization, which is overwritten, must not move anyone's draws
        model = build()
    model.load_state_dict(tensors)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what convolutions are fastest on
    return model.eval().requires_grad_(False), {**info, "source": str(path)}


def _check_info(path: Path, info: Mapping[str, Any]) -> None:
    """What else a file says about its model is printed and computed with: it must be of the kind that we write."""
    for name, kind in ((name, kind) for kind, names in _KINDS.items() for name in names.split()):
        value = info.get(name)
        # To Python, true is a number, hence no isinstance. No number is negative, or so large that it fills a screen.
        right = type(value) is kind and (not isinstance(value, (int, float)) or 0 <= value < 2**63)
        if name in info and not right:
            raise UserError(f"{path}: got {name} {str(value)[:50]!r}, expected {_WORDS[kind]}")
    names = info.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: got class_names {str(names)[:50]!r}, expected a list of names")
    if names and len(names) != info.get("classes", 0):
        raise UserError(f"{path}: got {len(names)} class_names, expected {info.get('classes', 0)}: one for each class")


def _builder(path: Path, info: Mapping[str, Any]) -> Callable[[], Network]:
    """How to build the model that a file describes."""
    name, shape, levels, config = (info.get(key) for key in ("name", "shape", "levels", "config"))
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"{path}: got model {str(name)[:50]!r}, expected one of {', '.join(MODELS)}")
    given = [*shape, levels] if isinstance(shape, list) else []
    numbers = [number for number in given if type(number) is int and 0 < number <= 65536]
    if len(given) != 4 or len(numbers) != 4 or not isinstance(config, dict):
        raise UserError(f"{path}: got no usable shape, levels and config, expected a file written by davi")
    if largest(config) > LARGEST:
        raise UserError(f"{path}: got a model option above {LARGEST}; the file is damaged")
    # Every registered model is built from shape, levels and options; the abstract class has no options.
    cls: Callable[..., Network] = MODELS[name]
    options: Any = parse(MODELS[name].Config, upgraded({"model": config})["model"], str(path))
    classes = info.get("classes", 0)
    if type(classes) is not int or not 0 <= classes <= LARGEST:
        raise UserError(f"{path}: got classes {str(classes)[:50]}, expected a whole number from 0")
    return lambda: cls(tuple(numbers[:3]), numbers[3], options, classes)


def on_paper(path: str, build: Callable[[], Network], tensors: int) -> dict[str, Tensor]:
    """The tensors of a described model, without memory for them.

    A description may ask for any number of layers; construction stops as soon as it has more parameters than the file.

    Arguments:
        path: of the file with the description, for messages.
        build: makes the model.
        tensors: how many the file has.

    Raises:
        UserError: one line, if the model cannot be built or has more.
    """
    more = UserError(f"{path}: got {tensors} tensors, expected more for the model described in the file")
    try:
        with at_most(tensors, more), on_meta():
            return build().state_dict()
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError, RecursionError) as error:
        raise UserError(
            f"{path}: the model described in the file cannot be built: {' '.join(str(error).split())[:150]}"
        ) from None


def _compare(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in sorted({*tensors, *wanted}):
        if name not in wanted or name not in tensors:
            kind = "missing" if name in wanted else "not of this model"
            raise UserError(f"{path}: tensor {name[:100]} is {kind}")
        got, want = tensors[name], wanted[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise UserError(
                f"{path}: tensor {name}: got {got.dtype} {list(got.shape)}, expected {want.dtype} {list(want.shape)}"
            )


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folder = run / CHECKPOINTS
    return sorted(path for path in folder.glob("step-????????*") if path.is_dir()) if folder.is_dir() else []

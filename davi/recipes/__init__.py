"""Recipes: complete configurations of a model, its images and its training, and what is built from them.

A recipe is a YAML file with four keys: ``description`` (one line) and the sections ``model`` (its ``name`` and the
options of that model), ``data`` (:class:`davi.data.DataConfig`) and ``training``
(:class:`davi.training.TrainingConfig`). A model whose parts are trained one after the other has a fifth, ``stages``: a
list, each item with a ``name``, the ``part`` that is trained, and whatever differs from ``training``. Options that are
not given have the defaults of those classes. The recipes that come with the program lie in this folder and are found by
their name; a user's own is found by its path::

    davi recipes show attentive_digits > mine.yaml
    davi train mine.yaml --model.width 32 --training.minutes 20

The list of recipes is needed by programs that have no time to load torch, so torch is imported by the functions that
need it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from davi.config import load_yaml, override, parse, to_dict
from davi.errors import OptionError, UserError
from davi.renamed import complaint, read

if TYPE_CHECKING:
    from davi.data import DataConfig
    from davi.model import Network
    from davi.sets import Shape
    from davi.training import TrainingConfig
    from davi.training.stages import Stage

_SUFFIXES = (".yaml", ".yml")

_BUDGETS = frozenset({"steps", "epochs", "minutes"})

_REMEDIES = {
    "likelihood.family": "--model.likelihood.family logistic_mixture takes any, --data.binarization dynamic makes gray "
    "binary",
    "classes": "--data.labels false leaves the labels out",
    "pad": "--model.pad null adds as much as these images need",
}
"""Option of a model that does not fit the images -> what can be done."""


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and found to be whole.

    Arguments:
        name: the file's name without its suffix, or what the file itself says under ``name``.
        description: one line.
        model_name: which model, a key of :data:`davi.models.MODELS`.
        model: that model's options.
        data: the images; None where the file has no such section (weights from elsewhere).
        training: how it is trained; None where the file has no such section.
        stages: what is trained one after the other (:mod:`davi.training.stages`), if there is more than one thing.
        given: the options of each stage, as the file gives them, over those of ``training``.
    """

    name: str
    description: str
    model_name: str
    model: Any
    data: DataConfig | None
    training: TrainingConfig | None
    stages: tuple[Stage, ...] = ()
    given: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything, with all defaults written out, as YAML can hold it and :func:`load` reads it back."""
        sections: dict[str, Any] = {"name": self.name, "description": self.description}
        sections["model"] = {"name": self.model_name, **to_dict(self.model)}
        for name, section in (("data", self.data), ("training", self.training)):
            if section is not None:
                sections[name] = to_dict(section)
        if self.given:
            sections["stages"] = [dict(options) for options in self.given]
        return sections


def names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def find(name_or_path: str | Path) -> Path:
    """The file of a recipe.

    Arguments:
        name_or_path: one of :func:`names`, or the path of a ``.yaml`` or ``.yml`` file.

    Raises:
        UserError: if there is no recipe of that name; the message gives the nearest. A path is not looked up.
    """
    given = str(name_or_path)
    if Path(given).suffix in _SUFFIXES:
        return Path(given)
    known = names()
    if given in known:
        return Path(__file__).with_name(f"{given}.yaml")
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "davi recipes lists the names"
    shown = " ".join(given.split())[:100]
    raise UserError(f"recipe: got {shown!r}, expected the name of a recipe or the path of a .yaml file; {hint}")


def describe(name: str) -> str:
    """The one line that a recipe says about itself."""
    return str(load_yaml(find(name)).get("description", ""))


def load(name_or_path: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay assignments over it.

    Arguments:
        name_or_path: as for :func:`find`.
        assignments: ``model.layers=[4]`` or ``--model.layers [4]``, as :func:`davi.config.override` takes them.

    Raises:
        UserError: one line: no such recipe, a key that does not exist (with the nearest that does), a value of another
            type, or options that contradict one another.
    """
    path = find(name_or_path)
    where = str(path) if Path(str(name_or_path)).suffix in _SUFFIXES else path.name
    return laid_over(read(path), assignments, where, path.stem)


def laid_over(values: Mapping[str, Any], assignments: Sequence[str], where: str, stem: str) -> Recipe:
    """The recipe of nested values, with assignments over them.

    Arguments:
        values: as a recipe's file holds them.
        assignments: as for :func:`load`.
        where: what messages about the values begin with.
        stem: the recipe's name, unless the values have one.

    Raises:
        UserError: as :func:`load` does.
    """
    changed = override(values, assignments)
    try:
        return _parse(changed, where, stem)
    except UserError:
        if not assignments:
            raise
        _parse(values, where, stem)  # if the values by themselves are at fault, that is what the user needs to know
        return _parse(changed, "command line", stem)


def _parse(values: Mapping[str, Any], where: str, stem: str) -> Recipe:
    from davi.data import DataConfig
    from davi.models import MODELS
    from davi.training import TrainingConfig

    if words := complaint(values):
        raise UserError(f"{where}: {words}")
    model = values.get("model")
    if not isinstance(model, Mapping):
        raise UserError(f"{where}: model: got {_shown(model)}, expected a section with the name of a model")
    name = model.get("name")
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"{where}: model.name: got {_shown(name)}, expected one of {', '.join(MODELS)}")
    sections: list[tuple[str, Any, Any]] = [
        ("model", MODELS[name].Config, dataclasses.MISSING),  # the one that is always given comes first
        ("name", str, stem),
        ("description", str, ""),
        ("data", DataConfig | None, None),
        ("training", TrainingConfig | None, None),
    ]
    # Made for this model, so that one walk over the whole file finds every mistake and every nearest key.
    whole: Any = dataclasses.make_dataclass(
        "Whole", [(key, hint, dataclasses.field(default=value)) for key, hint, value in sections], frozen=True
    )
    options = {key: value for key, value in model.items() if key != "name"}
    given = values.get("stages")
    rest = {key: value for key, value in values.items() if key != "stages"}
    parsed = parse(whole, {**rest, "model": options}, where)
    found = Recipe(parsed.name, parsed.description, name, parsed.model, parsed.data, parsed.training)
    return found if given is None else _with_stages(found, given, values.get("training"), where)


def _with_stages(recipe: Recipe, given: Any, shared: Any, where: str) -> Recipe:
    """The recipe with the stages of its file, each with its options over the shared ones.

    A section of a stage replaces the shared one; a budget of a stage replaces all shared budgets.
    """
    from davi.training import TrainingConfig
    from davi.training.stages import Stage

    if not isinstance(given, list) or not given or recipe.training is None:
        missing = " beside a section training" if recipe.training is None else ""
        raise UserError(f"{where}: stages: got {_shown(given)}, expected a list of stages{missing}")
    stages: list[Stage] = []
    for item in given:
        own = dict(item) if isinstance(item, Mapping) else {}
        name, part = own.pop("name", None), own.pop("part", None)
        if not isinstance(name, str) or not name.isidentifier() or name in [stage.name for stage in stages]:
            raise UserError(f"{where}: stages: got the name {_shown(name)}, expected a word for each, no two alike")
        if part is not None and not isinstance(part, str):
            raise UserError(f"{where}: stages.{name}.part: got {_shown(part)}, expected the name of a part, or null")
        budgets = _BUDGETS if _BUDGETS & own.keys() else frozenset[str]()
        options = {key: value for key, value in dict(shared).items() if key not in budgets} | own
        stages.append(Stage(parse(TrainingConfig, options, f"{where}: stages.{name}"), name, part))
    return dataclasses.replace(recipe, stages=tuple(stages), given=tuple(dict(item) for item in given))


_MOST_TENSORS = 100_000
"""A model of more is not built: it would take minutes to find out that it is too large."""


def build(recipe: Recipe, shape: Shape, levels: int, classes: int = 0) -> Network:
    """The untrained network of a recipe, in eval mode. Its initial weights are drawn from torch's default generator.

    In training mode a batch norm makes what is said about an image depend on the others of its batch, which is no bound
    on anything; training (:func:`davi.training.train`) switches it on for itself.

    Arguments:
        recipe: whose model.
        shape: (C, H, W) of the images.
        levels: values per channel.
        classes: of the images; 0 if they have no labels.

    Raises:
        UserError: if the model's options do not fit the images, or ask for more memory than there is.
    """
    import torch

    from davi.model.meta import LARGEST, at_most, largest, on_meta
    from davi.models import MODELS

    for option, value in to_dict(recipe.model).items():
        if largest(value) > LARGEST:
            raise UserError(f"{recipe.name}: model.{option}: got {_shown(value)}, expected numbers up to {LARGEST:,}")
    cls: Any = MODELS[recipe.model_name]
    many = MemoryError(f"it has more than {_MOST_TENSORS:,} tensors of weights")
    try:
        with at_most(_MOST_TENSORS, many), on_meta():  # an absurd width must not fill the memory before it is noticed
            model: Network = cls(shape, levels, recipe.model, classes)
        size = sum(parameter.numel() for parameter in model.parameters())
        if 4 * size > _memory():
            raise MemoryError(f"it has {size:.3g} parameters, for which this machine has too little memory")
        if torch.get_default_device().type != "meta":
            model = cls(shape, levels, recipe.model, classes)
    except (ValueError, RuntimeError, MemoryError, OverflowError) as error:  # torch has RuntimeError for a full memory
        reason = " ".join(str(error).split())[:200]
        needs_labels = isinstance(error, OptionError) and error.option == "classes" and not classes
        if isinstance(error, OptionError) and error.option in _REMEDIES and not needs_labels:
            reason += f"; {_REMEDIES[error.option]}"
        raise UserError(f"{recipe.name}: the model cannot be built for images {list(shape)}: {reason}") from None
    return model.eval()


def _memory() -> float:
    """Bytes of the machine's memory; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:80]

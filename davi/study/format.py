"""The file of a study: a question, the arms that answer it, and the published numbers beside them.

::

    title: Depth of an NVAE
    question: How much does every doubling of the latent layers gain?
    sources:
      - {title: ..., authors: ..., year: 2022, link: https://..., where: table 1}
    seeds: 1
    budget: {minutes: 15}               # or cpu_minutes, steps or epochs; none of them: as the recipes have it
    importance_samples: 20
    images: 1000                        # that are measured, spread evenly over the test set
    overrides: [training.threads=1]     # of all arms
    measured: [bound, parameters, steps]
    tables:
      - title: CIFAR-10
        published: CIFAR-10, test set, bits/dim
        axis: {label: latent layers, log: true}
        arms:
          - {name: 2 layers, recipe: nvae_cifar10_small, overrides: ["model.groups=[1, 1]"], x: 2,
             published: {bits/dim: 3.50}}

An *arm* is a recipe and what is changed of it. One without a recipe is a published row, beside which nothing of ours
can stand. Published numbers are quoted, never computed with.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from davi import recipes
from davi.config import Reader, keys, load_yaml, shown
from davi.errors import UserError

FOLDER = Path(__file__).parents[1] / "studies"
ROOT = "data.root="
"""The override that says where the images are."""
_SUFFIXES = (".yaml", ".yml")
_MOST_SEEDS = 100
_WORDS = {"cpu_minutes": "CPU minutes"}

QUANTITIES = {
    "bound": "bound",
    "elbo": "ELBO",
    "rate": "KL",
    "reconstruction": "reconstruction",
    "training": "training",
    "information": "mutual information",
    "error_rate": "errors, %",
    "active_units": "active units",
    "utilization": "active units, %",
    "active_layers": "active units by layer",
    "kl_layers": "KL by layer, nats",
    "parameters": "parameters",
    "steps": "steps",
    "minutes": "minutes",
    "cpu_minutes": "CPU minutes",
    "steps_per_second": "steps/s",
    "memory": "memory, MiB",
}
"""What can be measured of an arm, and how the columns are headed (:mod:`davi.study.quantities` measures it)."""


@dataclass(frozen=True)
class Source:
    """Where the question and the published numbers come from.

    Arguments:
        title, authors, year, link: of the paper.
        where: the table or figure.
    """

    title: str
    authors: str
    year: int
    link: str
    where: str = ""

    def __str__(self) -> str:
        where = f", {self.where}" if self.where else ""
        return f"{self.title}, {self.authors}, {self.year}, {self.link}{where}"


@dataclass(frozen=True)
class Budget:
    """How long each arm is trained: one of these, or none of them for what its recipe says.

    Arguments:
        minutes: on the clock of the training, which stands still while another arm has its turn.
        cpu_minutes: of the processor's time, so that other work on the machine does not count. How many steps they hold
            is measured first, in a minute for each arm.
        steps: training steps.
        epochs: passes over the training images.
    """

    minutes: float | None = None
    cpu_minutes: float | None = None
    steps: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        if len(self.given) > 1:
            raise ValueError(f"minutes: got {' and '.join(self.given)}, expected one of {', '.join(vars(self))}")
        for name, value in self.given.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value:g}, expected a number above 0")

    @property
    def given(self) -> dict[str, float]:
        """The one that is given, if any."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        words = [f"{value:g} {_WORDS.get(name, name)}" for name, value in self.given.items()]
        return words[0] if words else "as the recipes have it"


@dataclass(frozen=True)
class Axis:
    """What the arms of a table are drawn over.

    Arguments:
        label: with the unit.
        log: whether equal ratios are equally far apart.
    """

    label: str
    log: bool = False


@dataclass(frozen=True)
class Arm:
    """One training, or a published row.

    Arguments:
        name: in tables.
        recipe: its name; None where there are only published numbers.
        overrides: of the recipe, as on the command line: ``model.layers=[4]``.
        series: arms of one series are joined in the figure.
        x: place in the figure, where the table has an axis.
        published: heading of a column -> number or text; text where the last zero of a number matters, as in "0.70".
    """

    name: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    series: str = ""
    x: float | None = None
    published: Mapping[str, str | float | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_line("name", self.name)
        for name, value in self.published.items():
            _check_line("published", name)
            if isinstance(value, str):
                _check_line(f"published.{name}", value)
            elif not math.isfinite(value):
                raise ValueError(f"published.{name}: got {value:g}, expected a finite number or text")


@dataclass(frozen=True)
class Table:
    """Arms that are compared with one another: all are measured on the same images.

    Arguments:
        title: the images, and whatever else tells it apart.
        arms: its rows.
        published: of which images the published numbers are, and in which unit.
        columns: headings of the published columns in their order; those that are not named follow.
        drawn: heading of the published column that the figure shows; empty: the first that has numbers.
        note: what has to be known to read it.
        reference: name of the arm that the others are compared with; None: the first that has a recipe.
        axis: of its figure; None: the arms stand one below the other.
        importance_samples: other than the study's.
        images: other than the study's.
    """

    title: str
    arms: tuple[Arm, ...]
    published: str = ""
    columns: tuple[str, ...] = ()
    drawn: str = ""
    note: str = ""
    reference: str | None = None
    axis: Axis | None = None
    importance_samples: int | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        _check_line("title", self.title)
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"arms: got the names {', '.join(names) or 'none'}, expected some, no two alike")
        if self.reference is not None and self.reference not in [arm.name for arm in self.trained]:
            raise ValueError(f"reference: got {self.reference!r}, expected the name of an arm with a recipe")
        for name in filter(None, (*self.columns, self.drawn)):
            if not any(name in arm.published for arm in self.arms):
                raise ValueError(f"{'drawn' if name == self.drawn else 'columns'}: got {name!r}, expected a column")
        if self.axis is not None and self.axis.log and any(arm.x is not None and arm.x <= 0.0 for arm in self.arms):
            raise ValueError("axis.log: got true, expected every x to be above 0")
        _check_counts(self)

    @property
    def trained(self) -> list[Arm]:
        """The arms that can be trained."""
        return [arm for arm in self.arms if arm.recipe is not None]

    @property
    def compared_with(self) -> Arm | None:
        """The arm that the others are compared with; None where nothing can be trained."""
        return next((arm for arm in self.trained if self.reference in (None, arm.name)), None)


@dataclass(frozen=True)
class Study:
    """A study.

    Arguments:
        title: short.
        question: in one or two sentences.
        tables: of its arms.
        name: of its file.
        sources: where the question and the published numbers come from.
        seeds: trainings of each arm, whose seeds are 0, 1, ...
        budget: of each training.
        importance_samples: K of the bound.
        images: of the test set that are measured, spread evenly; None: all.
        overrides: of all arms, before their own.
        measured: keys of :data:`QUANTITIES`, the columns in their order.
        notes: what has to be known to read it.
    """

    title: str
    question: str
    tables: tuple[Table, ...]
    name: str = ""
    sources: tuple[Source, ...] = ()
    seeds: int = 1
    budget: Budget = field(default_factory=Budget)
    importance_samples: int = 100
    images: int | None = 1000
    overrides: tuple[str, ...] = ()
    measured: tuple[str, ...] = ("bound", "elbo", "active_units", "parameters", "steps", "minutes")
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_line("title", self.title)
        _check_counts(self)
        if not self.tables:
            raise ValueError("tables: got none, expected at least one")
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise ValueError(f"seeds: got {self.seeds}, expected a whole number from 1 to {_MOST_SEEDS}")
        if not self.measured or len(set(self.measured)) < len(self.measured):
            raise ValueError(f"measured: got {', '.join(self.measured) or 'none'}, expected some, no two alike")
        for name in self.measured:
            if name not in QUANTITIES:
                raise ValueError(f"measured: got {name!r}, expected some of {', '.join(QUANTITIES)}")

    def trained(self) -> Iterator[tuple[Table, Arm]]:
        """All arms that can be trained, in the order in which ``davi study show`` numbers them from 1."""
        return ((table, arm) for table in self.tables for arm in table.trained)


def names() -> list[str]:
    """Names of the studies that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name_or_path: str | Path) -> Path:
    """The file of a study.

    Arguments:
        name_or_path: one of :func:`names`, or the path of a ``.yaml`` or ``.yml`` file.

    Raises:
        UserError: if there is no study of that name; the message gives the nearest. A path is not looked up.
    """
    given, known = str(name_or_path), names()
    if Path(given).suffix in _SUFFIXES:
        return Path(given)
    if given in known:
        return FOLDER / f"{given}.yaml"
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "davi study list lists the names"
    raise UserError(f"study: got {shown(given)}, expected the name of a study or the path of a .yaml file; {hint}")


def read(path: Path) -> Study:
    """Read a study.

    Arguments:
        path: of its file.

    Raises:
        UserError: one line: a key that does not exist, with the nearest that does; a value of another type; a recipe
            that does not exist.
    """
    values = load_yaml(path)
    study = _Reader(str(path), _all_keys()).study({"name": path.stem, **values})
    for table, arm in study.trained():
        assert arm.recipe is not None
        try:
            recipes.find(arm.recipe)
        except UserError as error:
            raise UserError(f"{path}: {table.title}: {arm.name}: {error}") from None
    if not re.fullmatch(r"\w[\w.-]*", study.name):
        raise UserError(
            f"{path}: name: got {shown(study.name)}, expected letters, digits, dots, - and _, the first no dot or -"
        )
    return study


def _check_line(key: str, text: str) -> None:
    """Refuse what would break a row of a table, or what a terminal would obey."""
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{key}: got {shown(text)}, expected one line of text")


def _check_counts(record: Any) -> None:
    for name in ("importance_samples", "images"):
        value = getattr(record, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected a whole number from 1")


def _all_keys() -> tuple[str, ...]:
    """Dotted keys of a study and of the records in its lists, for hints at the nearest."""
    inner = [("sources", Source), ("tables", Table), ("tables.arms", Arm), ("tables.axis", Axis)]
    return (*keys(Study), *(key for name, cls in inner for key in keys(cls, f"{name}.")))


class _Reader(Reader):
    """Reads also lists of records, and mappings from text to numbers and text."""

    def study(self, values: Mapping[str, Any]) -> Study:
        found: Study = self.section(Study, dataclasses.MISSING, values, "")
        return found

    def value(self, hint: Any, default: Any, value: Any, key: str) -> Any:
        if get_origin(hint) is tuple and dataclasses.is_dataclass(kind := get_args(hint)[0]):
            if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
                raise UserError(f"{self.where}: {key}: got {shown(value)}, expected a list of sections of keys")
            items = enumerate(value)
            return tuple(self.section(_a_class(kind), dataclasses.MISSING, item, f"{key}.{i}.") for i, item in items)
        if get_origin(hint) is Mapping:
            fits = isinstance(value, Mapping) and all(type(one) in (int, float, str) for one in value.values())
            if not fits:
                raise UserError(f"{self.where}: {key}: got {shown(value)}, expected a mapping to numbers or text")
            return {str(name): one for name, one in value.items()}
        return super().value(hint, default, value, key)


def _a_class(kind: Any) -> type:
    assert isinstance(kind, type)
    return kind

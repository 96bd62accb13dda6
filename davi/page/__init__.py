"""One HTML page about a run: its numbers, its learning curves, and what can be seen inside of the model.

The page is one file. It needs no network, no script and no other file, opens from a disk, and stays below
:data:`LARGEST`. Everything on it is computed elsewhere (:mod:`davi.evaluation`, :mod:`davi.inspection`); here it is
drawn and explained. Text of others, such as the name of a recipe, reaches the page through a template that escapes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup

from davi import __version__
from davi.errors import UserError
from davi.evaluation.result import Result
from davi.files import replace_text, writing
from davi.inspection import Inspection
from davi.model import Autoregressive, Hierarchy, LatentModel, Model
from davi.page import attention, curves, images, latents, numbers
from davi.page.blocks import Chart, Prose, Section, Source
from davi.page.pixels import data_uri
from davi.page.saved import inline, save

__all__ = ["LARGEST", "Contents", "headline", "save_figures", "write"]

LARGEST = 5_000_000
"""Bytes that a page never exceeds: what a mail or a code host takes without a word."""

headline = numbers.headline

_SIDES = (96, 64, 48, 32, 16, 8)
"""Longest sides of an image, in pixels of its picture: the first with which the page is small enough."""

_LONGEST_RECIPE = 50_000
"""Letters: a recipe is some two thousand."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What a page is made from.

    Arguments:
        title: name of the run.
        subtitle: a line about the model.
        result: of an evaluation.
        measured: a sentence that says who measured it.
        inspection: what was seen inside of the model.
        model: that all this is about; parts of the page ask what it can do.
        levels: of a pixel.
        records: the lines of ``metrics.jsonl``; none if there are none.
        recipe: the recipe as YAML; None if the run has none.
    """

    title: str
    subtitle: str
    result: Result
    measured: str
    inspection: Inspection
    model: Model
    levels: int
    records: Sequence[Mapping[str, Any]]
    recipe: str | None


@dataclass(frozen=True)
class Part:
    """A part of the page, which some models have.

    Arguments:
        anchor: of its section.
        name: in the sentence that says what does not apply to a model.
        wants: the capability that a model must have, or several of which one is enough.
        build: makes the section, with images of at most so many pixels a side; None where a model that could have such
            a part has none.
    """

    anchor: str
    name: str
    wants: type | UnionType
    build: Callable[[Contents, int], Section | None]


def _of_images(build: Callable[[Inspection, int, int], Section | None]) -> Callable[[Contents, int], Section | None]:
    return lambda contents, longest: build(contents.inspection, contents.levels, longest)


PARTS = (
    Part("numbers", "the numbers", Model, lambda contents, _: numbers.numbers(contents.result, contents.measured)),
    Part("curves", "learning curves", Model, lambda contents, _: curves.curves(contents.records)),
    Part("samples", "samples", Model, _of_images(images.samples)),
    Part("reconstructions", "reconstructions", LatentModel, _of_images(images.chosen)),
    Part("kl", "KL divergence of layers", Hierarchy, lambda contents, _: latents.divergences(contents.inspection)),
    Part("units", "active units", Hierarchy, lambda contents, _: latents.units(contents.inspection)),
    Part("progressive", "reconstructions from the first layers", Hierarchy, _of_images(latents.progressive)),
    Part("depth", "attention over depth", Hierarchy, _of_images(attention.depth)),
    Part("space", "attention over space", Hierarchy, _of_images(attention.spatial)),
    Part("bits", "where the bits go", Hierarchy | Autoregressive, _of_images(images.bits)),
    Part("recipe", "the recipe", Model, lambda contents, _: _recipe(contents.recipe)),
)
"""The page, from top to bottom."""


def write(contents: Contents, target: Path) -> list[Section]:
    """Write the page, in place of an earlier one.

    Arguments:
        contents: what it shows.
        target: the path of the file.

    Returns:
        The sections as they are on the page, for :func:`save_figures`.

    Raises:
        UserError: if the file cannot be written, or the page is too large even with the smallest pictures.
    """
    sections: list[Section] = []
    text, size = "", 0
    for longest in _SIDES:
        sections = compose(contents, longest)
        text = render(contents, sections)
        size = len(text.encode(errors="backslashreplace"))
        if size < LARGEST:
            break
    else:
        raise UserError(
            f"{target}: got a page of {size} bytes with the smallest pictures, expected at most {LARGEST}; what is "
            "told in the evaluation or the metrics of the run is too long"
        )
    with writing(str(target)):
        replace_text(target, text)
    return sections


def save_figures(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Save every figure of a page as PNG and SVG.

    Arguments:
        sections: of the page.
        folder: made if it does not exist.

    Returns:
        The paths of the files.

    Raises:
        UserError: if one cannot be written.
    """
    with writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    return [path for section in sections for figure in section.figures() for path in save(figure, folder)]


def compose(contents: Contents, longest: int) -> list[Section]:
    """The sections of the page, in order: of all :data:`PARTS` those that apply to the model.

    Arguments:
        contents: what they show.
        longest: of the sides of an image, in pixels of its picture.
    """
    wanted = (part for part in PARTS if isinstance(contents.model, part.wants))
    made = (part.build(contents, longest) for part in wanted)
    return [section for section in made if section is not None]


def absent(sections: Sequence[Section]) -> str:
    """The sentence that names what is not among the sections of a page; empty where all is there."""
    anchors = {section.anchor for section in sections}
    names = [part.name for part in PARTS if part.anchor not in anchors]
    return f"Does not apply to this model: {', '.join(names)}." if names else ""


def render(contents: Contents, sections: Sequence[Section]) -> str:
    """The page as text."""
    files = resources.files(__name__)
    environment = Environment(
        loader=FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=False,
    )
    return environment.get_template("page.html").render(
        title=contents.title,
        subtitle=contents.subtitle,
        sections=sections,
        absent=absent(sections),
        version=__version__,
        style=Markup(files.joinpath("style.css").read_text(encoding="utf-8")),  # our own file
        uri=data_uri,
        svg=_chart,
    )


def _chart(chart: Chart, name: str, number: int) -> Markup:
    return inline(chart.drawing, f"{name}-{number}", chart.alt)


def _recipe(text: str | None) -> Section:
    if text is None:
        return Section("recipe", "The recipe", (Prose("Left out: the run holds no recipe."),))
    if len(text) > _LONGEST_RECIPE:
        text = f"{text[:_LONGEST_RECIPE]}\n... and {len(text) - _LONGEST_RECIPE} more letters"
    lead = Prose("Everything the run was made with; davi train takes it as it is.")
    return Section("recipe", "The recipe", (lead, Source(text)))

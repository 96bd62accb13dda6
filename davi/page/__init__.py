"""One HTML page about a run: its number, its samples, what can be seen inside of the model, and its learning curves.

The page is one file. It needs no network, no script and no other file, opens from a disk, and stays below
:data:`LARGEST`. Everything on it is computed elsewhere (:mod:`davi.evaluation`, :mod:`davi.inspection`); here it is
drawn and explained. Text of others, such as the name of a recipe, reaches the page through a template that escapes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import UnionType

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup

from davi import __version__
from davi.errors import UserError
from davi.files import replace_text, writing
from davi.layers.causal_attention import SpatialAttentive
from davi.layers.depth_attention import DepthAttentive
from davi.model import (
    Autoregressive,
    CausalModel,
    Claiming,
    Classifying,
    Hierarchy,
    Invertible,
    Inverting,
    LatentModel,
    Model,
    WithChain,
    WithDepths,
    WithFilters,
    WithPartition,
)
from davi.model.quantized import Quantized
from davi.page import (
    attention,
    bits,
    classes,
    codes,
    curves,
    depths,
    energies,
    flows,
    gap,
    images,
    information,
    latents,
    numbers,
    receptive,
    strips,
)
from davi.page.blocks import Chart, Headline, Section
from davi.page.contents import Contents
from davi.page.pixels import data_uri
from davi.page.saved import inline, save

__all__ = ["LARGEST", "Contents", "filled", "headline", "save_figures", "write"]

LARGEST = 5_000_000
"""Bytes that a page never exceeds: what a mail or a code host takes without a word."""

headline = numbers.in_one_line

_SIDES = (128, 64, 32, 16, 8)
"""Longest sides of an image, in pixels of its picture: the first with which the page is small enough."""


@dataclass(frozen=True)
class Part:
    """A part of the page, which some models have.

    Arguments:
        anchor: of its section.
        name: in the sentence that says what does not apply to a model; empty where its place is another's.
        wants: the capability that a model must have, or the network that its run holds, or several of which one is
            enough.
        build: makes the section, with images of at most so many pixels a side; None where a model that could have such
            a part has none.
        likelihood: whether it shows likelihoods, and is left out where none are known.
    """

    anchor: str
    name: str
    wants: type | UnionType
    build: Callable[[Contents, int], Section | None]
    likelihood: bool = False


PARTS = (
    Part("samples", "samples", Model, images.samples),
    Part("reconstructions", "reconstructions", LatentModel, images.chosen),
    Part("code-maps", "", Quantized, codes.maps),
    Part("code-samples", "", Quantized, codes.samples),
    Part("nearest", "", Quantized, codes.neighbors),
    Part("images", "", Model, images.ranked),
    Part("reliability", "", Classifying, classes.reliability),
    Part("confusion", "", Classifying, classes.confusion),
    Part("mistakes", "", Classifying, classes.mistakes),
    Part("separation", "", WithDepths, depths.separation),
    Part("inversion", "", Inverting, depths.inversion),
    Part("progressive", "images layer by layer", Hierarchy, latents.progressive),
    Part("interpolation", "interpolation", LatentModel | Invertible | Inverting, strips.section("interpolation")),
    Part("scales", "", Invertible, flows.latents),
    Part("variations", "variations that keep the top layers", Hierarchy, strips.section("variations")),
    Part("completions", "", Autoregressive, strips.section("completions")),
    Part("chain", "", WithChain, energies.chain),
    Part("filters", "", WithFilters, energies.filters),
    Part("free-energies", "", WithChain, energies.free_energies),
    Part("partition", "", WithPartition, energies.partition),
    Part("bits", "where the bits go", Hierarchy | Autoregressive, bits.bits),
    Part("code-costs", "", Quantized, codes.costs, likelihood=True),
    Part("codebook", "", Quantized, codes.in_use),
    Part("scale-bits", "", Invertible, flows.costs),
    Part("determinants", "", Invertible, flows.determinants),
    Part("noise", "", Invertible, flows.noise),
    Part("receptive", "", CausalModel, receptive.receptive),
    Part("kl", "KL divergence and active units of layers", Hierarchy, latents.divergences),
    Part("information", "mutual information", Hierarchy, information.information, likelihood=True),
    Part("gap", "the variational gap", LatentModel | Invertible, gap.gap),
    Part("depth", "attention over depth", Hierarchy | DepthAttentive, attention.depth),
    Part("space", "attention over space", Hierarchy | SpatialAttentive, attention.spatial),
    Part("curves", "learning curves", Claiming, curves.curves),
    Part("comparison", "comparison with baselines", Model, numbers.comparison, likelihood=True),
    Part("details", "details", Claiming, numbers.details),
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
    made = (
        part.build(contents, longest) for part in PARTS if _applies(part, contents) and not _unknown(part, contents)
    )
    return [section for section in made if section is not None]


def _applies(part: Part, contents: Contents) -> bool:
    return isinstance(contents.model, part.wants) or isinstance(contents.model.saved, part.wants)


def _unknown(part: Part, contents: Contents) -> bool:
    return part.likelihood and contents.result is None


def absent(contents: Contents, sections: Sequence[Section]) -> str:
    """The sentences that name the sections a page does not have; empty where it has all."""
    anchors = {section.anchor for section in sections}
    missing = [part for part in PARTS if part.name and part.anchor not in anchors]
    unknown = [part.name for part in missing if _applies(part, contents) and _unknown(part, contents)]
    others = [part.name for part in missing if part.name not in unknown]
    told = [f"Does not apply to this model: {', '.join(others)}."] if others else []
    told += [f"Left out, since no likelihood is known: {', '.join(unknown)}."] if unknown else []
    return " ".join(told)


def render(contents: Contents, sections: Sequence[Section]) -> str:
    """The page as text."""
    return filled(
        contents.title,
        contents.facts,
        numbers.head(contents),
        sections,
        better="" if contents.result is None else " Lower is better.",
        absent=absent(contents, sections),
    )


def filled(
    title: str,
    facts: Sequence[tuple[str, str]],
    head: Headline,
    sections: Sequence[Section],
    *,
    better: str = "",
    absent: str = "",
    verb: str = "inspect",
) -> str:
    """A page of sections as text.

    Arguments:
        title: at its top.
        facts: names and values below the title.
        head: the number that it is about.
        sections: from top to bottom.
        better: after the headline, which values are better.
        absent: at its end, what is not on the page.
        verb: of the program that makes it.
    """
    files = resources.files(__name__)
    environment = Environment(
        loader=FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=False,
    )
    return environment.get_template("page.html").render(
        title=title,
        facts=facts,
        head=head,
        better=better,
        sections=sections,
        absent=absent,
        verb=verb,
        version=__version__,
        style=Markup(files.joinpath("style.css").read_text(encoding="utf-8")),  # our own file
        uri=data_uri,
        svg=_chart,
    )


def _chart(chart: Chart, name: str, number: int) -> Markup:
    return inline(chart.drawing, f"{name}-{number}", chart.alt)

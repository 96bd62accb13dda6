"""What a page is made of: sections of a few kinds of blocks, all of them plain data.

No text in here is HTML: the template escapes whatever it is given. Only :class:`Chart` holds markup, made by
:mod:`davi.page.charts` from numbers and from text that the SVG writer has escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from matplotlib.figure import Figure as Drawing
from PIL import Image


@dataclass(frozen=True, eq=False)
class Picture:
    """A small picture, enlarged by a whole factor where it is shown.

    Arguments:
        image: the picture, a pixel of it for a pixel of the data.
        scale: how often each pixel is repeated on the screen, at least 1.
        alt: what there is to see, for those who do not see it.
    """

    image: Image.Image
    scale: int
    alt: str


@dataclass(frozen=True, eq=False)
class Chart:
    """A drawing of numbers: shown as SVG in the colors of the page, saved as it is.

    Arguments:
        drawing: the figure of matplotlib.
        alt: what there is to see, in a sentence.
    """

    kind: ClassVar[str] = "chart"
    drawing: Drawing
    alt: str


@dataclass(frozen=True, eq=False)
class Tile:
    """Pictures that belong together, and the text under them."""

    pictures: tuple[Picture, ...]
    label: str


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles in rows as long as the page is wide."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]


Cell = str | Picture


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of text and pictures; the first cell of each row is its heading."""

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Scale:
    """The legend of maps: what is darkest and what is brightest, and the colors between."""

    kind: ClassVar[str] = "scale"
    low: str
    high: str
    colors: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Figure:
    """Something to look at, with its name among the saved figures and how to read it.

    Arguments:
        name: of the files, without an ending.
        content: what is seen.
        reading: how to read it.
        paper: which papers show such a figure.
        title: a heading of its own; empty for none.
    """

    kind: ClassVar[str] = "figure"
    name: str
    content: tuple[Chart | Tiles | Table | Scale, ...]
    reading: str
    paper: str
    title: str = ""

    @property
    def narrow(self) -> bool:
        """Whether two such figures fit side by side: those of charts alone."""
        return all(isinstance(block, Chart) for block in self.content)

    def charts(self) -> Iterator[Chart]:
        """The charts in it."""
        yield from (block for block in self.content if isinstance(block, Chart))

    def tiles(self) -> Iterator[Tile]:
        """The pictures in it, each group with its label."""
        for block in self.content:
            if isinstance(block, Tiles):
                yield from block.tiles
            elif isinstance(block, Table):
                for row in block.rows:
                    pictures = tuple(cell for cell in row if isinstance(cell, Picture))
                    if pictures:
                        yield Tile(pictures, " · ".join(cell for cell in row if isinstance(cell, str) and cell))


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True)
class Headline:
    """The number that the page is about.

    Arguments:
        value: with its unit.
        other: the same in the other unit.
        claim: what kind of number it is, and of which images.
    """

    kind: ClassVar[str] = "headline"
    value: str
    other: str
    claim: str


@dataclass(frozen=True)
class Source:
    """Text that is shown letter by letter."""

    kind: ClassVar[str] = "source"
    text: str


Block = Figure | Prose | Headline | Table | Source


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page.

    Arguments:
        anchor: by which links find it.
        title: its heading.
        blocks: its content.
    """

    anchor: str
    title: str
    blocks: tuple[Block, ...] = field(default=())

    def figures(self) -> Iterator[Figure]:
        """The figures in it."""
        yield from (block for block in self.blocks if isinstance(block, Figure))

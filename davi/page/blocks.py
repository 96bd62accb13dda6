"""The contents of a page: sections of a few kinds of blocks, all plain data.

No text in here is HTML: the template escapes whatever it is given. Only :class:`Chart` holds markup, made by
:mod:`davi.page.charts` from numbers and from text that the SVG writer has escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from matplotlib.figure import Figure as Drawing
from PIL import Image

GAP = 4
"""Pixels of the screen between the pictures of a tile."""


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

    @property
    def width(self) -> int:
        """Pixels of the screen, with gaps of :data:`GAP`; what stands under the pictures is as wide."""
        return sum(picture.image.width * picture.scale + GAP for picture in self.pictures) - GAP


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles in rows as long as the page is wide.

    Arguments:
        tiles: from left to right.
        title: what these have in common; empty where the figure says it.
        large: as large as the page allows, two in a row of a wide page.
    """

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]
    title: str = ""
    large: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each row is its heading."""

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Scale:
    """The legend of maps: what is darkest and what is brightest, and the colors between."""

    kind: ClassVar[str] = "scale"
    low: str
    high: str
    colors: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure, with its file name, its caption and how to read it.

    Arguments:
        name: of the files, without an ending.
        content: what is seen.
        caption: one line.
        reading: how to read it, shown on demand.
        paper: which papers show such a figure; a part of that.
        title: a heading of its own; empty for none.
    """

    kind: ClassVar[str] = "figure"
    name: str
    content: tuple[Chart | Tiles | Scale, ...]
    caption: str
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

    def tiles(self) -> Iterator[Tiles]:
        """The pictures in it, in their rows."""
        yield from (block for block in self.content if isinstance(block, Tiles))


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True)
class Source:
    """Text that is shown letter by letter."""

    kind: ClassVar[str] = "source"
    text: str


@dataclass(frozen=True, eq=False)
class Fold:
    """Blocks that are folded away.

    Arguments:
        summary: what is shown of them otherwise.
        blocks: the blocks.
    """

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: tuple[Block, ...]


Block = Figure | Prose | Table | Source | Fold


@dataclass(frozen=True)
class Headline:
    """The number that the page is about.

    Arguments:
        value: with its unit.
        beside: what another method needs, in words; empty where none was measured.
        claim: what kind of number it is, and of which images.
    """

    value: str
    beside: str
    claim: str


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
        """The figures in it, also those in folds."""
        yield from _figures(self.blocks)


def _figures(blocks: tuple[Block, ...]) -> Iterator[Figure]:
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Fold):
            yield from _figures(block.blocks)

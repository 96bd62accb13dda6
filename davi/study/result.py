"""What came out of a study so far, as it is shown and kept in ``table.json``.

Numbers of ours and published ones are in different fields, and no field holds both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FORMAT = 1
"""Of the file; it rises when older programs would misread a newer file."""


@dataclass(frozen=True)
class Number:
    """A quantity of an arm.

    Arguments:
        mean: over the seeds.
        seeds: of each seed that was measured.
        over_images: standard error of the mean over the test images; None of what is no mean over images.
        over_seeds: standard error of the mean over the seeds; None for one seed.
        decimals: that it is shown with.
    """

    mean: float
    seeds: tuple[float, ...]
    over_images: float | None
    over_seeds: float | None
    decimals: int


@dataclass(frozen=True)
class Difference:
    """What an image costs more than with the reference, paired over the same images; negative is better.

    Arguments:
        mean: over the images, and over the seeds that both arms have.
        over_images: standard error over the images.
        over_seeds: standard error over the seeds; None for one seed.
        interval: Student's 95 % interval over the images; None for patches of a few files.
        significant: at least two standard errors over the images, and zero outside of the interval; with several seeds
            also outside of Student's 95 % interval over these.
        seeds: of each seed.
    """

    mean: float
    over_images: float | None
    over_seeds: float | None
    interval: tuple[float, float] | None
    significant: bool
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """An arm.

    Arguments:
        arm: its name.
        number: in ``davi study show``, from 1; None: it has published numbers alone.
        recipe, overrides: that are trained.
        series, x: its place in the figure.
        seeds: that were measured.
        claim: how our bound relates to log p(x): exact, bound or estimate; empty where nothing is measured.
        numbers: of ours, by the keys of :data:`davi.study.format.QUANTITIES`.
        layers: of ours, for each latent layer, means over the seeds, top first.
        difference: to the reference; None of itself, and where the two cannot be compared.
        published: as the study says, by the headings of columns.
        notes: what else has to be said, a line each.
    """

    arm: str
    number: int | None
    recipe: str | None
    overrides: tuple[str, ...]
    series: str
    x: float | None
    seeds: tuple[int, ...]
    claim: str
    numbers: Mapping[str, Number]
    layers: Mapping[str, tuple[float, ...]]
    difference: Difference | None
    published: Mapping[str, str | float | int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TableResult:
    """The rows that are compared with one another.

    Arguments:
        title: of the table.
        unit: of ours, ``nats`` or ``bits_per_dim``; None where nothing is measured.
        measured_on: which images, and with how many importance samples; empty where nothing is measured.
        reference: name of the arm that the others are compared with.
        axis: label of the figure's axis; None where there is none.
        log: whether that is logarithmic.
        rows: in the order of the study.
        published: of which images the published numbers are.
        columns: headings of the published columns, in their order.
        drawn: the one that the figure shows; empty: the first that has numbers.
        note: what has to be known to read it.
    """

    title: str
    unit: str | None
    measured_on: str
    reference: str | None
    axis: str | None
    log: bool
    rows: tuple[Row, ...]
    published: str
    columns: tuple[str, ...]
    drawn: str
    note: str

    @property
    def is_measured(self) -> bool:
        """Whether there is any number of ours."""
        return any(row.numbers for row in self.rows)


@dataclass(frozen=True)
class StudyResult:
    """All tables of a study.

    Arguments:
        name, title, question: of the study.
        sources: where the published numbers come from, a line each.
        budget: in words.
        seeds: that were asked for.
        overrides: of all arms.
        measured: quantities of ours, in the order of their columns.
        tables: what came out.
        notes: what has to be known to read them.
        missing: arms and seeds that are not measured yet.
        version: of this program.
        format: of the file.
    """

    name: str
    title: str
    question: str
    sources: tuple[str, ...]
    budget: str
    seeds: int
    overrides: tuple[str, ...]
    measured: tuple[str, ...]
    tables: tuple[TableResult, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    version: str
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: got {self.format}, expected {FORMAT}; another version of davi has written this")

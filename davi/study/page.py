"""The result of a study on one page: for each table its figure and its numbers, ours and published ones apart."""

from __future__ import annotations

from pathlib import Path

from davi import page
from davi.errors import UserError
from davi.files import replace_text, writing
from davi.page.blocks import Block, Headline, Prose, Section, Table
from davi.study.figures import figure
from davi.study.result import StudyResult, TableResult
from davi.study.tables import cells, headings, of_all, told

PAGE, FIGURES = "study.html", "figures"


def write(result: StudyResult, folder: Path) -> tuple[Path, ...]:
    """Write the page, and its figures as files.

    Arguments:
        result: of the study.
        folder: an existing one.

    Returns:
        The paths of the page and of the folder of the figures, if there are some.

    Raises:
        UserError: if a file cannot be written.
    """
    sections = [_section(result, table, i) for i, table in enumerate(result.tables, 1)]
    sections.append(Section("conditions", "Conditions and sources", tuple(map(Prose, of_all(result)))))
    arms = [row for table in result.tables for row in table.rows if row.number is not None]
    total = len(arms) * result.seeds
    measured = sum(len(row.seeds) for row in arms)
    done = f"{measured} of {total} trainings measured" if total else "Published numbers alone"
    head = Headline(done, "", result.question)
    facts = [("study", result.name), ("budget", result.budget), ("seeds", str(result.seeds))]
    text = page.filled(result.title, facts, head, sections, better=" Lower is better.", verb="study")
    if len(text.encode()) > page.LARGEST:
        raise UserError(f"{folder / PAGE}: got a page of {len(text.encode())} bytes, expected at most {page.LARGEST}")
    with writing(str(folder / PAGE)):
        replace_text(folder / PAGE, text)
    saved = (
        page.save_figures(sections, folder / FIGURES) if any(True for one in sections for _ in one.figures()) else []
    )
    return (folder / PAGE, folder / FIGURES) if saved else (folder / PAGE,)


def _section(result: StudyResult, table: TableResult, number: int) -> Section:
    name = f"table-{number}"
    drawn = figure(result, table, name)
    blocks: list[Block] = [] if drawn is None else [drawn]
    ours, published = headings(result, table)
    rows = [(row.arm, *cells(result, table, row)) for row in table.rows]
    trained = [row for row in table.rows if row.number is not None]
    if trained:
        names = {row.arm for row in trained}
        own = tuple((arm, *found) for arm, found, _ in rows if arm in names)
        blocks.append(Table("Ours", ("", *ours), own))
    if published:
        quoted = tuple((arm, *found) for arm, _, found in rows if set(found) != {"-"})
        blocks.append(
            Table(f"Published: {table.published}" if table.published else "Published", ("", *published), quoted)
        )
    blocks += map(Prose, told(table))
    return Section(name, table.title, tuple(blocks))

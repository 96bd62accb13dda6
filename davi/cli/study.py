"""``davi study``: studies listed, shown, run and put into tables. Listing and showing do without torch."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from davi.cli.options import Request
from davi.errors import UserError
from davi.study import format as studies
from davi.study.format import ROOT, Budget, Study
from davi.study.quoting import quoted

if TYPE_CHECKING:
    from argparse import Namespace
    from types import FrameType

_WIDTH = 118
_USUAL = Path("studies")
_OF_RUN = ("minutes", "cpu_minutes", "steps", "seeds", "limit", "importance_samples", "arm", "turn", "device")

_OF_THE_STUDY = {
    "training.seed": "--seeds",
    **dict.fromkeys(("training.minutes", "training.steps", "training.epochs"), "--minutes, --cpu-minutes or --steps"),
}
"""Overrides that the study makes itself -> the options to use."""


def run(request: Request) -> int:
    """Do what the action says; the exit status."""
    options = request.options
    _check(request)
    if options.action == "list":
        _list()
    elif options.action == "show":
        print("\n".join(_shown(studies.read(studies.find(options.name)))))
    elif options.action == "run":
        return _run(request)
    else:
        _table(options.name, options.out)
    return 0


def _check(request: Request) -> None:
    """Refuse options and words that an action makes no use of, and none where it wants some."""
    options, action = request.options, request.options.action
    wanted = {"show": "the name of a study", "run": "the name of a study", "table": "the folder of a study"}
    if action in wanted and options.name is None:
        raise UserError(f"study {action}: got no name, expected {wanted[action]} (davi study list lists them)")
    if action == "list" and options.name is not None:
        raise UserError(f"study list: got {options.name!r}, expected no name; davi study show {options.name} shows it")
    given = [name for name in _OF_RUN if getattr(options, name) is not None]
    given += ["out"] if options.out is not None and action in ("list", "show") else []
    if action != "run" and (given or request.assignments):
        first = f"--{given[0].replace('_', '-')}" if given else request.assignments[0].partition("=")[0]
        raise UserError(f"{first}: got it with davi study {action}, expected davi study run")


def _list() -> None:
    found = [studies.read(studies.find(name)) for name in studies.names()]
    width = max(len(study.name) for study in found)
    for study in found:
        arms, cost = len(list(study.trained())), f"{study.seeds} x {study.budget}" if study.seeds > 1 else study.budget
        what = f"{arms} arms, {cost}" if arms else "published numbers alone"
        print(f"{study.name:<{width}}  {study.title} ({what})")
    print("\ndavi study show NAME shows one, davi study run NAME runs it")


def _shown(study: Study) -> list[str]:
    """A study, its arms and what is published about them, in lines."""
    lines = [study.title, *wrap(study.question, _WIDTH), ""]
    lines += [line for source in study.sources for line in wrap(f"source: {source}", _WIDTH)]
    if any(study.trained()):
        lines += wrap(f"changed in all arms: {', '.join(study.overrides) or 'nothing'}", _WIDTH)
        lines.append(
            f"budget {study.budget}, {study.seeds} seed{'s' * (study.seeds > 1)}, K = {study.importance_samples}, "
            f"{study.images or 'all'} test images"
        )
    number = 0
    for table in study.tables:
        lines += ["", *wrap(table.title, _WIDTH)]
        lines += wrap(f"published: {table.published}", _WIDTH) if table.published else []
        every = [arm.published for arm in table.arms]
        for arm in table.arms:
            number += arm.recipe is not None
            what = "not trained here" if arm.recipe is None else " ".join([arm.recipe, *arm.overrides])
            told = ", ".join(f"{name} {quoted(arm.published, name, every)}" for name in arm.published)
            place = f"{number:>3}" if arm.recipe is not None else "  -"
            lines.append(f"{place}  {arm.name}: {what}{f'; published: {told}' if told else ''}")
        lines += [f"     {line}" for line in wrap(table.note, _WIDTH - 5)]
    return [*lines, *(line for note in study.notes for line in ["", *wrap(note, _WIDTH)])]


def _run(request: Request) -> int:
    from davi.study import folder as folders
    from davi.study.running import Runner

    options = request.options
    study = studies.read(studies.find(options.name))
    folder = Path(options.out) if options.out is not None else _USUAL / study.name
    if folders.is_begun(folder):  # what is not asked for is as it was
        study = folders.same(folders.begun(folder), study, folder)
    study = folders.changed(study, _asked(options, request.assignments, study))
    every = list(folders.jobs(folder, study, options.arm))
    folders.begin(folder, study)
    print(f"study {folder}: {len(every)} trainings, budget {study.budget}")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        failures = Runner(folder, study, options.turn, options.device).run(options.arm)
    except _TerminatedError:
        print(f"davi: terminated; what is done is in {folder}, and the same command resumes it", file=sys.stderr)
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if options.arm is None:
        _table(str(folder), None)
    else:
        print(f"next: davi study table {folder}, when all arms have ended")
    if failures:
        raise UserError(f"study: {len(failures)} of {len(every)} trainings failed; {failures[0]}")
    return 0


class _TerminatedError(BaseException):
    """SIGTERM, which schedulers send before they kill: a training that is under way saves its state first."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _TerminatedError


def _asked(options: Namespace, assignments: list[str], study: Study) -> dict[str, object]:
    """What the user asks for in place of what the study says."""
    budget = {name: getattr(options, name) for name in ("minutes", "cpu_minutes", "steps")}
    given = [f"--{name.replace('_', '-')}" for name, value in budget.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{given[1]}: got it beside {given[0]}, expected one budget")
    own = tuple(word.removeprefix("--") for word in assignments)
    for name, remedy in _OF_THE_STUDY.items():
        if any(word.startswith(f"{name}=") for word in own):
            raise UserError(f"--{name}: got it with davi study run, expected {remedy}")
    moved = any(word.startswith(ROOT) for word in own)
    theirs = tuple(word for word in study.overrides if not (moved and word.startswith(ROOT)))
    return {
        "budget": Budget(**budget) if given else None,
        "seeds": options.seeds,
        "images": options.limit,
        "importance_samples": options.importance_samples,
        "overrides": (*theirs, *(word for word in own if word not in theirs)),
    }


def _table(given: str, out: str | None) -> None:
    """The tables of a folder; of the name of a study, those of its usual folder, else the published numbers alone."""
    from davi.files import writing
    from davi.study import page, tables
    from davi.study.collecting import collect, result_of

    folder = Path(given)
    if given in studies.names() and not folder.exists():
        folder = _USUAL / given
    if given in studies.names() and not folder.exists():
        result = result_of(studies.read(studies.find(given)), [])
        target = None if out is None else Path(out)
    else:
        result = collect(folder)
        target = folder if out is None else Path(out)
    print(tables.to_terminal(result))
    if target is not None:
        with writing(str(target)):
            target.mkdir(parents=True, exist_ok=True)
        for path in (*tables.write(result, target), *page.write(result, target)):
            print(f"written to {path}")

"""The folder in which a study is run.

::

    study.yaml                 the study as it is run: with the budget, the seeds and the overrides that were asked for
    runs/02-4-layers-0/        the run of the second arm with seed 0, as davi train leaves it
    runs/02-4-layers-0.log     what davi train and davi evaluate have said
    runs/02-4-layers-0.jsonl   a line for each turn of it: what it cost
    runs/02-4-layers.steps     how many steps the CPU minutes hold, where the budget is counted in these
    table.md, table.json, study.html, figures/    what came out so far

What has been done is known from these files alone, so that a study goes on wherever it was killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from davi import recipes
from davi.config import load_yaml, to_dict
from davi.errors import UserError
from davi.files import writing
from davi.measurements import load
from davi.metrics import read_metrics
from davi.run_folder import METRICS, MODEL
from davi.runs import weights_of
from davi.study.format import ROOT, Arm, Study, Table, read

STUDY = "study.yaml"
_RUNS = "runs"


@dataclass(frozen=True)
class Job:
    """One arm with one seed.

    Arguments:
        folder: of the study.
        study: that is run.
        table: of the arm.
        arm: that is trained.
        number: of the arm, from 1.
        seed: of its weights, order and draws.
    """

    folder: Path
    study: Study
    table: Table
    arm: Arm
    number: int
    seed: int

    def __str__(self) -> str:
        table = f"{self.table.title}: " if len(self.study.tables) > 1 else ""
        seed = f", seed {self.seed}" if self.study.seeds > 1 else ""
        return f"{table}{self.arm.name}{seed}"

    @property
    def stem(self) -> str:
        """What the arm's files are called."""
        words = re.sub(r"[^a-z0-9]+", "-", self.arm.name.lower()).strip("-")[:40]
        return f"{self.number:02d}-{words}"

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.folder / _RUNS / f"{self.stem}-{self.seed}"

    @property
    def log(self) -> Path:
        """What the program has said about it."""
        return self.run.with_name(f"{self.run.name}.log")

    @property
    def turns(self) -> Path:
        """What its turns have cost."""
        return self.run.with_name(f"{self.run.name}.jsonl")

    @property
    def steps(self) -> Path:
        """How many steps its budget holds, where that is measured."""
        return self.run.with_name(f"{self.stem}.steps")

    @property
    def samples(self) -> int:
        """K of its bound."""
        return self.table.importance_samples or self.study.importance_samples

    @property
    def images(self) -> int | None:
        """Test images that are measured; None: all."""
        return self.table.images or self.study.images

    @property
    def is_trained(self) -> bool:
        """Whether its training has ended."""
        return (self.run / MODEL).exists()

    @property
    def is_measured(self) -> bool:
        """Whether it has been measured as the study asks for, with the weights that it has now."""
        with suppress(OSError, UserError):
            protocol = load(self.run).result.protocol
            asked = (protocol.importance_samples, protocol.limit) == (self.samples, self.images)
            return asked and protocol.model.weights_sha256 == weights_of(self.run)
        return False

    def progress(self) -> tuple[int, float]:
        """The last step of training on record, and the seconds up to it."""
        if not (self.run / METRICS).is_file():
            return 0, 0.0
        lines = [record for record in read_metrics(self.run) if record["kind"] == "train"]
        return (int(lines[-1]["step"]), float(lines[-1]["seconds"])) if lines else (0, 0.0)

    def costs(self) -> list[Mapping[str, Any]]:
        """What its turns have cost; a line that was cut off by a kill is left out."""
        found: list[Mapping[str, Any]] = []
        if self.turns.is_file():
            for line in self.turns.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):
                    found.append(json.loads(line))
        return found


def jobs(folder: Path, study: Study, number: int | None = None) -> Iterator[Job]:
    """All arms with all seeds, or one arm with all seeds; the arms of a seed one after the other.

    Arguments:
        folder: of the study.
        study: that is run.
        number: of the only arm, from 1.

    Raises:
        UserError: if there is no such arm.
    """
    arms = list(enumerate(study.trained(), 1))
    if not arms:
        raise UserError(f"{study.name}: got a study of published numbers alone, expected one with arms to train")
    if number is not None and number > len(arms):
        raise UserError(f"--arm: got {number}, expected 1 to {len(arms)}; davi study show {study.name} numbers them")
    for seed in range(study.seeds):
        for one, (table, arm) in arms:
            if number in (None, one):
                yield Job(folder, study, table, arm, one, seed)


def is_begun(folder: Path) -> bool:
    """Whether a study is run in a folder."""
    return (folder / STUDY).is_file()


def begun(folder: Path) -> Study:
    """The study that is run in a folder.

    Raises:
        UserError: if there is none.
    """
    if not is_begun(folder):
        raise UserError(f"study: got {folder}, found no {STUDY} there, expected the folder of davi study run")
    return read(folder / STUDY)


def same(begun: Study, asked: Study, folder: Path) -> Study:
    """The study that is run in a folder, if it is the one that is asked for, with what may have changed in its file.

    Raises:
        UserError: if another one is run there, or the file has other arms now.
    """
    if begun.name != asked.name:
        raise UserError(f"--out: got {folder}, where {begun.name} is run, expected the folder of {asked.name}")
    _refuse_changes(_arms(begun), _arms(asked), folder)
    conditions = ("seeds", "budget", "importance_samples", "images", "overrides")
    kept = {name: getattr(begun, name) for name in conditions}
    images = [{name: getattr(table, name) for name in ("importance_samples", "images")} for table in begun.tables]
    tables = (dataclasses.replace(table, **own) for table, own in zip(asked.tables, images, strict=True))
    found: Study = dataclasses.replace(asked, **kept, tables=tuple(tables))
    return found


def _arms(study: Study) -> dict[str, str]:
    """What is trained, by the numbers of the arms, and how many arms each table has."""
    counts = {"arms of each table": ", ".join(str(len(table.trained)) for table in study.tables)}
    arms = enumerate(study.trained(), 1)
    return counts | {f"arm {i}": f"{arm.name}: {' '.join([arm.recipe or '', *arm.overrides])}" for i, (_, arm) in arms}


def _refuse_changes(before: Mapping[str, str], now: Mapping[str, str], folder: Path) -> None:
    """Refuse what cannot change in a folder.

    Raises:
        UserError: names the first that has changed.
    """
    for key in dict.fromkeys([*before, *now]):
        was, got = before.get(key, "none"), now.get(key, "none")
        if was != got:
            raise UserError(
                f"{key}: got {got}, expected {was}, with which {folder} was begun; --out takes a new folder"
            )


def begin(folder: Path, study: Study) -> None:
    """Make the folder of a study, or go on in it.

    Arguments:
        folder: new, empty, or one in which the same study is run. It may have had fewer seeds, and its images may have
            been elsewhere.
        study: that is run.

    Raises:
        UserError: if the folder holds anything else, or cannot be written, or an arm has no use for the study's budget.
    """
    check_arms(study)
    check_budgets(study)
    if is_begun(folder):
        known = begun(folder)
        study = dataclasses.replace(study, seeds=max(study.seeds, known.seeds))
        _refuse_changes(_compared(known), _compared(study), folder)
        if study == known:
            return
    elif folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
        raise UserError(f"--out: got {folder}, expected a new folder, or one in which this study is run")
    with writing(str(folder)):
        (folder / _RUNS).mkdir(parents=True, exist_ok=True)
        _replace(folder / STUDY, yaml.safe_dump(to_dict(study), sort_keys=False, allow_unicode=True))


def _is_foreign(path: Path) -> bool:
    """Whether a file is none that another job of the same study, which begins at this moment, has made."""
    return path.name not in (_RUNS, STUDY) and not path.name.startswith(".")


def _compared(study: Study) -> dict[str, str]:
    """What cannot change in a folder."""
    overrides = [word for word in study.overrides if not word.startswith(ROOT)]
    of_tables = [(table.importance_samples or study.importance_samples) for table in study.tables]
    images = [(table.images or study.images) for table in study.tables]
    return {
        "budget": str(study.budget),
        "overrides": " ".join(overrides) or "none",
        "importance_samples": ", ".join(map(str, dict.fromkeys(of_tables))),
        "images": ", ".join(str(count or "all") for count in dict.fromkeys(images)),
        **_arms(study),
    }


def check_budgets(study: Study) -> None:
    """Refuse one budget for arms whose stages have budgets of their own.

    Raises:
        UserError: names the arm.
    """
    for _, arm in study.trained() if study.budget.given else ():
        assert arm.recipe is not None
        if load_yaml(recipes.find(arm.recipe)).get("stages"):
            raise UserError(
                f"budget: got {study.budget} for {arm.name}, which is trained in stages, expected none: each stage of "
                "its recipe has its own"
            )


def check_arms(study: Study) -> None:
    """Refuse arms whose recipes do not take what is changed of them, before any is trained.

    Raises:
        UserError: names the arm.
    """
    for table, arm in study.trained():
        assert arm.recipe is not None
        words = [*study.overrides, *arm.overrides]
        try:
            recipes.load(arm.recipe, words)
        except UserError as error:
            raise UserError(f"{table.title}: {arm.name}: {error}") from None
        if any(word.startswith("training.seed=") for word in words):
            raise UserError(f"{table.title}: {arm.name}: got training.seed, expected none: seeds are 0, 1, ...")


def _replace(path: Path, text: str) -> None:
    """Write a file that several processes may write at the same time."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside = Path(file.name)
    beside.chmod(0o644)  # temporary files are readable by their owner alone
    beside.replace(path)


def changed(study: Study, options: Mapping[str, Any]) -> Study:
    """The study with what a user asks for in its place.

    Arguments:
        study: as its file says.
        options: ``budget``, ``seeds``, ``images``, ``importance_samples``; those that are None change nothing.
            ``overrides`` come after the study's. Images and samples replace those of all tables.
    """
    given = {key: value for key, value in options.items() if value is not None}
    found: Study = dataclasses.replace(study, **given)
    return dataclasses.replace(found, tables=tuple(_under(table, given) for table in study.tables))


def _under(table: Table, given: Mapping[str, Any]) -> Table:
    """A table whose own images and samples give way to those that are asked for."""
    images = None if "images" in given else table.images
    samples = None if "importance_samples" in given else table.importance_samples
    return dataclasses.replace(table, images=images, importance_samples=samples)

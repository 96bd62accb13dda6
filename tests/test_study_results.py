"""What comes out of a study that was run, killed and run again: numbers, errors, differences, tables, page."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import forked
import numpy as np
import pytest
import studied_runs

from davi import measurements
from davi.cli import main
from davi.comparison import Entry
from davi.errors import UserError
from davi.evidence import bits_per_dim
from davi.records import to_json
from davi.run_folder import MODEL
from davi.study import folder as folders
from davi.study import tables
from davi.study.collecting import _difference, _number, _tell_apart, collect
from davi.study.quantities import LAYERS, METERS, Trained
from davi.study.result import StudyResult

POINTS = ("poll:12", "ended:3")
"""Kills while an arm trains, and when one has ended that is not noted yet."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran undisturbed, and others that were killed, in one folder."""
    folder = tmp_path_factory.mktemp("studies")
    done = forked.call(studied_runs.main, folder, [*POINTS], folder=folder)
    assert done.status == 0, done.out + done.err
    assert [line for line in done.out.splitlines() if line.endswith(": killed")] == [f"{one}: killed" for one in POINTS]
    return folder


def turns_of(folder: Path) -> dict[str, list[int]]:
    """Statuses of the turns of each training."""
    found = {}
    for path in sorted((folder / "runs").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.stem] = [line["status"] for line in lines if line["what"] == "train"]
    return found


def test_arms_train_in_turns(runs: Path) -> None:
    # A turn ends when the training has been asked to save its state (143), the last one when its budget is used up.
    assert turns_of(runs / "whole") == {"01-one-draw-0": [143, 0], "02-three-draws-0": [143, 0]}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("run", ["01-one-draw-0", "02-three-draws-0"])
def test_a_study_that_was_killed_ends_bit_for_bit_as_if_it_had_not_been(runs: Path, point: str, run: str) -> None:
    whole, resumed = (runs / name / "runs" / run for name in ("whole", point.replace(":", "-")))
    weights = [(folder / MODEL).read_bytes() for folder in (whole, resumed)]
    assert weights[0] == weights[1]
    assert np.array_equal(measurements.load(whole).bound, measurements.load(resumed).bound)


def test_numbers_are_those_of_the_evaluations(runs: Path) -> None:
    result = collect(runs / "whole")
    (table,) = result.tables
    first, second = table.rows
    one, three = (measurements.load(runs / "whole" / "runs" / name) for name in ("01-one-draw-0", "02-three-draws-0"))
    dims = 64
    bits = [-measured.bound / dims / np.log(2) for measured in (one, three)]
    assert (table.unit, table.reference, result.missing) == ("bits_per_dim", "one draw", ())
    assert first.numbers["bound"].mean == pytest.approx(bits[0].mean())
    assert first.numbers["bound"].over_images == pytest.approx(bits[0].std(ddof=1) / len(bits[0]) ** 0.5)
    assert first.numbers["bound"].over_seeds is None
    assert first.difference is None
    assert second.difference is not None
    assert second.difference.mean == pytest.approx((bits[1] - bits[0]).mean())
    assert second.difference.over_images == pytest.approx((bits[1] - bits[0]).std(ddof=1) / len(bits[0]) ** 0.5)
    assert second.numbers["steps"].mean == 3
    assert second.numbers["memory"].mean > 50
    assert len(second.layers["kl_layers"]) == 2
    elbo = -three.elbo.mean() / dims / np.log(2)
    rate = second.numbers["rate"].mean
    assert second.numbers["elbo"].mean == pytest.approx(elbo)
    assert rate == pytest.approx(sum(second.layers["kl_layers"]) / dims / np.log(2))
    assert second.published == {"nats": "3.0"}


def trained(runs: Path, name: str, seed: int, shift: float) -> Trained:
    """A training of the study, whose bounds are moved by so many nats, by another amount for every image."""
    job = next(job for job in folders.jobs(runs / "whole", folders.begun(runs / "whole")) if job.stem.endswith(name))
    measured = measurements.load(job.run)
    bound = measured.bound + shift * np.linspace(0.5, 1.5, len(measured.bound))
    result = measured.result
    nats = dataclasses.replace(result.bound.nats, mean=float(bound.mean()))
    bits = dataclasses.replace(result.bound.in_unit("bits_per_dim"), mean=bits_per_dim(float(bound.mean()), 64))
    moved = dataclasses.replace(result, bound=dataclasses.replace(result.bound, nats=nats, bits_per_dim=bits))
    return Trained(seed, Entry(name, dataclasses.replace(measured, result=moved, bound=bound)), {}, [], "bits_per_dim")


def test_errors_over_seeds(runs: Path) -> None:
    shifts = (0.0, 3.0, -1.0)
    arms = [trained(runs, "three-draws", seed, shift) for seed, shift in enumerate(shifts)]
    against = [trained(runs, "one-draw", seed, 0.0) for seed in range(3)]
    each = [-arm.entry.measured.bound / 64 / np.log(2) for arm in arms]
    other = -against[0].entry.measured.bound / 64 / np.log(2)
    number = _number("bound", arms)
    assert number is not None
    assert number.mean == pytest.approx(np.mean(each))
    assert number.over_seeds == pytest.approx(np.std([one.mean() for one in each], ddof=1) / 3**0.5)
    of_images = np.mean(each, 0)
    assert number.over_images == pytest.approx(of_images.std(ddof=1) / len(of_images) ** 0.5)
    notes: list[str] = []
    difference = _difference(arms, against, notes)
    assert difference is not None
    assert not notes
    assert difference.mean == pytest.approx((of_images - other).mean())
    assert difference.over_images == pytest.approx((of_images - other).std(ddof=1) / len(other) ** 0.5)
    assert difference.over_seeds == pytest.approx(number.over_seeds)
    assert difference.interval is not None
    assert difference.interval[0] < difference.mean < difference.interval[1]
    assert not difference.significant  # one of the three seeds is on the other side


def test_a_star_asks_for_seeds_that_agree(runs: Path) -> None:
    against = [trained(runs, "one-draw", seed, 0.0) for seed in range(3)]
    stars = []
    for shifts in ((20.0, 20.5, 19.5), (60.0, 20.0, -20.0)):
        arms = [trained(runs, "one-draw", seed, shift) for seed, shift in enumerate(shifts)]
        difference = _difference(arms, against, [])
        assert difference is not None
        stars.append(difference.significant)
    assert stars == [True, False]
    assert [_tell_apart(values) for values in ((1.0,), (1.0, 1.1), (0.4, 1.6, 1.0))] == [True, True, False]


def test_an_evaluation_of_other_weights_is_made_again(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(runs / "whole", folder)
    first, second = folders.jobs(folder, folders.begun(folder))
    assert collect(folder).missing == ()
    shutil.copy(second.run / MODEL, first.run / MODEL)
    assert collect(folder).missing == ("one draw",)
    (second.run / "evaluation.safetensors").write_bytes(b"cut off")
    assert collect(folder).missing == ("one draw", "three draws")


def test_other_images_are_not_compared(runs: Path) -> None:
    arm, reference = trained(runs, "three-draws", 0, 0.0), trained(runs, "one-draw", 0, 0.0)
    result = arm.entry.measured.result
    protocol = dataclasses.replace(result.protocol, images_sha256="0" * 64)
    measured = dataclasses.replace(arm.entry.measured, result=dataclasses.replace(result, protocol=protocol))
    other = dataclasses.replace(arm, entry=dataclasses.replace(arm.entry, measured=measured))
    notes: list[str] = []
    assert _difference([other], [reference], notes) is None
    assert notes == ["not compared with the reference: other images_sha256"]
    assert _difference([dataclasses.replace(arm, seed=1)], [reference], notes) is None
    assert "no seed that both have" in notes[1]


def test_ours_and_published_never_share_a_column(runs: Path) -> None:
    result = collect(runs / "whole")
    lines = [line for line in tables.to_markdown(result).splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    published = [i for i, name in enumerate(head) if name.startswith("published: ")]
    assert [head[i] for i in published] == ["published: nats"]
    assert published == [len(head) - 1]
    assert [row[-1] for row in rows] == ["3.5", "3.0"]
    assert {"3.5", "3.0"}.isdisjoint(cell for row in rows for cell in row[:-1])
    assert re.fullmatch(r"[-+]0\.\d{3} ± 0\.\d{3}\*?", rows[1][head.index("difference to 'one draw', bits/dim")])


def test_tables_json_and_page_are_written(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "whole"
    assert main(["study", "table", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "three draws" in told
    assert "Not measured yet" not in told
    loaded: StudyResult = tables.load(folder / "table.json")
    assert loaded == collect(folder)
    assert json.loads((folder / "table.json").read_text())["format"] == 1
    page = (folder / "study.html").read_text()
    assert page.count("<svg") == 2  # ours, and what is published
    assert "2 of 2 trainings measured" in page
    assert "Do more draws help? Lower is better." in page
    assert '<table class="wide">' in page
    assert "Made by <code>davi study</code>" in page
    assert {path.name for path in (folder / "figures").iterdir()} >= {"table-1-1.png", "table-1-2.svg"}


def test_a_table_of_what_is_there(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    shutil.copytree(runs / "whole", folder)
    shutil.rmtree(folder / "runs" / "02-three-draws-0")
    result = collect(folder)
    assert result.missing == ("three draws",)
    assert result.tables[0].rows[1].numbers == {}
    assert "Not measured yet: three draws." in tables.to_terminal(result)


def test_a_newer_file_is_refused(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**to_json(collect(runs / "whole")), "format": 2}))
    with pytest.raises(UserError, match="format: got 2, expected 1"):
        tables.load(path)


def test_every_quantity_is_read(runs: Path) -> None:
    arm = trained(runs, "three-draws", 0, 0.0)
    entry = dataclasses.replace(arm.entry, seconds=120.0, pace=2.5)
    turn = {"what": "train", "cpu_seconds": 30.0, "peak_mib": 400.0}
    probe = {"what": "probe", "cpu_seconds": 99.0, "peak_mib": 999.0}
    arm = dataclasses.replace(arm, entry=entry, last={"bits_per_dim": 3.25}, turns=[turn, turn, probe])
    read = {name: meter.read(arm) for name, meter in METERS.items()}
    assert read["training"] == 3.25
    assert (read["minutes"], read["cpu_minutes"], read["memory"], read["steps_per_second"]) == (2.0, 1.0, 400.0, 2.5)
    nats = dataclasses.replace(arm, unit="nats")
    assert METERS["training"].read(nats) == pytest.approx(3.25 * 64 * np.log(2))
    assert read["error_rate"] is None
    units = arm.result.active_units
    assert units is not None
    assert read["utilization"] == pytest.approx(100 * units.active / 7)
    assert sum(LAYERS["active_layers"](arm)) == units.active

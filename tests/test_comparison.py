"""Comparisons of evaluations made by hand: closed forms of the differences, and what may not be ranked."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from davi import measurements
from davi.comparison import Entry, compare, pace, paired, read, to_markdown, to_terminal, trained_on_these
from davi.errors import UserError
from davi.evaluation import Evaluation
from davi.evaluation.activity import active_units
from davi.evaluation.clusters import standard_error
from davi.evaluation.result import Protocol
from davi.evidence import About, Kind
from davi.records import read as read_record
from davi.records import to_json
from davi.report import protocol_of, result_of

LN2 = math.log(2.0)
HARD = np.array([-100.0, -10.0, -55.0, -1000.0])
"""Bounds of four images of very different difficulty: mean -291.25, standard error sqrt(673818.75 / 3 / 4) = 236.96."""


def entry(run: str, /, bound: np.ndarray = HARD, seconds: float | None = 5.0, **changes: Any) -> Entry:
    """One run; ``changes`` are fields of the evaluation, the model's description, the data or the split."""
    fields: dict[str, Any] = {
        "kind": Kind.LOWER_BOUND,
        "measures": (),
        "about": About.X,
        "labels_sha256": None,
        "samples": 1,
        "seed": 0,
        "batch_size": 100,
        "limit": None,
        "available": len(bound),
        "set": "toy/test",
        "dims": 8,
        "device": "cpu",
        "precision": "float32",
        "images_sha256": "ab" * 32,
        "subset": None,
        "groups": None,
        "weights_sha256": None,
    }
    model: dict[str, Any] = {"name": "vae", "parameters": 1000, "step": 10, "ema": True, "rollbacks": 0, "protocol": {}}
    data: dict[str, Any] = {"shape": [1, 2, 4], "levels": 2, "binarization": "dynamic", "binarization_seed": 0}
    data |= {key: changes.pop(key) for key in ("other_images", "training_images") if key in changes}
    split = changes.pop("split", "test")
    reached = changes.pop("reached", 10)
    pace, place = changes.pop("pace", 2.0), changes.pop("folder", None)
    for key, value in changes.items():
        next(group for group in (fields, model, data) if key in group)[key] = value
    evaluation = Evaluation(elbo=bound, bound=bound, terms={"reconstruction": bound}, **fields)
    result = result_of(evaluation, (), protocol_of(evaluation, model, data, split))
    measured = measurements.Measured(result, bound, bound, {"reconstruction": bound}, evaluation.groups)
    return Entry(run, measured, seconds, reached, pace, place)


def test_paired_differences_in_closed_form() -> None:
    """Differences 1, 2, 3, 4: mean 2.5, variance 5/3, standard error sqrt(5/12); t with 3 degrees is 3.1824."""
    result = paired(HARD + np.arange(1.0, 5.0), HARD, 8)
    error = math.sqrt(5 / 12)
    assert result.nats.mean == pytest.approx(2.5, rel=1e-14)
    assert result.nats.standard_error == pytest.approx(error, rel=1e-14)
    # Five figures of the quantile as printed in tables.
    assert result.nats.interval == pytest.approx([2.5 - 3.18245 * error, 2.5 + 3.18245 * error], rel=1e-5)
    assert result.in_unit("bits_per_dim").mean == pytest.approx(-2.5 / 8 / LN2, rel=1e-14)
    assert result.in_unit("bits_per_dim").standard_error == pytest.approx(error / 8 / LN2, rel=1e-14)
    low, high = result.nats.interval
    assert result.in_unit("bits_per_dim").interval == pytest.approx([-high / 8 / LN2, -low / 8 / LN2], rel=1e-14)
    assert result.significant is True


def test_the_interval_agrees_with_scipy() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert paired(a, b, 8).nats.interval == pytest.approx([expected.low, expected.high], rel=1e-12)


@pytest.mark.parametrize(
    ("difference", "significant"),
    [
        ([0.0, 0.0, 0.0], False),
        ([0.1, 0.1, 0.1], True),  # the same for every image: no error at all
        ([1.0], False),  # a single image says nothing about others
        ([1.0, -1.0, 1.5], False),
        # Mean 1, standard error 0.4: two and a half errors, but three images leave an interval of +- 1.72.
        ([1.0, 1.0 - 0.4 * math.sqrt(3), 1.0 + 0.4 * math.sqrt(3)], False),
        # 1.98 standard errors of 1001 images: outside of the interval by a hair, and less than two errors.
        ([0.0626] * 1 + [0.0626 - 1.0, 0.0626 + 1.0] * 500, False),
        ([0.0640] * 1 + [0.0640 - 1.0, 0.0640 + 1.0] * 500, True),
    ],
)
def test_what_is_significant(difference: list[float], significant: bool) -> None:
    values = np.array(difference)
    assert paired(values, np.zeros(len(values)), 8).significant is significant


def test_rows_are_ranked_and_compared_with_the_first_given() -> None:
    steady = HARD + 0.5
    entries = [
        entry("first"),
        entry("worst", HARD - np.array([1.0, 2.0, 3.0, 4.0])),
        entry("best", steady, parameters=5, step=3, pace=2.5),
    ]
    result = compare(entries)
    assert len(result.groups) == 1
    group = result.groups[0]
    assert (group.reference, group.unit) == ("first", "nats")
    assert [(row.rank, row.run) for row in group.rows] == [(1, "best"), (2, "first"), (3, "worst")]
    best, first, worst = group.rows
    assert best.nats.mean == pytest.approx(steady.mean())
    assert best.nats.standard_error == pytest.approx(steady.std(ddof=1) / 2)
    assert (best.parameters, best.step, best.seconds, best.kind) == (5, 3, 5.0, Kind.LOWER_BOUND)
    assert best.steps_per_second == 2.5
    # The images' difficulty cancels: half a nat is nothing beside the scatter of the images, and certain in the pairs.
    assert best.nats.standard_error > 200
    assert to_json(best.to_reference)["nats"] == {"mean": 0.5, "standard_error": 0.0, "interval": [0.5, 0.5]}
    assert first.to_reference is None
    assert worst.to_reference.nats.mean == pytest.approx(-2.5)
    assert best.to_row_above is None
    assert first.to_row_above.nats.mean == pytest.approx(-0.5)
    assert result.differences == {}
    json.dumps(to_json(result), allow_nan=False)


def test_ties_stay_in_the_order_given() -> None:
    rows = compare([entry("b"), entry("a")]).groups[0].rows
    assert [row.run for row in rows] == ["b", "a"]
    assert rows[1].to_row_above.significant is False


CHANGES: list[tuple[dict[str, Any], list[str]]] = [
    ({"kind": Kind.ESTIMATE}, ["kind"]),
    ({"kind": Kind.EXACT}, ["kind", "importance_samples"]),
    ({"samples": 100}, ["importance_samples"]),
    ({"split": "validation"}, ["split"]),
    ({"about": About.X_GIVEN_Y, "labels_sha256": "ef" * 32}, ["about"]),
    ({"labels_sha256": "ef" * 32}, ["labels_sha256"]),
    ({"levels": 256}, ["levels"]),
    ({"shape": [2, 2, 2]}, ["shape"]),
    ({"binarization": "static"}, ["binarization"]),
    ({"images_sha256": "cd" * 32, "set": "other/test"}, ["images_sha256", "set"]),
    ({"images_sha256": "cd" * 32, "binarization_seed": 3}, ["images_sha256", "binarization_seed"]),
    ({"bound": HARD[:3], "images_sha256": "cd" * 32, "limit": 3}, ["images", "images_sha256"]),
]


@pytest.mark.parametrize(("changes", "fields"), CHANGES, ids=[" ".join(fields) for _, fields in CHANGES])
def test_other_protocols_are_not_ranked_together(changes: dict[str, Any], fields: list[str]) -> None:
    result = compare([entry("a"), entry("b", **changes), entry("c", HARD + 1)])
    assert [[row.run for row in group.rows] for group in result.groups] == [["c", "a"], ["b"]]
    assert [row.rank for group in result.groups for row in group.rows] == [1, 2, 1]
    assert result.groups[1].rows[0].to_reference is None
    assert list(result.differences) == fields
    assert all(set(values) == {"A", "B"} for values in result.differences.values())
    for text in (to_terminal(result), to_markdown(result)):
        assert "not ranked across groups" in text
        assert all(field in text for field in fields)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 3}, "seed"),
        ({"batch_size": 7}, "batch_size"),
        ({"device": "cuda"}, "device"),
        ({"precision": "bfloat16"}, "precision"),
        ({"ema": False}, "averaged weights"),
        ({"protocol": {"train_sha256": "ef" * 32}}, "trained on: train_sha256"),
    ],
)
def test_what_does_not_forbid_a_ranking_is_stated(changes: dict[str, Any], field: str) -> None:
    result = compare([entry("a"), entry("b", **changes)])
    assert len(result.groups) == 1
    assert list(result.groups[0].stated) == [field]
    assert set(result.groups[0].stated[field]) == {"a", "b"}
    assert f"differs, but does not prevent a ranking: {field}: " in " ".join(to_terminal(result).split())


@pytest.mark.parametrize("changes", [{"set": "copy/test"}, {"limit": 4}, {"parameters": 9}, {"step": 4}])
def test_the_same_images_by_another_way_are_the_same(changes: dict[str, Any]) -> None:
    group = compare([entry("a"), entry("b", **changes)]).groups[0]
    assert len(group.rows) == 2
    assert group.stated == {}


def test_importance_samples_do_not_matter_to_an_exact_claim() -> None:
    exact = {"kind": Kind.EXACT}
    assert len(compare([entry("a", samples=1, **exact), entry("b", samples=10, **exact)]).groups) == 1


def test_what_a_run_should_be_asked_about() -> None:
    rows = compare([entry("a", reached=30), entry("b", rollbacks=2)]).groups[0].rows
    assert rows[0].notes == ("measured after step 10, training has gone on to step 30; evaluate it again",)
    assert rows[1].notes == ("training was rolled back 2 times after losses that were not finite",)


def test_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="runs: got none"):
        compare([])


def save(folder: Path, made: Entry, records: list[object] | None = None) -> Path:
    """A run's folder that holds the evaluation, and the records of its training."""
    folder.mkdir()
    protocol = made.measured.result.protocol
    evaluation = Evaluation(
        made.measured.elbo,
        made.measured.bound,
        made.measured.terms,
        made.measured.kind,
        **{
            key: getattr(protocol, key) for key in ("seed", "batch_size", "limit", "set", "dims", "device", "precision")
        },
        samples=protocol.importance_samples,
        available=protocol.images_available,
    )
    measurements.save(folder, made.measured.result, evaluation)
    if records is not None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_patches_of_a_few_files_claim_nothing() -> None:
    """Differences 1, 2, 3, 4 of two files: residuals -1.5, -0.5, 0.5, 1.5, sums -2 and 2, sqrt(2 (4 + 4)) / 4 = 1."""
    groups = np.array([0, 0, 1, 1])
    better = HARD + np.arange(1.0, 5.0)
    pair = paired(better, HARD, 8, groups)
    assert (pair.nats.mean, pair.nats.standard_error) == (2.5, 1.0)
    assert pair.nats.interval is pair.in_unit("bits_per_dim").interval is None
    assert pair.significant is False
    assert paired(better, HARD, 8).significant is True  # what it would be for four photographs
    result = compare([entry("a", groups=groups), entry("b", better)])  # one of them does not know its files
    (group,) = result.groups
    assert group.rows[0].to_reference == pair
    assert group.rows[0].nats.standard_error != pytest.approx(better.std(ddof=1) / 2)
    note = "errors are clustered by file: 4 patches of 2 files; from fewer than 5 files no interval and no significance"
    assert group.notes[0].startswith(note)
    text = to_terminal(result)
    assert note in " ".join(text.split())
    assert ["b", "+2.500", "±", "1.000", "-", "-"] in [line.split() for line in text.splitlines()]


def test_patches_of_enough_files_have_as_many_degrees_of_freedom() -> None:
    """Five files: Student's t with four degrees of freedom, whose 97.5 % quantile is 2.77645 in tables."""
    groups = np.arange(5).repeat(4)
    difference = np.random.default_rng(0).normal(size=20) + 5.0
    pair = paired(difference, np.zeros(20), 8, groups).nats
    assert pair.standard_error == standard_error(difference, groups)
    reach = 2.77645 * pair.standard_error
    assert pair.interval == pytest.approx([pair.mean - reach, pair.mean + reach], rel=1e-5)


def test_a_model_of_another_size_is_noted() -> None:
    notes = [compare([entry("a"), entry("b", parameters=n)]).groups[0].notes for n in (1100, 1101, 500)]
    assert notes[0] == ()
    assert notes[1] == ("b has 1.10 times the parameters of a: a difference can be one of size alone",)
    assert notes[2] == ("a has 2.00 times the parameters of b: a difference can be one of size alone",)


def test_runs_of_one_name_keep_their_own_rows_and_words() -> None:
    runs = [entry("x", seed=i, folder=Path(f"/runs/{place}/x")) for i, place in enumerate("ab")]
    group = compare([*runs, entry("y")]).groups[0]
    assert [row.run for row in group.rows] == ["a/x", "b/x", "y"]
    assert group.stated["seed"] == {"a/x": 0, "b/x": 1, "y": 0}
    deep = [entry("x", folder=Path(f"/{place}/deep/x")) for place in "ab"]
    assert [row.run for row in compare(deep).groups[0].rows] == ["a/deep/x", "b/deep/x"]
    same = [entry("x", folder=Path("/runs/x")), entry("x", folder=Path("/runs/x")), entry("x")]
    assert [row.run for row in compare(same).groups[0].rows] == ["x", "x (2)", "x (3)"]
    hostile = compare([entry("x\x1b", seed=1), entry("x\x07")]).groups[0]
    assert set(hostile.stated["seed"]) == {"x?", "x? (2)"}


OWN, WHOLE = {"set": "toy", "train_sha256": "11" * 32}, {"set": "toy", "train_sha256": "22" * 32}


@pytest.mark.parametrize(
    ("trained", "changes", "seen"),
    [
        (OWN, {"split": "validation"}, False),
        (WHOLE, {"split": "validation"}, True),  # nothing was kept out, or something else was
        ({**WHOLE, "set": "other"}, {"split": "validation"}, False),
        (WHOLE, {"split": "test"}, False),
        (OWN, {"split": "train"}, True),
        (WHOLE, {"split": "all"}, True),
        ({"set": "x", "train_sha256": "ab" * 32}, {"split": "test"}, True),  # the very images, whatever they are called
        ({}, {"split": "validation"}, False),  # weights from elsewhere
    ],
)
def test_what_the_hashes_tell_about_training(trained: dict[str, str], changes: dict[str, Any], seen: bool) -> None:
    data = {"shape": [1, 2, 4], "levels": 2, "binarization": "none", **OWN}
    made = entry("x", protocol=trained, **changes)
    protocol = {**to_json(made.measured.result.protocol), "data": data}

    def trained_on(protocol: dict[str, Any]) -> bool:
        return trained_on_these(read_record(Protocol, protocol, "protocol"))

    assert trained_on(protocol) is seen
    for count in (0, 1):  # counted: the hashes need not be asked
        counted = {**data, "other_images": "--data x", "training_images": count}
        assert trained_on({**protocol, "data": counted}) is bool(count)
    split = changes["split"]
    own = {**data, "other_images": None, "training_images": None}
    assert trained_on({**protocol, "data": own}) is (split == "train" or "ab" * 32 in trained.values())
    unknown = {**data, "other_images": "--data toy", "training_images": None}
    assert trained_on({**protocol, "data": unknown}) is (seen or (split == "test" and trained == WHOLE))


def test_no_run_is_ranked_on_images_it_was_trained_on() -> None:
    runs = [entry("fair", split="validation"), entry("worse", HARD - 1, split="validation")]
    unfair = entry("unfair", HARD + 50, split="validation", other_images="--data toy", training_images=4)
    result = compare([unfair, *runs])
    assert [[(row.run, row.rank) for row in group.rows] for group in result.groups] == [
        [("unfair", None)],
        [("fair", 1), ("worse", 2)],
    ]
    assert result.differences == {"trained_on_these_images": {"A": "yes", "B": "no"}}
    for text in (to_terminal(result), to_markdown(result)):
        assert "not ranked: these images, or some of them, are training images of the run" in " ".join(text.split())
    alone = compare([unfair, unfair]).groups[0]
    assert [row.to_reference for row in alone.rows] == [None, None]
    assert "difference" not in to_terminal(replace(result, groups=(alone,), differences={}))


def test_the_pace_is_that_of_training_alone() -> None:
    """30 steps in 3 seconds; a validation of 7 seconds is taken out, an interval with a checkpoint is left out."""
    records: list[dict[str, Any]] = [
        {"kind": "train", "step": 10, "seconds": 1.0},
        {"kind": "validation", "step": 10, "seconds": 1.0, "images": 14, "images_per_second": 2.0},
        {"kind": "train", "step": 20, "seconds": 9.0},
        {"kind": "checkpoint", "step": 25, "seconds": 9.5},
        {"kind": "train", "step": 30, "seconds": 60.0},
        {"kind": "skip", "step": 31},
        {"kind": "train", "step": 40, "seconds": 61.0},
    ]
    assert pace(records) == pytest.approx(10.0, rel=1e-14)
    old = [{key: value for key, value in record.items() if key != "images_per_second"} for record in records]
    assert pace(old) == pytest.approx(10.0, rel=1e-14)  # of the intervals without a validation
    assert pace(old[:3]) == pytest.approx(10.0, rel=1e-14)
    assert pace(old[1:3]) is None
    assert pace([{"kind": "rollback", "step": 5}, records[0]]) is None
    assert pace([]) is None


def test_training_time_is_that_up_to_the_evaluated_step(tmp_path: Path) -> None:
    records: list[object] = [
        {"kind": "train", "step": 5, "seconds": 2.5},
        {"kind": "train", "step": 10, "seconds": 4.0},
        {"kind": "checkpoint", "step": 10, "seconds": 4.5},
        {"kind": "skip", "step": 10, "seconds": "hostile"},
        {"kind": "train", "step": 12, "seconds": 99.0},
        [],
    ]
    found = read(save(tmp_path / "run", entry("x"), records), "mine")
    assert (found.name, found.seconds, found.reached) == ("mine", 4.5, 12)
    assert found.pace == pytest.approx(10 / 4.0, rel=1e-14)
    np.testing.assert_array_equal(found.measured.bound, HARD)


def test_weights_from_elsewhere_have_no_training_time(tmp_path: Path) -> None:
    found = read(save(tmp_path / "run", entry("x")))
    assert (found.name, found.seconds, found.reached) == (str(tmp_path / "run"), None, None)


def test_an_evaluation_that_does_not_say_of_which_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no protocol\.images_sha256.*davi evaluate"):
        read(save(tmp_path / "run", entry("x", images_sha256=None)))


def test_the_table_for_a_terminal() -> None:
    units = active_units((2, 1), (2, 2), images=2, draws=16)
    runs = [
        entry("runs/on", HARD + 1, measures=(units,)),
        entry("runs/off", seconds=None, pace=None),
        entry("runs/no"),
    ]
    text = to_terminal(compare(runs))
    lines = text.splitlines()
    head = " ".join(lines[:2])
    assert head.startswith("toy/test: 4 images of the test split, 1 x 2 x 4, 2 levels, binarization dynamic; lower")
    rows = [line.split() for line in lines]
    assert ["rank", "run", "nats", "parameters", "steps", "time", "steps/s", "active", "units"] in rows
    assert ["1", "runs/on", "-290.25", "±", "236.96", "1,000", "10", "5s", "2", "3/4"] in rows
    assert ["2", "runs/off", "-291.25", "±", "236.96", "1,000", "10", "-", "-", "-"] in rows
    assert ["3", "≈", "runs/no", "-291.25", "±", "236.96", "1,000", "10", "5s", "2", "-"] in rows
    assert ["runs/on", "reference"] in rows
    assert ["runs/off", "-1.000", "±", "0.000", "[-1.000,", "-1.000]", "yes"] in rows
    assert "nats per image ± standard error over images; higher is better" in lines
    assert "≈ not significantly worse than the row above" in lines
    assert "Each run is one seed: another training seed would add to them." in " ".join(text.split())
    assert max(map(len, lines)) <= 80
    assert "active" not in to_terminal(compare(runs[1:]))  # no model here has any


def test_bits_come_first_for_images_of_more_levels() -> None:
    entries = [entry("a", levels=256), entry("b", HARD + 1, levels=256)]
    text = to_terminal(compare(entries))
    assert f"{291.25 / 8 / LN2:.4f} ± {HARD.std(ddof=1) / 2 / 8 / LN2:.4f}" in text
    assert "lower is better" in text
    assert f"{-1 / 8 / LN2:+.5f} ± 0.00000" in text


def test_one_run_alone_has_no_differences() -> None:
    result = compare([entry("a", HARD[:1])])
    text = to_terminal(result)
    assert "difference" not in text
    assert "-100.00 " in text
    assert "difference" not in to_markdown(result)


def test_markdown_has_one_table_with_all_columns() -> None:
    lines = to_markdown(compare([entry("runs/a"), entry("runs/b", HARD + 1)])).splitlines()
    table = [line for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    assert cells[0][:6] == ["rank", "run", "model", "claim", "K", "nats"]
    assert cells[0][-3:] == ["difference to `runs/a`", "95 % interval", "significant"]
    assert cells[2][:5] == ["1", "`runs/b`", "`vae`", "lower bound", "1"]
    assert len({len(row) for row in cells}) == 1


def test_hostile_names_command_neither_terminal_nor_page() -> None:
    name = "a|<b>`\x1b[2J\n"
    result = compare([entry(name, name="v\x07", set="s\u202e"), entry("b")])
    shown = "".join([to_terminal(result), to_markdown(result), json.dumps(to_json(result), ensure_ascii=False)])
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "`a\\|<b>'?[2J?`" in to_markdown(result)

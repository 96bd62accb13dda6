"""The file of a study, its folder, and what the program understands of davi study."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import studied_runs

from davi.cli import main
from davi.errors import UserError
from davi.study import folder as folders
from davi.study.format import Budget, Study, find, read


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "draws.yaml"
    path.write_text(studied_runs.STUDY)
    return read(path)


BROKEN: list[tuple[str, str, str]] = [
    ("recipe: vae", "recpe: vae", r"unknown key tables\.0\.arms\.0\.recpe; did you mean tables\.arms\.recipe\?"),
    (
        "vae_digits_tiny",
        "vae_digit_tiny",
        "Digits: one draw: recipe: got 'vae_digit_tiny', .* did you mean vae_digits_tiny",
    ),
    ("budget: {steps: 3}", "budget: {steps: 3, minutes: 1}", "budget.minutes: got minutes and steps, expected one of"),
    ("budget: {steps: 3}", "budget: {minutes: 0}", "budget.minutes: got 0, expected a number above 0"),
    ("[bound, elbo", "[bond, elbo", "measured: got 'bond', expected some of bound, elbo"),
    ("name: three draws", "name: one draw", "arms: got the names one draw, one draw, expected some, no two alike"),
    ("published: {nats: 3.5}", "published: [3.5]", r"arms\.0\.published: got \[3\.5\], expected a mapping"),
    (
        "    published: digits",
        "    reference: four\n    published: digits",
        "reference: got 'four', expected the name of an arm",
    ),
    ("title: Draws", "name: ..\ntitle: Draws", r"name: got '\.\.', expected letters, digits"),
    ("name: one draw", 'name: "one\\ndraw"', r"arms\.0\.name: got 'one\\ndraw', expected one line of text"),
    ("nats: 3.5", "nats: .nan", r"arms\.0\.published\.nats: got nan, expected a finite number or text"),
    ("[bound, elbo", "[bound, bound", "measured: got bound, bound, .*, expected some, no two alike"),
    (
        "    arms:",
        "    axis: {label: draws, log: true}\n    arms:\n      - {name: x, recipe: vae_digits_tiny, x: 0}",
        r"axis\.log: got true, expected every x to be above 0",
    ),
    ("images: 40", "images: 0", "images: got 0, expected a whole number from 1"),
    ("title: Draws of a small VAE\n", "", "missing key title"),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_mistakes_in_a_file_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert old in studied_runs.STUDY
    path.write_text(studied_runs.STUDY.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as refused:
        read(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_study_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"study: got 'atention', .*; did you mean attention"):
        find("atention")


def test_a_folder_keeps_its_study(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folders.begin(folder, study)
    assert folders.begun(folder) == study
    more = folders.changed(study, {"seeds": 3, "images": None})
    folders.begin(folder, more)  # more seeds can be asked for later
    folders.begin(folder, study)  # and fewer change nothing
    assert folders.begun(folder).seeds == 3
    with pytest.raises(UserError, match=r"budget: got 2 minutes, expected 3 steps, with which .* was begun"):
        folders.begin(folder, folders.changed(study, {"budget": Budget(minutes=2)}))
    with pytest.raises(UserError, match="expected a new folder, or one in which this study is run"):
        folders.begin(tmp_path, study)
    with pytest.raises(UserError, match=r"found no study\.yaml there"):
        folders.begun(tmp_path)
    with pytest.raises(UserError, match="where draws is run, expected the folder of attention"):
        folders.same(study, read(find("attention")), folder)


def test_texts_of_a_study_may_change_and_arms_may_not(study: Study, tmp_path: Path) -> None:
    path, folder = tmp_path / "draws.yaml", tmp_path / "out"
    folders.begin(folder, folders.changed(study, {"seeds": 2, "images": 7}))
    known = folders.begun(folder)
    path.write_text(studied_runs.STUDY.replace("nats: 3.5", "nats: 3.6").replace("[bound, elbo,", "[elbo, bound,"))
    now = folders.same(known, read(path), folder)
    assert (now.seeds, now.images, now.measured[:2]) == (2, 7, ("elbo", "bound"))
    folders.begin(folder, now)
    assert folders.begun(folder).tables[0].arms[0].published == {"nats": 3.6}
    path.write_text(studied_runs.STUDY.replace("draws=1", "draws=2"))
    with pytest.raises(UserError, match=r"arm 1: got one draw: .*draws=2, expected one draw: .*draws=1, with which"):
        folders.same(known, read(path), folder)
    path.write_text(studied_runs.STUDY + "      - {name: four draws, recipe: vae_digits_tiny}\n")
    with pytest.raises(UserError, match="arms of each table: got 3, expected 2"):
        folders.same(known, read(path), folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.latents=[0]", r"Digits: one draw: .*model\.latents: got \[0\]"),
        ("training.seed=3", r"Digits: one draw: got training\.seed, expected none"),
    ],
)
def test_arms_are_read_before_any_is_trained(override: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "draws.yaml"
    path.write_text(studied_runs.STUDY.replace("training.objective.draws=1", f'"{override}"'))
    with pytest.raises(UserError, match=message):
        folders.begin(tmp_path / "out", read(path))
    assert not (tmp_path / "out").exists()


def test_jobs_of_an_array_begin_at_the_same_time(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "runs").mkdir(parents=True)  # another job has come so far
    (folder / ".temporary").touch()
    folders.begin(folder, study)
    assert folders.begun(folder) == study


def test_jobs_of_several_tables_are_told_apart(tmp_path: Path) -> None:
    jobs = list(folders.jobs(tmp_path, read(find("attention"))))
    assert str(jobs[0]) == "MNIST, dynamically binarized: both attentions, seed 0"
    assert len({str(job) for job in jobs}) == len({job.run for job in jobs}) == len(jobs)


def test_images_and_samples_replace_those_of_all_tables(tmp_path: Path) -> None:
    changed = folders.changed(read(find("attention")), {"images": 7, "importance_samples": 3, "seeds": None})
    jobs = list(folders.jobs(tmp_path, changed))
    assert {(job.images, job.samples) for job in jobs} == {(7, 3)}
    assert len(jobs) == 18 * 3


def test_jobs_are_numbered_as_they_are_shown(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "draws.yaml"
    assert main(["study", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "; published: nats 3.5\n" in shown
    for job in folders.jobs(tmp_path, study):
        assert f"{job.number:>3}  {job.arm.name}: vae_digits_tiny" in shown
    assert [job.arm.name for job in folders.jobs(tmp_path, study, 2)] == ["three draws"]
    with pytest.raises(UserError, match="--arm: got 3, expected 1 to 2"):
        list(folders.jobs(tmp_path, study, 3))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "study run: got no name, expected the name of a study"),
        (["table"], "study table: got no name, expected the folder of a study"),
        (["walk"], "got 'walk', expected one of list, show, run, table"),
        (["show", "attention", "--seeds", "2"], "--seeds: got it with davi study show, expected davi study run"),
        (["list", "--data.root", "x"], "--data.root: got it with davi study list"),
        (["list", "attention"], "study list: got 'attention', expected no name"),
        (["run", "attention", "--minutes", "0"], "--minutes: got '0', expected a number above 0"),
        (
            ["run", "attention", "--minutes", "1", "--steps", "5"],
            "--steps: got it beside --minutes, expected one budget",
        ),
        (["run", "attention", "--training.seed", "1"], "--training.seed: got it .*, expected --seeds"),
        (["run", "attention", "--training.minutes", "1"], "--training.minutes: got it .*, expected --minutes, --cpu"),
        (["run", "attention", "--training.bogus", "1"], "MNIST, .*: both attentions: .*bogus"),
        (["run", "training_cost"], "training_cost: got a study of published numbers alone"),
        (["run", "attention", "--arm", "19"], "--arm: got 19, expected 1 to 18"),
        (["table", "nowhere"], r"study: got nowhere, found no study.yaml there"),
        (["run", "dbn_layers", "--minutes", "5"], "budget: got 5 minutes for DBN, .*, which is trained in stages"),
    ],
)
def test_the_program_refuses(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())  # nothing was begun


def test_published_numbers_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "published"
    assert main(["study", "table", "league_six_sets", "--out", str(out)]) == 0
    assert "CelebA-HQ 256" in (out / "table.md").read_text()
    assert "Published numbers alone" in (out / "study.html").read_text()
    head = next(line for line in capsys.readouterr().out.splitlines() if "published: " in line)
    assert re.findall(r"published: (\S+)", head) == [
        "MNIST,",
        "CIFAR-10",
        "ImageNet32",
        "CelebA64",
        "CelebA-HQ",
        "FFHQ",
    ]


def test_published_numbers_keep_their_zeros(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "show", "nvae_depth"]) == 0
    assert "published: bits/dim 3.50\n" in capsys.readouterr().out


def test_the_table_of_a_name_is_that_of_its_usual_folder(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "table", "vq_vae"]) == 0
    assert "written to" not in capsys.readouterr().out
    folders.begin(tmp_path / "studies" / "utilization", read(find("utilization")))
    assert main(["study", "table", "utilization"]) == 0
    assert "written to studies/utilization/table.md" in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "list"]) == 0
    told = capsys.readouterr().out
    assert "attention  " in told
    assert "published numbers alone" in told

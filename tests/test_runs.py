"""Run folders that protect what is in them, and files of weights that are refused unless every byte is right."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny import RECIPE, vae

from davi import runs
from davi.config import to_dict
from davi.errors import UserError
from davi.files import digest, read_tensors, write_tensors
from davi.metrics import Metrics, read_metrics
from davi.models import MODELS
from davi.runs import create, create_whole, describe, load_model, save_model, write_recipe


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, vae(), {"step": 3, "ema": True, "protocol": {"set": "random"}})
    return path


def test_what_is_saved_is_loaded(saved: Path) -> None:
    before = torch.get_rng_state()
    model, info = load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)  # nobody's draws have moved
    assert not model.training
    original = vae()
    assert model.config == original.config
    assert {"step": 3, "ema": True, "protocol": {"set": "random"}, **describe(original)}.items() <= info.items()
    assert info["parameters"] == sum(p.numel() for p in model.parameters())
    pairs = zip(model.state_dict().items(), original.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    x = torch.randint(2, (3, 1, 4, 4))
    original = original.eval().to(memory_format=torch.channels_last)  # another layout sums in another order
    claims = [m.evidence(x, torch.Generator().manual_seed(0)).log_px for m in (model, original)]
    assert torch.equal(*claims)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Change metadata and tensors of a file, and sign it as a writer would."""
    tensors, info = read_tensors(path)
    change(info, tensors)
    write_tensors(path, tensors, info)


def hostile(key: str, value: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        def change(info: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
            *sections, last = key.split(".")
            for section in sections:
                info = info[section]
            info[last] = value

        rewritten(path, change)

    return spoil


def tensors_changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda path: rewritten(path, lambda info, tensors: change(tensors))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})


def swap(tensors: dict[str, torch.Tensor]) -> None:
    tensors["output.log_g"] = tensors["output.log_g"].double()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b""), "not a complete safetensors file"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "not a complete safetensors file"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2**60) + b"{}"), "not a complete safetensors file"),
        (lambda path: torch.save(vae().state_dict(), path), "not a complete safetensors file"),
        (cut, "not a complete safetensors file"),
        (flip, "SHA-256 differs"),
        (foreign, "no davi metadata"),
        (lambda path: save_file({"w": torch.zeros(1)}, path, {"davi": "[" * 100_000}), "no davi metadata"),
        (hostile("parameters", "many"), "got parameters 'many', expected a whole number"),
        (hostile("parameters", True), "got parameters 'True', expected a whole number"),
        (hostile("parameters", -1), "got parameters '-1', expected a whole number"),
        (hostile("step", 2**70), "got step '1180591620717411303424', expected a whole number"),
        (hostile("step", None), "got step 'None', expected a whole number"),
        (hostile("ema", "yes"), "got ema 'yes', expected true or false"),
        (hostile("ema_decay", "most"), "got ema_decay 'most', expected a number"),
        (hostile("ema_decay", float("nan")), "got ema_decay 'nan'"),
        (hostile("protocol", ["digits"]), "got protocol .*, expected a mapping"),
        (hostile("version", 3), "got version '3', expected text"),
        (hostile("imported", {}), "got imported '{}', expected text"),
        (hostile("name", "evil"), "got model 'evil', expected one of"),
        (hostile("name", ["attentive_vae"]), "expected one of"),
        (hostile("shape", [1, 4]), "no usable shape"),
        (hostile("shape", [1, 4, True]), "no usable shape"),
        (hostile("shape", [1, 4, 10**9]), "no usable shape"),
        (hostile("levels", "2"), "no usable shape"),
        (hostile("levels", 1), "cannot be built"),
        (hostile("config", None), "no usable shape"),
        (hostile("config.width", 10**9), "a model option above"),
        (hostile("config.layers", [10**12]), "a model option above"),
        (hostile("config.layers", [10**6]), "expected more for the model"),
        (hostile("config.layers", [1] * 40), "expected more for the model"),
        (hostile("config.wdith", 4), "unknown key wdith; did you mean width"),
        (hostile("config.width", "4x"), "width: got '4x'"),
        (hostile("config.width", 5), "expected torch.float32"),
        (tensors_changed(lambda t: t.pop("output.v")), "tensor output.v is missing"),
        (tensors_changed(lambda t: t.update(extra=torch.zeros(2))), "tensor extra is not of this model"),
        (
            tensors_changed(lambda t: t.update({"output.v": torch.zeros(2)})),
            r"tensor output.v: got torch.float32 \[2\]",
        ),
        (tensors_changed(swap), "tensor output.log_g: got torch.float64"),
    ],
)
def test_bad_files_are_refused_in_one_line(saved: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(saved)
    with pytest.raises(UserError, match=message) as caught:
        load_model(saved)
    assert str(caught.value).startswith(str(saved))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model.safetensors and no checkpoint"):
        load_model(tmp_path)


def test_unwritable_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        save_model(tmp_path / "missing" / "model.safetensors", vae())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        create(tmp_path / "file" / "run", RECIPE)


def test_digest_sees_names_types_shapes_and_bytes() -> None:
    a = {"x": torch.arange(6.0), "y": torch.zeros((), dtype=torch.int64)}
    variants = [
        a,
        {"z": a["x"], "y": a["y"]},
        {**a, "x": a["x"].view(2, 3)},
        {**a, "x": a["x"].view(torch.int32)},
        {**a, "x": a["x"].flip(0)},
        {**a, "y": a["y"] + 1},
    ]
    assert len({digest(tensors) for tensors in variants}) == len(variants)
    assert digest(dict(reversed(a.items()))) == digest(a)
    transposed = torch.arange(6.0).view(2, 3).T
    assert digest({"x": transposed}) == digest({"x": transposed.contiguous()})  # memory layout is not content


def test_create_writes_a_recipe_that_can_be_read(tmp_path: Path) -> None:
    shared = [1, 2]
    recipe = {
        "model": {"layers": (4, 4), "a": shared, "b": shared},
        "data": {"set": "digits"},
        "training": {"optimizer": {"eps": 1e-3}},
    }
    create(tmp_path / "a" / "b", recipe)
    text = (tmp_path / "a" / "b" / "recipe.yaml").read_text()
    assert yaml.safe_load(text) == json.loads(json.dumps(recipe))
    assert "&" not in text  # no aliases: our own reader refuses them


def test_create_protects_what_is_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    create(run, RECIPE)
    with pytest.raises(UserError, match=r"not empty.*--resume"):
        create(run, RECIPE)
    create(run, RECIPE, resume=True)
    longer = {**RECIPE, "training": {"steps": 99}}
    create(run, longer, resume=True)
    assert yaml.safe_load((run / "recipe.yaml").read_text()) == RECIPE  # until the resumption has succeeded
    write_recipe(run, longer)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"] == {"steps": 99}
    with pytest.raises(UserError) as caught:
        create(run, {**RECIPE, "model": {"name": "other"}}, resume=True)
    assert str(caught.value) == f"model.name: got other, expected tiny, with which {run} was begun"
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_text("")
    with pytest.raises(UserError, match="no run to resume"):
        create(tmp_path / "holiday", RECIPE, resume=True)
    with pytest.raises(UserError, match="which is a file"):
        create(tmp_path / "holiday" / "photo.jpg", RECIPE)


DIGITS: dict[str, Any] = {"model": {"name": "vae", "hidden": [6]}, "data": {"set": "digits"}, "name": "mine"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"name": "vae", "hidden": (7,)}}, "model.hidden: got [7], expected [6], with"),
        (
            {"model": {"name": "vae", "hidden": [6], "likelihood": {"components": 9}}},
            "model.likelihood.components: got 9, expected ",
        ),
        ({"model": {"name": "biva", "width": 3}, "data": {"set": "mnist"}}, "model.name: got biva, expected vae, with"),
        ({"data": {"set": "photos"}}, "data.set: got photos, expected digits, with"),
        ({"name": "other", "description": "new words"}, "name: got other, expected mine, with"),
    ],
)
def test_a_refused_resumption_names_the_option(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    run = tmp_path / "run"
    create(run, DIGITS)
    with pytest.raises(UserError) as caught:
        create(run, {**DIGITS, **change}, resume=True)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_what_an_older_version_has_not_written_has_its_default(tmp_path: Path) -> None:
    create(tmp_path / "run", DIGITS)
    whole = {"name": "vae", **to_dict(MODELS["vae"].Config(hidden=(6,)))}
    create(tmp_path / "run", {**DIGITS, "model": whole, "description": "new words"}, resume=True)


def test_a_model_without_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    create_whole(run, RECIPE, vae(), {"imported": "a.h5"})
    (run / "checkpoints" / ".new-step-00000003").mkdir(parents=True)  # never became one
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(
        UserError, match=rf"^run: {run} holds a model.safetensors and no checkpoint .* davi train --from"
    ):
        create(run, RECIPE, resume=True)
    with pytest.raises(UserError, match=rf"^run: {run} is not empty; .* --from {run}$"):
        create(run, RECIPE)
    assert (run / "model.safetensors").read_bytes() == before
    (run / "checkpoints" / ".was-step-00000003").mkdir()  # killed while it was replaced
    create(run, RECIPE, resume=True)


def test_a_whole_run_appears_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, save = tmp_path / "deep" / "run", runs.save_model

    def killed(path: Path, model: Any, extra: Any) -> None:
        save(path, model, extra)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "save_model", killed)
    monkeypatch.setattr(runs.shutil, "rmtree", lambda *args, **options: None)  # no time to tidy up
    with pytest.raises(KeyboardInterrupt):
        create_whole(run, RECIPE, vae(), {"imported": "a.h5"})
    assert not run.exists()
    monkeypatch.undo()
    for empty in (False, True):
        if empty:
            run.mkdir()
        create_whole(run, RECIPE, vae(), {"imported": "a.h5"})
        assert {path.name for path in run.iterdir()} == {"recipe.yaml", "model.safetensors"}
        assert [path.name for path in run.parent.iterdir()] == ["run"]
        assert load_model(run)[1]["imported"] == "a.h5"
        with pytest.raises(UserError) as caught:
            create_whole(run, RECIPE, vae(), {})
        assert str(caught.value) == f"run: {run} is not empty; choose another folder"
        runs.shutil.rmtree(run)
    run.write_text("")
    for target, words in ((run, "which is a file; expected a folder"), (run / "below", "cannot be written")):
        with pytest.raises(UserError, match=words):
            create_whole(target, RECIPE, vae(), {})


def test_metrics_are_cut_back_to_the_step(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in range(1, 6):
        metrics.write("train", step, loss=0.1 * step)
    metrics.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + 'garbage\n[1]\n{"kind": "train", "step": "x"}\n{"kind": "train", "step": 6')
    again = Metrics(tmp_path, step=3)
    again.write("train", 4, loss=float("nan"), terms={"a": [float("inf"), 1]})
    again.close()
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["loss"] for record in records[:3]] == [0.1 * step for step in (1, 2, 3)]  # every bit kept
    assert records[3]["loss"] is None
    assert records[3]["terms"] == {"a": [None, 1]}


def test_metrics_of_nobody_knows_whom_are_left_out(tmp_path: Path) -> None:
    ours = '{"kind": "train", "step": 1}'
    others = ("[" * 100_000, '{"step": 2}', '{"kind": ["train"], "step": 2}', '{"kind": "train", "step": true}')
    (tmp_path / "metrics.jsonl").write_text("\n".join((*others, ours, "")))
    assert read_metrics(tmp_path) == [{"kind": "train", "step": 1}]

"""Weight files of others: what is damaged, packed, or wants to run code is refused in one line and never run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from davi.cli import main as program
from davi.errors import UserError
from davi.published.nvae.names import configuration
from davi.published.parity import main as parity
from davi.published.torch_files import fitted, load_state


class Evil:
    """``call(*arguments)`` when it is read without care."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.what = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.what


CALLS: dict[str, tuple[Any, ...]] = {
    "posix.system": (os.system, "touch owned"),
    "eval": (eval, "open('owned', 'w')"),
    "getattr": (getattr, Path, "cwd"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("form", ["vdvae", "nvae"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_by_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    form: str,
    zipped: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {}, "args": argparse.Namespace(dataset=Evil(*CALLS[name]))}
    torch.save(content if form == "nvae" else Evil(*CALLS[name]), "a.th", _use_new_zipfile_serialization=zipped)
    assert program(["import", form, "a.th", "--run", "run"]) == 2
    told = capsys.readouterr().err
    assert told == f"davi: a.th: refused, since it holds more than tensors and would run code (it asks for {name})\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.th"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged (EOFError)"),
        (b"P", "damaged (Unsupported operand 80)"),
        (b"PK\x05\x06" + b"x" * 60, "damaged (Bad offset for central directory)"),
        (pickle.dumps(Evil(*CALLS["posix.system"]), protocol=4), "damaged (Unsupported operand"),
    ],
)
def test_what_is_no_such_file_is_said_to_be_none(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.th"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_state(path)
    assert words in str(caught.value)
    assert "PyTorch" not in str(caught.value)  # whose advice is to run it


def test_a_packed_file_is_not_unpacked(tmp_path: Path) -> None:
    whole, packed = tmp_path / "whole.th", tmp_path / "packed.th"
    torch.save({"a": torch.zeros(4)}, whole)
    assert load_state(whole)["a"].tolist() == [0.0] * 4
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, bytes(10**6) if "/data/" in name else source.read(name))
    with pytest.raises(UserError, match=r"damaged \(an archive that unpacks to 100\d{4} bytes\)$"):
        load_state(packed)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(1).expand(4), "a does not hold all its numbers"),
        (torch.zeros(4, device="meta"), "a does not hold all its numbers"),
        (torch.zeros(4).to_sparse(), "a does not hold all its numbers"),
        (torch.full((4,), 1e300, dtype=torch.float64), "a is not finite"),
        (torch.full((4,), torch.nan), "a is not finite"),
        (torch.zeros(4, dtype=torch.complex64), "a is torch.complex64, expected torch.float32"),
        ([0.0] * 4, "a is list"),
    ],
)
def test_tensors_that_cannot_be_used(x: Any, words: str) -> None:
    with pytest.raises(UserError, match=r"1 not usable") as caught:
        fitted({"ours": torch.zeros(4)}, {"a": x}, {"a": "ours"})
    assert words in str(caught.value)


def test_numbers_of_other_widths_are_converted() -> None:
    x = torch.arange(4.0)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        found = fitted({"ours": torch.zeros(4)}, {"a": x.to(dtype)}, {"a": "ours"})
        assert torch.equal(found["ours"], x)
    parameter = fitted({"ours": torch.zeros(4)}, {"a": nn.Parameter(x)}, {"a": "ours"})
    assert torch.equal(parameter["ours"], x)


HUGE: dict[str, Any] = {
    "dataset": "cifar10", "arch_instance": "res_mbconv", "num_latent_scales": 1, "num_groups_per_scale": 2,
    "num_latent_per_group": 2, "num_channels_enc": 4, "num_channels_dec": 4, "num_preprocess_blocks": 1,
    "num_postprocess_blocks": 1, "num_preprocess_cells": 1, "num_postprocess_cells": 1, "num_cell_per_cond_enc": 1,
    "num_cell_per_cond_dec": 1, "use_se": True, "res_dist": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_groups_per_scale": 10**12}, "has 3000000000002 groups and cells, expected at most 4096"),
        ({"num_cell_per_cond_dec": 10**9}, "groups and cells, expected at most 4096"),
        ({"num_preprocess_blocks": 10**9, "num_postprocess_blocks": 10**9}, "has 2000000006 groups and cells"),
        ({"num_x_bits": 10**12}, "num_x_bits is 1000000000000, expected 1 to 8"),
        ({"num_x_bits": 0}, "num_x_bits is 0, expected 1 to 8"),
        ({"num_x_bits": None}, "lacks 'num_x_bits'"),
        ({"num_groups_per_scale": float("inf")}, "cannot convert float infinity to integer"),
    ],
)
def test_options_whose_model_could_not_be_built(change: dict[str, Any], words: str) -> None:
    assert configuration(HUGE)[0] == 256
    with pytest.raises(UserError, match=r"^configuration: ") as caught:
        configuration({**HUGE, **change})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "facts",
    [
        {"model": "nvae"},
        {"model": "vdvae"},
        {"model": "nvae", "config": HUGE},
        {"model": "nvae", "config": [1]},
        {"model": "vdvae", "config": {}, "input_scaling": 3},
        {"model": "vdvae", "config": {}, "input_scaling": "x=(u8-1)/0"},
        {"model": "vdvae", "config": {}, "input_scaling": "x=(u8-1.2.3)/2"},
    ],
)
def test_fixtures_that_lack_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: Any) -> None:
    path = tmp_path / "a.safetensors"
    tensors: dict[str, Tensor] = {"input_u8": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)}
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(facts))
    assert parity([str(path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"parity: {path}: ")
    assert told.count("\n") == 1

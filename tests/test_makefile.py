"""What ``make demo`` keeps and what it begins anew."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

DAVI = """#!/bin/sh
verb=$1 run=$2
[ "$verb" = train ] && run=$4
mkdir -p "$run" && echo "$@" >> "$run/log"
[ "$verb" = "$(cat "$(dirname "$0")/stop" 2>/dev/null)" ] && exit 130
[ "$verb" = inspect ] && touch "$run/inspection.html"
exit 0
"""
"""A program that writes down how it is called, and can be told which verb is interrupted."""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("verb", ["train", "evaluate", "inspect"])
def test_an_interrupted_demo_goes_on_and_a_whole_one_begins_anew(tmp_path: Path, verb: str) -> None:
    davi, demo, stop = tmp_path / "bin" / "davi", tmp_path / "demo", tmp_path / "bin" / "stop"
    davi.parent.mkdir()
    davi.write_text(DAVI)
    davi.chmod(0o755)
    for name in (".created", ".installed"):
        (tmp_path / name).touch()
    command = ["make", "demo", f"VENV={tmp_path}", f"BIN={davi.parent}", f"DEMO={demo}"]

    def make() -> int:
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode

    stop.write_text(verb)
    assert make() == 2
    (demo / "checkpoint").touch()
    stop.unlink()
    assert make() == 0
    assert (demo / "checkpoint").exists()
    assert f"train attentive_mnist_demo --run {demo} --resume" in (demo / "log").read_text().splitlines()
    assert make() == 0
    assert not (demo / "checkpoint").exists()

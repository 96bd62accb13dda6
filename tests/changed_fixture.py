"""Fixtures of the authors' programs with something changed, for tests of what parity finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from davi.published.parity import main

Tensors = dict[str, Tensor]
Facts = dict[str, Any]
Change = Callable[[Tensors, Facts], None]
"""Changes the content of the two files of a fixture, in place."""


def changed(tmp_path: Path, source: Path, change: Change) -> Path:
    """A copy of a fixture with a change."""
    tensors, facts = load_file(source), json.loads(source.with_suffix(".json").read_text())
    change(tensors, facts)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


class Judge:
    """Parity is asked about changed fixtures."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capsys = tmp_path, capsys

    def finds(self, source: Path, change: Change, found: str, *options: str) -> None:
        """The first difference is the one that the change has made."""
        assert main([str(changed(self._folder, source, change)), *options]) == 1
        assert f"DIFFERS: {found} is the first" in self._capsys.readouterr().out

    def refuses(self, source: Path, change: Change, said: str) -> None:
        """In a line, with exit status 2."""
        assert main([str(changed(self._folder, source, change))]) == 2
        error = self._capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

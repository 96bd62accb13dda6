"""Fixtures of the authors' programs with something changed, for tests of what parity finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

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

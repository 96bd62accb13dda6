"""What all tests share: few threads, a fixed seed, and the folder of reference data where there is one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_fixture import Judge
from safetensors.torch import load_file, save_file
from torch import Tensor

# The tensors of the tests are small: more threads would only wait for one another, and for other processes.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images go to a folder of this session, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAVI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path | None:
    """The folder of reference data: DAVI_SHARED, or ``shared`` beside the repository; None where there is none."""
    named = os.environ.get("DAVI_SHARED")
    if named:
        folder = Path(named)
        if not folder.is_dir():
            # Asked for by name: to leave its tests out in silence would be a lie.
            raise pytest.UsageError(f"DAVI_SHARED: got {named}, expected a folder")
        return folder
    folder = Path(__file__).resolve().parents[2] / "shared"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def need_shared(shared: Path | None) -> Callable[[str], Path]:
    """``need_shared("fixtures/a.safetensors")`` is the path of that file or folder; without it the test is skipped."""

    def need(relative: str) -> Path:
        if shared is None or not (shared / relative).exists():
            pytest.skip(f"needs {relative} of the reference data (DAVI_SHARED, or a folder beside the repository)")
        return shared / relative

    return need


@pytest.fixture
def judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Judge:
    """Asks parity about changed fixtures."""
    return Judge(tmp_path, capsys)


@pytest.fixture
def spoilt(
    need_shared: Callable[[str], Path], tmp_path: Path
) -> Callable[[str, Callable[[dict[str, Tensor], dict[str, Any]], None]], Path]:
    """``spoilt(name, change)`` is a copy of a fixture of reference data after ``change(tensors, facts)``."""

    def make(name: str, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
        tensors = load_file(need_shared(f"fixtures/{name}.safetensors"))
        facts = json.loads(need_shared(f"fixtures/{name}.json").read_text())
        change(tensors, facts)
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        path.with_suffix(".json").write_text(json.dumps(facts))
        return path

    return make

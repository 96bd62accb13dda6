"""The faults of ``tests/mutants.py`` can still be put in, and the tests that should notice them are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mutants import MUTANTS, ROOT, Copy, judge
from mutants_numbers import Mutant

TESTS = Path(__file__).parent


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTANTS) >= 25
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_can_be_put_in(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.file}: {mutant.old!r} should be there once"
    changed = text.replace(mutant.old, mutant.new)
    assert changed != text
    compile(changed, mutant.file, "exec")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_that_should_notice_are_there(mutant: Mutant) -> None:
    assert mutant.tests
    for node in mutant.tests:
        file, _, name = node.partition("::")
        assert re.fullmatch(r"test_\w+\.py", file)
        text = (TESTS / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^def {re.escape(name)}\(", text, re.MULTILINE), f"{file} has no {name}"


@pytest.mark.parametrize(
    ("status", "output", "fate", "why"),
    [
        (0, "5 passed", "survived", "passed"),
        (0, "5 skipped", "survived", "skipped"),
        (1, "F\nFAILED tests/test_a.py::test_b[1-x] - assert 1 == 2\n1 failed", "killed", "test_a.py::test_b[1-x]"),
        (1, "F\nFAILED tests/test_a.py::test_b[a step]\n1 failed", "killed", "test_a.py::test_b[a step]"),
        (1, "F\nFAILED tests/test_a.py::test_b - NameError: name 'x' is not defined", "broken", "NameError"),
        (1, "E\nERROR tests/test_a.py::test_b - ValueError\n1 error", "broken", "1 error"),
        (2, "ERROR tests/test_a.py\n!!! Interrupted: 1 error during collection !!!", "broken", "collection"),
        (4, "ERROR: not found: tests/test_a.py::test_c", "broken", "not found"),
        (None, "", "broken", "more than"),
    ],
)
def test_only_a_failed_test_kills(status: int | None, output: str, fate: str, why: str) -> None:
    found, words = judge(status, output)
    assert found == fate
    assert why in words


def test_a_fault_is_put_in_a_copy_and_taken_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    mutant, copy = MUTANTS[0], Copy(tmp_path)
    original = (ROOT / mutant.file).read_text(encoding="utf-8")

    def test(nodes: tuple[str, ...]) -> tuple[int, str]:
        seen.append(
            ((ROOT / mutant.file).read_text(encoding="utf-8"), (tmp_path / mutant.file).read_text(encoding="utf-8"))
        )
        return 1, "FAILED tests/test_a.py::test_b - assert 0"

    monkeypatch.setattr(copy, "test", test)
    assert copy.examine(mutant)[:2] == ("killed", "test_a.py::test_b")
    assert seen == [(original, original.replace(mutant.old, mutant.new))]
    assert (tmp_path / mutant.file).read_text(encoding="utf-8") == original
    assert copy.examine(mutant._replace(old="not in the file")).fate == "broken"

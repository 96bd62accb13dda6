"""The order of imports, the size of the files and the soundness of the pages: what keeps the package readable.

A module of the package may import modules of lower levels, and those of its own level as long as no circle arises.
Imports inside functions count as well: they defer the cost of an import, they do not change who depends on whom.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "davi"
LONGEST_FILE = 450

LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset(
        {"batch", "config", "data", "distributions", "evidence", "files", "flows", "formatting", "kept", "layers"}
    )
    | {"posteriors", "priors", "progress", "quantity", "records", "renamed", "repetition", "run_folder", "sets"},
    frozenset({"model"}),
    frozenset({"models"}),
    frozenset({"coding", "evaluation", "inspection", "objectives", "published"}),
    frozenset(
        {
            "comparison",
            "derived",
            "estimates",
            "gaps",
            "latents",
            "measurements",
            "metrics",
            "page",
            "partition",
            "pictures",
        }
    )
    | {"recalibration", "report", "runs", "scoring", "training"},
    frozenset({"recipes", "study"}),
    frozenset({"__init__", "__main__", "cli", "keywords", "notebook", "run", "run_images"}),
)
"""Parts of the package (first component below ``davi``), lowest level first."""

ONLY: dict[str, frozenset[str]] = {
    "batch": frozenset(),
    "errors": frozenset(),
    "config": frozenset({"errors"}),
    "data": frozenset({"errors", "kept", "sets"}),
    "formatting": frozenset({"quantity"}),
    "kept": frozenset(),
    "pictures": frozenset({"errors"}),
    "progress": frozenset(),
    "quantity": frozenset(),
    "records": frozenset({"config", "errors"}),
    "sets": frozenset({"errors", "kept"}),
}
"""Parts that may import no more of the package than this, whatever their level."""

NEVER: dict[str, frozenset[str]] = {
    part: frozenset({"data", "training", "recipes", "logging"})
    for part in ("batch", "distributions", "evidence", "flows", "layers", "model", "models")
}
"""Parts that must not import these, our own modules or the standard library's: a model knows nothing of its use."""


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of all modules of the package under ``root``; a package goes by its own name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """Full names of what a module imports; of ``from a import b`` the module ``a.b`` where there is one, else ``a``."""
    found: set[str] = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                if origin == PACKAGE and alias.name == "__version__":
                    continue  # a constant that everyone may quote
                inner = f"{origin}.{alias.name}"
                found.add(inner if inner in known else origin)
    return found


def part_of(name: str) -> str:
    """The part of the package that a module is of: ``davi.models.nvae`` -> ``models``, ``davi`` -> ``__init__``."""
    components = name.split(".")
    return components[1] if len(components) > 1 else "__init__"


def is_ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(PACKAGE + ".")


def import_faults(root: Path) -> Iterator[str]:
    """One line for everything that breaks the rules above."""
    known = modules(root)
    level = {part: i for i, parts in enumerate(LEVELS) for part in parts}
    for part in sorted({part_of(name) for name in known} - set(level)):
        yield f"{PACKAGE}/{part} has no place in the order of imports: give it a level in tests/test_architecture.py"
    files: dict[str, set[str]] = {}
    parts: dict[str, set[str]] = {}
    for name, path in known.items():
        part = part_of(name)
        imported = imports(name, path, known)
        files[name] = {target for target in imported if is_ours(target)} - {name}
        targets = {part_of(target) for target in files[name]} - {part}
        parts.setdefault(part, set()).update(targets)
        for target in sorted(targets):
            if level.get(target, -1) > level.get(part, len(LEVELS)):
                yield f"{name} imports {target}, which is of a higher level"
            elif part in ONLY and target not in ONLY[part]:
                yield f"{name} imports {target}, which {part} does without"
        outside = {target.partition(".")[0] for target in imported if not is_ours(target)}
        for target in sorted(NEVER.get(part, frozenset()) & (targets | outside)):
            yield f"{name} imports {target}, which a model knows nothing of"
    for graph in (files, parts):
        circle = circle_in(graph)
        if circle:
            yield "imports go in a circle: " + " -> ".join(circle)


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle of a directed graph, its first node repeated at its end; empty if there is none."""
    done: set[str] = set()
    trail: list[str] = []

    def visit(node: str) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        trail.append(node)
        for target in sorted(graph.get(node, ())):
            circle = visit(target)
            if circle:
                return circle
        trail.pop()
        done.add(node)
        return []

    for node in sorted(graph):
        circle = visit(node)
        if circle:
            return circle
    return []


def texts() -> Iterator[Path]:
    """All text files of the repository that are ours: sources, pages, results, settings."""
    yield from sorted(path for path in ROOT.glob("*.*") if path.suffix in {".md", ".toml", ".txt", ".py"})
    yield from (ROOT / "Makefile", ROOT / ".gitignore", ROOT / ".ci" / "run")
    for folder in (PACKAGE, "tests", "benchmarks", "docs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".md", ".yaml", ".json", ".jsonl", ".toml", ".txt", ".html", ".css"}:
                yield path


def broken_links(page: Path) -> list[str]:
    """Relative targets of Markdown links and images in a page that do not exist."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(<?([^)\s>]+)", re.sub(r"`[^`\n]*`", "", text))
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:|#", target)]
    return [target for target in local if not (page.parent / target).exists()]


def test_order_of_imports() -> None:
    assert list(import_faults(ROOT)) == []


def test_no_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / PACKAGE).rglob("*.py")
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_text_names_a_folder_of_one_machine() -> None:
    # Spelt so that this file does not find itself.
    pattern = re.compile(r"(?<![\w.:/~-])/(?:work|root|tmp|home|Users)" + "/")
    assert pattern.search("see /home" + "/someone/data")
    found = {
        f"{path.relative_to(ROOT)}:{i}: {line.strip()[:80]}"
        for path in texts()
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    }
    assert found == set()


def test_links_of_the_pages_lead_somewhere() -> None:
    broken = {str(page.relative_to(ROOT)): broken_links(page) for page in texts() if page.suffix == ".md"}
    assert broken
    assert {page: links for page, links in broken.items() if links} == {}


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"layers/a.py": "from davi.model import Model", "model.py": ""}, "davi.layers.a imports model, which is of a"),
        ({"layers/a.py": "from .. import model", "model.py": ""}, "davi.layers.a imports model, which is of a"),
        (
            {"model.py": "def f():\n    import davi.models.b", "models/b.py": ""},
            "davi.model imports models, which is of",
        ),
        (
            {"models/a.py": "from davi.data import Images", "data/__init__.py": ""},
            "davi.models.a imports data, which a",
        ),
        ({"models/a.py": "import logging"}, "davi.models.a imports logging, which a model knows nothing of"),
        ({"data/a.py": "from davi import config", "config.py": ""}, "davi.data.a imports config, which data does"),
        ({"runs.py": "from davi import load", "__init__.py": ""}, "davi.runs imports __init__, which is of a higher"),
        ({"helpers.py": ""}, "davi/helpers has no place in the order of imports"),
        (
            {"layers/a.py": "from . import b", "layers/b.py": "from .a import c"},
            "imports go in a circle: davi.layers.a ->",
        ),
        (
            {"runs.py": "import davi.training.a", "training/a.py": "", "training/b.py": "import davi.runs"},
            "imports go in a circle: runs -> training -> runs",
        ),
    ],
)
def test_the_faults_are_found(files: dict[str, str], fault: str, tmp_path: Path) -> None:
    for name, source in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    found = list(import_faults(tmp_path))
    assert any(line.startswith(fault) for line in found), found


def test_what_is_allowed_is_no_fault(tmp_path: Path) -> None:
    files = {
        "__init__.py": "__version__ = '1'\ndef load():\n    from davi.runs import load",
        "errors.py": "",
        "layers/__init__.py": "from davi.layers.a import x",
        "layers/a.py": "from .b import y",
        "layers/b.py": "import torch",
        "models/c.py": "import math\nfrom davi.layers import x\nfrom ..errors import UserError",
        "runs.py": "from davi import __version__\nfrom davi.models import c",
        "training.py": "import davi.runs",
        "cli.py": "import logging\nfrom davi import load",
    }
    for name, source in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    assert list(import_faults(tmp_path)) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "[a](page.md#top) [b](absent.md) ![c](<pictures/d.png>) [e](https://example.org) [f](#here) `[g](code.md)`\n"
        "```\n[h](inside.md)\n```\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["absent.md", "pictures/d.png"]

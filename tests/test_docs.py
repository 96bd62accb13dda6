"""The documentation: the site builds offline and without a warning, and what it says can be done can be done."""

from __future__ import annotations

import dataclasses
import doctest
import gc
import importlib
import math
import pkgutil
import re
import runpy
import shlex
from collections.abc import Iterator
from functools import partialmethod
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urldefrag

import forked
import numpy as np
import pytest
import sphinx.cmd.build

import davi
from davi import recipes
from davi.cli import main
from davi.cli.options import Request, parse
from davi.config import keys
from davi.data import DataConfig, load
from davi.inspection import inspect
from davi.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

LISTED = ("davi", "davi.data", "davi.distributions", "davi.layers", "davi.models", "davi.training")
LISTED += ("davi.inspection", "davi.comparison", "davi.page")
"""Packages whose ``__all__`` must be in the reference."""

SMALL = {
    "train": ["--training.steps=2", "--training.validation_images=4", "--model.width=4", "--model.layers=[1, 1]"],
    "evaluate": ["--limit", "4"],
    "inspect": ["--limit", "4"],
}
"""What the tutorial's commands are given here, so that minutes become seconds."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for language, text in re.findall(r"^```([^\n]*)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        yield Block(page, language.strip(), text)


def commands(block: Block) -> Iterator[list[str]]:
    """The words after ``davi`` of each command in a block for the shell."""
    if block.language not in ("", "bash", "console", "sh"):
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = words[: next((i for i, word in enumerate(words) if word in (">", "|")), len(words))]
        if words[:1] == ["davi"]:
            yield words[1:]
        elif "-m" in words and words[words.index("-m") + 1] == "davi":
            yield words[words.index("-m") + 2 :]


def documented(page: Path) -> list[list[str]]:
    return [words for block in blocks(page) for words in commands(block)]


class Links(HTMLParser):
    """What a page refers to, what it loads, and the names of its parts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.without_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("link", "script", "img", "iframe", "source") and (given.get("href") or given.get("src")):
            self.loads.append(given.get("href") or given["src"])
        if tag == "img" and not given.get("alt"):
            self.without_text.append(given.get("src", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("docs")
    # Objects are left out of the trees of contents, which each page of the theme copies: a third of the time, for
    # links that Sphinx makes itself to what it has found.
    words = ["-W", "--keep-going", "-q", "-E", "-b", "html", "-D", "toc_object_entries=0"]
    words += ["-d", str(out / "doctrees"), str(DOCS), str(out / "html")]
    done = forked.call(build, words, folder=out, seconds=3600.0)  # on a busy machine
    assert done.status == 0, done.err[-4000:]
    return out / "html"


def build(words: list[str]) -> int:
    """Sphinx; its many small objects live to the end, and looking for those that do not takes long."""
    gc.set_threshold(200_000, 100, 100)
    return sphinx.cmd.build.main(words)


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[Path, Links]:
    return {path: Links(path.read_text("utf-8")) for path in site.rglob("*.html")}


def test_the_site_needs_no_network(site: Path, parsed: dict[Path, Links]) -> None:
    assert len(parsed) > 30
    loads = {load for page in parsed.values() for load in page.loads}
    assert {load for load in loads if re.match(r"([a-z]+:)?//", load)} == set()
    remote = re.compile(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//")
    assert [path.name for path in site.rglob("*.css") if remote.search(path.read_text("utf-8"))] == []


def test_links_within_the_site_lead_somewhere(parsed: dict[Path, Links]) -> None:
    broken = []
    for path, page in parsed.items():
        for link in page.links:
            if re.match(r"[a-z][a-z0-9+.-]*:", link) or path.name in ("search.html", "genindex.html"):
                continue
            target, name = urldefrag(unquote(link))
            file = (path.parent / target).resolve() if target else path
            if not file.exists() or (name and file in parsed and name not in parsed[file].names):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_pictures_have_text_alternatives(parsed: dict[Path, Links]) -> None:
    assert {path.name: page.without_text for path, page in parsed.items() if page.without_text} == {}


def test_formulas_are_formulas(site: Path) -> None:
    text = (site / "models" / "attentive_vae.html").read_text("utf-8")
    assert text.count("<math") > 15
    assert text.count('<div class="formula"') >= 5
    assert "\\sum" not in text
    assert "$$" not in text


@pytest.mark.parametrize("package", LISTED)
def test_the_reference_is_complete(site: Path, package: str) -> None:
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    known = {name for kind in inventory.data.values() for name in kind}
    module = importlib.import_module(package)
    names = [name for name in module.__all__ if not name.startswith("__") and needs_an_entry(getattr(module, name))]
    missing = [name for name in names if not {f"{package}.{name}", home(module, name)} & known]
    assert names
    assert missing == []


def needs_an_entry(thing: Any) -> bool:
    """Classes, functions and constants; what typing makes of ``Literal`` has no place of its own."""
    return not type(thing).__module__.startswith("typing")


def home(module: ModuleType, name: str) -> str:
    thing = getattr(module, name)
    return f"{getattr(thing, '__module__', module.__name__)}.{getattr(thing, '__qualname__', name)}"


def modules() -> list[str]:
    found = pkgutil.walk_packages(davi.__path__, "davi.")
    return ["davi", *sorted(module.name for module in found if not module.name.endswith("__main__"))]


def test_examples_of_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "attentive_digits_tiny", "--run", "runs/demo", "--training.steps", "2"]) == 0
    counts = {}
    for name in modules():
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.FAIL_FAST)
        assert result.failed == 0, name
        counts[name] = result.attempted
    with_examples = ("davi", "davi.evidence", "davi.model.base", "davi.distributions.normal", "davi.data.protocol")
    with_examples += ("davi.distributions.logistic_mixture", "davi.evaluation.bounds", "davi.layers.depth_attention")
    assert [name for name in with_examples if not counts[name]] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_pages_are_understood(page: Path) -> None:
    for words in documented(page):
        if "--help" in words or "--version" in words:
            continue
        request = parse(words)
        check_recipe(request)


def check_recipe(request: Request) -> None:
    """Options of a command for a recipe that comes with the program must be options of that recipe."""
    name = getattr(request.options, "recipe", None)
    if request.verb == "train" and name in recipes.names():
        recipes.load(name, request.assignments)


def test_there_are_commands_to_check() -> None:
    assert len(documented(DOCS / "tutorial.md")) >= 12
    assert len(documented(ROOT / "README.md")) >= 5
    assert ["recipes", "photos"] in documented(DOCS / "tutorial.md")


def test_options_that_the_pages_name_exist() -> None:
    options = {"data": keys(DataConfig), "training": keys(TrainingConfig)}
    wrong = [
        f"{page.name}: {section}.{option}"
        for page in PAGES
        for section, option in re.findall(r"`(?:--)?(data|training)\.(\w[\w.]*)[` ]", page.read_text("utf-8"))
        if option not in options[section]
    ]
    assert wrong == []


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAVI_CACHE", str(tmp_path / "cache"))
    for block in blocks(DOCS / "tutorial.md"):
        if block.language == "python":
            exec(compile(block.text, "tutorial.md", "exec"), {"__name__": "tutorial"})
        for words in commands(block):
            small = [] if "--resume" in words else SMALL.get(words[0], [])
            assert main([*words, *small]) == 0, (words, capsys.readouterr().err)
    assert len(list(Path("my-images").rglob("*.png"))) == 520
    for name in ("samples.png", "reconstructions.png", "evaluation.json", "inspection.html", "model.safetensors"):
        assert (tmp_path / "runs" / "first" / name).stat().st_size > 0
    assert "runs/plain" in capsys.readouterr().out


def test_the_python_of_the_training_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks(DOCS / "concepts" / "training.md") if block.language == "python"]
    exec(compile(block.text, "training.md", "exec"), {"__name__": "training"})
    assert (tmp_path / "runs" / "tiny" / "model.safetensors").is_file()


def test_the_python_of_the_page_about_flows() -> None:
    found: dict[str, Any] = {"__name__": "flows"}
    (block,) = [block for block in blocks(DOCS / "concepts" / "flows.md") if block.language == "python"]
    exec(compile(block.text, "flows.md", "exec"), found)
    assert found["halfway"].shape == (1, 1, 8, 8)
    assert found["samples"].shape == (4, 1, 8, 8)
    assert found["constant"].tolist() == pytest.approx([-64 * math.log(17)] * 2)


def test_the_python_of_the_page_about_reversible_networks() -> None:
    found: dict[str, Any] = {"__name__": "reversible"}
    (block,) = [block for block in blocks(DOCS / "concepts" / "reversible.md") if block.language == "python"]
    exec(compile(block.text, "reversible.md", "exec"), found)
    assert len(found["rows"]) == 7
    assert 0 < found["drift"] < 1e-4


def test_the_page_about_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def short(*given: Any, minutes: float, width: int, run: str) -> davi.Run:
        assert (minutes, width) == (2, 8)
        return train(*given, run=run, steps=2, width=4, layers=[1, 1], training={"validation_images": 4})

    train = davi.train
    monkeypatch.setattr(davi, "train", short)
    monkeypatch.setattr(davi.Run, "evaluate", partialmethod(davi.Run.evaluate, limit=4))
    monkeypatch.setattr(davi.Run, "inspect", partialmethod(davi.Run.inspect, limit=4, no_figures=True))
    found: dict[str, Any] = {"__name__": "python"}
    for block in blocks(DOCS / "python.md"):
        exec(compile(block.text, "python.md", "exec"), found)
    assert found["images"].shape == (520, 32, 32, 3)
    assert found["bits"].shape == (4,)
    assert len(found["evidence"].log_px) == 16
    assert (tmp_path / "runs" / "patches" / "inspection.html").is_file()


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "figures.py"))


@pytest.mark.parametrize("ratio", [0.9, 0.7, 0.55])
def test_the_figure_of_importance_weighting(figures: dict[str, Any], ratio: float) -> None:
    latents = figures["LATENTS"]
    # L_1 is log p(x) minus the KL divergence of the two Normals. 2**18 draws: the error is below 0.01 by far.
    divergence = 0.5 * latents * (ratio - 1.0 - np.log(ratio))
    assert figures["gap"](ratio, 1) == pytest.approx(divergence, abs=0.01)
    # The variance of the weights by quadrature of p(z)^2 / q(z), one latent at a time.
    z = np.linspace(-40, 40, 400_001)
    second_moment = np.sum(np.exp(z * z * (0.5 / ratio - 1.0)) * np.sqrt(ratio / (2 * np.pi))) * (z[1] - z[0])
    assert figures["relative_variance"](ratio) == pytest.approx(second_moment**latents - 1.0, rel=1e-6)


def test_the_figures_are_drawn(figures: dict[str, Any], tmp_path: Path) -> None:
    figures["who_reads_whom"]().savefig(tmp_path / "figure.svg")
    others = {"variational_gap", "rbm"}  # of docs/posteriors.py and docs/energies.py, which need a run
    assert {path.stem for path in (DOCS / "_static").glob("*.svg")} == set(figures["FIGURES"]) | others


def test_the_pictures_are_drawn() -> None:
    gallery = runpy.run_path(str(DOCS / "gallery.py"))
    model = davi.build("attentive_digits_tiny")
    found = inspect(model, load(DataConfig(set="digits")).test, limit=16, samples=8)
    panels = gallery["panels"](found, model.levels)
    side, gap = gallery["CELL"], gallery["GAP"]
    assert [panel.size for panel in panels] == [(4 * (side + gap) - gap, 2 * (side + gap) - gap)] * 3
    first = np.asarray(panels[1])[:side, :side]  # the first typical image, at twelve pixels for one
    typical = next(item for item in found.chosen if item.role == "typical")
    shades = np.round(255 * typical.original[0].double().numpy() / (model.levels - 1))
    assert np.array_equal(first[::12, ::12, 0], shades)
    assert gallery["strip"]([panels, panels]).width > 3 * panels[0].width
    assert (DOCS / "_static" / "strip.png").stat().st_size < 300_000

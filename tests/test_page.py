"""The page of a run: whole, small, harmless, and its pictures are the tensors it was given."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from inspected import contents, inspection, records, result
from PIL import Image
from tiny import Logistic

from davi import page
from davi.errors import UserError
from davi.evaluation.measure import LeftOut, Measure
from davi.evaluation.mutual_information import INFORMATION_OF_MODEL, INFORMATION_OF_TOP
from davi.evaluation.result import Result
from davi.evidence import Kind
from davi.page import curves, images, information, numbers, pixels
from davi.page.blocks import Chart, Figure, Fold, Prose, Section, Source, Table, Tiles
from davi.records import read, to_json

VOID = {"meta", "img", "br", "hr", "link", "input"}
SECTIONS = [
    "samples",
    "reconstructions",
    "progressive",
    "interpolation",
    "variations",
    "bits",
    "kl",
    "information",
    "gap",
    "depth",
    "space",
    "curves",
    "comparison",
    "details",
]


class Read(HTMLParser):
    """Elements in order, with what they are in; complains where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def rendered(**changes: Any) -> str:
    made = contents(**changes)
    return page.render(made, page.compose(made, 96))


@pytest.fixture(scope="module")
def sections() -> dict[str, Section]:
    return {section.anchor: section for section in page.compose(contents(), 96)}


@pytest.fixture(scope="module")
def whole(sections: dict[str, Section]) -> str:
    return page.render(contents(), list(sections.values()))


def test_sections_in_order_with_figures_that_explain_themselves(whole: str, sections: dict[str, Section]) -> None:
    read = Read(whole)
    assert [item["id"] for item in read.all("section")] == SECTIONS
    assert [item["href"] for item in read.all("a")][1:] == [f"#{name}" for name in SECTIONS]
    names = [figure.name for section in sections.values() for figure in section.figures()]
    assert len(names) == len(set(names)) == 21
    assert len(read.all("figure")) == len(read.all("figcaption")) == len(names)
    for section in sections.values():
        for figure in section.figures():
            assert len(figure.caption) < 120
            assert figure.reading


def test_nothing_is_fetched_and_nothing_runs(whole: str) -> None:
    read = Read(whole)
    assert {"script", "link", "iframe", "object", "form"}.isdisjoint(tag for tag, _ in read.elements)
    policy = next(item["content"] for item in read.all("meta") if item.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    for _, attributes in read.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;base64,"))
    # The addresses of name spaces are names: nobody asks for them.
    assert set(re.findall(r"https?://[^\"\s)]+", whole)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "url(" not in re.sub(r"url\(#", "", whole)


def test_marks_for_those_who_do_not_see(whole: str) -> None:
    read = Read(whole)
    assert read.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in read.all("img"))
    drawings = [item for item in read.all("svg") if item.get("role") == "img"]
    assert len(drawings) == 10
    assert all(item["aria-label"] for item in drawings)
    assert all(item.get("scope") in ("col", "row") for item in read.all("th"))
    identifiers = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    references = re.findall(r"(?:url\(|href=\")#([^)\"]+)", whole)
    assert set(references) <= set(identifiers)


HOSTILE = "</code><script>alert(1)</script><img src=x onerror=alert(1)>&\"' {{ 7 * 7 }} $x$"


def test_mutual_information_and_what_is_left_out() -> None:
    cap = Measure(INFORMATION_OF_TOP, "nats", 6.9, 0.004, Kind.ESTIMATE, "how", images=1000, cap=math.log(1000))
    below = LeftOut(INFORMATION_OF_MODEL, "its images would be drawn pixel by pixel")
    section = information.information(contents(result=replace(result(), measures=(cap,), left_out=(below,))), 96)
    table, reading, sentence = section.blocks
    assert isinstance(table, Table)
    assert table.rows == (
        (INFORMATION_OF_TOP, "6.9000 ± 0.0040 nats (estimate, at the cap of 6.908, 1,000 images)", "how"),
    )
    assert isinstance(reading, Prose)
    assert sentence == Prose("I(z; x) of the model is left out: its images would be drawn pixel by pixel.")
    (old,) = information.information(contents(), 96).blocks
    assert isinstance(old, Prose)
    assert old.text.startswith("Left out: an older version")


def test_text_of_others_stays_text() -> None:
    numbers = result(data={"shape": [1, 8, 8], "levels": 16, HOSTILE: HOSTILE}, set=HOSTILE)
    baseline = replace(numbers.baselines[0], name=HOSTILE, note=HOSTILE)
    protocol = replace(numbers.protocol, commit=HOSTILE)
    numbers = replace(numbers, protocol=protocol, baselines=(baseline,))
    lines = [*records(), {"kind": "watch", "step": 3, "what": HOSTILE, "message": HOSTILE}]
    plain = inspection()
    found = inspection(
        set=HOSTILE,
        shown=(HOSTILE, HOSTILE),
        chosen=tuple(replace(item, name=HOSTILE) for item in plain.chosen),
        strips=tuple(replace(strip, title=HOSTILE, labels=(HOSTILE, "", "")) for strip in plain.strips),
    )
    text = rendered(
        title=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        measured=HOSTILE,
        result=numbers,
        records=lines,
        recipe=HOSTILE,
        inspection=found,
    )
    read = Read(text)
    assert read.all("script") == []
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)
    assert sum(HOSTILE in part for part in read.text) >= 30
    assert len(read.all("section")) == len(SECTIONS)


def test_metrics_that_are_no_numbers_are_left_out() -> None:
    broken: list[dict[str, Any]] = [
        {"kind": "train", "step": 1, "bits_per_dim": "3", "kl": None, "learning_rate": True},
        {"kind": "train", "step": 2, "bits_per_dim": float("nan"), "kl": float("inf"), "learning_rate": 10**400},
        {"kind": "train", "step": 10**30, "bits_per_dim": 3.0},
        {"kind": "train", "step": 3, "bits_per_dim": 4.0},
        {"kind": ["train"], "step": 4},
        {"kind": "rollback", "step": 10**400},
    ]
    section = curves.curves(contents(records=broken), 96)
    assert [figure.name for figure in section.figures()] == ["curve-bits"]
    assert "from 4 at step 3 to 4 at step 3" in next(next(section.figures()).charts()).alt


def events_of(lines: Sequence[Mapping[str, Any]]) -> tuple[Fold, Table]:
    fold = curves.curves(contents(records=lines), 96).blocks[-1]
    assert isinstance(fold, Fold)
    (table,) = fold.blocks
    assert isinstance(table, Table)
    return fold, table


def test_events_are_listed_and_long_lists_cut() -> None:
    fold, table = events_of(records())
    assert fold.summary == "Events during training: 1 rollback, 2 warnings"
    assert table.rows[0] == (
        "50",
        "rollback",
        "failed at step 57 in the loss; went back to step 50 and on with the learning rate times 0.5",
    )
    assert table.rows[1][1:] == ("inactive layers", "kl/01 stays near 0 nats")
    many = [*records(), *({"kind": "watch", "step": k, "message": f"m{k}"} for k in range(1000))]
    _, table = events_of(many)
    assert len(table.rows) == 51
    assert table.rows[25][1] == "953 more"
    assert table.rows[-1][2] == "m999"


def test_sections_without_content_say_why() -> None:
    bare = inspection(
        chosen=(),
        layers=(),
        progressive=None,
        depth_attention=(),
        spatial_attention=(),
        bits=None,
        strips=(),
        expected={},
    )  # a model without latents
    made = contents(inspection=bare, records=[], recipe=None, model=Logistic((1, 8, 8), 16))
    sections = {section.anchor: section for section in page.compose(made, 96)}
    assert list(sections) == ["samples", "curves", "comparison", "details"]
    assert len(list(sections["samples"].figures())) == 2
    text = "".join(Read(page.render(made, list(sections.values()))).text)
    assert text.count("Left out: ") == 2  # curves and recipe
    assert (
        "Does not apply to this model: reconstructions, images layer by layer, interpolation, variations that keep the "
        "top layers, where the bits go, KL divergence and active units of layers, mutual information, the variational "
        "gap, attention over depth, attention over space.\n" in text
    )


def test_what_a_hierarchy_has_not_is_said_and_what_it_has_is_not(whole: str) -> None:
    assert "Does not apply" not in whole
    text = rendered(inspection=inspection(depth_attention=(), spatial_attention=()))
    assert "<p>Does not apply to this model: attention over depth, attention over space.</p>" in text


@pytest.mark.parametrize(
    ("kind", "samples", "words"),
    [
        (Kind.LOWER_BOUND, 100, "lower bound on the log-likelihood (L_100, 100 importance samples)"),
        (Kind.LOWER_BOUND, 1, "lower bound on the log-likelihood (ELBO)"),
        (Kind.EXACT, 1, "exact log-likelihood"),
        (Kind.ESTIMATE, 1, "estimate of the log-likelihood, which may err on either side"),
    ],
)
def test_the_headline_names_unit_and_kind(kind: Kind, samples: int, words: str) -> None:
    numbers = result(samples, kind=kind)
    # -87 nats are 87 / (64 ln 2) = 1.96118 bits per dimension; their error is 4 / sqrt 3 nats.
    where = "digits/test, the first 3 of 10 images"
    expected = f"1.961 ± 0.052 bits/dim; independent pixels 2.50; {words}; {where}"
    assert page.headline(numbers) == expected
    binary = result(samples, {"shape": [1, 8, 8], "levels": 2}, kind=kind)
    # 2.5 bits per dimension are 2.5 * 64 ln 2 = 110.90 nats.
    expected = f"87.0 ± 2.3 nats; independent pixels 110.9; {words}, shown as -log p; {where}"
    assert page.headline(binary) == expected


def test_a_page_has_one_unit(sections: dict[str, Section]) -> None:
    binary = result(data={"shape": [1, 8, 8], "levels": 2})
    found = inspection(levels=2)
    made = contents(result=binary, inspection=found, levels=2)
    told = "".join(Read(page.render(made, page.compose(made, 96))).text)
    assert "the same number is 1.961 ± 0.052 bits/dim" in told
    assert "57 bytes, which are 316.1 nats" in told  # 8 * 57 ln 2
    assert told.count("bits/dim") == 1
    assert "test image 4 · 110.9 nats" in told  # 2.5 bits/dim
    (curve,) = next(sections["curves"].figures()).charts()
    assert "(bits/dim)" in curve.alt
    kl = next(figure for figure in sections["curves"].figures() if figure.name == "curve-kl")
    # The last KL divergence is 4 - 3 / 20 = 3.85 nats, thus 3.85 / (64 ln 2) bits per dimension.
    assert "training goes from 0.02254 at step 10 to 0.08679 at step 200" in next(kl.charts()).alt


def test_everything_at_the_top(whole: str) -> None:
    text = Read(whole).text
    top = "".join(text[: text.index("Samples")])
    for part in (
        "demo",
        "attentive_vae, 12,345 parameters",
        "2m05s",
        "1.961 ± 0.052 bits/dim; independent pixels 2.50",
    ):
        assert part in top


def test_what_few_read_is_folded_away(whole: str, sections: dict[str, Section]) -> None:
    blocks = [block for section in sections.values() for block in section.blocks]
    folds = [block.summary for block in blocks if isinstance(block, Fold)]
    for summary in ("Protocol and hashes", "Recipe", "Learning rate", "Active units", "Attention pixel by pixel"):
        assert summary in folds
    assert not any(isinstance(block, Table | Source) for block in blocks)
    assert "<details open" not in whole


def test_samples_say_what_their_pixels_are() -> None:
    def shown(**changes: Any) -> tuple[list[str], Tiles]:
        (tiles,) = next(images.samples(contents(**changes), 96).figures()).tiles()
        return [tile.label for tile in tiles.tiles], tiles

    labels, tiles = shown()
    assert labels == ["Pixels drawn", "Means of the pixels, same latents"]
    assert all(tile.width >= pixels.LARGE for tile in tiles.tiles)
    labels, _ = shown(levels=2, inspection=inspection(levels=2))
    assert labels == ["Probability of a white pixel", "Pixels drawn"]
    examples = torch.zeros(9, 1, 8, 8, dtype=torch.uint8)
    labels, _ = shown(inspection=inspection(expected={}, examples=examples))
    assert labels == ["Pixels drawn", "Images of digits/test"]


@pytest.mark.parametrize("shape", [(3, 256, 256), (1, 40, 200), (4, 16, 16), (1, 1, 1)])
def test_every_shape_gives_a_page_below_the_limit(shape: tuple[int, int, int], tmp_path: Path) -> None:
    found = inspection(latents=2, shape=shape, levels=256)
    target = tmp_path / "page.html"
    page.write(contents(inspection=found, levels=256), target)
    assert target.stat().st_size < page.LARGEST
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_pictures_shrink_until_the_page_is_small_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = inspection(latents=2, shape=(3, 64, 64), levels=256)  # noise: hardly compressible
    made = contents(inspection=found, levels=256)
    large, small = tmp_path / "large.html", tmp_path / "small.html"
    page.write(made, large)
    monkeypatch.setattr(page, "LARGEST", large.stat().st_size // 2)
    page.write(made, small)
    assert small.stat().st_size < large.stat().st_size // 2
    assert re.search(r"is the mean of (\d) x \1 pixels", small.read_text(encoding="utf-8"))
    assert "is the mean of" not in large.read_text(encoding="utf-8")


def test_a_page_of_too_many_words_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LARGEST", 10_000)
    with pytest.raises(UserError, match=r"^\S*a\.html: got a page of \d+ bytes .*, expected at most 10000; [^\n]+$"):
        page.write(contents(), tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_a_protocol_of_any_depth_is_told_as_far_as_it_is_ours() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = {"a": [deep]}
    found = result(data={"shape": [1, 8, 8], "levels": 16, "more": deep})
    assert "a: a: ..." in rendered(result=found)


def test_figures_are_saved_as_png_and_svg(tmp_path: Path) -> None:
    made = contents()
    sections = page.compose(made, 96)
    paths = page.save_figures(sections, tmp_path / "inspection")
    figures: list[Figure] = [figure for section in sections for figure in section.figures()]
    assert sorted(path.name for path in paths) == sorted(
        f"{figure.name}.{kind}" for figure in figures for kind in ("png", "svg")
    )
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 100
        else:
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_long_recipe_is_cut() -> None:
    fold = numbers.details(contents(recipe="a" * 60_000), 96).blocks[-1]
    assert isinstance(fold, Fold)
    block = fold.blocks[-1]
    assert isinstance(block, Source)
    assert block.text.endswith("a\n... and 10000 more letters")


def test_chart_texts_give_the_numbers(sections: dict[str, Section]) -> None:
    kl: Chart = next(next(sections["kl"].figures()).charts())
    # 1 nat is 1 / (64 ln 2) = 0.02254 bits per dimension.
    assert kl.alt == "Bar chart of the KL divergence in bits/dim: layer 0 0, layer 1 0.0225, layer 2 0.0451."
    assert next(sections["kl"].figures()).caption == "1 of 3 layers is inactive: layer 0."


def test_the_result_may_come_from_a_file() -> None:
    assert page.headline(read(Result, json.loads(json.dumps(to_json(result()))), "file")) == page.headline(result())

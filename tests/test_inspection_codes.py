"""What is seen of a quantized model, and the sections of its page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coded import coded, images
from inspected import DATA, MODEL, contents, records

from davi import page
from davi.data import Images
from davi.evaluation import evaluate
from davi.inspection import CodeView, Inspection, inspect
from davi.inspection.codes import DRAWN, colors_of, nearest
from davi.model import Quantized
from davi.page import code_curves, codes
from davi.report import protocol_of, result_of

TEST, TRAINING = images(12), images(30, "digits/train", seed=5)


def look(model: Quantized, training: Images | None = TRAINING) -> tuple[Inspection, CodeView]:
    found = inspect(model, TEST, samples=9, training=training)
    assert found.codes is not None
    return found, found.codes


def test_codes_are_those_of_the_images_that_are_shown() -> None:
    model = coded(2, books=2, trained=True)
    found, seen = look(model)
    assert [layer.grid for layer in seen.layers] == [(2, 2), (4, 4)]
    assert [(layer.books, layer.size) for layer in seen.layers] == [(2, 6)] * 2
    assert seen.trained
    assert found.bits is not None
    assert torch.equal(seen.shown.images, found.bits.images)
    for own, expected in zip(seen.shown.codes, model.autoencoder.codes(seen.shown.images), strict=True):
        assert torch.equal(own, expected)
    for layer, own in zip(seen.layers, model.autoencoder.codes(TEST.pixels), strict=True):
        for book in range(2):
            assert torch.equal(layer.counts[book], torch.bincount(own[:, book].flatten(), minlength=6))
        torch.testing.assert_close(layer.training.sum(1), torch.ones(2, dtype=torch.float64))


def test_samples_have_the_codes_they_are_made_of() -> None:
    model = coded(2, trained=True)
    _, seen = look(model)
    assert [len(layer) for layer in seen.drawn.codes] == [DRAWN] * 2
    with torch.no_grad():
        made = model.decode(list(seen.drawn.codes))
    torch.testing.assert_close(made.mean(), seen.drawn.images)  # type: ignore[attr-defined]
    assert seen.kept.shape == (1, DRAWN, 1, 8, 8)
    assert look(coded())[1].kept.shape == (0, DRAWN, 1, 8, 8)


def test_the_codes_of_the_top_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that sees nothing but the top layer makes the same image each time."""
    model = coded(2, trained=True)
    blind = type(model.autoencoder).last_map
    monkeypatch.setattr(
        type(model.autoencoder), "last_map", lambda own, vectors: blind(own, [vectors[0], 0 * vectors[1]])
    )
    _, seen = look(model)
    assert all(torch.equal(x, seen.kept[0, 0]) for x in seen.kept[0])
    torch.testing.assert_close(seen.kept[0, 0], seen.drawn.images[0])
    assert not all(torch.equal(x, seen.drawn.images[0]) for x in seen.drawn.images)


def test_neighbors_are_the_nearest_by_brute_force() -> None:
    samples = images(7, seed=9).pixels
    found = nearest(samples, TEST, TRAINING)
    squares = (samples[:, None].double() - TRAINING.pixels[None].double()).square().flatten(2).mean(2)  # [7, 30]
    torch.testing.assert_close(found.distances, squares.min(1).values.sqrt())
    assert torch.equal(found.neighbors, TRAINING.pixels[squares.argmin(1)])
    others = (TEST.pixels[:, None].double() - TRAINING.pixels[None].double()).square().flatten(2).mean(2)
    torch.testing.assert_close(found.images, others.min(1).values.sqrt())
    assert found.training == 30


def test_a_copied_training_image_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever chunk it lies."""
    monkeypatch.setattr("davi.inspection.codes._CHUNK", 4)
    found = nearest(TRAINING.pixels[[3, 29]], TEST, TRAINING)
    assert found.distances.tolist() == pytest.approx([0.0, 0.0])
    assert torch.equal(found.neighbors, TRAINING.pixels[[3, 29]])


def test_gray_training_images_of_a_binary_model_are_drawn() -> None:
    gray = Images(torch.tensor([0, 255], dtype=torch.uint8).repeat(8).view(4, 1, 2, 2), 256, "toy/train")
    binary = Images(torch.tensor([0, 1], dtype=torch.uint8).repeat(2).view(1, 1, 2, 2), 2, "toy/test")
    assert nearest(binary.pixels, binary, gray).distances.tolist() == [0.0]


def test_similar_vectors_have_similar_colors() -> None:
    quantizer = coded(codes=6).autoencoder.quantizer(0)
    line = torch.tensor([3.0, 0.0, 5.0, 1.0, 4.0, 2.0])
    quantizer.vectors.copy_(line[:, None] * torch.tensor([0.0, 0.0, 1.0, 0.0]))  # type: ignore[operator]
    colors = colors_of(quantizer)
    assert colors.shape == (1, 6, 3)
    light = colors[0].double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    assert torch.equal(light.argsort(), line.argsort())


def shown(model: Quantized, training: Images | None = TRAINING, **changes: Any) -> page.Contents:
    found = evaluate(model, TEST)
    result = result_of(found, [], protocol_of(found, MODEL, DATA))
    seen = inspect(model, TEST, samples=9, training=training)
    return contents(inspection=seen, model=model, levels=17, result=result, **changes)


def text_of(made: page.Contents, tmp_path: Path) -> str:
    target = tmp_path / "page.html"
    page.write(made, target)
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", target.read_text(encoding="utf-8")))


@pytest.mark.parametrize(("layers", "books"), [(1, 1), (2, 2), (3, 1)])
def test_a_page_has_all_sections(layers: int, books: int, tmp_path: Path) -> None:
    taken = {"reconstruction": 90.0, "codes, uniform prior": 30.0, "codes, unigram prior": 20.0}
    ended = {"kind": "codes", "step": 5, "stage": "first", "images": 64, "nats": taken, "perplexity": [4.25] * layers}
    text = text_of(shown(coded(layers, trained=True, books=books), records=[*records(), ended]), tmp_path)
    titles = ("Maps of codes", "Samples of the prior", "Nearest training images", "What pixels and codes take")
    assert all(title in text for title in (*titles, "Codes in use"))
    assert f"first pixels given codes {90 / 64 / np.log(2):.2f} codes, uniform prior" in text
    assert ", ".join(["4.25"] * layers) in text
    assert ("as in sample 1, all others drawn" in text) == (layers > 1)
    assert ("maps of the first 4" in text) == (books > 1)
    assert "The prior is not trained yet" not in text
    assert "Left out: codes are no numbers, and have no variance." in text


def test_a_page_says_what_it_cannot_show(tmp_path: Path) -> None:
    text = text_of(shown(coded(), training=None), tmp_path)
    assert "Left out: the training images of this model were not given." in text
    assert "The prior is not trained yet: every code is equally probable." in text


def test_a_page_of_another_version_does_not_say_what_codes_take() -> None:
    made = shown(coded())
    assert made.result is not None
    old = codes.costs(replace(made, result=replace(made.result, measures=())), 64)
    assert old is not None
    assert [type(block).__name__ for block in old.blocks] == ["Prose"]


def test_other_models_have_no_such_sections(tmp_path: Path) -> None:
    text = text_of(contents(), tmp_path)
    assert "Codes in use" not in text
    assert "What pixels and codes take" not in text


def test_curves_of_codes() -> None:
    lines = [
        {
            "kind": "train",
            "step": step,
            "code_perplexity/00": 2.0 + step,
            "code_perplexity/01": None,
            "code_usage/00": 0.5,
        }
        for step in (10, 20)
    ]
    perplexity, usage = code_curves.code_figures(lines, ())
    assert perplexity.content[0].alt == "Line chart over steps, codes: layer 0 (top) from 12 to 22."  # type: ignore[union-attr]
    assert "codes from 50 to 50" in usage.content[0].alt  # type: ignore[union-attr]
    assert not list(code_curves.code_figures(records(), ()))

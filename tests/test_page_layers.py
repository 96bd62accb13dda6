"""What the page says of latent layers and of the attention between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from inspected import contents, inspection

from davi.inspection import DepthAttentionView, Layer
from davi.page import attention, bits, charts, latents
from davi.page.blocks import Fold, Prose, Section, Table


def tables_of(section: Section) -> list[Table]:
    return [
        block for fold in section.blocks if isinstance(fold, Fold) for block in fold.blocks if isinstance(block, Table)
    ]


def prose_of(section: Section) -> str:
    folds = (fold for fold in section.blocks if isinstance(fold, Fold))
    return " ".join(block.text for fold in folds for block in fold.blocks if isinstance(block, Prose))


def test_how_far_a_layer_reads() -> None:
    matrix = torch.tensor([[0.5, 0.25, 0.25], [torch.nan, 0.5, 0.5]], dtype=torch.float64)
    view = DepthAttentionView("inference", ("0", "1"), ("0", "1", "image"), matrix, (0.1, 0.3), torch.zeros(0))
    section = attention.depth(contents(inspection=inspection(latents=2, depth_attention=(view,))), 96)
    assert section is not None
    (figure,) = section.figures()
    # The image is layer 2: 0.25 + 0.5 = 0.75 for the first reader, 0.5 for the second.
    assert figure.caption == "On average a layer reads 0.6 layers away."
    assert "here 0.10 to 0.30" in figure.reading


def test_estimates_of_divergences_say_so() -> None:
    plain = inspection().layers
    layers = (plain[0], plain[1], replace(plain[2], nats=-0.25, inactive=True, drawn=True, latent="z1 top-down"))
    section = kl_section(layers)
    assert section.title == "KL divergence by layer"
    assert "no closed form" in prose_of(section)
    table = tables_of(section)[1]
    assert table.head == ("layer", "latent", "grid", "channels", "bits/dim", "state")
    assert table.rows[2] == ("2", "z1 top-down", "4 x 4", "2", "-0.0056 ± 0.0023", "inactive, an estimate")
    drawing = charts.bars([1.0, -0.25], [0.1, 0.1], [False, True], "nats", "layer")
    assert drawing.axes[0].get_ylim()[0] < -0.3  # the bar and its error are within the frame


def kl_section(layers: Sequence[Layer]) -> Section:
    return latents.divergences(contents(inspection=inspection(layers=tuple(layers))), 96)


def test_terms_that_are_no_divergences_are_called_terms() -> None:
    plain = inspection().layers
    term = replace(plain[2], nats=-1.26, drawn=True, divergence=False)
    section = kl_section([plain[0], plain[1], term])
    assert section.title == "Terms of the latent layers"
    figure = next(section.figures())
    assert figure.caption == "1 of 3 layers is inactive: layer 0."
    (chart,) = figure.charts()
    assert chart.alt == "Bar chart of the terms in bits/dim: layer 0 0, layer 1 0.0225, layer 2 -0.0284."
    assert "no KL divergence" in prose_of(section)
    assert tables_of(section)[1].rows[2][-2:] == ("-0.0284 ± 0.0023", "term, no divergence")
    assert caption([plain[1], term]) == "Layer 0, the only one that can be judged by itself, is active."
    assert caption([plain[1], plain[2], term]) == "None of the 2 layers that can be judged by themselves is inactive."
    assert caption([replace(layer, inactive=True) for layer in (plain[0], term)]) == "All 2 layers are inactive."
    assert caption([plain[1], plain[0], plain[0]]) == "2 of 3 layers are inactive: layers 1 and 2."
    made = contents(inspection=inspection(layers=(*plain[:2], term)))
    section = bits.bits(made, 96)
    assert section is not None
    first = next(list(section.figures())[1].tiles())
    assert [tile.label for tile in first.tiles][1:] == ["KL of layer 0", "KL of layer 1", "term of layer 2"]


def caption(layers: Sequence[Layer]) -> str:
    return next(kl_section(layers).figures()).caption


def test_costs_by_scale() -> None:
    scales = tables_of(kl_section(inspection().layers))[0]
    # 1 + 2 nats are 3 / (64 ln 2) = 0.0676 bits per dimension.
    assert scales.rows == (("1 x 1", "1", "0", "0.0 %"), ("4 x 4", "2", "0.0676", "100.0 %"))

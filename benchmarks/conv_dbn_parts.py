"""Parts that the convolutional deep belief network learns on Fashion-MNIST, from single classes and from all of them.

    python benchmarks/conv_dbn_parts.py [STEPS]

The recipe ``conv_dbn_fashion_mnist``, with so many steps in each stage (400), for each row of the figure: a class, or
three together. Left the filters of the first layer, right what units of the second layer look for, linear combinations
of these (:meth:`davi.models.ConvDBN.receptive_fields`). Gray is 0; each picture has a scale of its own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import ROOT
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

import davi
from davi.data import DataConfig, load
from davi.models import ConvDBN
from davi.models.conv_dbn import NormalizedConvDBN

OUT = ROOT / "docs" / "_static" / "conv_dbn_parts.png"
CLASSES = {"trousers": 1, "sneakers": 7, "bags": 8}
STEPS = 400
COLUMNS = (8, 10)
"""Pictures in a row, of the first layer and of the second."""


def trained(images: NDArray[np.uint8], folder: Path, steps: int) -> ConvDBN:
    """The network of a run on some images."""
    run = davi.train("conv_dbn_fashion_mnist", images, run=folder, steps=steps, validation=100)
    assert isinstance(run.model, NormalizedConvDBN)
    return run.model.network


def sheet(fields: Tensor, columns: int) -> NDArray[np.float64]:
    """Pictures ``[n, 1, H, W]`` side by side, from -1 to 1 each, with white lines between them."""
    scaled = (fields / fields.abs().amax((1, 2, 3), keepdim=True)).double().numpy()[:, 0]
    count, height, width = scaled.shape
    rows = -(-count // columns)
    found = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1))
    for i, picture in enumerate(scaled):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        found[top : top + height, left : left + width] = picture
    return found


def drawn(networks: dict[str, ConvDBN]) -> Figure:
    """A row for each network."""
    figure = Figure(figsize=(8.0, 2.0 * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), 2, width_ratios=(0.8, 1.0))
    for (name, network), pair in zip(networks.items(), axes, strict=True):
        for layer, (axis, columns) in enumerate(zip(pair, COLUMNS, strict=True), start=1):
            axis.imshow(sheet(network.receptive_fields(layer), columns), cmap="gray", vmin=-1.0, vmax=1.0)
            axis.axis("off")
            axis.set_title(f"{name}, layer {layer}", fontsize=9)
    return figure


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    train = load(DataConfig(set="fashion_mnist", labels=True)).train
    assert train.labels is not None
    groups = {name: [number] for name, number in CLASSES.items()} | {"the three together": list(CLASSES.values())}
    networks = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, numbers in groups.items():
            chosen = torch.isin(train.labels, torch.tensor(numbers, dtype=train.labels.dtype))
            networks[name] = trained(train.pixels[chosen][:, 0].numpy(), Path(folder) / name.replace(" ", "-"), steps)
    drawn(networks).savefig(OUT, dpi=120)
    print(OUT)


if __name__ == "__main__":
    main()

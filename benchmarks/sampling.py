"""Drawing pixel by pixel from what earlier pixels have left, beside a pass of the whole network for each pixel.

Both draw the same images from the same random numbers (``tests/test_contract_autoregressive.py``); here both are timed,
16 images of 32x32x3 side by side, in one process. A whole draw by passes would take hours: the passes of some pixels,
evenly spread, half of them before the other draw and half after it, are timed, and their mean is multiplied by the
number of all pixels (of all sub-pixels, where the network answers for each of them).

    python benchmarks/sampling.py [--recipes NAME ...] [--images 16] [--passes 8] [--threads 2] [--out sampling]
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
from common import write
from torch import Generator, Tensor

import davi
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.model import CausalModel

RECIPES = (
    "gated_pixelcnn_cifar10_small",
    "gated_pixelcnn_cifar10_small model.likelihood.family=categorical",  # an answer for each sub-pixel
    "pixelcnn_pp_cifar10_small",
    "pixelsnail_cifar10_small",
)
"""Recipes, with options in place of theirs."""
SEED = 0


def model_of(recipe: str) -> CausalModel:
    """The model of a recipe, not trained: time does not depend on weights."""
    torch.manual_seed(SEED)
    model = davi.build(*recipe.split(), shape=(3, 32, 32), levels=256)
    assert isinstance(model, CausalModel)
    return model.eval()


def seconds_of_passes(pixels: AutoregressivePixels, x: Tensor, places: list[int]) -> list[float]:
    """Of a pass of the whole network and a draw of one pixel, or sub-pixel, after the other.

    Arguments:
        pixels: the distribution of the images.
        x: the images, of which any pixels are known.
        places: of the pixels.
    """
    network, times = pixels.network, []
    width, generator = network.shape[2], Generator().manual_seed(SEED)
    for place in places:
        row, column = divmod(place, width)
        began = time.perf_counter()
        with torch.no_grad():
            raw = network(x, pixels.features, pixels.y)[:, :, row : row + 1, column : column + 1]
            network.head.part(raw, 0, network.parts).sample(generator)
        times.append(time.perf_counter() - began)
    return times


def measure(recipe: str, images: int, passes: int) -> dict[str, Any]:
    """Times of both ways with the model of a recipe."""
    model = model_of(recipe)
    channels, height, width = model.shape
    pixels = model.pixels(images)
    blank = torch.zeros(images, channels, height, width, dtype=torch.long)
    places = [round((i + 0.5) * height * width / passes) for i in range(passes)]
    seconds_of_passes(pixels, blank, places[:1])  # memory and kernels of the first use
    times = seconds_of_passes(pixels, blank, places[::2])
    began = time.perf_counter()
    drawn = model.sample(images, seed=SEED)
    cached = time.perf_counter() - began
    times += seconds_of_passes(pixels, drawn, places[1::2])
    answers = height * width * model.causal.parts
    whole = sum(times) / len(times) * answers
    return {
        "recipe": recipe,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "family": model.head.likelihood.family,
        "answers": answers,
        "cached_seconds": round(cached, 2),
        "pass_seconds": [round(value, 4) for value in times],
        "whole_passes_seconds": round(whole, 1),
        "ratio": round(whole / cached, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="of models of 32x32x3 with 256 levels")
    parser.add_argument("--images", type=int, default=16, help="drawn side by side")
    parser.add_argument("--passes", type=int, default=8, help="pixels whose whole passes are timed, at least 2")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--out", default="sampling", help="name of the file in benchmarks/results; empty: none")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for recipe in options.recipes:
        found = measure(recipe, options.images, options.passes)
        results.append(found)
        print(
            f"{recipe}: {found['cached_seconds']:.1f} s; {found['answers']} whole passes, scaled from "
            f"{options.passes}: {found['whole_passes_seconds']:.0f} s; {found['ratio']:.0f} times",
            flush=True,
        )
    if options.out:
        scaled = f"whole passes: the mean of {options.passes} at evenly spread pixels, times the number of answers"
        print(write(options.out, {"images": options.images, "shape": [3, 32, 32], "scaled": scaled, "models": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

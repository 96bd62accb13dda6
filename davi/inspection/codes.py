"""What is seen of a quantized model: codes in use, maps of codes, samples level by level, neighbors of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from davi.data import Images
from davi.distributions import Distribution, Latent
from davi.evaluation.codes import CodeCounts
from davi.inspection.chains import as_seen
from davi.inspection.code_views import Coded, CodeLayer, CodeView, Nearest
from davi.inspection.walks import pixels_of
from davi.layers.quantizer import Quantizer
from davi.model.quantized import Quantized

DRAWN = 6
"""Samples whose codes are shown."""

_CHUNK = 1000
"""Training images that are compared at once."""

_LIGHT, _HUES = (60.0, 220.0), (70.0, 186.0)
"""The darkest and the lightest code, and the ends of the two other parts of a color, in 0 to 255."""


def look_at_codes(
    model: Quantized,
    images: Images,
    shown: Tensor,
    samples: Tensor | None,
    training: Images | None,
    batch_size: int,
    generator: Generator,
) -> CodeView:
    """Everything there is to see.

    Arguments:
        model: in eval mode, without gradients.
        images: those that are inspected.
        shown: images whose codes are kept, integers ``[n, C, H, W]`` on the model's device.
        samples: images that the model has drawn, integers ``[n, C, H, W]``, to be compared with training images; None
            where there are none.
        training: the images that the model was trained on, if they are known.
        batch_size: images per pass.
        generator: source of randomness, on the model's device.
    """
    counts = CodeCounts(model)
    for x in images.pixels.split(batch_size):
        counts.add(model.autoencoder.codes(x.to(shown.device)))
    context = model.encode(shown)
    reconstructions = pixels_of(model.top_down(_inferred, context))
    codes = tuple(each.codes.cpu() for each in context.assigned)
    drawn, kept = _drawn(model, generator)
    return CodeView(
        layers=_layers(model, counts),
        trained=bool(model.prior_begun),
        shown=Coded(shown.cpu(), codes),
        reconstructions=reconstructions,
        drawn=drawn,
        kept=kept,
        nearest=None if training is None or samples is None else nearest(samples, images, training),
    )


def _inferred(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
    assert posterior is not None
    return posterior.center()


def _layers(model: Quantized, counts: CodeCounts) -> tuple[CodeLayer, ...]:
    found = []
    pairs = zip(model.autoencoder.grids, counts.counts, counts.perplexities(), strict=True)
    for layer, (grid, count, perplexity) in enumerate(pairs):
        quantizer = model.autoencoder.quantizer(layer)
        training = quantizer.frequencies.double().cpu()
        shares = training / training.sum(1, keepdim=True)
        found.append(CodeLayer(grid, count, shares, perplexity, colors_of(quantizer)))
    return tuple(found)


def _drawn(model: Quantized, generator: Generator) -> tuple[Coded, Tensor]:
    """Samples with their codes, and others that begin with the codes of the first."""
    codes, likelihood = _draw(model, (), generator)
    made = Coded(pixels_of(likelihood), tuple(layer.cpu() for layer in codes))
    kept = []
    for count in range(1, model.num_layers):
        top = [layer[:1].expand(DRAWN, *layer.shape[1:]) for layer in codes[:count]]
        kept.append(pixels_of(_draw(model, top, generator)[1]))
    return made, torch.stack(kept) if kept else made.images.new_zeros(0, *made.images.shape)


def _draw(model: Quantized, top: Sequence[Tensor], generator: Generator) -> tuple[list[Tensor], Distribution]:
    """Codes of all layers, those of the first ones given, ``[DRAWN, C, h, w]`` each; and p(x | z)."""
    codes: list[Tensor] = []
    y = model.classes_in_turn(DRAWN)

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        codes.append(top[layer] if layer < len(top) else prior.expand(DRAWN).sample(generator))
        return codes[-1]

    return codes, model.top_down_given(y, choose)


def colors_of(quantizer: Quantizer) -> Tensor:
    """A color for each code, ``[C, K, 3]``, uint8.

    Codes are ordered along each of the first three principal components of their vectors. The place along the first is
    how light a code is, those along the others are its hue: similar vectors have similar colors, and colors differ as
    much as they can.
    """
    device = quantizer.frequencies.device
    found = []
    for book in range(quantizer.books):
        codes = torch.zeros(quantizer.size, quantizer.books, 1, 1, dtype=torch.int64, device=device)
        codes[:, book, 0, 0] = torch.arange(quantizer.size, device=device)
        vectors = quantizer.embed(codes).flatten(1).double().cpu()  # [K, D]
        places = _places(vectors).numpy()  # [K, 3], in 0..1
        low, span = (
            np.array([_LIGHT[0], *[_HUES[0]] * 2]),
            np.array([_LIGHT[1] - _LIGHT[0], *[_HUES[1] - _HUES[0]] * 2]),
        )
        parts = (low + places * span).round().astype(np.uint8)
        picture = Image.fromarray(parts[None], mode="YCbCr").convert("RGB")
        found.append(torch.from_numpy(np.array(picture)[0]))
    return torch.stack(found)


def _places(vectors: Tensor) -> Tensor:
    """Of each vector ``[K, D]`` its place among all along three principal components, ``[K, 3]``, from 0 to 1."""
    centered = vectors - vectors.mean(0)
    axes = torch.linalg.svd(centered, full_matrices=False)[2][:3]  # [at most 3, D]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    along = centered @ (axes * largest.sign()).T  # a component has no sign of its own
    ranks = along.argsort(dim=0, stable=True).argsort(dim=0).double() / max(len(vectors) - 1, 1)
    missing = 3 - ranks.shape[1]
    return torch.cat([ranks, ranks.new_full((len(vectors), missing), 0.5)], 1)


def nearest(samples: Tensor, images: Images, training: Images) -> Nearest:
    """The training image nearest to each sample, and how near training images are to other images.

    Arguments:
        samples: integers ``[n, C, H, W]``.
        images: others, to compare with.
        training: of the same shape; gray ones that a model sees in black and white are drawn once.
    """
    seen = as_seen(training, images.levels)
    both = torch.cat([samples.cpu(), images.pixels.cpu().to(samples.dtype)])
    squares, places = _closest(both.flatten(1).double(), seen.pixels)
    distances = (squares.clamp(min=0) / both[0].numel()).sqrt()
    n = len(samples)
    return Nearest(samples.cpu(), seen.pixels[places[:n]].cpu(), distances[:n], distances[n:], len(seen))


def _closest(x: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Of vectors ``[n, D]`` the squared distance to the nearest of some images ``[N, ...]``, and its number."""
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    place = torch.zeros(len(x), dtype=torch.int64)
    norms = x.square().sum(1, keepdim=True)
    for start in range(0, len(pixels), _CHUNK):
        some = pixels[start : start + _CHUNK].cpu().flatten(1).double()
        squares, found = (norms - 2 * x @ some.T + some.square().sum(1)).min(1)
        place = torch.where(squares < best, found + start, place)
        best = torch.minimum(best, squares)
    return best, place

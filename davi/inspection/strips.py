"""Strips of pictures: interpolations, variations and completions; Markov chains are in :mod:`davi.inspection.chains`.

Which of them a model has is a question of its kind: latents can be interpolated and drawn anew below the top layers,
and pixels that are predicted one after the other can be completed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from davi.inspection.views import Strip
from davi.inspection.walks import pixels_of
from davi.model import Autoregressive, Hierarchy, Invertible, LatentModel, Model
from davi.model.walks import walk
from davi.repetition import repeat_images

STEPS = 8
"""Pictures in a row."""

_MOST_ROWS = 4
"""Rows of variations: of more layers, some at equal distances."""


def strips_of(
    model: Model, images: Tensor, names: Sequence[str], labels: Tensor | None, generator: Generator
) -> tuple[Strip, ...]:
    """The strips that a model of this kind has.

    Arguments:
        model: in eval mode, without gradients.
        images: at least one, integers ``[n, C, H, W]``, on the model's device; the strips begin from these.
        names: of the images.
        labels: classes of the images, ``[n]``, for a model that has some.
        generator: source of randomness, on the same device.
    """
    found: list[Strip] = []
    pairs = [(i, i + 1) for i in range(0, len(images) - 1, 2)]
    if isinstance(model, LatentModel):
        found += [strip for pair in pairs if (strip := _latents(model, images, names, pair)) is not None]
    if isinstance(model, Hierarchy):
        found += _variations(model, images[:1], names[0], generator)
    if isinstance(model, Invertible):
        found += [_flow(model, images, names, pair, generator, labels) for pair in pairs]
    if isinstance(model, Autoregressive):
        found += [
            _completions(model, images[i : i + 1], names[i], generator, None if labels is None else labels[i : i + 1])
            for i in range(min(2, len(images)))
        ]
    return tuple(found)


def _shares(like: Tensor) -> Tensor:
    """From 0 to 1, ``[STEPS]``."""
    return torch.linspace(0.0, 1.0, STEPS, dtype=like.dtype, device=like.device)


def _between(a: Tensor, b: Tensor) -> Tensor:
    """The line from a to b, ``[1, ...]`` each: ``[STEPS, ...]``."""
    shares = _shares(a).view(-1, *[1] * (a.ndim - 1))
    return (1.0 - shares) * a + shares * b


def _ends(images: Tensor, names: Sequence[str], pair: tuple[int, int], between: Tensor) -> Strip:
    """A strip whose first and last picture are the two images themselves."""
    first, last = (images[i : i + 1].to(between) for i in pair)
    labels = ("original", *(f"{share:.2f}" for share in _shares(between.float()).tolist()), "original")
    title = f"{names[pair[0]]} to {names[pair[1]]}"
    return Strip("interpolation", title, labels, torch.cat([first, between, last]).cpu())


def _latents(model: LatentModel, images: Tensor, names: Sequence[str], pair: tuple[int, int]) -> Strip | None:
    """Between the posterior means of two images; None where latents are no numbers between which there are others."""
    latents = model.latents(images[list(pair)])
    if not all(z.is_floating_point() for z in latents):
        return None
    pictures = pixels_of(model.decode([_between(z[:1], z[1:]) for z in latents]))
    return _ends(images.cpu(), names, pair, pictures)


def _flow(
    model: Invertible,
    images: Tensor,
    names: Sequence[str],
    pair: tuple[int, int],
    generator: Generator,
    labels: Tensor | None,
) -> Strip:
    """Between the places in noise to which a flow takes two images."""
    x = images[list(pair)]
    context = model.context(None if labels is None else labels[list(pair)])
    continuous = model.dequantization(x, generator, next(model.parameters()).dtype).y
    z, _ = model.bijection(continuous, context)
    along = None if context is None else _between(context[:1], context[1:])
    back, _ = model.bijection.inverse(_between(z[:1], z[1:]), along)
    return _ends(images.cpu(), names, pair, model.dequantization.quantize(back).cpu())


def _variations(model: Hierarchy, image: Tensor, name: str, generator: Generator) -> list[Strip]:
    """The first k latents of an image, and the others drawn from the prior, for some k."""
    layers = model.num_layers
    kept = sorted({round(float(k)) for k in torch.linspace(1, layers - 1, min(layers - 1, _MOST_ROWS))})
    context = repeat_images(model.encode(image), STEPS)
    rows = []
    for depth in kept:
        _, likelihood = walk(
            model, context, STEPS, depth, lambda latent: latent.center(), lambda latent: latent.sample(generator)
        )
        pictures = pixels_of(likelihood)
        labels = ("original", *[""] * STEPS)
        title = f"{name}, {f'top {depth}' if depth > 1 else 'top layer'} of {layers} kept"
        rows.append(Strip("variations", title, labels, torch.cat([image.cpu().to(pictures), pictures])))
    return rows


def _completions(model: Autoregressive, image: Tensor, name: str, generator: Generator, label: Tensor | None) -> Strip:
    """The upper half of an image, completed several times."""
    rows = model.shape[1] // 2
    several = repeat_images(image, STEPS)
    labels = None if label is None else repeat_images(label, STEPS)
    drawn = model.complete(several, temperature=1.0, generator=generator, y=labels, rows=rows)
    half = image.clone()
    half[:, :, rows:] = 0
    pictures = torch.cat([image.to(drawn), half.to(drawn), drawn]).cpu()
    names = ("original", "given", *(f"draw {i + 1}" for i in range(STEPS)))
    return Strip("completions", name, names, pictures, rows)

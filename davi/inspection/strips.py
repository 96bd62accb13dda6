"""Strips of pictures: interpolations, variations, completions; Markov chains are in :mod:`davi.inspection.chains`.

Which of them a model has is a question of its kind: latents can be interpolated and drawn anew below the top layers,
and pixels that are predicted one after the other can be completed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from davi.flows.multiscale import parts
from davi.inspection.flows import between, images_of
from davi.inspection.views import Strip
from davi.inspection.walks import pixels_of
from davi.model import Autoregressive, Hierarchy, Invertible, Inverting, LatentModel, Model
from davi.model.walks import walk
from davi.repetition import repeat_images

STEPS = 8
"""Pictures in a row."""

_NOT_FINITE = ", not finite"
"""After the label of a picture that an inverse does not reach with finite numbers."""

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
        found += _variations(model, images[:1], names[0], generator, None if labels is None else labels[:1])
    if isinstance(model, Invertible):
        found += [_flow(model, images, names, pair, labels) for pair in pairs]
        for i in range(min(2, len(images))):
            label = None if labels is None else labels[i : i + 1]
            found += _scales(model, images[i : i + 1], names[i], generator, label)
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


def _ends(
    images: Tensor, names: Sequence[str], pair: tuple[int, int], along: Tensor, finite: Sequence[bool] = (True,) * STEPS
) -> Strip:
    """A strip whose first and last picture are the two images themselves."""
    first, last = (images[i : i + 1].to(along) for i in pair)
    shares = zip(_shares(along.float()).tolist(), finite, strict=True)
    labels = ("original", *(f"{share:.2f}{'' if known else _NOT_FINITE}" for share, known in shares), "original")
    title = f"{names[pair[0]]} to {names[pair[1]]}"
    return Strip("interpolation", title, labels, torch.cat([first, along, last]).cpu())


def between_representations(model: Inverting, images: Tensor, names: Sequence[str]) -> tuple[Strip, ...]:
    """Lines between the last representations of two images each, taken back.

    Arguments:
        model: in eval mode, without gradients.
        images: integers ``[n, C, H, W]``, on the model's device.
        names: of the images.
    """
    found = []
    for i in range(0, len(images) - 1, 2):
        h = model.at_depths(images[i : i + 2])[-1]
        pictures = model.invert(_between(h[:1], h[1:]))
        found.append(_ends(images.cpu(), names, (i, i + 1), pictures.cpu()))
    return tuple(found)


def _latents(model: LatentModel, images: Tensor, names: Sequence[str], pair: tuple[int, int]) -> Strip | None:
    """Between the posterior means of two images; None where latents are no numbers between which there are others."""
    latents = model.latents(images[list(pair)])
    if not all(z.is_floating_point() for z in latents):
        return None
    pictures = pixels_of(model.decode([_between(z[:1], z[1:]) for z in latents]))
    return _ends(images.cpu(), names, pair, pictures)


def _flow(
    model: Invertible, images: Tensor, names: Sequence[str], pair: tuple[int, int], labels: Tensor | None
) -> Strip:
    """Between the latents of two images (:func:`~davi.inspection.flows.between`), which come back as they are."""
    y = None if labels is None else labels[list(pair)]
    z = _joined(model.encode(images[list(pair)], y), model)
    context = model.context(y)
    along = None if context is None else _between(context[:1], context[1:])
    pictures, finite = images_of(model, between(model, z, _shares(z)), along)
    return _ends(images.cpu(), names, pair, pictures.cpu(), finite.tolist())


def _scales(model: Invertible, image: Tensor, name: str, generator: Generator, label: Tensor | None) -> list[Strip]:
    """The latents of one scale of an image after the other, with all others at the center of the base, then drawn."""
    latents, count = model.encode(image, label), len(model.latent_shapes)
    if count == 1:
        return []
    base = model.base(count)
    context = None if label is None else model.context(repeat_images(label, count))
    labels, pictures = ["original"], [image.cpu().long()]
    for others, start in (("", base.center()), (", others drawn", base.sample(generator))):
        alone = parts(start.clone(), model.latent_shapes)
        for i, latent in enumerate(latents):
            alone[i][i] = latent[0]
        made, finite = images_of(model, _joined(alone, model), context)
        labels += [f"scale {i}{others}{'' if known else _NOT_FINITE}" for i, known in enumerate(finite.tolist(), 1)]
        pictures.append(made.cpu())
    return [Strip("scales", name, tuple(labels), torch.cat(pictures))]


def _joined(latents: Sequence[Tensor], model: Invertible) -> Tensor:
    """Latents of all scales as one tensor, in the shape of the base."""
    z = torch.cat([part.flatten(1) for part in latents], 1)
    return z.view(model.base(len(z)).shape)


def _variations(model: Hierarchy, image: Tensor, name: str, generator: Generator, label: Tensor | None) -> list[Strip]:
    """The first k latents of an image, and the others drawn from the prior, for some k."""
    layers = model.num_layers
    kept = sorted({round(float(k)) for k in torch.linspace(1, layers - 1, min(layers - 1, _MOST_ROWS))})
    context = repeat_images(model.encode(image), STEPS)
    rows = []
    for depth in kept:
        _, likelihood = walk(
            model,
            context,
            STEPS,
            depth,
            lambda latent: latent.center(),
            lambda latent: latent.sample(generator),
            None if label is None else repeat_images(label, STEPS),
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

"""What is seen of a flow: where its bits go, what its scales carry, its noise, and how exact its inverse is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from davi.data import Images
from davi.distributions import Normal
from davi.flows.multiscale import parts
from davi.inspection.determinants import Determinants
from davi.inspection.flow_views import FlowView, Noise, RoundTrip, Scale
from davi.model import Invertible
from davi.model.base import check_draw
from davi.repetition import repeat_images

TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
"""Of the samples of a flow."""

BINS = 20
"""Of the histogram of noise."""

_DRAWS = 64
"""Of the noise of each image that is shown."""


def images_of(model: Invertible, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where the inverse takes latents: integer images ``[B, C, H, W]``, and whether all numbers behind each are finite,
    ``[B]``. What is not finite is 0.

    Arguments:
        model: the flow.
        z: latents, in the shape of the model's base.
        context: as :meth:`davi.model.Invertible.context` gives it.
    """
    y, _ = model.bijection.inverse(z, context)
    finite = y.flatten(1).isfinite().all(1)
    return model.dequantization.quantize(torch.where(y.isfinite(), y, model.dequantization.low)), finite


def drawn(model: Invertible, n: int, temperature: float, generator: Generator) -> tuple[Tensor, int]:
    """Samples whose inverse is finite, and how many of ``n`` are not."""
    factor = check_draw(n, temperature)
    z = model.base(n).sample(generator, factor)
    images, finite = images_of(model, z, model.context(model.classes_in_turn(n)))
    return images[finite], int((~finite).sum())


def on_sphere(model: Invertible) -> bool:
    """Whether points between two latents lie on an arc around the center, not on a line: where the base is Normal.

    Draws of a Normal distribution of many variables lie near a sphere. The middle of a line between two of them lies
    far inside, at a radius that only draws at the temperature 0.7 have.
    """
    return isinstance(model.base(1), Normal)


def between(model: Invertible, z: Tensor, shares: Tensor) -> Tensor:
    """Latents on the way from the first to the second of two, ``[len(shares), ...]`` (:func:`on_sphere`)."""
    base = model.base(1)
    if not isinstance(base, Normal):
        return _mixed(z, 1.0 - shares, shares)
    standard = (z - base.mean) / base.scale
    a, b = standard.flatten(1)
    cosine = (a @ b / (a.norm() * b.norm()).clamp_min(torch.finfo(a.dtype).tiny)).clamp(-1.0, 1.0)
    angle = cosine.acos()
    if float(angle.sin()) < 1e-3:  # nearly the same direction, or opposite ones, between which there are many arcs
        return _mixed(z, 1.0 - shares, shares)
    arc = _mixed(standard, ((1.0 - shares) * angle).sin() / angle.sin(), (shares * angle).sin() / angle.sin())
    return base.mean + base.scale * arc


def _mixed(z: Tensor, first: Tensor, second: Tensor) -> Tensor:
    shape = (-1, *[1] * (z.ndim - 1))
    return first.view(shape) * z[:1] + second.view(shape) * z[1:]


@dataclass(frozen=True, eq=False)
class Seen:
    """The images that an inspection is about.

    Arguments:
        images: all that are inspected.
        shown: those whose latents are shown, integers ``[n, C, H, W]`` on the model's device.
        labels: classes of those that are shown, for a model that has some.
    """

    images: Images
    shown: Tensor
    labels: Tensor | None


def look_through(
    model: Invertible,
    seen: Seen,
    seed: int,
    batch_size: int,
    told: Callable[[int], None] = lambda done: None,
) -> FlowView:
    """Send all images through a flow and back.

    The noise is that of the evaluation with the same seed and batches, so that costs sum to what was measured there.

    Arguments:
        model: in eval mode, without gradients.
        seen: the images.
        seed: of all draws.
        batch_size: images per pass.
        told: is given the number of images times passes that are done, of two for each image.
    """
    device = seen.shown.device
    watch = _Recorder(model, Generator(device).manual_seed(seed))
    for start in range(0, len(seen.images), batch_size):
        x = seen.images.pixels[start : start + batch_size].to(device)
        labels = seen.images.labels
        y = None if labels is None or not model.classes else labels[start : start + batch_size].to(device)
        watch.see(x, y)
        told(2 * (start + len(x)))
    return FlowView(
        scales=watch.scales(),
        outside=watch.outside(),
        dequantization=watch.dequantization / watch.images,
        blocks=watch.determinants.blocks(),
        round_trip=RoundTrip(watch.images, watch.error, watch.changed),
        originals=seen.shown.cpu(),
        latents=tuple(z.cpu() for z in model.encode(seen.shown, seen.labels)),
        noise=watch.noise(seen.shown, Generator(device).manual_seed(seed)),
    )


class _Recorder:
    """What is gathered batch by batch."""

    def __init__(self, model: Invertible, generator: Generator) -> None:
        self._model, self._generator = model, generator
        self.determinants = Determinants(model.bijection)
        self.images, self.changed, self.error, self.dequantization = 0, 0, 0.0, 0.0
        self._latents = [0.0 for _ in model.latent_shapes]
        self._counts, self._log_q = torch.zeros(BINS, dtype=torch.float64), 0.0
        self._learned = isinstance(model.dequantization.noise, nn.Module)

    def see(self, x: Tensor, y: Tensor | None) -> None:
        """Count in a batch, there and back."""
        noisy: list[Tensor] = []
        handle = self._model.dequantization.register_forward_hook(lambda module, inputs, made: noisy.append(made.y))
        try:
            with self.determinants.recording():
                evidence = self._model.evidence(x, self._generator, y)
        finally:
            handle.remove()
        self.images += len(x)
        self.dequantization += float(evidence.terms["dequantization"].double().sum())
        z = self.determinants.outcome
        assert z is not None
        for i, part in enumerate(parts(self._model.base(len(z)).log_prob_map(z), self._model.latent_shapes)):
            self._latents[i] -= float(part.double().sum())
        if self._learned:
            self._counts += torch.histc(_noise_of(self._model, noisy[0], x).float().cpu(), BINS, 0.0, 1.0)
        self._there_and_back(x, y)

    def _there_and_back(self, x: Tensor, y: Tensor | None) -> None:
        model = self._model
        context = model.context(y)
        middle = model.dequantization.middle(x, next(model.parameters()).dtype)
        back, _ = model.bijection.inverse(model.bijection(middle, context)[0], context)
        distance = (_noise_of(model, back, x) - 0.5).abs().flatten(1).amax(1).double()  # NaN stays NaN
        distance = torch.where(distance.isfinite(), distance, math.inf)
        self.error = max(self.error, float(distance.max()))
        self.changed += int((distance >= 0.5).sum())

    def scales(self) -> tuple[Scale, ...]:
        """The latents of each scale, and its layers where they belong to one."""
        shapes, calls = self._model.latent_shapes, self.determinants.scales()
        if len(shapes) == 1:
            assert self.determinants.root is not None
            calls = [self.determinants.root]
        known = len(calls) == len(shapes)
        return tuple(
            Scale(tuple(shape), total / self.images, float(calls[i].of_images().mean()) if known else None)
            for i, (shape, total) in enumerate(zip(shapes, self._latents, strict=True))
        )

    def outside(self) -> float:
        """The log-determinants of all other layers, nats."""
        assert self.determinants.root is not None
        whole = float(self.determinants.root.of_images().mean())
        return whole - sum(scale.log_det or 0.0 for scale in self.scales())

    def noise(self, shown: Tensor, generator: Generator) -> Noise | None:
        """Of some images, if the noise is learned."""
        model = self._model
        if not self._learned:
            return None
        many = repeat_images(shown, _DRAWS)
        y = model.dequantization(many, generator, next(model.parameters()).dtype).y
        u = _noise_of(model, y, many).unflatten(0, (len(shown), _DRAWS)).double().cpu()
        nats = _log_volume(model) - self.dequantization / self.images
        return Noise(u.mean(1), u.std(1), _DRAWS, self._counts / self._counts.sum(), nats)


def _log_volume(model: Invertible) -> float:
    """Logarithm of the volume of an image's interval of continuous images, which is the whole range for padding."""
    channels, height, width = model.shape
    rows, columns = model.dequantization.padding
    values = channels * (height + rows) * (width + columns)
    levels = (values - model.dims) * math.log(model.dequantization.levels)
    return values * math.log(model.dequantization.step) + levels


def _noise_of(model: Invertible, y: Tensor, x: Tensor) -> Tensor:
    """u of values ``y = low + step (x + u)``, ``[B, C, H, W]``, without padding."""
    height, width = x.shape[2:]
    found: Tensor = (y[..., :height, :width] - model.dequantization.low) / model.dequantization.step - x.to(y.dtype)
    return found

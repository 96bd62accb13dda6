"""The parts of an inspection that need a hierarchy: layers, reconstructions from the first ones, attention, bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from davi.batch import Batch
from davi.data import Images
from davi.distributions import Distribution, Latent, Normal, Point
from davi.evaluation import KL, Evaluation
from davi.evaluation.activity import ACTIVE_UNITS, INACTIVE_LAYERS
from davi.evaluation.clusters import standard_error
from davi.inspection.attention import DepthRecorder, SpatialRecorder
from davi.inspection.bits import padding_of, spread, to_bits
from davi.inspection.views import BitMaps, DepthAttentionView, Layer, Progressive, ReceptiveField, SpatialAttentionView
from davi.inspection.walks import as_map, pixels_of
from davi.model import Hierarchy, Step
from davi.model.depths import depths_of
from davi.model.walks import walk


@dataclass(frozen=True, eq=False)
class Found:
    """The parts of an :class:`davi.inspection.Inspection` that only models of some kinds have."""

    layers: tuple[Layer, ...] = ()
    progressive: Progressive | None = None
    depth_attention: tuple[DepthAttentionView, ...] = ()
    spatial_attention: tuple[SpatialAttentionView, ...] = ()
    bits: BitMaps | None = None
    receptive: ReceptiveField | None = None


def look_into(
    model: Hierarchy,
    images: Images,
    shown: Sequence[int],
    evaluation: Evaluation,
    device: torch.device,
    told: Callable[[int], None],
) -> Found:
    """Walk down with all images, their first latents from the posterior and the others from the prior, and watch.

    The walk that takes every latent from the posterior makes the very draws of the evaluation, so that what is said
    about an image here adds up to what was measured there.

    Arguments:
        model: in eval mode, without gradients.
        images: those that were evaluated.
        shown: indices of the images that maps are kept of.
        evaluation: of these images, with one sample.
        device: of the model.
        told: is given the number of images times walks that are done.
    """
    watch = _Recorder(model, shown, evaluation.seed, device)
    for start in range(0, len(images), evaluation.batch_size):
        batch = _batch(model, images, slice(start, start + evaluation.batch_size), device)
        watch.see(batch, start)
        told((start + len(batch.x)) * len(watch.depths))
    some = _batch(model, images, list(shown), device)
    originals = images.pixels[list(shown)]
    pictures = _first_layers(model, some, watch.depths)
    nats = tuple((watch.nats / len(images)).tolist())
    return Found(
        _layers(model, evaluation, watch.shapes, watch.drawn),
        Progressive(originals.cpu(), watch.depths, pictures, nats),
        watch.depth_attention.views(shown),
        watch.spatial_attention.views(shown),
        BitMaps(
            originals.cpu(),
            torch.stack([watch.pixel_bits[index] for index in shown]),
            torch.stack([watch.layer_bits[index] for index in shown]),
        ),
    )


class _Recorder:
    """What is gathered batch by batch."""

    def __init__(self, model: Hierarchy, shown: Sequence[int], seed: int, device: torch.device) -> None:
        self._model, self._shown = model, shown
        self._padding = padding_of(model, model.shape[1:])
        self.depths = depths_of(model.num_layers)
        # One each, all alike: the same noise at every depth.
        self._generators = [Generator(device).manual_seed(seed) for _ in self.depths]
        self.nats = torch.zeros(len(self.depths), dtype=torch.float64)
        self.depth_attention = DepthRecorder(model)
        self.spatial_attention = SpatialRecorder(model)
        self.shapes: list[torch.Size] = []
        self.drawn: list[bool] = []
        self.pixel_bits: dict[int, Tensor] = {}
        self.layer_bits: dict[int, Tensor] = {}

    def see(self, batch: Batch, start: int) -> None:
        """Count in a batch whose first image has the index ``start``."""
        x, y = batch.x, batch.y
        rows = {index: index - start for index in self._shown if start <= index < start + len(x)}
        with self.depth_attention.recording(rows), self.spatial_attention.recording(rows):
            context = self._model.encode(x)
            steps, likelihood = walk(self._model, context, len(x), self.depths[-1], self._draw(-1), y=y)
        self.shapes = [as_map(step.z).shape for step in steps]
        self.drawn = [not isinstance(step.posterior, Normal | Point) for step in steps]
        self._count(-1, x, steps, likelihood)
        for index, row in rows.items():
            self.pixel_bits[index], self.layer_bits[index] = self._bits(x, steps, likelihood, row)
        for i, depth in enumerate(self.depths[:-1]):
            self._count(i, x, *walk(self._model, context, len(x), depth, self._draw(i), y=y))

    def _draw(self, i: int) -> Callable[[Latent], Tensor]:
        return lambda distribution: distribution.sample(self._generators[i])

    def _count(self, i: int, x: Tensor, steps: Sequence[Step], likelihood: Distribution) -> None:
        nats = -likelihood.log_prob(x).cpu().double()
        for step in steps[: self.depths[i]]:
            nats += step.kl().cpu().double()
        self.nats[i] += nats.sum()

    def _bits(self, x: Tensor, steps: Sequence[Step], likelihood: Distribution, row: int) -> tuple[Tensor, Tensor]:
        """Bits of the pixels ``[H, W]`` and of the layers ``[L, H, W]`` of one image."""
        pixels = -to_bits(as_map(likelihood.log_prob_map(x))[row].sum(0))
        layers = [to_bits(as_map(step.kl_map())[row].sum(0)) for step in steps]
        return pixels, torch.stack([spread(layer, self._padding) for layer in layers])


def _batch(model: Hierarchy, images: Images, which: slice | list[int], device: torch.device) -> Batch:
    """Some images, with their classes if the model makes use of them."""
    labels = images.labels[which].to(device) if model.classes and images.labels is not None else None
    return Batch(images.pixels[which].to(device), labels)


def _first_layers(model: Hierarchy, batch: Batch, depths: Sequence[int]) -> Tensor:
    """Pictures of p(x | z) at the posterior means of the first k layers, ``[depths, n, C, H, W]``."""
    context, n = model.encode(batch.x), len(batch.x)
    likelihoods = [walk(model, context, n, depth, lambda latent: latent.center(), y=batch.y)[1] for depth in depths]
    return torch.stack([pixels_of(likelihood) for likelihood in likelihoods])


def _layers(
    model: Hierarchy, evaluation: Evaluation, shapes: Sequence[torch.Size], drawn: Sequence[bool]
) -> tuple[Layer, ...]:
    names = [name for name in evaluation.terms if name.startswith(KL)]
    units, inactive = _per_layer(evaluation, ACTIVE_UNITS), _per_layer(evaluation, INACTIVE_LAYERS)
    all_units = _per_layer(evaluation, ACTIVE_UNITS, most=True)
    means = evaluation.kl.mean(0).tolist()
    found = []
    for i, (name, (_, channels, height, width)) in enumerate(zip(names, shapes, strict=True)):
        values = evaluation.kl[:, i]
        error = standard_error(values, evaluation.groups)
        found.append(
            Layer(
                name,
                (height, width),
                channels,
                means[i],
                error,
                units[i],
                all_units[i],
                inactive=bool(inactive[i]),
                drawn=drawn[i],
                latent=model.latent_name(i),
                divergence=name not in evaluation.no_divergence,
            )
        )
    return tuple(found)


def _per_layer(evaluation: Evaluation, name: str, most: bool = False) -> list[int]:
    """What each layer has of a measure that is a count, or the most that it could have; 0 where it was not taken."""
    measure = evaluation.measure(name)
    counts = None if measure is None else measure.out_of if most else measure.layers
    return [0] * evaluation.kl.shape[1] if counts is None else list(map(int, counts))

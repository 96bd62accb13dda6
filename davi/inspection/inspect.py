"""The whole inspection: measure, choose images, collect the parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from davi.data import Images, evenly
from davi.data.subsets import positions
from davi.distributions import Latent, WithMean
from davi.errors import UserError
from davi.evaluation import Array, Evaluation, Progress, evaluate, measuring
from davi.evaluation.activity import ACTIVE_UNITS
from davi.evaluation.bounds import check_images
from davi.evidence import Kind, bits_per_dim
from davi.inspection.attention import attention_over_depth, reads_over_depth
from davi.inspection.bits import pixel_bits
from davi.inspection.causal import attention_of_pixels, receptive_field
from davi.inspection.chains import DISCARDED, STEPS, STRIPS, filters_of, follow
from davi.inspection.classes import classes_of
from davi.inspection.codes import look_at_codes
from davi.inspection.flows import TEMPERATURES, Seen, drawn, look_through
from davi.inspection.hierarchies import Found, look_into
from davi.inspection.inversions import invert_all
from davi.inspection.names import name_of
from davi.inspection.strips import strips_of
from davi.inspection.views import Chosen, Inspection, Shown
from davi.inspection.walks import pixels_of, shown_of
from davi.layers.autoregressive_pixels import reporting
from davi.layers.causal_attention import SpatialAttentive
from davi.model import (
    Autoregressive,
    CausalModel,
    Claiming,
    Classifier,
    Classifying,
    Hierarchy,
    Invertible,
    Inverting,
    LatentModel,
    Model,
    Partition,
    Unnormalized,
    WithChain,
    WithFilters,
    WithPartition,
)
from davi.model.depths import depths_of
from davi.model.quantized import Quantized

CHOSEN = 4
"""Images of each role."""

Role = Literal["best", "typical", "worst"]


def inspect(
    model: Claiming,
    images: Images,
    *,
    limit: int = 100,
    samples: int = 25,
    temperatures: Sequence[float] | None = None,
    seed: int = 0,
    batch_size: int = 50,
    progress: Progress | None = None,
    training: Images | None = None,
) -> Inspection:
    """Look into a model or a classifier, without gradients, in eval mode (restored afterwards), on the model's device.

    Memory is that of walks with ``batch_size`` images; what is kept of them is small. Where a partition function is not
    known, images are ranked by what is known of their probability: all but a constant.

    Arguments:
        model: the model.
        images: the images, as they are evaluated (binarized already, where they are to be).
        limit: inspect only so many images, spread evenly over the set (:mod:`davi.data.subsets`).
        samples: images to draw at each temperature.
        temperatures: of the samples; by default 0.6, 0.8 and 1, of a flow 0.7, 0.8, 0.9 and 1.
        seed: of all draws.
        batch_size: images per pass. Draws depend on it.
        progress: told how much is done after every batch, in images times passes.
        training: the images that the model was trained on, if they are known: the free energies of an energy stand
            beside the others', and the nearest of them beside the samples of a quantized model.

    Returns:
        Everything on the CPU; the same for the same seed and batch size.

    Raises:
        UserError: if an option cannot be used, if the images are not of the model's shape and levels, or if the model
            gives an image no finite number.
    """
    if isinstance(model, Classifier):
        return _of_classifier(model, images, limit, seed, batch_size, progress)
    assert isinstance(model, Model)
    temperatures = _temperatures(model) if temperatures is None else temperatures
    _check(samples, temperatures)
    passes = _passes(model)
    network = model.saved

    n = min(limit, len(images))
    draws = len(temperatures) + min(2, n) if isinstance(model, Autoregressive) else 0
    told = _Told(progress, n, passes + isinstance(network, WithChain), draws)
    evaluation = evaluate(_ranking(model), images, 1, batch_size, seed, limit, lambda done, _: told.reached(done))
    inspected, places = evenly(images, limit), positions(len(images), limit).tolist()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found = Found()
    with measuring(model), reporting(told.drawing):
        made = {float(t): _samples(model, samples, t, Generator(device).manual_seed(seed)) for t in temperatures}
        roles = pick(-evaluation.elbo)
        shown = _shown(roles)
        names = tuple(name_of(images, places[i]) for i in shown)
        x = inspected.pixels[shown].to(device)
        labels = None if not model.classes or inspected.labels is None else inspected.labels[shown].to(device)
        chosen, pixels = _chosen(model, images, evaluation, roles, places, device)
        if isinstance(model, Autoregressive):
            found = _of_pixels(model, x, labels, Generator(device).manual_seed(seed))
        if isinstance(model, Hierarchy):
            found = look_into(model, inspected, shown, evaluation, device, lambda done: told.reached(n + done))
        flow = None
        if isinstance(model, Invertible):
            flow = look_through(
                model, Seen(inspected, x, labels), seed, batch_size, lambda done: told.reached(n + done)
            )
        beginning = _typical_first(x, names, labels)
        strips = strips_of(model, *beginning, Generator(device).manual_seed(seed))
        chains = None
        if isinstance(network, WithChain):
            generator = Generator(device).manual_seed(seed)
            begin = (beginning[0][:STRIPS], beginning[1][:STRIPS])
            chains, more = follow(network, inspected, training, begin, generator, told.following(passes))
            strips += tuple(more)
        codes = None
        if isinstance(model, Quantized):
            samples_at_one = made[1.0].images if 1.0 in made else None
            generator = Generator(device).manual_seed(seed)
            codes = look_at_codes(model, inspected, x, samples_at_one, training, batch_size, generator)
        filters = filters_of(network) if isinstance(network, WithFilters) else ()
        classes = None
        if isinstance(model, Classifying) and model.classes:
            classes = classes_of(model, images, places, batch_size, device)
    return Inspection(
        images=n,
        seed=seed,
        set=images.name,
        samples={t: sample.images for t, sample in made.items() if len(sample.images)},
        expected={t: sample.means for t, sample in made.items() if sample.means is not None},
        not_finite={t: sample.not_finite for t, sample in made.items() if sample.not_finite},
        pixels=pixels,
        shown=names,
        chosen=chosen,
        layers=found.layers,
        progressive=found.progressive,
        depth_attention=found.depth_attention,
        spatial_attention=found.spatial_attention,
        bits=found.bits,
        active_units=evaluation.measure(ACTIVE_UNITS),
        strips=strips,
        examples=evenly(inspected, min(samples, n)).pixels.cpu(),
        receptive=found.receptive,
        filters=filters,
        chains=chains,
        flow=flow,
        classes=classes,
        codes=codes,
    )


def _of_classifier(
    model: Classifier, images: Images, limit: int, seed: int, batch_size: int, progress: Progress | None
) -> Inspection:
    """What there is to see of a classifier, which draws nothing and finds no image probable."""
    check_images(model, images)
    inspected, places = evenly(images, limit), positions(len(images), limit).tolist()
    shown = positions(len(inspected), CHOSEN).tolist() if reads_over_depth(model) else []
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def done(number: int) -> None:
        if progress is not None:
            progress(number, len(places))

    with measuring(model):
        depth = attention_over_depth(model, inspected, shown, batch_size, device) if shown else ()
        classes = classes_of(model, images, places, batch_size, device, done)
        inversions, strips = invert_all(model, images, places, device) if isinstance(model, Inverting) else (None, ())
    return Inspection(
        images=len(places),
        seed=seed,
        set=images.name,
        samples={},
        chosen=(),
        layers=(),
        progressive=None,
        depth_attention=depth,
        spatial_attention=(),
        bits=None,
        strips=strips,
        shown=tuple(name_of(images, places[i]) for i in shown),
        examples=inspected.pixels[shown].cpu() if shown else None,
        classes=classes,
        inversions=inversions,
    )


def _temperatures(model: Model) -> Sequence[float]:
    return TEMPERATURES if isinstance(model, Invertible) else (0.6, 0.8, 1.0)


def _passes(model: Model) -> int:
    """Of all images."""
    if isinstance(model, Invertible):
        return 3
    return 1 + (len(depths_of(model.num_layers)) if isinstance(model, Hierarchy) else 0)


def _ranking(model: Model) -> Model:
    """The model, or one that ranks images as it does where it needs a partition function that is not known."""
    if not isinstance(model, WithPartition) or model.partition is not None:
        return model
    assert isinstance(model.saved, Unnormalized)
    return model.saved.normalized(Partition(0.0, Kind.ESTIMATE)).eval()


def _of_pixels(model: Autoregressive, x: Tensor, y: Tensor | None, generator: Generator) -> Found:
    """What is seen of a model that predicts each pixel from those before it, at some images ``[n, C, H, W]``."""
    return Found(
        bits=pixel_bits(model, x, y),
        receptive=receptive_field(model, x, y, generator) if isinstance(model, CausalModel) else None,
        spatial_attention=attention_of_pixels(model, x, y) if isinstance(model, SpatialAttentive) else (),
    )


class _Told:
    """Progress of an inspection. A call that draws pixel by pixel counts as much as a pass of all images.

    Arguments:
        progress: who is told.
        images: that are inspected.
        passes: of all of them.
        draws: calls that draw pixel by pixel. Of more than these it is told again what was told before.
    """

    def __init__(self, progress: Progress | None, images: int, passes: int, draws: int) -> None:
        self._progress, self._images, self._draws = progress, images, draws
        self._total, self._passed, self._drawn = images * (passes + draws), 0, 0

    def reached(self, done: int) -> None:
        """So many images times passes are done."""
        self._passed = done
        self._tell(0)

    def following(self, passes: int) -> Callable[[int], None]:
        """What is called with the steps of chains that are done; they count as one more pass."""

        def moved(step: int) -> None:
            self.reached(self._images * passes + self._images * step // (DISCARDED + STEPS))

        return moved

    def drawing(self, pixels: int, of: int) -> None:
        """So many pixels of a call are drawn."""
        share = self._images * pixels // of
        self._tell(min(self._drawn * self._images + share, self._draws * self._images))
        self._drawn += pixels == of

    def _tell(self, drawn: int) -> None:
        if self._progress is not None:
            self._progress(self._passed + drawn, self._total)


class _Samples(NamedTuple):
    """Samples at one temperature.

    Arguments:
        images: integers ``[n, C, H, W]``.
        means: of p(x | z) for the same latents, where they are known.
        not_finite: how many more would be there if the inverse of a flow were finite.
    """

    images: Tensor
    means: Tensor | None = None
    not_finite: int = 0


def _samples(model: Model, n: int, temperature: float, generator: Generator) -> _Samples:
    if isinstance(model, Invertible):
        images, failed = drawn(model, n, temperature, generator)
        return _Samples(images.cpu(), not_finite=failed)
    if not isinstance(model, Hierarchy):
        return _Samples(model.sample(n, temperature, generator, model.classes_in_turn(n)).cpu())
    likelihood = model.top_down_given(
        model.classes_in_turn(n), lambda layer, prior, posterior: _of_prior(prior, n, generator, temperature)
    )
    draws = likelihood.sample(generator).cpu()
    return _Samples(draws, likelihood.mean().cpu() if isinstance(likelihood, WithMean) else None)


def _of_prior(prior: Latent | None, n: int, generator: Generator, temperature: float) -> Tensor:
    assert prior is not None
    return prior.expand(n).sample(generator, temperature)


def _check(samples: int, temperatures: Sequence[float]) -> None:
    if samples < 1:
        raise UserError(f"samples: got {samples}, expected a whole number from 1")
    for temperature in temperatures:
        if not 0 <= temperature < math.inf:
            raise UserError(f"temperatures: got {temperature}, expected finite numbers from 0")


def pick(costs: Array) -> list[tuple[Role, int]]:
    """Images of each role by what they cost; none has two roles from three images on.

    Arguments:
        costs: of each image, ``[N]``.

    Returns:
        Roles and indices: the best first, then those nearest to the median, nearest first, then the worst first.
    """
    order = [int(i) for i in np.argsort(costs, kind="stable")]
    each = min(CHOSEN, max(1, len(order) // 3))
    distances = np.abs(costs - np.median(costs))
    typical = sorted(order[each : len(order) - each] or order, key=lambda i: float(distances[i]))[:each]
    roles: list[tuple[Role, int]] = [("best", i) for i in order[:each]]
    roles += [("typical", i) for i in typical]
    return roles + [("worst", i) for i in order[::-1][:each]]


def _chosen(
    model: Model,
    images: Images,
    evaluation: Evaluation,
    roles: Sequence[tuple[Role, int]],
    places: Sequence[int],
    device: torch.device,
) -> tuple[tuple[Chosen, ...], Shown]:
    """The images of all roles beside their reconstructions, and what these show; ``places`` are those of the inspected
    images in the set."""
    originals = torch.stack([images.pixels[places[i]] for _, i in roles])
    reconstructions: Sequence[Tensor | None] = [None] * len(roles)
    pixels: Shown = "means"
    if isinstance(model, LatentModel):
        likelihood = model.decode(model.latents(originals.to(device)))
        reconstructions, pixels = list(pixels_of(likelihood)), shown_of(likelihood)
    dims, ranked_only = evaluation.dims, isinstance(model, WithPartition) and model.partition is None
    chosen = tuple(
        Chosen(
            role,
            places[i],
            name_of(images, places[i]),
            None if ranked_only else bits_per_dim(float(evaluation.elbo[i]), dims),
            original,
            picture,
        )
        for (role, i), original, picture in zip(roles, originals.cpu(), reconstructions, strict=True)
    )
    return chosen, pixels


def _typical_first(x: Tensor, names: Sequence[str], labels: Tensor | None) -> tuple[Tensor, list[str], Tensor | None]:
    """The images that are shown, the typical ones before the best and the worst."""
    order = [*range(1, len(x) - 1), 0, len(x) - 1] if len(x) > 2 else list(range(len(x)))
    return x[order], [names[i] for i in order], None if labels is None else labels[order]


def _shown(roles: Sequence[tuple[Role, int]]) -> list[int]:
    """The best, the two most typical and the worst of the inspected images, each once."""
    of = {role: [i for known, i in roles if known == role] for role in ("best", "typical", "worst")}
    return list(dict.fromkeys(of["best"][:1] + of["typical"][:2] + of["worst"][:1]))

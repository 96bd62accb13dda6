r"""How probable a model finds images: bounds, their parts, and how much of the latent space is used.

With latents drawn from the posterior, :math:`z_k \sim q(z \mid x)`, and importance weights

.. math:: w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad
          L_K(x) = E\Bigl[\log \frac 1K \sum_{k=1}^K w_k\Bigr] \le \log p(x)

:math:`L_1` is the evidence lower bound (ELBO), :math:`L_K` never falls with K, and it tends to :math:`\log p(x)`. The
sum over k is streamed in float64, so memory does not depend on K, and ln K is subtracted once, at the end.

Which latent units are active, and which layers are not, is counted by :mod:`davi.evaluation.activity`.

All numbers are nats per image. Means, standard errors and bits per dimension are made from them by :mod:`davi.report`.

References:
    Importance Weighted Autoencoders, Y. Burda, R. Grosse, R. Salakhutdinov, ICLR 2016, https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from davi import files
from davi.batch import Batch
from davi.data import Images, evenly
from davi.data.protocol import digest
from davi.data.subsets import positions, rule
from davi.errors import UserError
from davi.evaluation.activity import ActiveUnits, InactiveLayers
from davi.evaluation.chib import ChibEstimate
from davi.evaluation.classification import Classification
from davi.evaluation.codes import CodeUse
from davi.evaluation.log_z import LogZ, log_z_of
from davi.evaluation.measure import LeftOut, Measure
from davi.evaluation.meter import Meter
from davi.evaluation.mutual_information import ModelInformation, TopInformation, TopRate
from davi.evaluation.rate_floor import RateFloor
from davi.evaluation.record import Array, Evaluation
from davi.evaluation.separation import Separation
from davi.evaluation.streaming import LogMeanExp, double
from davi.evidence import About, Evidence, Kind
from davi.model import Claiming, Hierarchy, Model, Network, WithPartition
from davi.model.joint import evaluating
from davi.repetition import repeat_images

Progress = Callable[[int, int], None]
"""``progress(done, total)``, in images times draws."""

Watch = Callable[[int, Tensor], None]
"""``watch(first, log_weights)``: importance weights of one pass, ``[k, B]``, of the images from number ``first`` on."""

METERS: tuple[type[Meter], ...] = (
    ActiveUnits,
    ChibEstimate,
    InactiveLayers,
    Classification,
    CodeUse,
    ModelInformation,
    RateFloor,
    Separation,
    TopInformation,
    TopRate,
)
"""What is measured beside the claim, of models that have what a meter wants."""


def importance_bound(
    model: Model,
    x: Tensor,
    samples: int,
    generator: Generator | None = None,
    chunk: int | None = None,
    y: Tensor | None = None,
) -> Tensor:
    """One draw of :math:`L_K` for each image (module docstring), without gradients, in eval mode.

    The bottom-up pass of a :class:`~davi.model.Hierarchy` runs once, not once per draw. A model whose claim is exact is
    asked once: its weights would all be equal.

    Arguments:
        model: the model.
        x: integer images, ``[B, C, H, W]``, on the model's device.
        samples: K.
        generator: source of the draws; torch's default when None.
        chunk: images per pass. A small batch is repeated to fill it, so that a pass makes several draws of each image.
        y: class of each image, ``[B]``, for a model with classes.

    Returns:
        ``[B]``, float64, nats.

    Raises:
        UserError: if K is not positive, or if the model gives no weights and K is not 1.

    Example:
        >>> import davi
        >>> model = davi.build("attentive_digits_tiny")  # not trained
        >>> x = torch.zeros(2, *model.shape, dtype=torch.uint8)
        >>> importance_bound(model, x, samples=8).shape
        torch.Size([2])
    """
    _at_least_one("samples", samples)
    weights = LogMeanExp()
    with measuring(model):
        for evidence in _draws(model, Batch(x, y), samples, generator, chunk or len(x)):
            weights.add(_log_weight(evidence, model, samples).unflatten(0, (len(x), -1)).T)
    return weights.result().clone()  # outside of inference mode: the caller may use it in autograd


def evaluate(
    model: Claiming,
    images: Images,
    samples: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Measure a model on images, without gradients, in eval mode (restored afterwards), on the model's device.

    Arguments:
        model: the model, or a classifier, whose claim is about the class of an image.
        images: the images, as they are evaluated (binarized already, where they are to be).
        samples: K, importance samples for each image. They also serve to average the ELBO and its parts.
        batch_size: images per pass; where fewer are left, each is drawn several times in a pass.
        seed: of all draws.
        limit: use only so many images, spread evenly over the set (:mod:`davi.data.subsets`).
        progress: told how much is done after every pass.
        watch: told the log importance weights behind :math:`L_K`, where K is above 1.

    Raises:
        UserError: if an option is not positive, if the images are not of the model's shape and levels, or if the model
            gives an image no finite number.
    """
    _at_least_one("samples", samples)
    _at_least_one("batch_size", batch_size)
    if limit is not None:
        _at_least_one("limit", limit)
    check_images(model, images)
    device, precision = _where(model)
    generator = Generator(device).manual_seed(seed)
    chosen = evenly(images, limit)
    labels = chosen.labels if model.classes else None
    batches: list[_Batch] = []
    meters = [meter(model, len(chosen), seed, batch_size) for meter in METERS if isinstance(model, meter.wants)]
    with measuring(model):
        for start in range(0, len(chosen), batch_size):
            x = chosen.pixels[start : start + batch_size].to(device)
            y = None if labels is None else labels[start : start + batch_size].to(device)
            batch = Batch(x, y)
            for meter in meters:
                meter.add(batch)
            told = _telling(progress, start * samples, len(chosen) * samples)
            seen = partial(watch, start) if watch is not None else _unseen
            batches.append(_measure(model, batch, samples, generator, batch_size, told, seen))
    terms = {name: np.concatenate([batch.terms[name] for batch in batches]) for name in batches[0].terms}
    evaluation = Evaluation(
        elbo=np.sum(list(terms.values()), 0),
        bound=np.concatenate([batch.bound for batch in batches]),
        terms=terms,
        kind=Kind.weakest(*(batch.kind for batch in batches)),
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        limit=limit,
        available=len(images),
        set=images.name,
        dims=model.dims,
        device=device.type,
        precision=precision,
        images_sha256=digest(chosen),
        subset=rule(len(images), limit),
        groups=None if chosen.groups is None else chosen.groups.cpu().numpy(),
        weights_sha256=files.digest(model.saved.state_dict()),
        no_divergence=frozenset().union(*(batch.no_divergence for batch in batches)),
        about=batches[0].about,
        labels_sha256=None if labels is None else files.digest({"labels": labels}),
        deterministic=all(batch.deterministic for batch in batches),
        log_z=_log_z(model),
    )
    _refuse_non_finite(evaluation)
    return dataclasses.replace(
        evaluation,
        measures=tuple(measure for meter in meters for measure in _measures(meter, evaluation)),
        left_out=tuple(LeftOut(meter.name, why) for meter in meters if (why := meter.left_out())),
    )


def _measures(meter: Meter, evaluation: Evaluation) -> tuple[Measure, ...]:
    """All that a meter has found."""
    found = meter.measure(evaluation)
    return (found,) if isinstance(found, Measure) else found or ()


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients within the block; every module's own mode is restored afterwards."""
    with evaluating(model), torch.inference_mode():
        yield


@dataclass(frozen=True, eq=False)
class _Batch:
    """What was measured on one batch, ``[B]`` each."""

    bound: Array
    terms: dict[str, Array]
    kind: Kind
    no_divergence: frozenset[str]
    about: About
    deterministic: bool


def _measure(
    model: Claiming,
    batch: Batch,
    samples: int,
    generator: Generator,
    chunk: int,
    progress: Callable[[int], None],
    watch: Callable[[Tensor], None],
) -> _Batch:
    """Averages of all terms, and the bound, over ``samples`` draws for each image of one batch."""
    b = len(batch.x)
    weights, sums, draws, kind = LogMeanExp(), dict[str, Tensor](), 0, Kind.EXACT
    no_divergence: frozenset[str] = frozenset()
    about, deterministic = About.X, True
    for evidence in _draws(model, batch, samples, generator, chunk):
        for name, term in evidence.terms.items():
            total = double(term).unflatten(0, (b, -1)).sum(1)  # [B]
            sums[name] = sums[name] + total if name in sums else total
        if samples > 1:
            drawn = _log_weight(evidence, model, samples).unflatten(0, (b, -1)).T  # [copies, B]
            weights.add(drawn)
            watch(drawn)
        kind, no_divergence = Kind.weakest(kind, evidence.kind), evidence.no_divergence
        about, deterministic = evidence.about, deterministic and evidence.deterministic
        draws += len(evidence.log_px) // b
        progress(draws * b)
    if draws < samples:  # an exact model is done after one pass
        progress(samples * b)
    terms = {name: _array(total / draws) for name, total in sums.items()}
    # With one draw the ELBO is the better estimate of L_1: its KL divergences are in closed form where there is one.
    bound = _array(weights.result()) if samples > 1 else np.sum(list(terms.values()), 0)
    return _Batch(bound, terms, kind, no_divergence, about, deterministic)


def _draws(model: Claiming, batch: Batch, samples: int, generator: Generator | None, chunk: int) -> Iterator[Evidence]:
    """Evidence from ``samples`` draws of the latents of each image, in passes over at most ``chunk`` images.

    Each evidence holds ``[B * copies]`` numbers: of each image all draws, side by side.
    """
    x, y = batch.x, batch.y
    # A divisor of K, so that one bottom-up pass serves all passes down.
    copies = max(n for n in range(1, max(1, chunk // len(x)) + 1) if samples % n == 0)
    if isinstance(model, Hierarchy):
        context = repeat_images(model.encode(x), copies)
        x, labels = repeat_images(x, copies), None if y is None else repeat_images(y, copies)  # [B * copies, ...]
        for _ in range(samples // copies):
            evidence = model.elbo(x, context, generator, labels)
            yield evidence
            if evidence.deterministic:
                return
        return
    first = model.evidence(x, generator, y)
    rest = 0 if first.log_weight_fn is None and _same_again(first) else samples - 1
    yield first
    del first  # whose tensors would stay in memory
    if not rest:
        return
    together = max(n for n in range(1, max(1, chunk // len(x)) + 1) if rest % n == 0)
    repeated = repeat_images(x, together)  # [B * together, C, H, W]
    classes = None if y is None else repeat_images(y, together)
    for _ in range(rest // together):
        yield model.evidence(repeated, generator, classes)


def _log_weight(evidence: Evidence, model: Claiming, samples: int) -> Tensor:
    """Log importance weights of the draws, ``[B]``; without latents the only weight is the claim itself."""
    if evidence.log_weight is not None:
        return evidence.log_weight
    if samples > 1 and not _same_again(evidence):
        raise UserError(f"samples: got {samples}, expected 1: {type(model).__name__} has no importance weights")
    return evidence.log_px


def _log_z(model: Claiming) -> LogZ | None:
    """The partition function behind a model's claim."""
    if not isinstance(model, WithPartition) or model.partition is None:
        return None
    return log_z_of(model.partition, model.claim, model.dims)


def _same_again(evidence: Evidence) -> bool:
    """Whether another draw would say the same: of a claim that is exact or for which nothing was drawn."""
    return evidence.kind is Kind.EXACT or evidence.deterministic


def check_images(model: Network, images: Images) -> None:
    """Refuse images that a model was not made for.

    Raises:
        UserError: if they are not of its shape and levels, or lack the labels that it needs.
    """
    if images.shape != model.shape or images.levels != model.levels:
        raise UserError(
            f"{images.name}: got images [C, H, W] = {list(images.shape)} with {images.levels} levels, expected "
            f"{list(model.shape)} with {model.levels} levels, which the model was made for"
        )
    if model.classes and len(images.classes) != model.classes:
        raise UserError(
            f"{images.name}: got {len(images.classes)} classes, expected {model.classes}, which the model was made for "
            "(--data.labels true reads the labels)"
        )


def _array(x: Tensor) -> Array:
    return np.asarray(x.cpu().numpy(), dtype=np.float64)


def _where(model: nn.Module) -> tuple[torch.device, str]:
    """Device and precision of the weights; a model without any computes on the CPU."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return torch.device("cpu"), "float32"
    return parameter.device, str(parameter.dtype).removeprefix("torch.")


def _unseen(log_weights: Tensor) -> None:
    """Nobody wants the weights."""


def _telling(progress: Progress | None, before: int, total: int) -> Callable[[int], None]:
    return lambda done: None if progress is None else progress(before + done, total)


def _at_least_one(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}: got {value!r}, expected a whole number from 1")


def _refuse_non_finite(evaluation: Evaluation) -> None:
    """A mean over images in which one is not finite says nothing; name the image instead."""
    first = "ELBO" if evaluation.kl.shape[1] else "claim"
    for what, values in ((first, evaluation.elbo), ("bound", evaluation.bound)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            place = int(positions(evaluation.available, evaluation.limit)[wrong[0]])
            raise UserError(
                f"{evaluation.set}: image {place} has the {what} {values[wrong[0]]} "
                f"({len(wrong)} of {len(values)} images), expected finite numbers; the model's weights are unusable"
            )

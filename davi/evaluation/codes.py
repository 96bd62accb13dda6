r"""How many of its codes a quantized model uses, and what the codes of an image cost.

With :math:`p_k` the share of code k among those of all images at all positions of a layer, the *perplexity*

.. math:: e^{H(p)}, \qquad H(p) = -\sum_k p_k \log p_k

is the number of codes that would be used were all used equally often; it is at most K. Where C codes stand at each
position, each comes from a list of its own, and the perplexity is that of the mean entropy.

What the codes of an image cost, their prior says. *Uniform:* :math:`\log K` nats for every code. *Unigram:*
:math:`-\log f_k` for code k, with the frequencies :math:`f` that the quantizer has counted in training, mixed with a
little of the uniform distribution, so that a code that was never seen has a finite cost. *Trained:* their term of the
evidence, once the prior is trained. A trained prior that is no better than the unigram one has learned nothing about
how codes depend on each other.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from davi.batch import Batch
from davi.evaluation import clusters
from davi.evaluation.measure import Measure
from davi.evaluation.meter import Meter
from davi.evaluation.record import Array, Evaluation
from davi.evidence import Kind
from davi.layers.quantizer import Quantizer, perplexity
from davi.model import Model
from davi.model.quantized import Quantized
from davi.quantity import Quantity, Statistic

CODE_PERPLEXITY, CODES_IN_USE = "code perplexity", "codes in use"
CODES_UNIFORM, CODES_UNIGRAM = "codes, uniform prior", "codes, unigram prior"
CODES_TRAINED = "codes, trained prior"
"""Names of the measures."""

CODE_COSTS = (CODES_UNIFORM, CODES_UNIGRAM, CODES_TRAINED)
"""Those that are parts of the claim, or would be with another prior; nats of an image."""

UNIFORM_SHARE = 0.01
"""Of the uniform distribution in the unigram prior."""

_PERPLEXITY = (
    "exp of the mean entropy of the codes over all images and positions; at most K, if all codes are used equally often"
)
_IN_USE = "codes that occur at least once in these images, of all codes that there are"
_UNIFORM = "what the codes of an image take if all are equally probable: the log of their number for each"
_UNIGRAM = (
    "what they take with the frequencies that were counted in training, at all positions alike "
    f"({UNIFORM_SHARE:g} of the uniform distribution mixed in)"
)
_TRAINED = "what they take with the trained prior: the part of the claim that is theirs"


def unigram(quantizer: Quantizer) -> Tensor:
    """Log-probability of each code under the unigram prior (module docstring), ``[C, K]``, float64, nats."""
    shares = quantizer.frequencies.double()
    shares = shares / shares.sum(-1, keepdim=True)
    return torch.log((1 - UNIFORM_SHARE) * shares + UNIFORM_SHARE / quantizer.size)


class CodeCounts:
    """Counts codes batch by batch, and what each image's take under priors that need no network.

    Arguments:
        model: whose codes they are.
    """

    def __init__(self, model: Quantized) -> None:
        layers = range(model.num_layers)
        self._quantizers = [model.autoencoder.quantizer(layer) for layer in layers]
        self.counts = [torch.zeros(one.books, one.size, dtype=torch.int64) for one in self._quantizers]
        """How often each code of each layer occurred, ``[C, K]``, on the CPU."""
        self.positions = [0] * len(layers)
        """Codes of an image in each layer."""
        self._nats: list[Tensor] = []

    def add(self, codes: Sequence[Tensor]) -> None:
        """Count in the codes of some more images, ``[B, C, h, w]`` for each layer."""
        taken = []
        for layer, (quantizer, chosen) in enumerate(zip(self._quantizers, codes, strict=True)):
            flat = chosen.flatten(2)  # [B, C, h w]
            for book in range(quantizer.books):
                found = torch.bincount(flat[:, book].flatten(), minlength=quantizer.size)
                self.counts[layer][book] += found.cpu()
            self.positions[layer] = flat[0].numel()
            costs = -unigram(quantizer).expand(len(flat), -1, -1)  # [B, C, K]
            taken.append(costs.gather(2, flat).sum((1, 2)).cpu())
        self._nats.append(torch.stack(taken, 1))

    def unigram(self) -> Tensor:
        """What the codes of each image take under the unigram prior, ``[N, layers]``, float64, nats."""
        return torch.cat(self._nats)

    def uniform(self) -> list[float]:
        """What the codes of any image take under the uniform prior, layer by layer, nats."""
        return [n * math.log(one.size) for n, one in zip(self.positions, self._quantizers, strict=True)]

    def perplexities(self) -> list[float]:
        """Of each layer; where it has several lists of codes, that of their mean entropy."""
        return [float(perplexity(counts.double()).log().mean().exp()) for counts in self.counts]

    def in_use(self) -> list[int]:
        """Codes of each layer that have occurred."""
        return [int((counts > 0).sum()) for counts in self.counts]


@final
class CodeUse(Meter):
    """Perplexity, codes in use, and what the codes take under three priors."""

    name = CODE_PERPLEXITY
    wants = Quantized

    def __init__(self, model: Model, images: int, seed: int, batch_size: int) -> None:
        assert isinstance(model, Quantized)
        self._model = model
        self._counts = CodeCounts(model)

    def add(self, batch: Batch) -> None:
        self._counts.add(self._model.autoencoder.codes(batch.x))

    def measure(self, evaluation: Evaluation) -> tuple[Measure, ...]:
        found = self._counts
        sizes = [float(counts.shape[1]) for counts in found.counts]
        numbers = [float(counts.numel()) for counts in found.counts]
        used = [float(count) for count in found.in_use()]
        each = found.perplexities()
        mean = sum(len(counts) * math.log(one) for counts, one in zip(found.counts, each, strict=True))
        mean /= sum(len(counts) for counts in found.counts)  # over lists of codes, of which a layer may have several
        measures = [
            Measure(CODE_PERPLEXITY, "codes", math.exp(mean), None, None, _PERPLEXITY, tuple(each), tuple(sizes)),
            Measure(CODES_IN_USE, "codes", sum(used), None, None, _IN_USE, tuple(used), tuple(numbers)),
            _constant(found.uniform()),
            _cost(CODES_UNIGRAM, found.unigram().numpy(), _UNIGRAM, evaluation),
        ]
        if self._model.prior_begun:
            measures.append(_cost(CODES_TRAINED, evaluation.kl, _TRAINED, evaluation))
        return tuple(measures)


def _constant(nats: Sequence[float]) -> Measure:
    return Measure(CODES_UNIFORM, "nats", sum(nats), None, Kind.EXACT, _UNIFORM, tuple(nats))


def _cost(name: str, nats: Array, rule: str, evaluation: Evaluation) -> Measure:
    """The mean over images of what is known of each layer, ``[N, layers]``."""
    total = np.asarray(nats.sum(1))
    error = clusters.standard_error(total, evaluation.groups) if len(total) > 1 else None
    return Measure(name, "nats", float(total.mean()), error, Kind.EXACT, rule, tuple(nats.mean(0).tolist()))


def code_costs(measures: Iterable[Measure], dims: int) -> dict[str, Quantity]:
    """What codes take by the names of :data:`CODE_COSTS`, positive in both units; empty of a model without codes.

    Arguments:
        measures: of an evaluation.
        dims: values in one image.
    """
    scale = dims * math.log(2.0)
    found = {}
    for measure in measures:
        if measure.name in CODE_COSTS:
            nats = Statistic(measure.value, measure.standard_error)
            bits = None if nats.standard_error is None else nats.standard_error / scale
            found[measure.name] = Quantity(nats, Statistic(nats.mean / scale, bits))
    return found


def prior_doubt(costs: Mapping[str, Quantity]) -> str:
    """A warning where the trained prior is no better than the unigram one; else empty.

    Arguments:
        costs: of :func:`code_costs`; where no prior is trained there is nothing to warn of.
    """
    if not {CODES_TRAINED, CODES_UNIGRAM} <= costs.keys():
        return ""
    trained, plain = costs[CODES_TRAINED].nats.mean, costs[CODES_UNIGRAM].nats.mean
    if trained < plain:
        return ""
    return (
        f"the trained prior takes {trained:.1f} nats for the codes of an image, no fewer than their frequencies alone "
        f"({plain:.1f}): it has not learned how codes depend on each other; train its stage longer, or give it a "
        "larger network"
    )

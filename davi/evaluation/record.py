"""What was measured, image by image, and how."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from davi.evaluation.clusters import Groups
from davi.evaluation.log_z import LogZ
from davi.evaluation.measure import LeftOut, Measure
from davi.evidence import About, Kind

Array = NDArray[np.float64]

RECONSTRUCTION, KL = "reconstruction", "kl/"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured, image by image, and how.

    Arguments:
        elbo: evidence lower bound of each image, averaged over the draws, KL divergences in closed form where there is
            one; for a model without latents, its claim about log p(x). ``[N]``, nats.
        bound: importance-weighted bound :math:`L_K` of each image, ``[N]``, nats; with one sample it is ``elbo``.
        terms: the parts that ``elbo`` is the sum of, name -> ``[N]``, nats; ``kl/..`` are minus KL divergences, but for
            those named in ``no_divergence``.
        kind: how ``elbo`` and ``bound`` relate to log p(x).
        samples: K.
        seed: of the generator of all draws.
        batch_size: images per pass. Draws depend on it: a number is reproduced by the same seed *and* batch size.
        limit: only so many images were asked for; None: all.
        available: number of images in the set.
        set: name of the set.
        dims: values per image, C * H * W.
        device: where it was computed.
        precision: of the weights, and of everything computed from them up to the sums over draws.
        images_sha256: SHA-256 of the values of the measured images (:func:`davi.data.protocol.digest`): two
            evaluations with the same one can be compared image by image.
        subset: in words, which images of the set were measured (:func:`davi.data.subsets.rule`); None: all.
        groups: the file of each image, ``[N]``, where several are cut from one (:mod:`davi.evaluation.clusters`).
        weights_sha256: of the model's state (:func:`davi.files.digest`).
        no_divergence: names of the terms ``kl/..`` that are no KL divergences
            (``Evidence.no_divergence``).
        about: what the claim is about.
        labels_sha256: of the classes of the measured images, where the model was told them.
        measures: further numbers about the model, those that it has (:mod:`davi.evaluation.meter`).
        left_out: those that it does not have, though models of its kind have them, and why.
        deterministic: nothing was drawn for the numbers: they do not depend on K, seed and batch size.
        log_z: the partition function behind the claim; None where there is none.
    """

    elbo: Array
    bound: Array
    terms: dict[str, Array]
    kind: Kind
    samples: int
    seed: int
    batch_size: int
    limit: int | None
    available: int
    set: str
    dims: int
    device: str
    precision: str
    images_sha256: str | None = None
    subset: str | None = None
    groups: Groups | None = None
    weights_sha256: str | None = None
    no_divergence: frozenset[str] = frozenset()
    about: About = About.X
    labels_sha256: str | None = None
    measures: tuple[Measure, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    deterministic: bool = False
    log_z: LogZ | None = None

    def __len__(self) -> int:
        return len(self.elbo)

    @property
    def reconstruction(self) -> Array | None:
        """E_q[log p(x | z)] of each image, ``[N]``, nats; None for a model without latents."""
        return self.terms.get(RECONSTRUCTION)

    @property
    def kl(self) -> Array:
        """Minus the terms ``kl/..`` of each image, the top layer first, ``[N, layers]``, nats.

        KL divergences, but for ``no_divergence``. Those without a closed form are means of log q - log p over the draws
        and may be negative by chance; what is no divergence may be so in expectation.
        """
        layers = [-values for name, values in self.terms.items() if name.startswith(KL)]
        return np.stack(layers, 1) if layers else np.zeros((len(self), 0))

    def measure(self, name: str) -> Measure | None:
        """The further number of this name; None where the model has none."""
        return next((measure for measure in self.measures if measure.name == name), None)

"""The result of an evaluation, as it is shown and kept: means over images, and everything they depend on.

The names of the fields are the keys of ``evaluation.json`` (:mod:`davi.records`). Fields with a default were unknown to
some version of this program, whose files are read all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from davi.evaluation.baselines import Baseline
from davi.evaluation.log_z import LogZ
from davi.evaluation.measure import LeftOut, Measure
from davi.evidence import About, Kind
from davi.quantity import Quantity
from davi.records import LEFT_OUT, at_least_one, left_out, whole

FORMAT = 1
"""Of the file; it rises when older programs would misread a newer file."""


@dataclass(frozen=True)
class _Sampled:
    samples: int

    def __post_init__(self) -> None:
        at_least_one(self, "samples")


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class Bound(Quantity, _Sampled):
    """A bound and the number of importance samples behind it. Fields come in the order of the bases, the last first."""


@dataclass(frozen=True)
class Layer(Quantity, _Named):
    """What a layer costs, and the name of its term."""


@dataclass(frozen=True)
class LayerTerms:
    """What the latent layers cost.

    Arguments:
        total: the KL divergence of all latents together.
        layers: of each layer, top first; positive where it costs.
        divergence: whether that is a KL divergence of its own; empty in older files, where it always is.
        inactive: names of the inactive layers.
        rule: for that, in words.
    """

    total: Quantity
    layers: tuple[Layer, ...]
    divergence: tuple[bool, ...] = ()
    inactive: tuple[str, ...] = ()
    rule: str = ""

    @property
    def no_divergence(self) -> list[str]:
        """Names of the layers whose term is no KL divergence."""
        told = zip(self.layers, self.divergence, strict=False)
        return [layer.name for layer, is_divergence in told if not is_divergence]


@dataclass(frozen=True)
class LayerUnits:
    """How many units of a layer are active."""

    active: int
    units: int


@dataclass(frozen=True)
class Units:
    """Active units.

    Arguments:
        active: number of those that are active.
        units: number of all.
        layers: the same for each layer, top first.
        images: over which the variance was taken.
        draws: of the latents, for each image.
        rule: what an active unit is, in words.
    """

    active: int
    units: int
    layers: tuple[LayerUnits, ...]
    images: int | None = None
    draws: int | None = None
    rule: str = ""


@dataclass(frozen=True)
class ModelFacts:
    """What the file of a model says about it; None: nothing."""

    name: str
    parameters: int | None = left_out()
    shape: tuple[int, ...] | None = left_out()
    levels: int | None = left_out()
    config: Mapping[str, object] | None = left_out()
    ema: bool | None = left_out()
    ema_decay: float | None = left_out()
    step: int | None = left_out()
    rollbacks: int | None = left_out()
    source: str | None = left_out()
    weights_sha256: str | None = None
    trained_with: str | None = None
    trained_on: Mapping[str, str | int | None] = field(default_factory=dict)
    """Of the protocol of its training what can make it differ from another: images, their form, first weights."""


@dataclass(frozen=True)
class DataFacts:
    """The protocol of the data sets (:class:`davi.data.DataSets`): what the program asks for, and all that it tells.

    ``other_images`` are the user's options if the images are not the run's own; ``training_images`` is how many of them
    the model was trained on, None where that is not known.
    """

    shape: tuple[int, ...]
    levels: int
    set: str | None = None
    binarization: str = "none"
    binarization_seed: int | None = None
    evaluated: str = ""
    test_order: str | None = None
    train_sha256: str | None = None
    test_sha256: str | None = None
    other_images: str | None = None
    training_images: int | None = None
    told: Mapping[str, object] = whole()

    def __post_init__(self) -> None:
        at_least_one(self, "levels")
        if min(self.shape, default=1) < 1:
            raise ValueError(f"shape: got {min(self.shape)}, expected whole numbers from 1")

    @property
    def own_images(self) -> bool:
        """Whether the images are known to be those of the run."""
        return "other_images" in self.told and self.other_images is None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that the numbers depend on; :class:`davi.evaluation.Evaluation` explains most of it.

    Arguments:
        split: of the set that was evaluated.
        images: number of those that were measured.
        images_available: number of those in the set.
        files: of which the images are patches; None where each has a file of its own.
        labels_sha256: of the classes that the model was told; None where it was told none.
        version: of this program.
        commit: of its source; None outside of a checkout.
        torch: version of PyTorch.
    """

    set: str
    split: str
    images: int
    images_available: int
    subset: str | None = None
    files: int | None = None
    images_sha256: str | None = None
    labels_sha256: str | None = left_out()
    limit: int | None
    dims: int
    importance_samples: int
    seed: int
    batch_size: int
    device: str
    precision: str
    version: str
    commit: str | None
    torch: str
    model: ModelFacts
    data: DataFacts

    def __post_init__(self) -> None:
        at_least_one(self, "images", "images_available", "files", "limit", "dims", "importance_samples", "batch_size")


@dataclass(frozen=True)
class Result:
    """An evaluation in numbers to read.

    Arguments:
        kind: how ``bound`` and ``elbo`` relate to log p(x).
        bound: the headline, with its number of importance samples.
        elbo: the sum of the terms, with one sample.
        terms: all parts of that sum but those of the latent layers.
        kl: those of the latent layers; None without any.
        active_units: None without latents.
        baselines: what other methods need for the same images.
        protocol: what all this depends on.
        about: what the claim is about.
        measures: further numbers about the model.
        left_out: those that it does not have, and why.
        deterministic: nothing was drawn for the numbers: they do not depend on K and seed.
        log_z: the partition function behind the claim, whose error all images share; None where there is none.
        format: of the file.
    """

    kind: Kind
    bound: Bound
    elbo: Quantity
    terms: Mapping[str, Quantity]
    kl: LayerTerms | None
    active_units: Units | None
    baselines: tuple[Baseline, ...]
    protocol: Protocol
    about: About = field(default=About.X, metadata=LEFT_OUT)
    measures: tuple[Measure, ...] = field(default=(), metadata=LEFT_OUT)
    left_out: tuple[LeftOut, ...] = field(default=(), metadata=LEFT_OUT)
    deterministic: bool = field(default=False, metadata=LEFT_OUT)
    log_z: LogZ | None = field(default=None, metadata=LEFT_OUT)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: got {self.format}, expected {FORMAT}; another version of davi has written this")

    @property
    def claim(self) -> str:
        """What the sum of the terms is called."""
        if self.kind is Kind.LOWER_BOUND:
            return "lower bound" if self.kl is None else "ELBO"
        return "log-likelihood" if self.kind is Kind.EXACT else "estimate"

    @property
    def estimated_bound(self) -> bool:
        """Whether it is an estimate only since log Z is one, and would else be a lower bound."""
        return self.kind is Kind.ESTIMATE and self.log_z is not None and self.log_z.claim is Kind.LOWER_BOUND

    @property
    def depends_on_samples(self) -> bool:
        """Whether another number of importance samples would be another claim."""
        return not self.deterministic and self.kind is not Kind.EXACT

    @property
    def dims(self) -> int | None:
        """Values in one image; None where the claim is not about them, and so has no bits per dimension."""
        return None if self.about is About.Y_GIVEN_X else self.protocol.dims

    def measure(self, name: str) -> Measure | None:
        """The further number of this name; None where there is none."""
        return next((measure for measure in self.measures if measure.name == name), None)

    @property
    def log_p(self) -> str:
        """What the claim is about, such as ``log p(x)``."""
        return f"log p({self.about})"

    @property
    def units(self) -> tuple[str, ...]:
        """The units, the usual one of these images first: nats for binary images, bits per dimension for others. What
        is claimed of classes is in nats alone."""
        if self.about is About.Y_GIVEN_X:
            return ("nats",)
        return ("nats", "bits_per_dim") if self.protocol.data.levels == 2 else ("bits_per_dim", "nats")

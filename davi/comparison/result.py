"""What a comparison says; the names of the fields are the keys of its JSON (:mod:`davi.records`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from davi.evaluation.result import LayerUnits
from davi.evidence import About, Kind
from davi.quantity import Quantity, Statistic, in_bits
from davi.records import LEFT_OUT, left_out


@dataclass(frozen=True)
class Interval(Statistic):
    """A mean difference, and its 95 % interval; None for a single image or file, and for patches of a few files."""

    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Pair:
    """Mean difference of two models over the same images.

    Arguments:
        nats: positive: better than the reference.
        bits_per_dim: negative: better; None of classifiers.
        significant: at least two standard errors, and zero outside of the interval.
    """

    nats: Interval
    bits_per_dim: Interval | None
    significant: bool

    def in_unit(self, unit: str) -> Interval:
        """The difference in ``"nats"`` or in ``"bits_per_dim"``."""
        return self.nats if unit == "nats" else in_bits(self.bits_per_dim)


@dataclass(frozen=True)
class _Run:
    rank: int | None
    run: str
    model: str
    kind: Kind
    importance_samples: int


@dataclass(frozen=True)
class Row(Quantity, _Run):
    """A run within its group: the rank, the number in both units, its cost, and what it is compared with.

    Arguments:
        parameters: of the model.
        step: that was evaluated.
        seconds: of training.
        steps_per_second: of training alone.
        active_units: of all layers; None where they were not counted.
        rollbacks: in training.
        notes: what else has to be said, a line each.
        error_rate: of a classifier, in percent.
        log_z_error: standard error that an estimated log Z adds to that over images, the same for all images, nats;
            None where nothing is estimated, or that error is not known.
        bits_per_dim_log_z_error: the same in bits per dimension.
        to_reference: difference to the reference of the group; None for the reference, and where nothing is ranked.
        to_row_above: difference to the row above.
    """

    parameters: int | None
    step: int | None
    seconds: float | None
    steps_per_second: float | None
    active_units: LayerUnits | None
    rollbacks: int | None
    notes: tuple[str, ...]
    to_reference: Pair | None
    to_row_above: Pair | None
    error_rate: float | None = left_out()
    log_z_error: float | None = left_out()
    bits_per_dim_log_z_error: float | None = left_out()

    def error_of_log_z(self, unit: str) -> float | None:
        """What an estimated log Z adds, in ``"nats"`` or in ``"bits_per_dim"``."""
        return self.log_z_error if unit == "nats" else self.bits_per_dim_log_z_error


@dataclass(frozen=True)
class Conditions:
    """What decides whether rows can be ranked, or explains why they cannot be."""

    kind: str
    importance_samples: int | None
    """None where they do not matter, since the claim is exact or nothing is drawn for it."""
    split: str
    images: int
    shape: tuple[int, ...]
    levels: int
    binarization: str
    images_sha256: str | None
    set: str
    binarization_seed: int | None
    chosen: str
    trained_on_these_images: str
    about: About = field(default=About.X, metadata=LEFT_OUT)
    labels_sha256: str | None = left_out()
    """Of the classes that the models were told."""
    were_log_z_known: str | None = left_out()
    """The kind that an estimate would have, were the partition function behind it exact."""


@dataclass(frozen=True)
class Group:
    """Runs that can be ranked among one another.

    Arguments:
        label: A, B, ...
        protocol: what its rows share.
        unit: the one the field uses: nats for binary images, else bits per dimension.
        reference: name of the run that the others are compared with.
        rows: from best to worst.
        stated: what differs, but does not prevent a ranking, field -> run -> value.
        notes: what must be known to judge the differences.
    """

    label: str
    protocol: Conditions
    unit: str
    reference: str
    rows: tuple[Row, ...]
    stated: Mapping[str, Mapping[str, object]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs beside one another.

    Arguments:
        groups: of those that can be ranked among one another.
        differences: what keeps groups apart, field -> label of the group -> value.
        rule: in words, what the paired differences mean.
    """

    groups: tuple[Group, ...]
    differences: Mapping[str, Mapping[str, object]]
    rule: str

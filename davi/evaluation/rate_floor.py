"""The rate that a model is committed to: by its prior (:class:`davi.priors.CommittedRate`), or by a posterior of
constant rate (:class:`davi.posteriors.ConstantRate`)."""

from __future__ import annotations

from typing import final

from davi.distributions import Normal
from davi.evaluation.measure import Measure
from davi.evaluation.meter import Meter
from davi.evaluation.record import Evaluation
from davi.evidence import Kind
from davi.model import Model, PixelHierarchy
from davi.model.joint import ask
from davi.priors import CommittedRate

RATE_FLOOR = "rate floor"
"""Name of the measure."""

RULE = (
    "the least KL divergence from the prior of the top layer that independent Normal variables can have; "
    "no image's kl/00 is below it"
)

CONSTANT_RULE = "the KL divergence of the top layer, which is the same for all images and weights"


@final
class RateFloor(Meter):
    """The committed rate of a model whose top posterior is a diagonal Normal given the image alone; None of others.
    Where it depends on draws of other latents, is a mixture, or is moved by a flow or along trajectories, its variables
    may be dependent given the image, and nothing is committed. A constant rate is that rate."""

    name = RATE_FLOOR
    wants = PixelHierarchy

    def __init__(self, model: Model, images: int, seed: int, batch_size: int) -> None:
        assert isinstance(model, PixelHierarchy)
        self._model = model

    def measure(self, evaluation: Evaluation) -> Measure | None:
        prior, constant = self._model.prior_of_top, self._model.rate_of_top
        if constant is not None:
            return Measure(RATE_FLOOR, "nats", constant.rate, None, Kind.EXACT, CONSTANT_RULE)
        if not isinstance(prior, CommittedRate) or self._model.why_top_is_not_normal():
            return None
        if not isinstance(ask(self._model).posteriors[0], Normal):  # what it begins as may be moved
            return None
        return Measure(RATE_FLOOR, "nats", prior.least_rate, None, Kind.EXACT, RULE)

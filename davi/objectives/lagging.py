r"""Training of an inference network that lags behind: many updates of the posterior for one of the generative model.

At the beginning of training the posterior knows nothing of what the generative model does with the latents. Where that
model can do without them, it learns to before the posterior has caught up, and the latents stay unused. So training
begins with an *aggressive* phase, which goes round:

1. *Inner loop*: at most ``inner_steps`` updates of the inference parameters alone, each on a batch
   of its own. After every ``window`` of them their mean loss is compared with that of the ones
   before; the loop ends when it has not fallen.
2. One update of the generative parameters alone, which leaves inference untouched.

After so many rounds as a pass over the training images has batches, the mutual information of the validation images and
the latents of the top layer is estimated (:mod:`davi.evaluation.mutual_information`). When
``patience`` of these numbers were not better than the best before them, the phase is over. Such
numbers are counted, whether or not a better one has come between them, as in the authors' program. From then on all
parameters move in every step. Without inner steps it is training with the evidence, bit for bit.

Which parameters are which, the model's own passes tell (:mod:`davi.training.roles`): those that inference shares with
the generative model are generative.

Every update, inner ones as well, is a step of the run: it uses up the budget, takes the next batch of the loader, moves
the averaged weights and counts for schedules, warm-ups and epochs in the recipe. A round has up to 100 of them. (The
authors count a pass in rounds, and so does the mutual information here.) A step that the step filter refuses is no
update and does not count in its loop. Weights and moments that a step does not move stay as they are.
Running statistics of batch norms are no weights: they follow the batches of every step, in the whole model.

References:
    Lagging Inference Networks and Posterior Collapse in Variational Autoencoders, J. He, D. Spokoyny, G. Neubig,
    T. Berg-Kirkpatrick, ICLR 2019, https://arxiv.org/abs/1901.05534
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.errors import UserError
from davi.evaluation.mutual_information import INFORMATION_IMAGES, AggregatedPosterior, no_estimate
from davi.model import Hierarchy, Network, PixelHierarchy
from davi.model.joint import ask
from davi.objectives.base import Loss, Objective, ObjectiveConfig, Outcome, Progress, Role
from davi.objectives.bounds import EvidenceConfig
from davi.objectives.evidence import EvidenceObjective
from davi.priors import FromPosteriors


@final
@dataclass(frozen=True)
class LaggingConfig(ObjectiveConfig):
    """An aggressive phase for the posterior, then the evidence (module docstring).

    Arguments:
        name: ``lagging``.
        inner_steps: at most so many updates of inference before one of the generative model; 0: no such phase. The
            authors' counter begins at 1 and stops below 100.
        window: updates whose mean loss is compared with that of the ones before.
        patience: measurements without better mutual information that end the phase.
        rounds: between measurements; 0: as many as a pass over the training images has batches.
        evidence: what is minimized in all phases.
    """

    name: Literal["lagging"] = "lagging"
    inner_steps: int = 99
    window: int = 10
    patience: int = 5
    rounds: int = 0
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)

    def __post_init__(self) -> None:
        for name, least in (("inner_steps", 0), ("window", 1), ("patience", 1), ("rounds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True)
class Phase:
    """Where the aggressive phase stands.

    Arguments:
        aggressive: whether it goes on.
        ended: whether the inner loop has ended, and the generative model's turn has come.
        updates: of the inner loop so far.
        total: sum of their losses since the last comparison.
        before: mean loss of the window before that.
        rounds: since the last measurement.
        measured: measurements so far.
        worse: those that were not better than the best before them.
        best: mutual information, nats.
        last: the same, as it was measured last.
    """

    aggressive: bool = True
    ended: bool = False
    updates: int = 0
    total: float = 0.0
    before: float = 0.0
    rounds: int = 0
    measured: int = 0
    worse: int = 0
    best: float = 0.0
    last: float = 0.0

    def after_inner(self, loss: float, config: LaggingConfig) -> Phase:
        """After an update of the inner loop."""
        updates, total = self.updates + 1, self.total + loss
        ended, before = updates >= config.inner_steps, self.before
        if updates % config.window == 0:
            mean = total / config.window
            ended = ended or (updates > config.window and not mean < before)
            total, before = 0.0, mean
        return replace(self, ended=ended, updates=updates, total=total, before=before)

    def after_round(self) -> Phase:
        """After the update of the generative model."""
        return replace(self, ended=False, updates=0, total=0.0, before=0.0, rounds=self.rounds + 1)

    def after_measurement(self, information: float, patience: int) -> Phase:
        """After a measurement of the mutual information, nats."""
        better = not self.measured or information > self.best
        worse, best = self.worse + (not better), information if better else self.best
        return replace(
            self,
            aggressive=worse < patience,
            rounds=0,
            measured=self.measured + 1,
            worse=worse,
            best=best,
            last=information,
        )


@final
class LaggingObjective(Objective):
    """The evidence, for whose posteriors most of the first steps are made (module docstring)."""

    name: ClassVar[str] = "lagging"
    Config: ClassVar[type[ObjectiveConfig]] = LaggingConfig
    wants: ClassVar[type] = Hierarchy
    config: LaggingConfig

    def __init__(self, config: LaggingConfig) -> None:
        super().__init__(config)
        self.evidence = EvidenceObjective(config.evidence)
        self.phase = Phase(aggressive=config.inner_steps > 0)
        self._device = torch.device("cpu")

    def check(self, model: Network) -> None:
        assert isinstance(model, Hierarchy)
        self.evidence.check(model)
        if self.config.inner_steps and isinstance(model, PixelHierarchy):
            prior = model.prior_of_top
            if isinstance(prior, FromPosteriors):
                raise UserError(
                    f"objective: got lagging for {model.name} with the prior {prior.name}, expected another prior: "
                    "this one is made of posteriors, so their parameters are the generative model's as well"
                )
        if self.config.inner_steps and (why := no_estimate(ask(model))):
            raise UserError(f"objective: got lagging for {model.name}, expected another posterior: {why}")

    def wants_validation(self) -> bool:
        return self.config.inner_steps > 0

    def begin(self, model: Network, batch_size: int) -> None:
        device = next(model.parameters()).device
        self._device = torch.device("cpu") if device.type == "mps" else device  # which has no float64

    def moves(self, at: Progress) -> Role:
        if not self.phase.aggressive:
            return Role.ALL
        return Role.GENERATIVE if self.phase.ended else Role.INFERENCE

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        return self.evidence.loss(network, model, batch, at)

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        return self.evidence.validate(model, batch, generator)

    def end_step(self, model: Network, at: Progress, outcome: Outcome) -> None:
        phase, config = self.phase, self.config
        if not phase.aggressive:
            return
        if not phase.ended:
            self.phase = phase.after_inner(outcome.loss, config)
            return
        phase = phase.after_round()
        if phase.rounds >= (config.rounds or outcome.batches_per_epoch):
            assert isinstance(model, Hierarchy)
            phase = phase.after_measurement(_information(model, outcome.validation()), config.patience)
        self.phase = phase

    def reports(self, model: Network, at: Progress) -> Mapping[str, float]:
        phase = self.phase
        own = {"aggressive": float(phase.aggressive)} if self.config.inner_steps else {}
        return {
            **self.evidence.reports(model, at),
            **own,
            **({"mutual_information": phase.last} if phase.measured else {}),
        }

    def settled(self, at: Progress) -> bool:
        return self.evidence.settled(at)

    def state(self) -> dict[str, Tensor]:
        values = [float(value) for value in asdict(self.phase).values()]
        return {"phase": torch.tensor(values, dtype=torch.float64, device=self._device)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        values = dict(zip(asdict(self.phase), tensors["phase"].tolist(), strict=True))
        plain = asdict(Phase())
        self.phase = Phase(**{name: type(plain[name])(value) for name, value in values.items()})


def _information(model: Hierarchy, batches: Iterator[Batch]) -> float:
    """The estimate from at most so many images as an evaluation takes, always with the same draws, nats."""
    aggregated, images, generator = AggregatedPosterior(), 0, None
    for batch in batches:
        generator = generator or Generator(batch.x.device).manual_seed(0)
        x = batch.x[: INFORMATION_IMAGES - images]
        if len(x):
            aggregated.add(ask(model, x).posteriors[0], generator)
            images += len(x)
    return float(aggregated.information().mean())

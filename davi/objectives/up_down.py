r"""Up-down: the contrastive wake-sleep algorithm of a deep belief network, all of whose layers learn together.

Every step, in the order of the authors' program, all with the weights before it:

1. *Wake.* Hidden states are drawn on the way up from the images, with the recognition weights. The generative weights
   learn to restore each layer from the one above, by the delta rule
   :math:`\Delta W_l \propto (h^{l-1} - E[h^{l-1} \mid h^l])\, h^{l\top}`.
2. *Top.* A Gibbs chain of k steps begins at the states that were drawn on the way up, not at an image. The machine at
   the top learns by contrastive divergence, CD-k. In the chain, probabilities stand for the class.
3. *Sleep.* From the end of the chain states are drawn on the way down; probabilities stand for the pixels. The
   recognition weights learn to infer each layer from the one below, by the same rule.

Each rule is the gradient of one term of :meth:`davi.models.dbn.DBN.forward`, and one learning rate is for all. The
first, in expectation over q, is the gradient of the bound in the generative weights. As in
:mod:`davi.objectives.contrastive`, the last hidden states of the top are summed out rather than drawn, which changes no
expectation.

Reference:
    A fast learning algorithm for deep belief nets, G. E. Hinton, S. Osindero, Y.-W. Teh, Neural Computation 2006,
    https://www.cs.toronto.edu/~hinton/absps/fastnc.pdf (appendix B; k = 3, 6, 10 for 100 epochs each)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.errors import UserError
from davi.model import Network
from davi.models.dbn import DBN
from davi.models.label_rbm import LabelRBM
from davi.objectives.base import Loss, Objective, ObjectiveConfig, Progress


@dataclass(frozen=True)
class UpDownConfig(ObjectiveConfig):
    """
    Arguments:
        name: ``up_down``.
        steps: k, Gibbs steps at the top, in equal shares of the budget one after the other.
    """

    name: Literal["up_down"] = "up_down"
    steps: tuple[int, ...] = (3, 6, 10)


class Passes(NamedTuple):
    """What is drawn in a step, as :meth:`davi.models.dbn.DBN.forward` takes it."""

    wake: list[Tensor]
    start: Tensor
    end: Tensor
    sleep: list[Tensor]


@final
class UpDownObjective(Objective):
    """Up-down (module docstring)."""

    name = "up_down"
    Config = UpDownConfig
    wants = DBN
    config: UpDownConfig

    def check(self, model: Network) -> None:
        assert isinstance(model, DBN)
        if not self.config.steps or min(self.config.steps) < 1:
            raise UserError(f"objective.steps: got {list(self.config.steps)}, expected numbers from 1")
        if not model.config.untied:
            raise UserError(
                f"objective: got {self.name} for a {model.name} with tied weights, expected one with recognition "
                "weights of its own (--model.untied true)"
            )

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        assert isinstance(model, DBN)
        terms: dict[str, Tensor] = network(*passes(model, batch, self._steps(at)))
        return Loss(torch.stack([term.mean() for term in terms.values()]).sum(), terms, None)

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        """With the first k; of a network with classes the share of images that are classified wrongly as well."""
        assert isinstance(model, DBN)
        terms: dict[str, Tensor] = model(*passes(model, batch, self.config.steps[0], generator))
        value = torch.stack([term.mean() for term in terms.values()]).sum()
        if model.classes and batch.y is not None:
            wrong = model.log_class_probabilities(batch.x).argmax(1) != batch.y
            terms = {**terms, "error": wrong.to(value.dtype)}
        return Loss(value, terms, None)

    def reports(self, model: Network, at: Progress) -> Mapping[str, float]:
        return {"gibbs_steps": float(self._steps(at))}

    def _steps(self, at: Progress) -> int:
        return self.config.steps[min(int(at.fraction * len(self.config.steps)), len(self.config.steps) - 1)]


@torch.no_grad()
def passes(model: DBN, batch: Batch, steps: int, generator: Generator | None = None) -> Passes:
    """Draw what a step learns from (module docstring).

    Arguments:
        model: the network.
        batch: images, and their classes if the network has some.
        steps: k.
        generator: source of the draws; torch's default when None.
    """
    wake = model.ascend(batch.x, generator).states
    start = model.top_state(wake[-1], batch.y)
    if isinstance(model.top, LabelRBM):
        end = model.top.with_label_means(start, steps, generator)
    else:
        end = model.top.state_gibbs(start, steps, generator)
    return Passes(wake, start, end, model.descend(model.top_bits(end), generator, means=True))

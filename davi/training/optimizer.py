r"""The optimizer, and the moving average of the weights.

The average is :math:`\bar\theta \leftarrow d_t \bar\theta + (1 - d_t)\,\theta` after every update, with
:math:`d_t = \min(d, (1 + t) / (10 + t))` after t updates, so that a short run is not dominated by its first weights;
the first update replaces the initial weights. Buffers with real values (the running statistics of batch norms) are
averaged in the same way: they belong to the activations of the same past weights, with the same delay, whereas those of
the newest weights would not fit averaged ones. Integer buffers are copied.

References:
    Acceleration of Stochastic Approximation by Averaging, B. T. Polyak, A. B. Juditsky, SIAM J. Control Optim. 1992,
    https://doi.org/10.1137/0330046

    Adam: A Method for Stochastic Optimization, D. P. Kingma, J. Ba, ICLR 2015, https://arxiv.org/abs/1412.6980 (Adam,
    Adamax)

    A Practical Guide to Training Restricted Boltzmann Machines, G. E. Hinton, 2012,
    https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf (section 9: momentum that grows)

    Decoupled Weight Decay Regularization, I. Loshchilov, F. Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101 (AdamW)
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from davi.model import Harmonium, Network
from davi.training.adam import AdamInsideRoot
from davi.training.sections import OptimizerConfig
from davi.training.sharded import local


def make_optimizer(model: nn.Module, config: OptimizerConfig, rate: float) -> torch.optim.Optimizer:
    """The optimizer of the recipe. Weight decay spares single numbers: decaying a gate would close it. It spares the
    fields of a harmonium as well, which say how often units are on, and where it is of kernels, all else.

    Arguments:
        model: what it trains.
        config: the recipe's section.
        rate: the learning rate to begin with.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    least = 2 if config.weight_decay_of == "kernels" else 1
    spared = {id(p) for p in _fields(model, parameters)} | {id(p) for p in parameters if p.ndim < least}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) not in spared], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
    ]
    if not config.weight_decay:  # one group in the same order, so that a step takes half of the calls
        groups = [{"params": [p for group in groups for p in group["params"]], "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    betas, eps = config.betas, config.eps
    # A few calls for all tensors, or one for each, on the CPU as well, where it is not torch's own choice.
    if config.name == "adamax":
        return torch.optim.Adamax(groups, lr=rate, betas=betas, eps=eps, foreach=True)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, foreach=True)
    if config.name == "adam" and config.eps_inside_root:
        return AdamInsideRoot(groups, lr=rate, betas=betas, eps=eps)
    adam = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return adam(groups, lr=rate, betas=betas, eps=eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, rate: float, step: int) -> None:
    """Give an optimizer its learning rate, and the momentum of sgd.

    Arguments:
        optimizer: of :func:`make_optimizer`.
        config: the recipe's section.
        rate: the learning rate.
        step: steps of the stage that have been made.
    """
    initial = step < config.initial_momentum_steps
    for group in optimizer.param_groups:
        group["lr"] = rate
        if config.name == "sgd":
            group["momentum"] = config.initial_momentum if initial else config.momentum


@torch.no_grad()
def update(optimizer: torch.optim.Optimizer) -> None:
    """Change the weights. Around it torch puts marks for profilers and compilers, which are left out: they take longer
    than the update of a small model."""
    inspect.unwrap(type(optimizer).step)(optimizer)


def _fields(model: nn.Module, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those of which the fields of a harmonium are made; none of other models."""
    if not isinstance(model, Harmonium):
        return []
    with torch.enable_grad():
        total = model.visible_field().sum() + model.hidden_field().sum()
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, found, strict=True) if gradient is not None]


class Average:
    """The moving average of a model's weights and buffers (module docstring).

    Arguments:
        model: the model as it is before the first update.
        decay: d; 0 makes the average the newest weights.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        """Number of updates so far."""
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        self._newest: nn.Module | None = None
        """Whose weights have yet to be copied: without a decay that waits until somebody looks."""

    @property
    def model(self) -> Network:
        """The averaged model, in eval mode."""
        if self._newest is not None:
            newest, self._newest = self._newest, None
            self._take_in(newest, 0.0)
        return self._model

    def decay_at(self, t: int) -> float:
        """d_t, the weight of the old average in the update after ``t`` updates."""
        return 0.0 if t == 0 else min(self.decay, (1 + t) / (10 + t))

    def update(self, model: nn.Module) -> None:
        """Take in the weights of the model."""
        if self.decay:
            self._take_in(model, self.decay_at(self.updates))
        else:
            self._newest = model
        self.updates += 1

    @torch.no_grad()
    def _take_in(self, model: nn.Module, decay: float) -> None:
        averaged, current = (local([*one.parameters(), *one.buffers()]) for one in (self._model, model))
        pairs = list(zip(averaged, current, strict=True))
        real = [pair for pair in pairs if pair[0].is_floating_point()] if decay else []
        copied = [pair for pair in pairs if not (decay and pair[0].is_floating_point())]
        if real:
            own, new = (list(side) for side in zip(*real, strict=True))
            torch._foreach_lerp_(own, new, 1.0 - decay)
        if copied:
            own, new = (list(side) for side in zip(*copied, strict=True))
            torch._foreach_copy_(own, new)

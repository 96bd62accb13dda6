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

    Decoupled Weight Decay Regularization, I. Loshchilov, F. Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101 (AdamW)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from davi.model import Model
from davi.training.adam import AdamInsideRoot
from davi.training.sections import OptimizerConfig
from davi.training.sharded import local


def make_optimizer(model: nn.Module, config: OptimizerConfig, rate: float) -> torch.optim.Optimizer:
    """The optimizer of the recipe. Weight decay spares single numbers: decaying a gate would close it.

    Arguments:
        model: what it trains.
        config: the recipe's section.
        rate: the learning rate to begin with.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if not p.ndim], "weight_decay": 0.0},
    ]
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


class Average:
    """The moving average of a model's weights and buffers (module docstring).

    Arguments:
        model: the model as it is before the first update.
        decay: d; 0 makes the average the newest weights.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        # AveragedModel keeps its counter where it is told, and by default on the CPU: reading it there costs nothing,
        # whereas on an accelerator it would stall every step.
        self._averaged = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)
        self._averaged.eval().requires_grad_(False)

    @property
    def model(self) -> Model:
        """The averaged model, in eval mode."""
        module = self._averaged.module
        assert isinstance(module, Model)
        return module

    @property
    def updates(self) -> int:
        """Number of updates so far."""
        return int(self._averaged.n_averaged)

    @updates.setter
    def updates(self, n: int) -> None:
        self._averaged.n_averaged.fill_(n)

    def decay_at(self, t: int) -> float:
        """d_t, the weight of the old average in the update after ``t`` updates."""
        return 0.0 if t == 0 else min(self.decay, (1 + t) / (10 + t))

    def update(self, model: nn.Module) -> None:
        """Take in the weights of the model."""
        self._averaged.update_parameters(model)

    @torch.no_grad()
    def _mix(
        self, averaged: tuple[Tensor, ...] | list[Tensor], current: tuple[Tensor, ...] | list[Tensor], _: object
    ) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(local(averaged), local(current), 1.0 - self.decay_at(self.updates))
        else:
            torch._foreach_copy_(list(averaged), list(current))

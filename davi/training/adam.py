r"""Adam with its epsilon inside the root, as programs in Theano and the first ones in TensorFlow have it.

.. math:: m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad
          \theta_t = \theta_{t-1} - \eta \, \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t) + \epsilon}}

:class:`torch.optim.Adam` adds :math:`\epsilon` to the root instead. For gradients near zero the two differ:
:math:`\epsilon = 10^{-8}` inside of the root acts like :math:`10^{-4}` outside.

References:
    Adam: A Method for Stochastic Optimization, D. P. Kingma, J. Ba, ICLR 2015, https://arxiv.org/abs/1412.6980
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from davi.training.sharded import local


@final
class AdamInsideRoot(Optimizer):
    """Adam with epsilon inside the root (module docstring). Weight decay is an L2 gradient, as in torch's Adam.

    Arguments:
        params: parameters, or groups of them.
        lr: eta.
        betas: decay of the two moments.
        eps: epsilon.
        weight_decay: times the parameter, added to its gradient.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moved:
                self._update(moved, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(parameter) for parameter in parameters]
        for state in states:
            state["step"] += 1
        counts = [int(state["step"]) for state in states]
        weights = local(parameters)
        first = local([state["exp_avg"] for state in states])
        second = local([state["exp_avg_sq"] for state in states])
        gradients = local([parameter.grad for parameter in parameters if parameter.grad is not None])
        beta1, beta2 = group["betas"]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        roots = list(torch._foreach_div(second, [1.0 - beta2**count for count in counts]))
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_sqrt_(roots)
        sizes = [-group["lr"] / (1.0 - beta1**count) for count in counts]
        torch._foreach_addcdiv_(weights, first, roots, sizes)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            # The counter is on the CPU, where reading it stalls nothing; torch's optimizers keep it there as well.
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

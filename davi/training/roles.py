r"""Which parameters of a hierarchy belong to the generative model, and which only to inference.

Nobody declares it. A parameter is *generative* if the log-likelihood of images given latents drawn from the priors,
plus the log-density of these latents under the priors, has a gradient with respect to it: a walk without images has
passed it. It is so also where the gradient is zero, as behind a gate that is closed at first. All other parameters are
*inference*; those that both passes share are generative.

References:
    Lagging Inference Networks and Posterior Collapse in Variational Autoencoders, J. He, D. Spokoyny, G. Neubig,
    T. Berg-Kirkpatrick, ICLR 2019, https://arxiv.org/abs/1901.05534 (steps that move one of the two)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn

from davi.distributions import Latent
from davi.model import Hierarchy
from davi.objectives import Role


@torch.enable_grad()
def generative_parameters(model: Hierarchy) -> frozenset[str]:
    """Names of the parameters of the generative model. The model's gradients, buffers and modes stay as they are, and
    no draw is taken from torch's default generator."""
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    generator = Generator(device).manual_seed(0)
    joint: list[Tensor] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        own = prior.expand(2)
        z = own.sample(generator)
        joint.append(own.log_prob(z).sum())
        return z

    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # no running statistics are moved
    try:
        pixels = model.top_down_given(model.classes_in_turn(2), choose)
    finally:
        for module, training in modes:
            module.training = training
    joint.append(pixels.log_prob(torch.zeros(2, *model.shape, dtype=torch.uint8, device=device)).sum())
    wanted = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    total = torch.stack([term.double() for term in joint]).sum()
    gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return frozenset(name for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None)


def keep_gradients(model: nn.Module, role: Role, generative: Iterable[str]) -> None:
    """Set the gradients of all parameters that a step does not move to None, which optimizers skip: neither weights
    nor moments change."""
    if role is Role.ALL:
        return
    names = frozenset(generative)
    for name, parameter in model.named_parameters():
        if (name in names) != (role is Role.GENERATIVE):
            parameter.grad = None

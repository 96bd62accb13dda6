r"""What contrastive divergence does with the mean states of units: the centered gradient and the sparsity target.

**Centered gradient.** The energy can be written with units less offsets,

.. math:: E = -(v - \mu) \cdot \beta - (h - \lambda) \cdot \gamma - (v - \mu) \cdot W (h - \lambda)

It is the same model, with :math:`b = \beta - W \lambda` and :math:`c = \gamma - W^\top \mu`, but its gradient points
elsewhere. In the parameters of the plain one, from whose gradients :math:`g` it follows,

.. math:: g'_W = g_W - \mu\, g_c^\top - g_b\, \lambda^\top, \qquad g'_b = g_b - g'_W \lambda, \qquad
          g'_c = g_c - {g'_W}^\top \mu

It does not depend on which of its two states a bit calls 1, and is closer to the natural gradient. The offsets are
moving means of the units given images. (With those of chains training may diverge, see the second reference.)

**Sparsity target.** With q a moving mean of hidden units given images, and p its target, the cross entropy
:math:`-p \log q - (1 - p) \log(1 - q)` has the derivative q - p by the input of the unit. The loss gets that: q - p
times the mean input, or times the field alone.

References:
    Deep Boltzmann Machines and the Centering Trick, G. Montavon, K.-R. Müller, in Neural Networks: Tricks of the Trade,
    2012, https://doi.org/10.1007/978-3-642-35289-8_33

    How to Center Deep Boltzmann Machines, J. Melchior, A. Fischer, L. Wiskott, JMLR 2016,
    https://jmlr.org/papers/v17/14-237.html (the update of the plain parameters, moving offsets)

    A Practical Guide to Training Restricted Boltzmann Machines, G. E. Hinton, 2012,
    https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf (section 11: the target)

    Sparse deep belief net model for visual area V2, H. Lee, C. Ekanadham, A. Ng, NeurIPS 2007,
    https://papers.nips.cc/paper/2007/hash/4daa3db355ef2b0e64b472968cb70f0d-Abstract.html (the fields alone)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from davi.model import Clamped, Couplings, Harmonium


@torch.no_grad()
def center(couplings: Couplings, visible: Tensor, hidden: Tensor) -> None:
    """Replace plain gradients by centered ones (module docstring).

    Arguments:
        couplings: whose gradients are changed.
        visible, hidden: the offsets, in the shapes of the units.
    """
    weight, b, c = (parameter.grad for parameter in couplings)
    assert weight is not None
    assert b is not None
    assert c is not None
    mu, lambda_ = visible.flatten().to(weight), hidden.flatten().to(weight)
    weight.addr_(mu, c.flatten(), alpha=-1.0).addr_(b.flatten(), lambda_, alpha=-1.0)
    b -= (weight @ lambda_).view_as(b)
    c -= (mu @ weight).view_as(c)


class MeanUnits:
    """Moving means of units given images. Each part of a batch adds its share to the mean of the batch; when all have,
    the moving mean takes it in, and it starts again at 0.

    Arguments:
        decay: of the moving mean.
        names: ``visible``, ``hidden`` or both.
    """

    def __init__(self, decay: float, *names: str) -> None:
        self.decay, self.names = decay, names
        self.mean: dict[str, Tensor] = {}
        self.batch: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self, model: Harmonium) -> None:
        """Begin with units without couplings."""
        visible, hidden = model.visible_field()[None], model.hidden_field()[None]
        found = {"visible": model.visible.mean(visible)[0], "hidden": model.hidden.mean(hidden)[0]}
        self.mean = {name: found[name].clone() for name in self.names}
        self.batch = {name: torch.zeros_like(mean) for name, mean in self.mean.items()}

    @torch.no_grad()
    def add(self, model: Harmonium, images: Clamped, batch_size: int) -> None:
        """Take in a part of a batch of so many images."""
        if "visible" in self.names:
            self.batch["visible"] += images.v.sum(0) / batch_size
        if "hidden" in self.names:
            self.batch["hidden"] += model.hidden.mean(images.inputs).sum(0) / batch_size

    @torch.no_grad()
    def end(self) -> None:
        """Take in the batch."""
        for name, mean in self.mean.items():
            mean.lerp_(self.batch[name], 1.0 - self.decay)
            self.batch[name].zero_()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs; that of the batch as well, which processes add up."""
        moving = {f"mean/{name}": tensor for name, tensor in self.mean.items()}
        return {**moving, **{f"batch_mean/{name}": tensor for name, tensor in self.batch.items()}}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`state`."""
        self.mean = {name: tensors[f"mean/{name}"].clone() for name in self.names}
        self.batch = {name: tensors[f"batch_mean/{name}"].clone() for name in self.names}


def sparsity(model: Harmonium, inputs: Tensor, mean: Tensor, target: float, fields_alone: bool) -> Tensor:
    """A scalar whose gradient is that of the cross entropy of hidden units and their target (module docstring).

    Arguments:
        model: the energy.
        inputs: of the hidden units, of the images of a part of a batch, ``[B, *hidden.shape]``.
        mean: q, ``[*hidden.shape]``.
        target: p.
        fields_alone: whether couplings are left alone.
    """
    moved = model.hidden_field() if fields_alone else inputs.mean(0)
    return ((mean - target) * moved).sum()

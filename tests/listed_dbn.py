"""Deep belief networks so small that all states of their layers are listed; nothing here asks the model for a number.

The rules are written from the weights. Tables have a row for each image and a column for each state of the hidden
layer below the top, ``[images, states]``.
"""

from __future__ import annotations

import itertools
import math

import torch
from contract import shake
from golden_rbm import SHAPE, golden
from torch import Tensor

from davi.evidence import Kind
from davi.model import Partition
from davi.models.dbn import DBN
from davi.models.dbn_bound import NormalizedDBN
from davi.models.dbn_layers import DBNConfig
from davi.models.label_rbm import LabelRBM


def bits(count: int) -> Tensor:
    """All states of some bits, ``[2 ** count, count]``, float64."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def log_bernoulli(logits: Tensor, states: Tensor) -> Tensor:
    """log p of every state given every row of logits, ``[rows, states]``."""
    p = logits.sigmoid()
    return p.log() @ states.T + (1.0 - p).log() @ (1.0 - states).T


def tied(untied: bool = True, classes: int = 0) -> DBN:
    """On the golden machine, whose hidden layer is explained by the machine turned round."""
    torch.manual_seed(2)
    network = DBN(SHAPE, 2, DBNConfig((4, 6), untied=untied), classes).double().eval()
    network.lower[0].load_state_dict(golden().state_dict())
    network.begin_part("layer_2")
    return network


def shaken(hidden: tuple[int, ...] = (4, 6), classes: int = 0, seed: int = 2) -> DBN:
    """Untied, with weights that have nothing to do with one another."""
    torch.manual_seed(seed)
    network = DBN(SHAPE, 2, DBNConfig(hidden, 0.6, untied=True), classes).double()
    for _ in range(3):
        shake(network)
    return network


def images() -> Tensor:
    """All images, integers ``[64, 1, 2, 3]``."""
    return bits(6).view(64, *SHAPE).long()


def log_top(network: DBN, y: int | None = None) -> Tensor:
    """log p of every state of the layer below the top, at y, by the sum over all states of all units of the top."""
    top = network.top
    below, above = bits(network.config.hidden[-2]), bits(network.config.hidden[-1])
    if isinstance(top, LabelRBM):
        labels = torch.eye(top.labels, dtype=torch.float64)
        weight, b = torch.cat([top.weight, top.label_weight]), torch.cat([top.b, top.label_b])
        below = torch.cat([torch.cat([below, label.expand(len(below), -1)], 1) for label in labels])
    else:
        weight, b = top.get_parameter("weight"), top.get_parameter("b").flatten()
    energies = -(below @ b)[:, None] - above @ top.hidden_field() - below @ weight @ above.T
    free = (-energies).logsumexp(1)
    log_p = free - free.logsumexp(0)
    count = 2 ** network.config.hidden[-2]
    return log_p if y is None else log_p[count * y : count * (y + 1)]


def log_joint(network: DBN, y: int | None = None) -> Tensor:
    """log p(x, h), or log p(x, h, y), of a network of two layers, ``[64, states]``."""
    first = network.lower[0]
    h = bits(network.config.hidden[0])
    return log_bernoulli(first.b.flatten() + h @ first.weight.T, bits(6)).T + log_top(network, y)


def log_q(network: DBN) -> Tensor:
    """log q(h | x) of a network of two layers, ``[64, states]``."""
    first = network.lower[0]
    weight = network.recognition[0] if network.config.untied else first.weight
    return log_bernoulli(first.c + bits(6) @ weight, bits(network.config.hidden[0]))


def bounds(network: DBN, y: int | None = None) -> Tensor:
    """The bound of every image, ``[64]``."""
    q = log_q(network)
    return (q.exp() * (log_joint(network, y) - q)).sum(1)


@torch.no_grad()
def model_of(network: DBN) -> NormalizedDBN:
    """With the partition function, by the sum over all states."""
    top = network.top
    free = [
        -top.state_free_energy(state[None])
        for state in top.visible.states(0, round(2**top.visible.log2_states), top.hidden_field())
    ]
    log_z = float(torch.cat(free).logsumexp(0))
    found = network.normalized(Partition(log_z, Kind.EXACT)).eval()
    assert math.isfinite(log_z)
    assert isinstance(found, NormalizedDBN)
    return found

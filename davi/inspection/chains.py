"""What is seen of energies: what their hidden units look for, where their Markov chains go, and free energies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from davi.data import Images, evenly
from davi.data.binarization import binarized
from davi.evaluation.autocorrelation import autocorrelation
from davi.inspection.views import Chains, Filters, Strip
from davi.model import WithChain, WithFilters

SHOWN = 100
"""Units of a layer whose filters are kept."""

CHAINS, DISCARDED, STEPS = 64, 1000, 2000
"""Chains, at most; their steps before anything is measured, and after."""

PICTURES = (1, 2, 5, 10, 20, 100, 1000)
"""Steps after which chains are looked at that are shown on their way."""

STRIPS, ENDS = 2, 25
"""Chains that an inspection shows on their way, and at their end."""


def filters_of(network: WithFilters) -> tuple[Filters, ...]:
    """What the units of every layer look for, the largest first."""
    found = []
    for layer in range(1, network.filter_layers + 1):
        fields = network.receptive_fields(layer)
        order = fields.flatten(1).norm(dim=1).argsort(descending=True, stable=True)
        found.append(Filters(layer, len(fields), fields[order[:SHOWN]].cpu()))
    return tuple(found)


def follow(
    network: WithChain,
    images: Images,
    training: Images | None,
    begin: tuple[Tensor, Sequence[str]],
    generator: Generator,
    moved: Callable[[int], None] = lambda step: None,
) -> tuple[Chains, list[Strip]]:
    """Follow chains that begin at images, and take free energies.

    Arguments:
        network: in eval mode, without gradients.
        images: those that are inspected.
        training: training images, if they are known; of these, as many as of the others are taken.
        begin: images of which the first chains begin, integers ``[n, C, H, W]`` on the network's device, and their
            names. These chains are shown on their way; all others begin at some of ``images``.
        generator: source of randomness, on the same device.
        moved: called with the number of steps that are done.

    Returns:
        What was measured, and a strip for each of the chains that are shown.
    """
    first, names = begin
    others = evenly(images, min(CHAINS - len(first), len(images))).pixels.to(first)
    states = network.chain_states(torch.cat([first, others]), generator)
    pictures, energies = [first], []
    for step in range(1, DISCARDED + STEPS + 1):
        states = network.chain_gibbs(states, 1, generator)
        if step in PICTURES:
            pictures.append(network.chain_images(states[: len(first)], generator).to(first))
        if step > DISCARDED:
            energies.append(network.chain_free_energy(states).double())
        moved(step)
    labels = ("original", *(f"{steps:,} {'step' if steps == 1 else 'steps'}" for steps in PICTURES))
    row = torch.stack(pictures, 1).cpu()  # [strips, pictures, C, H, W]
    strips = [Strip("chain", name, labels, row[i]) for i, name in enumerate(names)]
    known = None if training is None else as_seen(evenly(training, min(len(images), len(training))), images.levels)
    found = Chains(
        discarded=DISCARDED,
        free_energy=autocorrelation(torch.stack(energies, 1)),
        ends=network.chain_images(states[:ENDS], generator).cpu(),
        training=None if known is None else _free_energies(network, known, first.device, generator),
        images=_free_energies(network, images, first.device, generator),
        samples=energies[-1].cpu(),
    )
    return found, strips


def as_seen(training: Images, levels: int) -> Images:
    """Training images as the network sees them: those that are drawn anew at each presentation are kept gray."""
    return training if training.levels == levels else binarized(training, "dynamic", Generator().manual_seed(0))


def _free_energies(network: WithChain, images: Images, device: torch.device, generator: Generator) -> Tensor:
    """Of all of some images, ``[N]``, float64."""
    parts = (network.chain_states(x.to(device), generator) for x in images.pixels.split(CHAINS))
    return torch.cat([network.chain_free_energy(part).double().cpu() for part in parts])

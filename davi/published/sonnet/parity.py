"""Our quantizer and its moving averages beside what Sonnet's computed.

A fixture holds a codebook, arrays of vectors for as many steps of training as there are arrays, and what the program
made of them: codes, vectors, loss, perplexity, gradients, the codebook and its averages after each step, what the
quantizer says when it is not trained, and, of the quantizer whose vectors are learned by gradient, one step. Version 1
is known in single precision alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from davi.errors import UserError
from davi.layers.quantizer import Assigned, perplexity
from davi.objectives.vector_averages import Place, VectorAverages
from davi.published.agreement import Comparison
from davi.published.sonnet import layout

SINGLE = 1e-5
"""Largest difference of what is known in single precision, in units of the largest value."""
DOUBLE = 1e-9
"""Largest difference of what is known in double precision."""
IN_LOGARITHM = 1e-10
"""What Sonnet adds to shares under a logarithm."""


class SonnetParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.tensors, self.facts, self.dtype = tensors, facts, dtype
        known = any(name.startswith("expected/float64/") for name in tensors)
        self.double = dtype == torch.float64 and known
        self.prefix = "expected/float64/" if self.double else "expected/"
        self.precision = "float64" if self.double else "float32"
        count = sum(name.startswith("inputs/") for name in tensors)
        self.inputs = [tensors[f"inputs/{step}"].to(dtype) for step in range(count)]
        self.target = tensors["target"].to(dtype)
        self.beta = float(facts["config"]["commitment_cost"])
        self.compared: set[str] = set()

    def comparisons(self) -> list[Comparison]:
        """Step by step; then without training, and the quantizer whose vectors are learned by gradient."""
        found = [*self._averaged(), *self._by_gradient()]
        names = {name.removeprefix(self.prefix) for name in self.tensors if name.startswith(self.prefix)}
        left = {name for name in names - self.compared if not name.startswith("float64/")}
        if left:
            raise UserError(f"{self.prefix}{min(left)} is not something this configuration computes")
        return found

    def _tensor(self, name: str, ours: Tensor) -> Iterator[Comparison]:
        """Ours, as it is now, beside what the fixture has by that name, which must be there."""
        self.compared.add(name)
        theirs = self.tensors[f"{self.prefix}{name}"]
        tolerance, unit = (DOUBLE, "absolute") if self.double else (SINGLE, "scale")
        yield Comparison(name, ours.detach().clone(), theirs, tolerance if ours.is_floating_point() else 0.0, unit)

    def _number(self, name: str, ours: Tensor, theirs: float, slack: float = 0.0) -> Iterator[Comparison]:
        tolerance, unit = (DOUBLE, "absolute") if self.double else (SINGLE, "each")
        yield Comparison(name, ours.detach(), torch.tensor(theirs, dtype=torch.float64), tolerance, unit, slack)

    def _perplexity(self, name: str, counts: Tensor, theirs: float) -> Iterator[Comparison]:
        ours = perplexity(counts)
        yield from self._number(name, ours, theirs, slack=float(ours) * len(counts) * IN_LOGARITHM)

    def _mean(self, sums: Tensor) -> Tensor:
        """A mean over all numbers, of sums over those of an image."""
        return sums.sum() / self.target.numel()

    def _assigned(self, prefix: str, x: Tensor, assigned: Assigned) -> Iterator[Comparison]:
        yield from self._tensor(f"{prefix}/encoding_indices", layout.array(assigned.codes, x)[..., 0])
        yield from self._tensor(f"{prefix}/quantize", layout.array(assigned.embedded, x))

    def _reconstruction(self, assigned: Assigned) -> Tensor:
        """Mean squared distance of what follows the quantizer from the target."""
        return (assigned.straight_through() - layout.maps(self.target)).square().mean()

    def _averaged(self) -> Iterator[Comparison]:
        quantizer = layout.build(self.facts, self.tensors["embeddings_initial"], "ema", self.dtype)
        averages = VectorAverages(quantizer, layout.averages(self.facts), positions=1)
        *steps, last = self.facts["results"][f"ema_{self.precision}"]
        if "counts" in last:
            steps, last = [*steps, last], {}
        if len(steps) != len(self.inputs):
            raise UserError(f"results: got {len(steps)} steps, expected {len(self.inputs)}, one for each input")
        for step, (array, numbers) in enumerate(zip(self.inputs, steps, strict=True)):
            prefix, x = f"ema/step{step}", array.clone().requires_grad_()
            assigned = quantizer(layout.maps(x))
            yield from self._assigned(prefix, x, assigned)
            loss = self.beta * self._mean(quantizer.commitment(assigned))
            yield from self._number(f"{prefix}/loss", loss, numbers["loss"])
            (gradient,) = torch.autograd.grad(loss + self._reconstruction(assigned), x)
            yield from self._tensor(f"{prefix}/grad_inputs_of_loss_plus_mse", gradient)
            averages.add(quantizer, assigned, Place(0, len(x), len(x)))
            hits = averages.hits[0].clone()
            theirs = torch.tensor(numbers["counts"], dtype=torch.float64)
            yield Comparison(f"{prefix}/counts", hits, theirs, 0.0, "absolute")
            yield from self._perplexity(f"{prefix}/perplexity", hits, numbers["perplexity"])
            averages.end_step(quantizer)
            yield from self._after(prefix, averages)
            yield from self._tensor(f"{prefix}/embeddings_after", layout.columns(quantizer.vectors))
        for name, numbers in last.items():
            assigned = quantizer(layout.maps(self.inputs[0]))
            loss = self.beta * self._mean(quantizer.commitment(assigned))
            yield from self._number(f"ema/{name}/loss", loss, numbers["loss"])
            counts = assigned.codes.flatten().bincount(minlength=quantizer.size)
            yield from self._perplexity(f"ema/{name}/perplexity", counts, numbers["perplexity"])

    def _after(self, prefix: str, averages: VectorAverages) -> Iterator[Comparison]:
        """The averages after a step: version 2 tells what they are divided by, too."""
        known = 1.0 - averages.options.decay**averages.updates
        counts, sums = averages.counts[0], layout.columns(averages.sums)
        for name, hidden in (("ema_cluster_size", counts), ("ema_dw", sums)):
            if f"{self.prefix}{prefix}/{name}_hidden_after" in self.tensors:
                yield from self._tensor(f"{prefix}/{name}_hidden_after", hidden)
                yield from self._tensor(f"{prefix}/{name}_average_after", hidden / known)
            else:
                yield from self._tensor(f"{prefix}/{name}_after", hidden / known)

    def _by_gradient(self) -> Iterator[Comparison]:
        numbers = self.facts["results"].get(f"plain_{self.precision}")
        if numbers is None:
            return
        quantizer = layout.build(self.facts, self.tensors["embeddings_initial"], "gradient", self.dtype)
        x = self.inputs[0].clone().requires_grad_()
        assigned = quantizer(layout.maps(x))
        yield from self._assigned("plain", x, assigned)
        both = quantizer.distortion(assigned) + self.beta * quantizer.commitment(assigned)
        loss = self._mean(both)
        total = loss + self._reconstruction(assigned)
        yield from self._number("plain/vq_loss", loss, numbers["vq_loss"])
        yield from self._number("plain/loss_plus_mse", total, numbers["loss_plus_mse"])
        counts = assigned.codes.flatten().bincount(minlength=quantizer.size)
        yield from self._perplexity("plain/perplexity", counts, numbers["perplexity"])
        of_inputs, of_vectors = torch.autograd.grad(total, (x, quantizer.vectors))
        yield from self._tensor("plain/grad_inputs", of_inputs)
        yield from self._tensor("plain/grad_embeddings", layout.columns(of_vectors))

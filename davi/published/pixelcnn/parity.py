"""Our PixelCNN++ and PixelSNAIL beside activations of their authors' own programs.

A fixture holds random weights, two images, and what the authors' program computed: the maps on the way, the
log-likelihood in its form, gradients, draws from given uniform numbers, three steps of its optimizer, and, in a file
of its own, the initialization from a batch of images. Tensors are stored as float32; numbers and the initialization are
there of a run in either precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from davi.distributions import DiscretizedLogisticMixture
from davi.errors import UserError
from davi.layers.causal import CausalNetwork
from davi.layers.pixel_head import Form, LikelihoodConfig, PixelHead
from davi.layers.shifted import initializing
from davi.model.causal import CausalModel
from davi.model.meta import on_meta
from davi.published.agreement import Comparison
from davi.published.pixelcnn import layout, pixelcnn_pp, pixelsnail
from davi.published.torch_files import fitted

TENSOR = {torch.float32: 1e-5, torch.float64: 2e-6}
"""Largest difference of a tensor, in units of its largest value; tensors are stored as float32."""
LOG_LIKELIHOOD = {torch.float32: 0.05, torch.float64: 1e-6}
"""Largest difference of a log-likelihood, nats."""
GRADIENT = {torch.float32: 5e-3, torch.float64: 1e-6}
"""Largest relative difference of a gradient's norm."""
GRADIENT_TENSOR = {torch.float32: 5e-3, torch.float64: 2e-6}
"""Largest difference of a gradient, in units of its largest value."""
INITIALIZATION = {torch.float32: 2e-4, torch.float64: 1e-9}
"""Largest difference of lengths and biases from a batch, in units of the largest one of the layer."""
STEPS = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest relative difference of the losses before and after steps of the optimizer."""
NOT_JUDGED = float("inf")


@dataclass(frozen=True)
class Program:
    """One of the programs: how our model is made, and where its parts are."""

    build: Callable[..., CausalModel]
    places: Callable[[Any], dict[str, str]]
    activations: Callable[[Any, Tensor, Tensor | None], dict[str, Tensor]]


PROGRAMS = {
    "pixelcnnpp": Program(pixelcnn_pp.build, pixelcnn_pp.places, pixelcnn_pp.activations),
    "pixelsnail": Program(pixelsnail.build, pixelsnail.places, pixelsnail.activations),
}
"""The field ``model`` of a fixture's JSON -> the program."""


class PixelParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        initialization: content of the file of the initialization beside it.
        facts: content of the JSON file.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        initialization: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        dtype: torch.dtype,
    ) -> None:
        self.tensors, self.initialization, self.facts, self.dtype = tensors, initialization, facts, dtype
        self.program = PROGRAMS[facts["model"]]
        self.numbers = facts["float64" if dtype == torch.float64 else "float32"]
        with on_meta():  # nothing is allocated before the shapes are known to be those of the file
            on_paper = self.program.build(facts["config"], form="openai")
        self.names = layout.parameter_names(on_paper.causal, self.program.places(on_paper))
        weights = self._ours(_below("weights/", tensors), on_paper.head)
        state = fitted(on_paper.causal.state_dict(), weights, self.names)
        self.fresh = self.program.build(facts["config"], form="openai").to(dtype)
        self.model = copy.deepcopy(self.fresh)
        self.model.causal.load_state_dict(state)
        self.head = self.model.head
        self.x, self.y = self._batch(tensors, "input/")

    def _ours(self, theirs: Mapping[str, Tensor], head: PixelHead) -> dict[str, Tensor]:
        """Tensors by the authors' names, laid out as ours."""
        return {name: layout.to_ours(self.names.get(name, name), x, head) for name, x in theirs.items()}

    def _batch(self, tensors: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor | None]:
        """Images, and their classes if the model has some."""
        x = layout.images(tensors[f"{prefix}x_uint8"])
        y = tensors[f"{prefix}labels"] if self.model.classes else None
        self.model.check_images(x)
        self.model.check_labels(y, len(x))
        return x, y

    def comparisons(self) -> list[Comparison]:
        """The way through the network, likelihood, gradients, draws, steps of the optimizer, initialization."""
        found = [*self._activations(), *self._log_likelihood(self.model)]
        self.model.zero_grad()
        self._loss(self.model.causal).backward()
        found += [*self._gradients(), *self._likelihood_check(), *self._draws()]
        return [*found, *self._optimizer(), *self._initialization()]

    def _activations(self) -> Iterator[Comparison]:
        expected = _below("expected/", self.tensors)
        ours = self.program.activations(self.model, self.x, self.y)
        with torch.no_grad():
            ours["logits"] = layout.outputs_to_theirs(self.model.causal(self.x, y=self.y), self.head)
        order = {name: place for place, name in enumerate(self.facts.get("tensors", {}))}
        for name in sorted(expected, key=lambda name: order.get(f"expected/{name}", len(order))):
            if name not in ours:
                raise UserError(f"fixture: expected/{name} is not something this configuration computes")
            yield Comparison(name, ours[name], expected[name], TENSOR[self.dtype])

    @torch.no_grad()
    def _log_likelihood(self, model: CausalModel) -> Iterator[Comparison]:
        """In the authors' form; and exactly, which is another number where bins are narrow."""
        likelihood = model.conditionals(self.x, self.y)
        theirs = self._number(self.numbers["log_likelihood_nats"])
        yield Comparison("log_likelihood/openai", likelihood.log_prob(self.x), theirs, *self._nats())
        exact = _exact(likelihood).log_prob(self.x)
        yield Comparison("log_likelihood/exact beside theirs", exact, theirs, NOT_JUDGED, "absolute")

    def _nats(self) -> tuple[float, str]:
        return LOG_LIKELIHOOD[self.dtype], "absolute"

    @staticmethod
    def _number(numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    def _loss(self, network: CausalNetwork[Any]) -> Tensor:
        """Nats, summed over the images."""
        return -network.head(network(self.x, y=self.y)).log_prob(self.x).sum()

    def _gradients(self) -> Iterator[Comparison]:
        """Norms of the gradients of the loss with respect to every weight, and some of them whole."""
        norms = self.numbers["gradient_l2_norms"]
        parameters = dict(self.model.causal.named_parameters())
        floor = 1e-9 * max(norms.values())  # gradients that are zero by construction are rounding noise on both sides
        whole = self._ours(_below("grad/", self.tensors), self.head)
        for name in {**norms, **whole}:
            if name not in self.names:
                raise UserError(f"fixture: gradient of {name} has no counterpart here")
            gradient = parameters[self.names[name]].grad
            ours = torch.zeros(()) if gradient is None else gradient
            if name in norms:
                norm = self._number(norms[name])
                yield Comparison(f"gradient/{name}", ours.norm(), norm, GRADIENT[self.dtype], "each", floor)
            if name in whole:
                yield Comparison(f"whole gradient/{name}", ours, whole[name], GRADIENT_TENSOR[self.dtype])

    def _mixture(self, form: Form, logits: Tensor) -> DiscretizedLogisticMixture:
        config = LikelihoodConfig("logistic_mixture", self.head.likelihood.components, form)
        head = PixelHead(config, self.head.channels, self.head.levels)
        return cast(DiscretizedLogisticMixture, head(layout.outputs_to_ours(logits, head)))

    def _likelihood_check(self) -> Iterator[Comparison]:
        """The likelihood of images under outputs that reach all its branches."""
        logits = self.tensors["loss_check/logits"].to(self.dtype).requires_grad_()
        x = layout.images(self.tensors["loss_check/x_uint8"])
        ours = self._mixture("openai", logits).log_prob(x)
        (gradient,) = torch.autograd.grad(-ours.sum(), logits)
        theirs = self._number(self.numbers["loss_check_log_likelihood_nats"])
        yield Comparison("loss_check/openai", ours, theirs, *self._nats())
        exact = self._mixture("exact", logits.detach()).log_prob(x)
        theirs = self._number(self.facts["loss_check_exact_form_log_likelihood_nats_float64"])
        yield Comparison("loss_check/exact", exact, theirs, *self._nats())
        whole = self.tensors["loss_check/grad_logits"]
        yield Comparison("loss_check/gradient", gradient, whole, GRADIENT_TENSOR[self.dtype])

    def _draws(self) -> Iterator[Comparison]:
        """The authors' draws from given uniform numbers, which they do not round."""
        mixture = self._mixture("openai", self.tensors["loss_check/logits"].to(self.dtype))
        uniform = layout.images(self.tensors["sampling/uniform_mixture"]).to(self.dtype)
        component = (mixture.log_weights[:, :, 0] - (-uniform.log()).log()).argmax(1)[:, None, None]  # [B, 1, 1, H, W]
        mean, log_scale, c = (
            x.gather(1, component.expand(-1, -1, 3, -1, -1))[:, 0]
            for x in (mixture.means, mixture.log_scales, cast(Tensor, mixture.coefficients))
        )
        uniform = layout.images(self.tensors["sampling/uniform_logistic"]).to(self.dtype)
        x = mean + log_scale.exp() * (uniform.log() - (-uniform).log1p())
        red = x[:, 0].clamp(-1, 1)
        green = (x[:, 1] + c[:, 0] * red).clamp(-1, 1)
        blue = (x[:, 2] + c[:, 1] * red + c[:, 2] * green).clamp(-1, 1)
        theirs = self.tensors["sampling/expected_x"]
        yield Comparison("sampling", torch.stack([red, green, blue], -1), theirs, TENSOR[self.dtype])

    def _optimizer(self) -> Iterator[Comparison]:
        """Steps of the authors' Adam, and their moving average. In float32 it magnifies the rounding of gradients near
        zero, so that only the losses are compared."""
        adam = self.facts["adam"]
        double = self.dtype == torch.float64
        network = copy.deepcopy(self.model.causal)
        losses, averages = _adam(network, lambda: self._loss(network), adam)
        key = "losses_before_each_step_and_after_last"
        theirs = self._number(adam[f"float64_{key}" if double else key])
        yield Comparison("adam/losses", self._number(losses), theirs, STEPS[self.dtype], "each")
        if not double:
            return
        for kind, ours in (("after3", dict(network.named_parameters())), ("ema3", averages)):
            for name, expected in self._ours(_below(f"adam/{kind}/", self.tensors), self.head).items():
                yield Comparison(f"adam/{kind}/{name}", ours[self.names[name]], expected, TENSOR[self.dtype])

    @torch.no_grad()
    def _initialization(self) -> Iterator[Comparison]:
        network = self.fresh.causal
        raw = self._ours(_below("raw/", self.initialization), self.head)
        drawn = {name for name in self.names if name.endswith(("/V", "/hw"))}
        if missing := drawn - set(raw):
            raise UserError(f"fixture lacks raw/{min(missing)}, from which the initialization begins")
        network.load_state_dict({self.names[name]: x for name, x in raw.items()}, strict=False)
        x, y = self._batch(self.initialization, "init/")
        with initializing(network):
            output = layout.outputs_to_theirs(network(x, y=y), self.head)
        parameters = dict(network.named_parameters())
        expected = _below("expected_float64/" if self.dtype == torch.float64 else "expected/", self.initialization)
        tolerance = INITIALIZATION[self.dtype]
        for name in self.names:
            if name in expected:
                theirs = layout.to_ours(self.names[name], expected[name], self.head)
                yield Comparison(f"initialization/{name}", parameters[self.names[name]], theirs, tolerance)
        if missing := set(expected) - set(self.names) - {"init_pass_output"}:
            raise UserError(f"fixture: initialization of {min(missing)} has no counterpart here")
        yield Comparison("initialization/output", output, expected["init_pass_output"], tolerance)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _exact(likelihood: Any) -> DiscretizedLogisticMixture:
    exact: DiscretizedLogisticMixture = copy.copy(likelihood)
    exact.form = "exact"
    return exact


def _adam(
    network: CausalNetwork[Any], loss: Callable[[], Tensor], facts: Mapping[str, Any]
) -> tuple[list[float], dict[str, Tensor]]:
    """Take steps of Adam as both programs have it, epsilon inside the root, written down from the paper.

    Returns:
        The losses before each step and after the last one, and the moving averages of the weights.
    """
    beta1, beta2, epsilon = facts["beta1"], facts["beta2"], facts["eps_inside_sqrt"]
    parameters = dict(network.named_parameters())
    averages = {name: x.detach().clone() for name, x in parameters.items()}
    moments = {name: (torch.zeros_like(x), torch.zeros_like(x)) for name, x in parameters.items()}
    losses, rate = [], facts["base_lr"]
    for step in range(1, facts["steps"] + 1):
        network.zero_grad()
        value = loss()
        value.backward()
        losses.append(value.item())
        rate *= facts["lr_decay_applied_before_each_step"]
        for name, x in parameters.items():
            gradient = torch.zeros_like(x) if x.grad is None else x.grad
            mean, square = moments[name]
            mean.lerp_(gradient, 1 - beta1)
            square.lerp_(gradient.square(), 1 - beta2)
            x.data -= rate * (mean / (1 - beta1**step)) / (square / (1 - beta2**step) + epsilon).sqrt()
            averages[name].lerp_(x.data, 1 - facts["ema_decay"])
    return [*losses, loss().item()], averages

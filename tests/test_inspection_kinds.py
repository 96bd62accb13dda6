"""Models that are no hierarchies have a page as well: what applies to them is on it, and named as what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import pytest
import torch
from inspected import contents
from test_page import Read
from torch import Generator, Tensor, nn

from davi import page, recipes
from davi.cli import loading, main
from davi.data import Images
from davi.distributions import Bernoulli, Distribution
from davi.evaluation import evaluate
from davi.evidence import Evidence, Kind
from davi.inspection import Inspection, inspect
from davi.inspection.names import name_of
from davi.model import Autoregressive, Energy, Model, Normalized, Partition, Temperature
from davi.models import PixelSNAIL
from davi.report import protocol_of, result_of, to_terminal


@dataclass(frozen=True)
class Nothing:
    pass


@final
class Chain(Autoregressive):
    """Binary pixels, each with the logit 2 after a white one and -1 after a black one."""

    name: ClassVar[str] = "chain"
    Config: ClassVar[type] = Nothing

    def __init__(self) -> None:
        super().__init__((1, 2, 3), 2, Nothing())
        self.logits = nn.Parameter(torch.tensor([-1.0, 2.0]))

    def conditionals(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        before = torch.cat([torch.zeros_like(x[..., :1, :1]).flatten(1), x.flatten(1)[:, :-1]], 1)
        return Bernoulli(self.logits[before.long()].view(x.shape))


@final
class Flowlike(Model):
    """A lower bound without latents, as that of a flow on dequantized images."""

    name: ClassVar[str] = "flowlike"
    Config: ClassVar[type] = Nothing

    def __init__(self) -> None:
        super().__init__((1, 2, 3), 2, Nothing())

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        terms = {"base": -x.float().flatten(1).sum(1), "log_det": torch.full((len(x),), -6.0)}
        return Evidence(terms, Kind.LOWER_BOUND)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        return torch.zeros(n, *self.shape, dtype=torch.long)


class Flat(Energy):
    """All images are equally probable."""

    name: ClassVar[str] = "flat"
    Config: ClassVar[type] = Nothing

    def __init__(self) -> None:
        super().__init__((1, 2, 3), 2, Nothing())
        self.weight = nn.Parameter(torch.zeros(()))

    def free_energy(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return self.weight * x.flatten(1).sum(1)

    def gibbs(self, x: Tensor, steps: int = 1, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return x


IMAGES = Images(
    torch.arange(5)
    .view(5, 1, 1, 1)
    .bitwise_right_shift(torch.arange(3))
    .remainder(2)
    .expand(5, 1, 2, 3)
    .to(torch.uint8),
    2,
    "toy/test",
)


def seen(model: Model) -> tuple[Inspection, str, str]:
    """What is found, the text of the page, and the table of the terminal."""
    found = inspect(model, IMAGES, samples=4)
    evaluation = evaluate(model, IMAGES)
    data = {"shape": list(model.shape), "levels": 2}
    result = result_of(evaluation, (), protocol_of(evaluation, {"name": model.name}, data))
    made = contents(inspection=found, result=result, model=model, levels=2)
    return found, "".join(Read(page.render(made, page.compose(made, 96))).text), to_terminal(result)


def without_curves(text: str) -> str:
    """Of curves it is said what they are for every kind of model."""
    return text.replace("for a variational autoencoder the ELBO", "")


def test_an_autoregressive_model_shows_where_its_bits_go() -> None:
    model = Chain()
    found, text, table = seen(model)
    assert found.bits is not None
    assert found.bits.layers.shape == (len(found.bits.images), 0, 2, 3)
    claims = model.evidence(found.bits.images).log_px.detach().numpy()
    np.testing.assert_allclose(found.bits.reconstruction.sum((1, 2)).numpy(), -claims / math.log(2), rtol=1e-6)
    black = next(i for i, image in enumerate(found.bits.images) if not image.any())
    np.testing.assert_allclose(found.bits.reconstruction[black].numpy(), math.log2(1 + math.exp(-1)), rtol=1e-6)
    assert "Where the bits go" in text
    assert "given the pixels before it" in text
    first = found.strips[0]
    assert (first.kind, first.labels[:2]) == ("completions", ("original", "given"))
    # The upper row is kept in all draws; the lower one is theirs.
    assert (first.images[:, :, :1] == first.images[:1, :, :1]).all()
    assert not first.images[1, :, 1:].any()
    assert len({tuple(image.flatten().tolist()) for image in first.images[2:]}) > 1
    assert "Completions" in text
    assert "pixels given latents" not in text
    assert "Exact log-likelihood" in text
    assert "ELBO" not in without_curves(text) + table
    assert (
        "Does not apply to this model: reconstructions, images layer by layer, interpolation, variations that keep the "
        "top layers, KL divergence and active units of layers, mutual information, the variational gap, attention over "
        "depth, attention over space.\n" in text
    )


def test_a_causal_network_shows_what_its_pixels_see() -> None:
    """That of PixelSNAIL, which also attends."""
    torch.manual_seed(0)
    model = recipes.build(recipes.load("pixelsnail_digits_tiny"), (1, 2, 3), 2)
    assert isinstance(model, PixelSNAIL)
    told: list[tuple[int, int]] = []
    found = inspect(model, IMAGES, samples=4, progress=lambda done, total: told.append((done, total)))
    assert found.receptive is not None
    assert found.receptive.maps.shape == (len(found.receptive.queries), 2, 3)
    assert [view.name for view in found.spatial_attention] == ["block 1 of 2", "block 2 of 2"]
    # A pass of the five images, samples at three temperatures and two completions, each of them told row by row.
    assert {total for _, total in told} == {5 * 6}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (30, 30)
    _, text, _ = seen(model)
    assert (
        "How strongly the prediction of the framed pixel depends on earlier pixels. It does not depend on later ones."
        in text
    )
    assert "it and later pixels are masked" in text
    leaking = replace(found.receptive, maps=torch.ones_like(found.receptive.maps))
    made = contents(inspection=replace(found, receptive=leaking), model=model, levels=2)
    text = "".join(Read(page.render(made, page.compose(made, 96))).text)
    assert "but does on 9: the numbers on this page are no probabilities" in text  # after the pixels 4, 0 and 2


def test_images_are_named_by_their_files_where_these_are_known() -> None:
    @dataclass(frozen=True, eq=False)
    class Filed(Images):
        files: tuple[str, ...] = ("a/one.png", "a/two.png", "b.png", "c.png", "d.png")
        corners: Tensor | None = None

    assert name_of(IMAGES, 3) == "test image 3"
    assert name_of(IMAGES.subset(slice(5), "folder"), 3) == "image 3"
    filed = Filed(IMAGES.pixels, 2, "toy/test")
    assert name_of(filed, 1) == "two.png"
    corners = torch.tensor([[0, 0], [32, 64], [0, 0], [0, 0], [0, 0]])
    assert name_of(replace(filed, corners=corners), 1) == "two.png, row 32, column 64"
    found = inspect(Chain(), filed, samples=2)
    assert {item.name for item in found.chosen} <= {"one.png", "two.png", "b.png", "c.png", "d.png"}


def test_an_energy_shows_where_its_chain_goes() -> None:
    @final
    class Flipping(Flat):
        """A chain that turns every pixel over at each step."""

        name: ClassVar[str] = "flipping"

        def gibbs(
            self, x: Tensor, steps: int = 1, generator: Generator | None = None, temperature: float = 1.0
        ) -> Tensor:
            return x if steps % 2 == 0 else 1 - x

    found, text, _ = seen(Normalized(Flipping(), Partition(6 * math.log(2), Kind.EXACT)))
    strip = found.strips[0]
    assert strip.labels == ("original", "1 step", *(f"{n:,} steps" for n in (2, 5, 10, 20, 100, 1000)))
    flipped = [bool((image != strip.images[0]).all()) for image in strip.images]
    assert flipped == [False, True, False, True, False, False, False, False]
    assert "Markov chains" in text


def test_a_model_without_latents_reconstructs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "load_claiming", lambda given, print_fn: (Chain(), {"name": "chain"}))
    assert main(["reconstruct", str(tmp_path)]) == 2
    assert capsys.readouterr().err == ("davi: run: chain has no latent variables, expected a model that reconstructs\n")


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_a_model_without_latents_is_neither_encoded_nor_decoded(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "load_claiming", lambda given, print_fn: (Chain(), {"name": "chain"}))
    assert main([verb, str(tmp_path)]) == 2
    assert capsys.readouterr().err == ("davi: run: chain has no latent variables, expected a model that has some\n")


def test_a_bound_of_a_model_without_latents_is_called_a_lower_bound() -> None:
    _, text, table = seen(Flowlike())
    assert "Lower bound on the log-likelihood, shown as -log p; toy/test, all 5 images. Lower is better." in text
    assert "part of the lower bound" in text
    assert "ELBO" not in without_curves(text) + table
    assert "log p(x), lower bound" in table


@pytest.mark.parametrize("kind", [Kind.EXACT, Kind.ESTIMATE])
def test_an_energy_with_its_partition_function(kind: Kind) -> None:
    _, text, _ = seen(Normalized(Flat(), Partition(6 * math.log(2), kind)))
    assert {Kind.EXACT: "Exact log-likelihood", Kind.ESTIMATE: "Estimate of the log-likelihood"}[kind] in text
    assert "4.16 ± 0.00 nats" in text  # a bit for every pixel: 6 ln 2

"""Weight files of the Very Deep VAE's authors, as they are: which configuration they are of, and whether all fits.

A file holds the tensors and nothing about the configuration. Their names and shapes tell the widths, the latent
channels, the mixture components and how many blocks there are, but not at which resolution a block stands, nor with
which mean and deviation the authors normalize the input: these must be given, by a recipe or as options.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davi.config import parse
from davi.errors import UserError
from davi.layers.pixel_head import PixelHead
from davi.model.meta import on_meta
from davi.models.very_deep_vae import Rows, VeryDeepVAE, VeryDeepVAEConfig
from davi.published.reader import Given, Imported, Known, merged, other_form
from davi.published.torch_files import fitted, load_state, weights_among
from davi.published.vdvae.names import are_names, parameter_names, to_our_layout

NORMALIZATION = ("input_mean", "input_deviation")
"""Options without which the numbers of a model would be wrong, and which no file tells."""

_EXACT = (
    "likelihood: the exact one; the authors' differs from it only for values whose probability is below 1e-5, where it "
    "takes a density"
)
_FEWER_LEVELS = (
    "likelihood: the authors' is none with fewer than 256 levels (its bins overlap); means and scales are converted to "
    "levels that are side by side, up to the influence of red on green and of both on blue, and reach their best only "
    "after a little training"
)


@dataclass(frozen=True)
class Facts:
    """What names and shapes tell."""

    width: int
    latent_channels: int
    components: int
    encoder_blocks: int
    decoder_blocks: int
    channels: int

    @classmethod
    def of(cls, weights: Mapping[str, Any]) -> Facts:
        """Read the names and shapes.

        Raises:
            UserError: if what every Very Deep VAE has is missing.
        """

        def shape(name: str) -> torch.Size:
            x = weights.get(name)
            if not isinstance(x, Tensor) or x.ndim != 4:
                raise UserError(f"weights: {name} is missing or no kernel; expected the state dictionary of a VDVAE")
            return x.shape

        stem, output = shape("encoder.in_conv.weight"), shape("decoder.out_net.out_conv.weight")
        latents = shape("decoder.dec_blocks.0.z_proj.weight")
        if output[0] % 10:
            raise UserError(f"weights: decoder.out_net.out_conv.weight has {output[0]} rows, expected 10 per component")
        encoder, decoder = (_count(weights, part) for part in ("encoder.enc_blocks", "decoder.dec_blocks"))
        return cls(stem[0], latents[1], output[0] // 10, encoder, decoder, stem[1])

    @property
    def options(self) -> dict[str, Any]:
        """Those of the ``model`` section that follow."""
        likelihood = {"components": self.components}
        return {"width": self.width, "latent_channels": self.latent_channels, "likelihood": likelihood}

    def __str__(self) -> str:
        return (
            f"{self.encoder_blocks} and {self.decoder_blocks} blocks, width {self.width}, "
            f"{self.latent_channels} latent channels, {self.components} mixture components"
        )

    def contradiction(self, config: VeryDeepVAEConfig) -> str | None:
        """The first option that the file has otherwise, or nothing."""
        rows = Rows(config)
        for name, count, row in (
            ("encoder", self.encoder_blocks, rows.encoder),
            ("decoder", self.decoder_blocks, rows.decoder),
        ):
            if count != len(row):
                return f"model.{name}: got {len(row)} blocks, expected {count} as in the file"
        for name, given, found in (
            ("width", config.width, self.width),
            ("latent_channels", config.latent_channels, self.latent_channels),
            ("likelihood.components", config.likelihood.components, self.components),
        ):
            if given != found:
                return f"model.{name}: got {given}, expected {found} as in the file"
        return None


def _count(weights: Mapping[str, Any], part: str) -> int:
    """Blocks of a row: one more than the highest number."""
    pattern = re.compile(re.escape(part) + r"\.(\d{1,6})\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, weights) if match), default=-1)


def import_vdvae(path: Path, given: Given) -> Imported:
    """A weight file as everything a run needs.

    Arguments:
        path: ``*-model.th``, ``*-model-ema.th`` or any state dictionary with the authors' names that ``torch.save``
            wrote, by itself or inside a dictionary.
        given: the recipe's options, or the recipes among which the one that fits is to be found.

    Raises:
        UserError: one line that begins with the path, if it is no such file, fits no configuration, or if what it does
            not tell is not given.
    """
    loaded = load_state(path)
    try:
        weights, place = weights_among(loaded, are_names)
        facts = Facts.of(weights)
        source = chosen(facts, weights, given)
        options = merged(source.options, given.options)
        _check_normalization(options)
        config = parse(VeryDeepVAEConfig, options, "model")
        if (reason := facts.contradiction(config)) is not None:
            raise UserError(reason)
        notes = [f"weights: those under {place!r}"] if place else []
        return _fitted(weights, source, config, notes)
    except UserError as error:
        raise UserError(f"{path}: {error}", error.details) from None


def _check_normalization(options: Mapping[str, Any]) -> None:
    """Refuse to guess what the network's input is normalized with: wrong numbers would only look like a bad model."""
    for name in NORMALIZATION:
        value = options.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value <= 1:
            raise UserError(f"model.{name}: got {value}, expected 0 to 1: pixels count from 0 to 1 here, not to 255")
    if missing := [f"--model.{name}" for name in NORMALIZATION if name not in options]:
        raise UserError(
            f"{' and '.join(missing)}: not given, expected mean and deviation of the pixels from 0 to 1 with which the "
            "authors' program normalized its input, which the file does not tell (theirs for CIFAR-10: "
            "120.63838 / 255 = 0.47309169 and 64.16736 / 255 = 0.25163671)"
        )


def chosen(facts: Facts, weights: Mapping[str, Any], given: Given) -> Known:
    """The recipe whose options the file has: the user's, or one of those that come with the program.

    Raises:
        UserError: if none fits, or several do.
    """
    if {"encoder", "decoder"} <= set(given.options):
        config = parse(VeryDeepVAEConfig, merged(facts.options, given.options), "model")
        size = Rows(config).finest
        shape, (asked, levels) = (facts.channels, size, size), given.geometry or (None, 256)
        return Known("", facts.options, (shape, levels if asked == shape else 256), {})
    known = list(given.known())
    fitting = [one for one in known if _fits(facts, weights, one)]
    if len(fitting) == 1:
        return fitting[0]
    which, names = ("several", fitting) if fitting else ("none", known)
    raise UserError(
        f"has {facts}, which fits {which} of {', '.join(one.name for one in names)}; give --recipe with the rows of "
        "blocks, or --model.encoder and --model.decoder"
    )


def _fits(facts: Facts, weights: Mapping[str, Any], known: Known) -> bool:
    """Whether a file has the names and shapes of a recipe's model."""
    config = parse(VeryDeepVAEConfig, known.options, known.name)
    if facts.contradiction(config) is not None:
        return False
    with on_meta():
        model = VeryDeepVAE(*known.geometry, config)
    shapes = {name: model.get_parameter(key).shape for name, key in parameter_names(model).items()}
    return shapes == {name: x.shape for name, x in weights.items() if isinstance(x, Tensor)}


def _fitted(weights: Mapping[str, Any], source: Known, config: VeryDeepVAEConfig, notes: Sequence[str]) -> Imported:
    shape, levels = source.geometry
    with on_meta():
        try:
            model = VeryDeepVAE(shape, levels, config)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise UserError(f"no model has these options ({' '.join(str(error).split())[:200]})") from error
    if not model.pixel_head.autoregressive:
        family = config.likelihood.family
        raise UserError(f"model.likelihood.family: got {family} for {shape[0]} channels, expected the authors'")
    state = to_our_layout(fitted(model.state_dict(), weights, parameter_names(model)), model.pixel_head)
    assumed = (
        f"not in the file, and taken from {source.name or 'the options given'}: at which resolution each block stands, "
        f"and the normalization of the input, mean {config.input_mean:g} and deviation {config.input_deviation:g}"
    )
    if levels != 256:
        state |= to_fewer_levels(state, model.pixel_head, levels)
    likelihood = [_EXACT if levels == 256 else _FEWER_LEVELS]
    if config.likelihood.form != "exact":
        likelihood = [*likelihood[levels == 256 :], other_form(config.likelihood.form)]
    return Imported(shape, levels, config, state, (*notes, assumed, *likelihood), source.data)


def to_fewer_levels(state: Mapping[str, Tensor], head: PixelHead, levels: int) -> dict[str, Tensor]:
    """The last convolution for levels side by side from -1 to 1.

    The authors put level v of n at (256 v / n - 127.5) / 127.5, so that the highest is not at 1. With
    rho = 256 (n - 1) / (255 n) their point x is (x + 1) / rho - 1 here.
    """
    rho = 256.0 * (levels - 1) / (255.0 * levels)
    k, c = head.likelihood.components, head.channels
    weight, bias = state["output.weight"].clone(), state["output.bias"].clone()
    means, log_scales = slice(k, k + k * c), slice(k + k * c, k + 2 * k * c)
    weight[means] /= rho
    bias[means] = (bias[means] + 1.0) / rho - 1.0
    bias[log_scales] -= math.log(rho)
    return {"output.weight": weight, "output.bias": bias}

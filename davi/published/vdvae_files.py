"""Weight files of the Very Deep VAE's authors, as they are: which configuration they are of, and whether all fits.

A file holds the tensors and nothing about the configuration. Their names and shapes tell the widths, the latent
channels, the mixture components and how many blocks there are, but not at which resolution a block stands: that must
come from a recipe.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davi.config import parse
from davi.errors import UserError
from davi.layers.pixel_head import PixelHead
from davi.models.very_deep_vae import Rows, VeryDeepVAE, VeryDeepVAEConfig
from davi.published.imported import Given, Imported, Known
from davi.published.torch_files import fitted, load_state
from davi.published.vdvae import parameter_names, to_our_layout, without_prefix

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
    """What names and shapes tell: each by the name of the option, and how many blocks there are."""

    options: dict[str, Any]
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
        options = {"width": stem[0], "latent_channels": latents[1], "mixture_components": output[0] // 10}
        encoder, decoder = (_count(weights, part) for part in ("encoder.enc_blocks", "decoder.dec_blocks"))
        return cls(options, encoder, decoder, stem[1])

    def __str__(self) -> str:
        blocks = f"{self.encoder_blocks} and {self.decoder_blocks} blocks"
        return ", ".join([blocks, *(f"{name} {value}" for name, value in self.options.items())])

    def contradiction(self, config: VeryDeepVAEConfig) -> str | None:
        """The first option that the file has otherwise, or nothing."""
        rows = Rows(config)
        for name, count, row in (
            ("encoder", self.encoder_blocks, rows.encoder),
            ("decoder", self.decoder_blocks, rows.decoder),
        ):
            if count != len(row):
                return f"model.{name}: got {len(row)} blocks, expected {count} as in the file"
        for name, value in self.options.items():
            if getattr(config, name) != value:
                return f"model.{name}: got {getattr(config, name)}, expected {value} as in the file"
        return None


def _count(weights: Mapping[str, Any], part: str) -> int:
    """Blocks of a row: one more than the highest number."""
    pattern = re.compile(re.escape(part) + r"\.(\d{1,6})\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, weights) if match), default=-1)


def import_vdvae(path: Path, given: Given) -> Imported:
    """A weight file as everything a run needs.

    Arguments:
        path: ``*-model.th``, ``*-model-ema.th`` or any state dictionary with the authors' names that ``torch.save``
            wrote.
        given: the recipe's options, or the recipes among which the one that fits is to be found.

    Raises:
        UserError: one line that begins with the path, if it is no such file or fits no configuration.
    """
    loaded = load_state(path)
    try:
        if not isinstance(loaded, Mapping):
            raise UserError(f"holds {type(loaded).__name__}, expected a state dictionary")
        weights = without_prefix(loaded)
        facts = Facts.of(weights)
        found = chosen(facts, given)
        config = parse(VeryDeepVAEConfig, {**found.options, **given.options}, "model")
        if (reason := facts.contradiction(config)) is not None:
            raise UserError(reason)
        shape, levels = found.geometry
        return _fitted(weights, shape, levels, config, found)
    except UserError as error:
        raise UserError(f"{path}: {error}", error.details) from None


def chosen(facts: Facts, given: Given) -> Known:
    """The recipe whose options the file has: the user's, or one of those that come with the program.

    Raises:
        UserError: if none fits.
    """
    if {"encoder", "decoder"} <= set(given.options):
        config = parse(VeryDeepVAEConfig, {**facts.options, **given.options}, "model")
        size = Rows(config).finest
        return Known("", facts.options, given.geometry or ((facts.channels, size, size), 256), {})
    names = []
    for known in given.known():
        names.append(known.name)
        if facts.contradiction(parse(VeryDeepVAEConfig, known.options, known.name)) is None:
            return known
    raise UserError(f"has {facts}, which fits none of {', '.join(names)}; give --recipe with the rows of blocks")


def _fitted(
    weights: Mapping[str, Any], shape: tuple[int, int, int], levels: int, config: VeryDeepVAEConfig, source: Known
) -> Imported:
    with torch.device("meta"):
        try:
            model = VeryDeepVAE(shape, levels, config)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise UserError(f"no model has these options ({' '.join(str(error).split())[:200]})") from error
    if not model.head.autoregressive:
        raise UserError(f"model.likelihood: got {config.likelihood} for {shape[0]} channels, expected the authors'")
    state = to_our_layout(fitted(model.state_dict(), weights, parameter_names(model)), model.head)
    notes = [f"{source.name}: its options fit the file" if source.name else "the recipe's options fit the file"]
    if levels != 256:
        state |= to_fewer_levels(state, model.head, levels)
    notes.append(_EXACT if levels == 256 else _FEWER_LEVELS)
    return Imported(shape, levels, config, state, tuple(notes), source.data)


def to_fewer_levels(state: Mapping[str, Tensor], head: PixelHead, levels: int) -> dict[str, Tensor]:
    """The last convolution for levels side by side from -1 to 1.

    The authors put level v of n at (256 v / n - 127.5) / 127.5, so that the highest is not at 1. With
    rho = 256 (n - 1) / (255 n) their point x is (x + 1) / rho - 1 here.
    """
    rho = 256.0 * (levels - 1) / (255.0 * levels)
    k, c = head.components, head.channels
    weight, bias = state["output.weight"].clone(), state["output.bias"].clone()
    means, log_scales = slice(k, k + k * c), slice(k + k * c, k + 2 * k * c)
    weight[means] /= rho
    bias[means] = (bias[means] + 1.0) / rho - 1.0
    bias[log_scales] -= math.log(rho)
    return {"output.weight": weight, "output.bias": bias}

"""Configurations and weights of the authors' implementation of the Very Deep VAE, in ours.

The authors' code (PyTorch, github.com/openai/vdvae) is configured by one flat set of hyperparameters. This module
translates it into :class:`VeryDeepVAEConfig`, the names of our parameters into theirs
(``decoder.dec_blocks.3.prior.c1.weight``), and the order of the likelihood's parameters.

References:
    Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, R. Child, ICLR 2021,
    https://arxiv.org/abs/2011.10650
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from davi.errors import UserError
from davi.layers.pixel_head import Form, LikelihoodConfig, PixelHead
from davi.models.very_deep_vae import VeryDeepVAE, VeryDeepVAEConfig, parse_blocks, parse_widths

# Our parameter names turned into theirs, in this order.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^stem\.", "encoder.in_conv."),
    (r"^encoder\.(\d+)\.body\.", r"encoder.enc_blocks.\1."),
    (r"^decoder\.(\d+)\.posterior\.", r"decoder.dec_blocks.\1.enc."),
    (r"^decoder\.(\d+)\.prior\.", r"decoder.dec_blocks.\1.prior."),
    (r"^decoder\.(\d+)\.project\.", r"decoder.dec_blocks.\1.z_proj."),
    (r"^decoder\.(\d+)\.residual\.body\.", r"decoder.dec_blocks.\1.resnet."),
    (r"^start\.", "decoder.bias_xs."),
    (r"^(gain|bias)$", r"decoder.\1"),
    (r"^output\.", "decoder.out_net.out_conv."),
)


def official_name(key: str) -> str:
    """The authors' name of one of our parameters."""
    for pattern, replacement in _RULES:
        name, found = re.subn(pattern, replacement, key)
        if found:
            return name
    return key


def are_names(names: Iterable[str]) -> bool:
    """Whether these seem to be the names of weights of the authors' Very Deep VAE."""
    return any(name.startswith(("encoder.enc_blocks.", "decoder.dec_blocks.")) for name in names)


def parameter_names(model: VeryDeepVAE) -> dict[str, str]:
    """The authors' name -> our name, for every parameter."""
    return {official_name(key): key for key in model.state_dict()}


def head_order(head: PixelHead) -> list[int]:
    """Where each of our likelihood parameters stands among theirs.

    Theirs, for K components of three channels: K logits, then for each channel K means, K log-scales, K coefficients.
    """
    k, c = head.likelihood.components, head.channels

    def at(channel: int, kind: int, component: int) -> int:
        return k + (channel * 3 + kind) * k + component

    return [*range(k), *(at(channel, kind, j) for kind in range(3) for j in range(k) for channel in range(c))]


def to_our_layout(state: Mapping[str, Tensor], head: PixelHead) -> dict[str, Tensor]:
    """Weights by our names, with the rows of the last convolution in our order."""
    order = head_order(head)
    return {name: x[order] if name.startswith("output.") else x for name, x in state.items()}


def configuration(
    options: Mapping[str, Any], mean: float, deviation: float, form: Form = "exact"
) -> tuple[tuple[int, int, int], VeryDeepVAEConfig]:
    """Shape (C, H, W) and options of our model for the authors' hyperparameters.

    Arguments:
        options: theirs, by their names (``enc_blocks``, ``zdim``, ...).
        mean, deviation: what the network's input is normalized with, for pixels from 0 to 1.
        form: form of the discretized logistics; ``"openai"`` is theirs.

    Raises:
        UserError: if one is missing or has no meaning here.
    """
    try:
        size, channels = int(options["image_size"]), int(options["image_channels"])
        encoder, decoder = str(options["enc_blocks"]), str(options["dec_blocks"])
        used = {entry.resolution for entry in parse_blocks("enc_blocks", encoder, "xd")}
        used |= {entry.resolution for entry in parse_blocks("dec_blocks", decoder, "xm")}
        custom = parse_widths("custom_width_str", options.get("custom_width_str") or "")
        config = VeryDeepVAEConfig(
            encoder=encoder,
            decoder=decoder,
            width=int(options["width"]),
            custom_widths=",".join(f"{r}:{width}" for r, width in custom.items() if r in used),
            latent_channels=int(options["zdim"]),
            bottleneck=float(options["bottleneck_multiple"]),
            bias_up_to=int(options["no_bias_above"]),
            input_mean=mean,
            input_deviation=deviation,
            likelihood=LikelihoodConfig("logistic_mixture", int(options["num_mixtures"]), form),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"configuration: {reason}; expected the authors' hyperparameters") from error
    if channels != 3:
        raise UserError(f"configuration: image_channels is {channels}, expected 3, as in the authors' likelihood")
    if int(re.match(r"\d+", encoder.strip())[0]) != size:  # type: ignore[index]  # it has been parsed
        raise UserError(f"configuration: image_size is {size}, expected that at which enc_blocks begin, {encoder!r}")
    return (channels, size, size), config

"""Weights of the authors' own implementation of the Deep Attentive VAE, in ours.

The authors' code (TensorFlow, github.com/ifiaposto/Deep_Attentive_VI) is configured by groups of hyperparameters and
holds its weights channels-last. This module translates a configuration into :class:`AttentiveVAEConfig`, a parameter's
name into the structured name used for theirs (``variational_layers/3/prior/conv/v``), and a tensor into our layout.

References:
    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from davi.errors import UserError
from davi.layers.depth_attention import DepthWiseAttention
from davi.layers.pixel_head import Form, LikelihoodConfig, PixelHead
from davi.layers.raw_normal import GaussianOptions
from davi.models.attentive_vae import (
    AttentiveVAE,
    AttentiveVAEConfig,
    SpatialAttention,
)

# Options of the authors' code that no released configuration uses and this library does not have.
_FIXED: dict[str, Any] = {
    "layer_type": ("resnet", "conv2d_sum", "concat_conv2d"),
    "node_type": ("conv2d",),
    "activation": ("swish",),
    "use_batch_norm": (True,),
    "use_weight_norm": (True,),
    "use_bias": (True,),
    "stem_kernel_size": (3,),
    "bn_momentum": (0.9,),
}
_FIXED_NONLOCAL: dict[str, Any] = {
    "alignment_function": ("softmax",),
    "use_scale": (True,),
    "use_layer_norm": (False,),
    "subsample": (False,),
    "num_heads": (1,),
}
_PARTS = ("preproc_encoder", "encoder", "decoder", "postproc_decoder", "merge_encoder", "merge_decoder")


def configuration(
    config: Mapping[str, Any], image: Mapping[str, Any], form: Form = "exact"
) -> tuple[tuple[int, int, int], int, AttentiveVAEConfig]:
    """Shape (C, H, W), levels and options of our model for one of theirs.

    Arguments:
        config: their hyperparameter groups (``hparams``, ``encoder_hparams``, ...).
        image: ``shape`` [H, W, C] before padding, ``pad_size``, ``binary``, ``high``.
        form: form of the discretized logistics; ``"attentive"`` is theirs.

    Raises:
        UserError: if a group is missing or an option has a value this library does not have.
    """
    try:
        parts = {part: config[f"{part}_hparams"] for part in _PARTS}
        for part, options in parts.items():
            _check_part(part, options)
        main = config["hparams"]
        _expect("num_proc_blocks", main["num_proc_blocks"], (1,))
        _expect("residual_var_layer", main["residual_var_layer"], (True,))
        _expect("data_distribution", main["data_distribution"], ("bernoulli", "discretized_logistic_mixture"))
        height, width, channels = image["shape"]
        bernoulli = main["data_distribution"] == "bernoulli"
        options = AttentiveVAEConfig(
            layers=(int(main["num_layers"]),),
            latent_channels=int(main["layer_latent_shape"][-1]),
            width=int(_common(parts, "num_filters")),
            preprocess=tuple(parts["preproc_encoder"]["scale"]),
            postprocess=tuple(parts["postproc_decoder"]["scale"]),
            encoder_blocks=len(parts["encoder"]["scale"]),
            decoder_blocks=len(parts["decoder"]["scale"]),
            nodes=int(_common(parts, "num_nodes")),
            squeeze_excite=bool(_common(parts, "use_se")),
            pad=int(image["pad_size"]),
            spatial_attention=SpatialAttention(
                preprocess=_nonlocal_keys(parts["preproc_encoder"]),
                encoder=_nonlocal_keys(parts["encoder"]),
                decoder=_nonlocal_keys(parts["decoder"]),
                postprocess=_nonlocal_keys(parts["postproc_decoder"]),
                inference_merge=_nonlocal_keys(parts["merge_encoder"]),
                generative_merge=_nonlocal_keys(parts["merge_decoder"]),
            ),
            generative_attention=_depth_attention(config["decoder_attention_hparams"]),
            inference_attention=_depth_attention(config["encoder_attention_hparams"]),
            prior_bounds=_gaussian(config["prior_hparams"]),
            posterior_bounds=_gaussian(config["posterior_hparams"]),
            likelihood=LikelihoodConfig("bernoulli", 1)
            if bernoulli
            else LikelihoodConfig("logistic_mixture", int(config["data_dist_hparams"]["num_logistic_mix"]), form),
        )
    except UserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"configuration: {error!r}, expected the authors' hyperparameter groups") from error
    return (int(channels), int(height), int(width)), 2 if bernoulli else int(image["high"]) + 1, options


def _expect(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise UserError(f"configuration: {name} is {value!r}, expected {' or '.join(map(repr, allowed))}")


def _check_part(part: str, options: Mapping[str, Any]) -> None:
    for name, allowed in _FIXED.items():
        if name in options:
            _expect(f"{part}.{name}", options[name], allowed)
    _expect(f"{part}.kernel_size", options["kernel_size"], (1,) if part.startswith("merge") else (3,))
    if part in ("encoder", "decoder"):
        _expect(f"{part}.scale", sorted(set(options["scale"])), ([0],))
    if "use_stem" in options:
        _expect(f"{part}.use_stem", options["use_stem"], (part == "preproc_encoder",))
    if options["use_nonlocal"]:
        nonlocal_options = options["nonlocop_hparams"]
        for name, allowed in _FIXED_NONLOCAL.items():
            _expect(f"{part}.nonlocop_hparams.{name}", nonlocal_options[name], allowed)


def _common(parts: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    values = {part: parts[part][name] for part in _PARTS[:4]}
    if len(set(values.values())) > 1:
        raise UserError(f"configuration: {name} is {values}, expected the same value in every part")
    return values["encoder"]


def _nonlocal_keys(options: Mapping[str, Any]) -> int:
    if not options["use_nonlocal"]:
        return 0
    keys = options["nonlocop_hparams"]
    _expect("nonlocop_hparams.query_dim", keys["query_dim"], (keys["key_dim"],))
    return int(keys["key_dim"])


def _depth_attention(options: Mapping[str, Any] | None) -> DepthWiseAttention:
    if not options:
        return DepthWiseAttention(0)
    _expect("query_dim", options["query_dim"], (options["key_dim"],))
    _expect("alignment_function", options["alignment_function"], ("softmax",))
    return DepthWiseAttention(int(options["key_dim"]), bool(options["use_layer_norm"]))


def _gaussian(options: Mapping[str, Any]) -> GaussianOptions:
    noise = max(0.0, float(options["noise_stddev"]))  # -1 stands for none
    return GaussianOptions(float(options["log_scale_low_bound"]), float(options["log_scale_upper_bound"]), noise)


# Our parameter names turned into theirs, in this order. Layer i > 0 is ``generative.{i - 1}`` here.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^preprocess\.", "preproc/"),
    (r"^postprocess\.", "postproc/"),
    (r"^output\.", "data_head/conv/"),
    (r"^merge\.", "final_merge/"),
    (r"^top\.constant$", "variational_layers/0/decoder_constant"),
    (r"^encoder\.(\d+)\.", r"encoder_layers/\1/"),
    (r"^generative/(\d+)/norm_stack\.", r"context_stack_norm/\1/"),
    (r"^generative/(\d+)/", r"variational_layers/\1/"),
    (r"^inference\.(\d+)\.attention\.scale$", r"variational_layers/\1/encoder_attention_scale"),
    (r"^inference\.(\d+)\.gate$", r"variational_layers/\1/encoder_gate"),
    (r"^inference\.(\d+)\.norm_", r"variational_layers/\1/ln_encoder_"),
    (r"^inference\.(\d+)\.from_feature\.", r"variational_layers/\1/merge_encoder/conv_a/"),
    (r"^inference\.(\d+)\.from_context\.", r"variational_layers/\1/merge_encoder/conv_b/"),
    (r"^inference\.(\d+)\.merge_attention\.", r"variational_layers/\1/merge_encoder/nonlocal/"),
    (r"^inference\.0\.hidden\.", "variational_layers/0/posterior/conv0/"),
    (r"^inference\.0\.head\.", "variational_layers/0/posterior/conv1/"),
    (r"^inference\.(\d+)\.head\.", r"variational_layers/\1/posterior/conv/"),
    (r"(variational_layers/\d+)/attention\.scale$", r"\1/decoder_attention_scale"),
    (r"(variational_layers/\d+)/gate$", r"\1/decoder_gate"),
    (r"(variational_layers/\d+)/norm_", r"\1/ln_"),
    (r"(variational_layers/\d+)/merge\.", r"\1/merge_decoder/"),
    (r"(variational_layers/\d+)/cell\.", r"\1/decoder/"),
    (r"(variational_layers/\d+)/prior\.", r"\1/prior/conv/"),
    (r"blocks\.(\d+)\.", r"block\1/"),
    (r"nodes\.(\d+)\.", r"node\1/"),
    (r"bn\.weight$", "bn/gamma"),
    (r"bn\.bias$", "bn/beta"),
    (r"bn\.running_mean$", "bn/moving_mean"),
    (r"bn\.running_var$", "bn/moving_variance"),
    (r"attention\.", "nonlocal/"),
    (r"shortcut\.convs\.0\.", "shortcut/conv_1/"),
    (r"shortcut\.convs\.1\.", "shortcut/conv_2/"),
    (r"shortcut\.convs\.2\.", "shortcut/conv_3/"),
    (r"shortcut\.convs\.3\.", "shortcut/conv_4/"),
    (r"\.", "/"),
)


def structured_name(key: str) -> str:
    """The authors' structured name of one of our parameters or buffers."""
    name = re.sub(r"^generative\.(\d+)\.", lambda match: f"generative/{int(match[1]) + 1}/", key)
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def parameter_names(model: AttentiveVAE) -> dict[str, str]:
    """Structured name -> our name, for everything the authors' model has. (PyTorch's batch counters are ours alone.)"""
    return {structured_name(key): key for key in model.state_dict() if not key.endswith("num_batches_tracked")}


def head_order(head: PixelHead) -> list[int]:
    """Where each of our likelihood parameters stands among theirs.

    Theirs, for K components of three channels: K logits, then K blocks of 9. Slots 0 to 2 of block k are the
    coefficients of component k. The other slots of all blocks, read as one list u, hold the mean of channel c in
    component j at u[2 K c + j] and its log-scale at u[2 K c + K + j].
    """
    if head.likelihood.family != "logistic_mixture" or not head.autoregressive:
        return list(range(head.inputs))
    k, c = head.likelihood.components, head.channels
    slot = [k + 9 * (m // 6) + 3 + m % 6 for m in range(6 * k)]  # channel that holds u[m]
    means = [slot[2 * k * channel + j] for j in range(k) for channel in range(c)]
    log_scales = [slot[2 * k * channel + k + j] for j in range(k) for channel in range(c)]
    coefficients = [k + 9 * j + i for j in range(k) for i in range(3)]
    return [*range(k), *means, *log_scales, *coefficients]


def state_dict(model: AttentiveVAE, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights as a complete state dictionary of ``model``: everything is checked before anything is used.

    Arguments:
        model: built with the matching configuration; on the meta device it costs nothing.
        weights: structured name -> tensor in their layout. The scales of the depth attentions may be missing: the
            authors' files do not contain them, they are 1.

    Raises:
        UserError: naming the first missing, unexpected, wrongly shaped or non-finite weight.
    """
    names, expected = parameter_names(model), model.state_dict()
    unexpected = sorted(set(weights) - set(names))
    if unexpected:
        raise UserError(f"weights: unexpected {unexpected[0]} ({len(unexpected)} such), the model has no such weight")
    converted = {key: torch.zeros((), dtype=torch.long) for key in expected if key.endswith("num_batches_tracked")}
    for name, key in names.items():
        if name not in weights and name.endswith(("decoder_attention_scale", "encoder_attention_scale")):
            converted[key] = torch.ones(())
            continue
        if name not in weights:
            raise UserError(f"weights: {name} is missing")
        if weights[name].dtype != torch.float32:
            raise UserError(f"weights: {name} is {weights[name].dtype}, expected torch.float32")
        tensor = _to_our_layout(name, weights[name], model)
        if tensor.shape != expected[key].shape:
            raise UserError(
                f"weights: {name} has shape {list(weights[name].shape)}, which gives {list(tensor.shape)} here; "
                f"expected {list(expected[key].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"weights: {name} holds values that are not finite")
        converted[key] = tensor
    return converted


def _to_our_layout(name: str, tensor: Tensor, model: AttentiveVAE) -> Tensor:
    if name.endswith("/v") and tensor.ndim == 4:
        tensor = tensor.permute(3, 2, 0, 1)  # [kh, kw, in, out] -> [out, in, kh, kw]
    elif name.endswith("decoder_constant") and tensor.ndim == 4:
        tensor = tensor.permute(0, 3, 1, 2)  # [1, h, w, C] -> [1, C, h, w]
    if name.startswith("data_head/conv/") and tensor.shape[0] == model.head.inputs:
        tensor = tensor[head_order(model.pixel_head)]
    return tensor.contiguous()

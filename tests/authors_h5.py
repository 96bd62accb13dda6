"""A Keras weight file as the authors' program writes it, for a small model.

The order of its weights is written out by hand from the description of the authors' files, so that it can judge the
order that the package derives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from davi.errors import UserError
from davi.layers import LikelihoodConfig
from davi.models.attentive_vae import (
    AttentiveVAE,
    AttentiveVAEConfig,
    DepthWiseAttention,
    GaussianOptions,
    SpatialAttention,
)
from davi.published.attentive.files import import_h5
from davi.published.attentive.names import head_order, parameter_names

SMALL = AttentiveVAEConfig(
    layers=(3,),
    latent_channels=2,
    width=4,
    encoder_blocks=1,
    decoder_blocks=1,
    nodes=1,
    pad=0,
    spatial_attention=SpatialAttention(encoder=2, postprocess=3, inference_merge=2),
    generative_attention=DepthWiseAttention(3),
    inference_attention=DepthWiseAttention(2),
    prior_bounds=GaussianOptions(-1.0, 5.0, 0.001),
    posterior_bounds=GaussianOptions(-5.0, 5.0, 0.001),
    likelihood=LikelihoodConfig("logistic_mixture", 2),
)
SMALL_SHAPE = (3, 8, 6)

# By hand. c: convolution, u: convolution without bias, n: gain and offset of a normalization, s: non-local block,
# t: the same without biases, =: a single weight; behind the bar f: flag of a convolution, m: moving statistics.
_LOWER = """=:variational_layers/{i}/decoder_gate =:variational_layers/{i}/encoder_gate
    c:encoder_layers/{i}/block0/node0/conv n:encoder_layers/{i}/block0/node0/bn
    s:encoder_layers/{i}/block0/node0/nonlocal c:variational_layers/{i}/decoder/block0/node0/conv
    n:variational_layers/{i}/decoder/block0/node0/bn
    c:variational_layers/{i}/merge_decoder/conv c:variational_layers/{i}/merge_encoder/conv_b
    c:variational_layers/{i}/merge_encoder/conv_a s:variational_layers/{i}/merge_encoder/nonlocal
    c:variational_layers/{i}/posterior/conv c:variational_layers/{i}/prior/conv n:variational_layers/{i}/ln_last_value
    n:variational_layers/{i}/ln_attended n:variational_layers/{i}/ln_context n:variational_layers/{i}/ln_encoder_local
    n:variational_layers/{i}/ln_encoder_attended
    | f m:encoder_layers/{i}/block0/node0/bn f f f f m:variational_layers/{i}/decoder/block0/node0/bn f f f f f f f f"""
BY_HAND: dict[str, str] = {
    "concat_conv2d_7": "c:final_merge/conv | f",
    "data_layer": """u:postproc/block0/shortcut/conv t:postproc/block0/shortcut/nonlocal
        c:postproc/block0/node0/conv n:postproc/block0/node0/bn s:postproc/block0/node0/nonlocal
        c:postproc/block1/node0/conv n:postproc/block1/node0/bn s:postproc/block1/node0/nonlocal c:data_head/conv
        | f f f f f m:postproc/block0/node0/bn f f f f m:postproc/block1/node0/bn f f f f""",
    "res_net_3": """c:preproc/block0/node0/conv n:preproc/block0/node0/bn c:preproc/block1/shortcut/conv_1
        c:preproc/block1/shortcut/conv_2 c:preproc/block1/shortcut/conv_3 c:preproc/block1/shortcut/conv_4
        c:preproc/block1/node0/conv n:preproc/block1/node0/bn c:preproc/stem
        | f m:preproc/block0/node0/bn f f f f f m:preproc/block1/node0/bn f""",
    "variational_layer": """=:variational_layers/0/encoder_gate c:encoder_layers/0/block0/node0/conv
        n:encoder_layers/0/block0/node0/bn s:encoder_layers/0/block0/node0/nonlocal
        =:variational_layers/0/decoder_constant c:variational_layers/0/posterior/conv0
        c:variational_layers/0/posterior/conv1 n:variational_layers/0/ln_encoder_local
        n:variational_layers/0/ln_encoder_attended | f m:encoder_layers/0/block0/node0/bn f f f f f""",
    "variational_layer_1": _LOWER.format(i=1),
    "variational_layer_2": _LOWER.format(i=2),
    "layer_normalization_4": "|",
    "layer_normalization_9": "|",
    "layer_normalization_14": "n:context_stack_norm/2 |",
}
_CONV, _NORM = ("v", "log_g", "bias"), ("gamma", "beta")
_PARTS: dict[str, tuple[str, ...]] = {
    "c": _CONV,
    "u": _CONV[:2],
    "n": _NORM,
    "s": ("gamma", *(f"{conv}/{part}" for conv in ("query", "key", "value") for part in _CONV), "scale"),
    "t": ("gamma", *(f"{conv}/{part}" for conv in ("query", "key", "value") for part in _CONV[:2]), "scale"),
    "m": ("moving_mean", "moving_variance"),
}
_LEAF = {
    "v": "kernel",
    "log_g": "g",
    "decoder_gate": "gamma",
    "encoder_gate": "enc_gamma",
    "decoder_constant": "constant",
}


def by_hand(text: str) -> list[str | None]:
    """The structured names that a text of ``BY_HAND`` stands for; None: a flag."""
    names: list[str | None] = []
    for token in text.replace("|", "").split():
        kind, _, path = token.partition(":")
        if kind in "f=":
            names.append(path or None)
        else:
            names += [f"{path}/{part}" for part in _PARTS[kind]]
    return names


def small(seed: int = 3) -> AttentiveVAE:
    """A small model with all kinds of parts, every weight drawn at random."""
    model = AttentiveVAE(SMALL_SHAPE, 256, SMALL)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in model.state_dict().items():
            if not name.endswith(("num_batches_tracked", "attention.scale")) or "nodes" in name:
                x.copy_(torch.rand(x.shape, generator=generator).add(0.5) if x.is_floating_point() else x)
    for module in (*model.generative, *model.inference):
        module.attention.scale.data.fill_(1.0)  # not in the files
    return model.eval()


def their_layout(model: AttentiveVAE, name: str, x: Tensor) -> np.ndarray:
    """One of our tensors as the authors keep it."""
    if name.startswith("data_head/conv/"):
        order = head_order(model.head)
        x = x[[order.index(i) for i in range(len(order))]]
    if name.endswith("/v"):
        x = x.permute(2, 3, 1, 0)
    elif name.endswith("/decoder_constant"):
        x = x.permute(0, 2, 3, 1)
    return x.numpy()


def write(path: Path, model: AttentiveVAE, order: dict[str, list[str | None]]) -> Path:
    """A file as Keras writes it, with names whose counters mean nothing."""
    names, state = parameter_names(model), model.state_dict()
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = b"tensorflow"
        file.attrs["layer_names"] = np.array([group.encode() for group in order])
        for group, members in order.items():
            handle, listed = file.create_group(group), []
            for i, name in enumerate(members):
                last = "initialized" if name is None else name.rpartition("/")[2]
                listed.append(f"deep_vae/thing_{97 - i % 7}/part_{i}/{_LEAF.get(last, last)}:0")
                handle[listed[-1]] = True if name is None else their_layout(model, name, state[names[name]])
            handle.attrs["weight_names"] = np.array([name.encode() for name in listed])
    return path


def write_small(path: Path) -> Path:
    """The file of the small model."""
    return write(path, small(), {group: by_hand(text) for group, text in BY_HAND.items()})


def refused(path: Path, message: str, overrides: dict[str, Any] | None = None) -> None:
    """The file is refused in one line that begins with its path and contains the message."""
    with pytest.raises(UserError) as caught:
        import_h5(path, overrides)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()  # so it is one line, and no hostile name can play with the terminal
    assert message in text

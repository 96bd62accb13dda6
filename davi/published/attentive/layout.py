"""The order of the weights in the authors' Keras files, derived from the structure of our model.

A file has one group per top-level layer of theirs. In a group come first all trainable weights, then all others, each
in the order in which the authors' classes hold their parts. A convolution keeps direction, log-length, bias, and a flag
that means nothing to us.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import Tensor

from davi.errors import UserError
from davi.layers import ChannelLayerNorm, ResidualBlock, ResidualCell
from davi.layers.convolution import WeightNormConv2d
from davi.layers.nonlocal_block import NonLocalBlock
from davi.layers.residual import FactorizedReduce, Merge, Node, Upsample
from davi.models.attentive_vae import AttentiveVAE, GenerativeLayer, InferenceLayer
from davi.published.attentive.names import parameter_names, structured_name

Walk = Iterator[tuple[str | None, bool]]
"""Our name of each weight (None: a convolution's flag) and whether it is trainable."""

_LEAVES = {
    "v": "kernel:0",
    "log_g": "g:0",
    "decoder_gate": "gamma:0",
    "encoder_gate": "enc_gamma:0",
    "decoder_constant": "constant:0",
}
"""Last component of a structured name -> of a data set's name, where it is not the same with ``:0``."""


def layout(model: AttentiveVAE) -> list[tuple[str, list[str | None]]]:
    """Kind of every group and the structured names of its data sets, in the order of the authors' files.

    Arguments:
        model: on the meta device it costs nothing.

    Returns:
        For each group its Keras name without the counter, and per data set its structured name, or None for the flag
        ``initialized`` of a convolution.

    Raises:
        UserError: if the model has parts that the authors' published models do not have.
    """
    layers = range(model.num_layers)
    walks: list[tuple[str, Walk]] = [
        ("concat_conv2d", _merge("merge", model.merge)),
        ("data_layer", _join(_cell("postprocess", model.postprocess), _conv("output", model.output))),
        ("res_net", _cell("preprocess", model.preprocess)),
        *(("variational_layer", _layer(model, i)) for i in layers),
    ]
    if model.config.generative_attention.key_channels:
        walks += [("layer_normalization", _stack_norm(model, i)) for i in layers]
    groups = [(kind, _in_file_order(walk)) for kind, walk in walks]
    depth_scales = re.compile(r"/(encoder|decoder)_attention_scale$")  # theirs are not saved: they are always 1
    missing = {name for name in parameter_names(model) if not depth_scales.search(name)}
    missing -= {name for _, names in groups for name in names if name}
    if missing:
        raise UserError(f"model: has {min(missing)}, which the authors' published models do not have")
    return groups


def datasets(model: AttentiveVAE) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Structured name -> last component of the data set's name, and its shape in Keras's layout."""
    expected = model.state_dict()
    return {name: (_leaf(name), _their_shape(name, expected[key])) for name, key in parameter_names(model).items()}


def _leaf(name: str) -> str:
    last = name.rpartition("/")[2]
    return _LEAVES.get(last, f"{last}:0")


def _their_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    if name.endswith("/v"):
        tensor = tensor.permute(2, 3, 1, 0)  # [out, in, kh, kw] -> [kh, kw, in, out]
    elif name.endswith("/decoder_constant"):
        tensor = tensor.permute(0, 2, 3, 1)  # [1, C, h, w] -> [1, h, w, C]
    return tuple(tensor.shape)


def _in_file_order(walk: Walk) -> list[str | None]:
    items = [(None if key is None else structured_name(key), trainable) for key, trainable in walk]
    return [name for name, trainable in items if trainable] + [name for name, trainable in items if not trainable]


def _join(*walks: Iterable[tuple[str | None, bool]]) -> Walk:
    for walk in walks:
        yield from walk


def _conv(prefix: str, conv: WeightNormConv2d | None) -> Walk:
    if conv is not None:
        yield f"{prefix}.v", True
        yield f"{prefix}.log_g", True
        if conv.bias is not None:
            yield f"{prefix}.bias", True
        yield None, False


def _norm(prefix: str, norm: ChannelLayerNorm | None) -> Walk:
    if norm is not None:
        yield f"{prefix}.gamma", True
        yield f"{prefix}.beta", True


def _nonlocal(prefix: str, block: NonLocalBlock | None) -> Walk:
    if block is not None:
        yield f"{prefix}.gamma", True
        for name in ("query", "key", "value"):
            yield from _conv(f"{prefix}.{name}", getattr(block, name))
        yield f"{prefix}.scale", True


def _node(prefix: str, node: Node) -> Walk:
    yield from _conv(f"{prefix}.conv", node.conv)
    yield f"{prefix}.bn.weight", True
    yield f"{prefix}.bn.bias", True
    yield f"{prefix}.bn.running_mean", False
    yield f"{prefix}.bn.running_var", False
    yield from _nonlocal(f"{prefix}.attention", node.attention)


def _block(prefix: str, block: ResidualBlock) -> Walk:
    if isinstance(block.shortcut, FactorizedReduce):
        for i, conv in enumerate(block.shortcut.convs):
            assert isinstance(conv, WeightNormConv2d)
            yield from _conv(f"{prefix}.shortcut.convs.{i}", conv)
    elif isinstance(block.shortcut, Upsample):
        yield from _conv(f"{prefix}.shortcut.conv", block.shortcut.conv)
        yield from _nonlocal(f"{prefix}.shortcut.attention", block.shortcut.attention)
    for i, node in enumerate(block.nodes):
        assert isinstance(node, Node)
        yield from _node(f"{prefix}.nodes.{i}", node)


def _cell(prefix: str, cell: ResidualCell) -> Walk:
    for i, block in enumerate(cell.blocks):
        assert isinstance(block, ResidualBlock)
        yield from _block(f"{prefix}.blocks.{i}", block)
    yield from _conv(f"{prefix}.stem", cell.stem)


def _merge(prefix: str, merge: Merge) -> Walk:
    yield from _conv(f"{prefix}.conv", merge.conv)
    yield from _nonlocal(f"{prefix}.attention", merge.attention)


def _layer(model: AttentiveVAE, layer: int) -> Walk:
    """A latent layer of theirs: generative part, inference part and the encoder's cell together."""
    above, here, cell = f"generative.{layer - 1}", f"inference.{layer}", model.encoder[layer]
    generative = model.generative[layer - 1] if layer else None
    inference = model.inference[layer]
    assert isinstance(generative, GenerativeLayer | None)
    assert isinstance(inference, InferenceLayer)
    assert isinstance(cell, ResidualCell)
    if generative is not None and generative.gate is not None:
        yield f"{above}.gate", True
    if inference.gate is not None:
        yield f"{here}.gate", True
    yield from _cell(f"encoder.{layer}", cell)
    if generative is None:
        yield "top.constant", True
    else:
        yield from _cell(f"{above}.cell", generative.cell)
        yield from _merge(f"{above}.merge", generative.merge)
    yield from _conv(f"{here}.from_context", inference.from_context)
    yield from _conv(f"{here}.from_feature", inference.from_feature)
    yield from _nonlocal(f"{here}.merge_attention", inference.merge_attention)
    yield from _conv(f"{here}.hidden", inference.hidden)
    yield from _conv(f"{here}.head", inference.head)
    if generative is not None:
        yield from _conv(f"{above}.prior", generative.prior)
        yield from _norm(f"{above}.norm_last_value", generative.norm_last_value)
        yield from _norm(f"{above}.norm_attended", generative.norm_attended)
        yield from _norm(f"{above}.norm_context", generative.norm_context)
    yield from _norm(f"{here}.norm_local", inference.norm_local)
    yield from _norm(f"{here}.norm_attended", inference.norm_attended)


def _stack_norm(model: AttentiveVAE, layer: int) -> Walk:
    """Layers 0 and 1 have an empty group: nothing lies two layers above them."""
    if layer:
        generative = model.generative[layer - 1]
        assert isinstance(generative, GenerativeLayer)
        yield from _norm(f"generative.{layer - 1}.norm_stack", generative.norm_stack)

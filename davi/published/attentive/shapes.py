"""What the shapes in a weight file of the authors say about the Deep Attentive VAE behind it.

The groups are read from front to back like a text, by the grammar of the authors' classes. Only what a configuration
needs is read. Whether *everything* fits is decided afterwards, by comparing with the model that it builds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from davi.errors import UserError
from davi.published.attentive.keras_h5 import Group


def without_counter(name: str) -> str:
    """Kind of a layer from its name in a file: ``res_net_1`` is a ``res_net``, like ``res_net``."""
    return re.sub(r"_\d+$", "", name)


@dataclass
class Cell:
    """A row of residual blocks as far as it can be seen: convolutions between changes of resolution."""

    runs: list[tuple[int, int]] = field(default_factory=list)
    """What starts the run (-2, 0 or 2) and how many convolutions (nodes) follow."""
    keys: list[int] = field(default_factory=list)
    """Key width of the non-local block of every node; 0: none."""
    scopes: list[str] = field(default_factory=list)
    """Name of the scope around every node."""

    def rescales(self, nodes: int) -> list[int]:
        """What each block does to the resolution, with so many nodes per block."""
        blocks: list[int] = []
        for rescale, count in self.runs:
            blocks += [rescale, *[0] * (count // nodes - 1)]
        return blocks


class _Reader:
    """Reads the trainable weights of a group from front to back."""

    def __init__(self, group: Group) -> None:
        self.group, self.position = group, 0

    def sees(self, leaf: str, ndim: int, ahead: int = 0) -> bool:
        """Whether such a weight comes next."""
        position = self.position + ahead
        if position >= len(self.group.weights):
            return False
        weight = self.group.weights[position]
        return weight.leaf == leaf and len(weight.shape) == ndim

    def take(self, leaf: str, ndim: int) -> tuple[int, ...]:
        """Shape of the next weight, which must be such a one.

        Raises:
            UserError: if it is not.
        """
        if not self.sees(leaf, ndim):
            rest = self.group.weights[self.position : self.position + 1]
            got = f"{rest[0].name!r} of shape {list(rest[0].shape)}" if rest else "the end"
            raise UserError(
                f"group {self.group.name!r}: data set {self.position} is {got}, expected {leaf} of {ndim} dimensions"
            )
        self.position += 1
        return self.group.weights[self.position - 1].shape

    def conv(self) -> tuple[int, ...]:
        """A convolution; (height, width, inputs, outputs) of its kernel."""
        kernel = self.take("kernel:0", 4)
        self.take("g:0", 1)
        if self.sees("bias:0", 1):
            self.take("bias:0", 1)
        return kernel

    def norm(self) -> int:
        """A normalization; its channels, or 0 if there is none."""
        if not self.sees("gamma:0", 1):
            return 0
        self.take("gamma:0", 1)
        return self.take("beta:0", 1)[0]

    def spatial(self) -> int:
        """A non-local block; the width of its keys, or 0 if there is none."""
        if not self.sees("gamma:0", 0):
            return 0
        self.take("gamma:0", 0)
        keys = self.conv()[3]
        self.conv()
        self.conv()
        self.take("scale:0", 0)
        return keys

    def gate(self, leaf: str) -> bool:
        """Whether a gate with this name stands here; it is read."""
        present = self.sees(leaf, 0)
        self.position += present
        return present

    def cell(self, rescale: int = 0) -> Cell:
        """Nodes, as far as there are any, and shortcuts that change the resolution as ``rescale`` says."""
        cell = Cell()
        while True:
            if self.sees("kernel:0", 4) and self.sees("bias:0", 1, 2) and self.sees("gamma:0", 1, 3):
                self._node(cell)
            elif rescale and self.sees("kernel:0", 4) and self._kernel() == 1:
                for _ in range(4 if rescale < 0 else 1):  # halving has a convolution for each of four offsets
                    self.conv()
                if rescale > 0:
                    self.spatial()
                cell.runs.append((rescale, 0))
                self._node(cell)
            else:
                return cell

    def _kernel(self) -> int:
        return self.group.weights[self.position].shape[0]

    def _node(self, cell: Cell) -> None:
        cell.scopes.append(_scope(self.group.weights[self.position].name))
        self.conv()
        self.take("gamma:0", 1)
        self.take("beta:0", 1)
        cell.keys.append(self.spatial())
        rescale, count = cell.runs.pop() if cell.runs else (0, 0)
        cell.runs.append((rescale, count + 1))


def _scope(name: str) -> str:
    """The residual block's scope in the name of a node's kernel, .../block/block/conv/conv/norm/kernel:0; else ''."""
    parts = name.split("/")
    return "/".join(parts[:-4]) if len(parts) > 5 and parts[-5] == parts[-6] and parts[-3] == parts[-4] else ""


@dataclass
class Facts:
    """What the shapes say."""

    layers: int
    latent: int
    context: int
    """M, channels of a context and of an encoder feature with its key."""
    channels: int
    head: int
    """Likelihood parameters per pixel."""
    grid: tuple[int, int]
    preprocess: Cell
    postprocess: Cell
    cell: Cell
    """The encoder's cell of the top layer."""
    decoder: int
    """Nodes of a generative layer's cell."""
    generative_key: int
    generative_norm: bool
    inference_key: int
    inference_norm: bool
    spatial: dict[str, int]

    @classmethod
    def of(cls, groups: Sequence[Group], key_channels: int | None) -> Facts:
        """Read the groups that tell something new; ``key_channels`` of the inference attention if the user says it."""
        merge, data, preprocess, top, lower, layers = _sorted_groups(groups)
        context, latent, generative_merge = _read_merge(_Reader(merge))
        reader = _Reader(data)
        postprocess = reader.cell(2)
        head = reader.conv()[3]
        reader = _Reader(preprocess)
        encoder = reader.cell(-2)
        channels = reader.conv()[2]
        first = _TopLayer(_Reader(top))
        below = _LowerLayer(_Reader(lower), len(first.cell.keys)) if lower else None
        if not first.attention:
            inference_key = 0
        elif below is not None:
            inference_key = context - below.value
        elif first.norm or key_channels:
            inference_key = context - first.norm if first.norm else int(key_channels or 0)
        else:
            raise UserError("a file of one layer does not say model.inference_attention.key_channels; give it")
        return cls(
            layers=layers,
            latent=latent,
            context=context,
            channels=channels,
            head=head,
            grid=first.grid,
            preprocess=encoder,
            postprocess=postprocess,
            cell=first.cell,
            decoder=below.nodes if below else len(first.cell.keys),
            generative_key=first.constant - context if below else 0,
            generative_norm=below is None or not below.attention or below.norms > 2 * bool(first.norm),
            inference_key=inference_key,
            inference_norm=bool(first.norm) or not first.attention,
            spatial={
                "preprocess": max(encoder.keys, default=0),
                "encoder": first.cell.keys[0],
                "decoder": below.decoder_key if below else 0,
                "postprocess": max(postprocess.keys, default=0),
                "inference_merge": below.inference_merge if below else 0,
                "generative_merge": generative_merge,
            },
        )

    @property
    def encoder(self) -> int:
        """Nodes of an encoder cell."""
        return len(self.cell.keys)

    @property
    def halvings(self) -> int:
        return sum(rescale == -2 for rescale, _ in self.preprocess.runs)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the image with its padding."""
        return self.grid[0] * 2**self.halvings, self.grid[1] * 2**self.halvings

    @property
    def width(self) -> int:
        """Channels at full resolution."""
        return (self.context - self.inference_key) // 2**self.halvings

    @property
    def bernoulli(self) -> bool:
        """A logit per channel; a mixture of K logistics has 10 K parameters for three channels.

        Raises:
            UserError: if the parameters belong to neither.
        """
        if self.head == self.channels:
            return True
        if self.channels == 3 and self.head % 10 == 0:
            return False
        raise UserError(
            f"data_layer: {self.head} likelihood parameters for {self.channels} channels, expected one per channel, or "
            "10 for each logistic of a mixture over three channels"
        )


def _sorted_groups(groups: Sequence[Group]) -> tuple[Group, Group, Group, Group, Group | None, int]:
    """Final merge, data layer, first cell, top layer, the layer below it, and the number of layers."""
    kinds = [without_counter(group.name) for group in groups]
    layers = kinds.count("variational_layer")
    expected = ["concat_conv2d", "data_layer", "res_net", *["variational_layer"] * max(layers, 1)]
    for i, kind in enumerate(expected):
        if kinds[i : i + 1] != [kind]:
            got = f"group {i} is {groups[i].name!r}" if i < len(groups) else f"there are only {len(groups)} groups"
            raise UserError(f"{got}, expected {kind}; is it the authors' Deep Attentive VAE?")
    lower = groups[4] if layers > 1 else None
    # Before a model is built: its size is then bounded by the size of the file.
    for group in groups[4 : 3 + layers]:
        if lower is not None and len(group.weights) != len(lower.weights):
            raise UserError(f"group {group.name!r} has {len(group.weights)} data sets, expected {len(lower.weights)}")
    return groups[0], groups[1], groups[2], groups[3], lower, layers


def _read_merge(reader: _Reader) -> tuple[int, int, int]:
    """Channels of a context, of a latent map, and the keys of the merges' non-local blocks."""
    _, _, inputs, outputs = reader.conv()
    return outputs, inputs - outputs, reader.spatial()


class _TopLayer:
    """The top layer with its encoder cell."""

    def __init__(self, reader: _Reader) -> None:
        self.attention = reader.gate("enc_gamma:0")
        self.cell = reader.cell()
        if not self.cell.keys:
            reader.take("kernel:0", 4)
        _, rows, columns, self.constant = reader.take("constant:0", 4)
        self.grid = (rows, columns)
        reader.conv()
        reader.conv()
        self.norm = reader.norm()


class _LowerLayer:
    """Any other layer with its encoder cell, which has ``encoder_nodes`` nodes."""

    def __init__(self, reader: _Reader, encoder_nodes: int) -> None:
        self.attention = reader.gate("gamma:0")
        inference_attention = reader.gate("enc_gamma:0")
        cell = reader.cell()  # both cells: nothing stands between them
        self.nodes = len(cell.keys) - encoder_nodes
        if self.nodes < 1:
            reader.take("kernel:0", 4)
            raise UserError(f"group {reader.group.name!r} has {len(cell.keys)} nodes, expected over {encoder_nodes}")
        self.decoder_key = cell.keys[encoder_nodes]
        reader.conv()
        reader.spatial()
        _, _, _, self.value = reader.conv()
        if inference_attention:
            _, _, self.value, _ = reader.conv()
        self.inference_merge = reader.spatial()
        reader.conv()
        reader.conv()
        self.norms = 0
        while reader.norm():
            self.norms += 1

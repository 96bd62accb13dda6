"""Attention weights, caught with forward hooks during the model's ordinary walk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from davi.data import Images
from davi.inspection.views import DepthAttentionView, SpatialAttentionView
from davi.layers.depth_attention import DepthAttentive, resize_to
from davi.layers.depth_reading import Attended
from davi.layers.nonlocal_block import NonLocalBlock
from davi.model import Hierarchy
from davi.model.network import Network

MOST_BLOCKS = 8
"""Non-local blocks that are looked at: a deep model has hundreds."""

Rows = Mapping[int, int]
"""Index of an image in the set -> its row in the batch, for the images whose maps are kept."""


class DepthRecorder:
    """Mean weights over all images, and maps of some, of every place with depth-wise attention."""

    def __init__(self, model: Network) -> None:
        self._sites = list(model.depth_attentions()) if isinstance(model, DepthAttentive) else []
        self._layers = model.num_layers if isinstance(model, Hierarchy) else None
        self._images = [0 for _ in self._sites]
        self._sums = [torch.zeros(len(site.sources), dtype=torch.float64) for site in self._sites]
        self._maps: list[dict[int, Tensor]] = [{} for _ in self._sites]

    @contextmanager
    def recording(self, rows: Rows) -> Iterator[None]:
        """Count in every image that passes the model within the block."""
        with ExitStack() as hooks:
            for i, site in enumerate(self._sites):
                hooks.enter_context(site.attention.register_forward_hook(partial(self._record, i, rows)))
            yield

    def _record(self, i: int, rows: Rows, module: nn.Module, inputs: Any, output: Attended) -> None:
        weights = output.weights.cpu()  # [B, sources, h, w]
        self._images[i] += len(weights)
        self._sums[i] += weights.double().mean((2, 3)).sum(0)
        self._maps[i] |= {index: weights[row].clone() for index, row in rows.items()}

    def views(self, shown: Sequence[int]) -> tuple[DepthAttentionView, ...]:
        """What was recorded, one view for each side.

        Arguments:
            shown: the images whose maps are wanted, in this order.
        """
        sides: dict[str, list[int]] = defaultdict(list)
        for i, site in enumerate(self._sites):
            sides[site.side].append(i)
        return tuple(self._view(numbers, shown) for numbers in sides.values())

    def _view(self, numbers: Sequence[int], shown: Sequence[int]) -> DepthAttentionView:
        sites = [self._sites[i] for i in numbers]
        sources = sorted({source for site in sites for source in site.sources})
        maps = [torch.stack([self._maps[i][index] for index in shown]) for i in numbers]  # [images, sources, h, w]
        grid = max(((m.shape[2], m.shape[3]) for m in maps), key=lambda size: size[0] * size[1])
        matrix = torch.full((len(sites), len(sources)), torch.nan, dtype=torch.float64)
        planes = torch.full((len(shown), len(sites), len(sources), *grid), torch.nan)
        for reader, (i, site) in enumerate(zip(numbers, sites, strict=True)):
            columns = [sources.index(source) for source in site.sources]
            matrix[reader, columns] = self._sums[i] / self._images[i]
            planes[:, reader, columns] = resize_to(maps[reader], grid).to(planes)
        return DepthAttentionView(
            side=sites[0].side,
            readers=tuple(self._label(site.layer) for site in sites),
            sources=tuple(self._label(source) for source in sources),
            matrix=matrix,
            gates=tuple(float(site.gate) for site in sites),
            maps=planes,
        )

    def _label(self, layer: int) -> str:
        return "image" if layer == self._layers else str(layer)


def reads_over_depth(network: Network) -> bool:
    """Whether a layer of it reads from others."""
    return isinstance(network, DepthAttentive) and any(True for _ in network.depth_attentions())


def attention_over_depth(
    network: Network, images: Images, shown: Sequence[int], batch_size: int, device: torch.device
) -> tuple[DepthAttentionView, ...]:
    """Who reads whom in a network that is called with images, such as a classifier.

    Arguments:
        network: in eval mode, without gradients.
        images: over which weights are averaged.
        shown: indices of the images whose maps are wanted.
        batch_size: images per pass.
        device: of the network.
    """
    recorder = DepthRecorder(network)
    for start in range(0, len(images), batch_size):
        x = images.pixels[start : start + batch_size].to(device)
        rows = {index: index - start for index in shown if start <= index < start + len(x)}
        with recorder.recording(rows):
            network(x)
    return recorder.views(shown)


class SpatialRecorder:
    """Weights of chosen pixels of some images in some non-local blocks; of no other pixel are they ever computed.

    The blocks are the first and the last of every part of the model (first component of the module's name), at most
    :data:`MOST_BLOCKS`: the first ones of all parts go before the last ones.
    """

    def __init__(self, model: nn.Module) -> None:
        self._blocks = _some_blocks(model)
        self._grids: dict[str, tuple[int, int]] = {}
        self._maps: dict[str, dict[int, Tensor]] = {name: {} for name in self._blocks}

    @contextmanager
    def recording(self, rows: Rows) -> Iterator[None]:
        """Keep the weights of the images in ``rows`` when they pass the model within the block."""
        with ExitStack() as hooks:
            for name, block in self._blocks.items() if rows else ():
                hooks.enter_context(block.register_forward_pre_hook(partial(self._record, name, rows)))
            yield

    def _record(self, name: str, rows: Rows, block: NonLocalBlock, inputs: tuple[Tensor]) -> None:
        x = inputs[0]
        grid = self._grids[name] = (x.shape[2], x.shape[3])
        maps = block.weights(x[list(rows.values())], queries_on(grid)).cpu()  # [images, queries, h, w]
        self._maps[name] |= dict(zip(rows, maps, strict=True))

    def views(self, shown: Sequence[int]) -> tuple[SpatialAttentionView, ...]:
        """What was recorded, block by block in the order of the model's modules.

        Arguments:
            shown: the images whose maps are wanted, in this order.
        """
        return tuple(self._view(name, block, shown) for name, block in self._blocks.items())

    def _view(self, name: str, block: NonLocalBlock, shown: Sequence[int]) -> SpatialAttentionView:
        maps = torch.stack([self._maps[name][index] for index in shown])
        grid, key_grid = self._grids[name], (maps.shape[2], maps.shape[3])
        return SpatialAttentionView(name, grid, key_grid, float(block.gamma), queries_on(grid), maps)


def queries_on(grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The pixels whose attention is shown: the center, and three around it; fewer where they coincide."""
    height, width = grid
    middle, bottom, right = height // 2, 3 * height // 4, 3 * width // 4
    pixels = ((middle, width // 2), (height // 4, width // 4), (height // 4, right), (bottom, width // 2))
    return tuple(dict.fromkeys(pixels))


def _some_blocks(model: nn.Module) -> dict[str, NonLocalBlock]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, NonLocalBlock)}
    parts: dict[str, list[str]] = defaultdict(list)
    for name in found:
        parts[name.partition(".")[0]].append(name)
    first = [names[0] for names in parts.values()]
    last = [names[-1] for names in parts.values()]
    kept = set(list(dict.fromkeys(first + last))[:MOST_BLOCKS])
    return {name: block for name, block in found.items() if name in kept}

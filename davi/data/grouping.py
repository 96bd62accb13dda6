"""The file that each image is from, and its position in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Origins:
    """Where the images of a split are from.

    Arguments:
        numbers: the number of each image's file, ``[N]``, int64; no two splits have one in common.
        names: its path in the folder, ``[N]``.
        sizes: its (H, W), ``[N, 2]``, int64.
        places: which of the images of its file it is, ``[N]``, int64, from 0.
    """

    numbers: Tensor
    names: tuple[str, ...]
    sizes: Tensor
    places: Tensor

    def corners(self, height: int, width: int) -> Tensor:
        """(top, left) of each image, ``[N, 2]``, of patches of one size that are cut row by row."""
        columns = self.sizes[:, 1] // width
        rows = self.places.div(columns, rounding_mode="floor")
        return torch.stack([rows * height, self.places % columns * width], 1)


def origins(record: Path, part: str) -> Origins:
    """The origins of a split, from the record that the cache keeps (:data:`davi.data.decoded.FILES`).

    Arguments:
        record: a line of JSON for each file, in the order of the arrays: its ``part``, its path ``file``, its ``size``,
            and how many ``images`` it gave.
        part: the split.
    """
    numbers, names, sizes, counts = [], list[str](), [], []
    with record.open(encoding="utf-8") as file:
        for number, line in enumerate(map(json.loads, file)):
            if line["part"] == part:
                numbers.append(number)
                names += [line["file"]] * line["images"]
                sizes.append(line["size"])
                counts.append(line["images"])
    times = torch.tensor(counts, dtype=torch.int64)
    first = (times.cumsum(0) - times).repeat_interleave(times)
    return Origins(
        torch.tensor(numbers, dtype=torch.int64).repeat_interleave(times),
        tuple(names),
        torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2).repeat_interleave(times, 0),
        torch.arange(len(names)) - first,
    )

"""Which images of a folder are cut from the same file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor


def files_of(record: Path, part: str) -> Tensor:
    """The file of each image of a split, from the record that the cache keeps (:data:`davi.data.decoded.FILES`).

    Arguments:
        record: a line of JSON for each file, in the order of the arrays: its ``part``, and how many ``images`` it gave.
        part: the split.

    Returns:
        The number of the file's line in the record, ``[N]``, int64; no two splits have one in common.
    """
    numbers, counts = [], []
    with record.open(encoding="utf-8") as file:
        for number, line in enumerate(map(json.loads, file)):
            if line["part"] == part:
                numbers.append(number)
                counts.append(line["images"])
    return torch.tensor(numbers, dtype=torch.int64).repeat_interleave(torch.tensor(counts, dtype=torch.int64))

"""A batch and its parts."""

import pytest
import torch

from davi.batch import Batch


@pytest.mark.parametrize("n", [1, 2, 3, 7, 9])
def test_parts_are_those_of_the_images(n: int) -> None:
    x, y = torch.arange(7 * 4).view(7, 1, 2, 2), torch.arange(7) % 3
    parts = Batch(x, y, start=5).parts(n)
    assert all(torch.equal(part.x, cut) for part, cut in zip(parts, x.tensor_split(n), strict=True))
    for part in parts:
        assert part.y is not None
        assert torch.equal(part.x, x[part.start - 5 :][: len(part.x)])
        assert torch.equal(part.y, y[part.start - 5 :][: len(part.x)])


def test_parts_without_labels() -> None:
    parts = Batch(torch.zeros(5, 1, 2, 2)).parts(2)
    assert [(len(part.x), part.y, part.start) for part in parts] == [(3, None, 0), (2, None, 3)]

"""Networks without numbers."""

from __future__ import annotations

import torch
from torch import nn

from davi.model.meta import on_meta


def test_what_is_built_has_the_shapes_and_no_numbers() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 5), nn.ConvTranspose2d(2, 2, 2))

    with on_meta():
        found = build().state_dict()
    expected = build().state_dict()
    assert all(tensor.is_meta for tensor in found.values())
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        name: (x.shape, x.dtype) for name, x in expected.items()
    }


def test_tensors_that_have_numbers_are_filled() -> None:
    with on_meta():
        ours = torch.zeros(3, device="cpu")
        nn.init.uniform_(ours, 1.0, 2.0)
        assert (ours >= 1.0).all()
        nn.init.constant_(ours, 5.0)
        assert ours.tolist() == [5.0, 5.0, 5.0]
        assert ours.normal_().tolist() != [5.0, 5.0, 5.0]

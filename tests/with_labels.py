"""What the tests of labels share: sets loaded with their labels, and refused ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from davi.data import DataConfig, DataSets, Images, load
from davi.errors import UserError


def of(name: str | Path, labels: bool = True, **options: object) -> DataSets:
    """A set, with labels unless it says otherwise; paths may be given as such."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    return load(DataConfig(**{"set": str(name), "labels": labels, **given}))  # type: ignore[arg-type]


def values(images: Images | None) -> list[int]:
    """The labels of images that must have some."""
    assert images is not None
    assert images.labels is not None
    return images.labels.tolist()


def refused(match: str, name: str | Path, **options: object) -> None:
    """The set with labels is refused in one line."""
    with pytest.raises(UserError, match=match) as caught:
        of(name, **options)
    assert "\n" not in str(caught.value)

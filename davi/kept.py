"""Images in the folder of a run, and how its recipe names them, so that the folder can be moved.

``data.set: run:images.npz`` is the file ``images.npz`` in the folder ``data.root``. In the recipe of the run that keeps
the file no root is written: it is the folder of the recipe, wherever that lies now. A run that began from another one,
with its images, has that one's folder as its root.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREFIX = "run:"
"""What the name of such a set begins with."""

IMAGES = "images.npz"
"""The file of the images that a Python program hands over (:func:`davi.train`); it is there before the run is."""


def is_kept(name: object) -> bool:
    """Whether a ``data.set`` names a file in the folder of a run."""
    return isinstance(name, str) and name.startswith(PREFIX)


def located(sections: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The sections of a run's recipe as they are read: images that lie beside it have its folder as their root.

    Arguments:
        sections: of the recipe.
        folder: the one that the recipe lies in.

    Example:
        >>> located({"data": {"set": "run:images.npz", "root": None}}, Path("/runs/x"))["data"]["root"]
        '/runs/x'
    """
    return _with_root(sections, None, str(folder.expanduser().absolute()))


def portable(sections: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same as they are written: the reverse of :func:`located`."""
    return _with_root(sections, str(folder.expanduser().absolute()), None)


def _with_root(sections: Mapping[str, Any], before: str | None, after: str | None) -> dict[str, Any]:
    result, data = dict(sections), sections.get("data")
    if isinstance(data, Mapping) and is_kept(data.get("set")) and data.get("root") == before:
        result["data"] = {**data, "root": after}
    return result

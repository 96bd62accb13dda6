"""DAVI: deep generative models of images that say how probable an image is.

Example:
    >>> import davi, torch
    >>> model = davi.build("attentive_digits", "model.layers=[1, 2]")  # not trained yet
    >>> x = torch.zeros(4, *model.shape, dtype=torch.uint8)
    >>> evidence = model.evidence(x)
    >>> evidence.kind, evidence.log_px.shape
    (<Kind.LOWER_BOUND: 1>, torch.Size([4]))
    >>> model = davi.load("runs/demo")  # trained, with averaged weights, in eval mode
    >>> model.sample(16, temperature=0.9).shape, model.reconstruct(x).shape
    (torch.Size([16, 1, 8, 8]), torch.Size([4, 1, 8, 8]))

Importing this package costs next to nothing: torch is loaded when a name that needs it is used for the first time.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from davi.evidence import Evidence, Kind
    from davi.model import Hierarchy, LatentModel, Model

__version__ = "0.1.0"

__all__ = ["Evidence", "Hierarchy", "Kind", "LatentModel", "Model", "__version__", "build", "load"]

_HOMES = {
    "Evidence": "davi.evidence",
    "Kind": "davi.evidence",
    "Hierarchy": "davi.model",
    "LatentModel": "davi.model",
    "Model": "davi.model",
}


def build(
    recipe: str | Path,
    *overrides: str,
    shape: tuple[int, int, int] | None = None,
    levels: int | None = None,
    classes: int = 0,
) -> Model:
    """The untrained model of a recipe, in eval mode; its initial weights are drawn from torch's default generator.

    A training loop of your own calls ``model.train()`` first, as for any module of PyTorch. In training mode batch
    norms let the evidence of an image depend on the other images of the batch, and then it is no bound on log p(x).

    Arguments:
        recipe: name of a recipe that comes with the program, or the path of a ``.yaml`` file.
        overrides: options in place of the recipe's, such as ``"model.layers=[4]"``.
        shape: (C, H, W) of the images; that of the recipe's images when None.
        levels: values per channel; those of the recipe's images when None.
        classes: of the images, for a model that is to be conditional; 0: labels play no part.

    Raises:
        davi.errors.UserError: a ``ValueError`` of one line, if the recipe, an option or the shape cannot be used, or
            what it builds is no model of log p(x) (:func:`davi.recipes.build` builds anything).

    Example:
        >>> import davi
        >>> davi.build("attentive_photos", "model.width=8", shape=(3, 48, 64), levels=256).dims
        9216
    """
    from davi import recipes
    from davi.data import geometry_of
    from davi.errors import UserError
    from davi.model import Model

    found = recipes.load(recipe, overrides)
    if shape is None or levels is None:
        if found.data is None:
            raise UserError(f"{recipe}: got no data section, expected one, or shape and levels")
        usual = geometry_of(found.data)
        shape, levels = shape or usual[0], levels or usual[1]
    model = recipes.build(found, shape, levels, classes)
    if not isinstance(model, Model):
        raise UserError(
            f"{recipe}: got {model.name}, which gives images no probability by itself; davi.recipes.build builds it"
        )
    return model


def load(run: str | Path) -> Model:
    """The trained model of a run, with averaged weights where the run kept an average, in eval mode on the CPU.

    Arguments:
        run: the run's folder, or a ``model.safetensors`` file. Of a run that has not ended the newest checkpoint is
            used, with a warning.

    Raises:
        davi.errors.UserError: a ``ValueError`` of one line, if there is no such run, its file is damaged, or what it
            holds gives images no probability, such as an energy whose partition function is not known.
    """
    import warnings

    from davi.runs import load_model

    model, _ = load_model(run, lambda line: warnings.warn(line, stacklevel=4))
    return model


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next look-up finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

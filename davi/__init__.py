"""DAVI: deep generative models of images that say how probable an image is.

Example:
    >>> import davi, torch
    >>> model = davi.build("attentive_digits", layers=[1, 2])  # not trained yet
    >>> x = torch.zeros(4, *model.shape, dtype=torch.uint8)
    >>> evidence = model.evidence(x)
    >>> evidence.kind, evidence.log_px.shape
    (<Kind.LOWER_BOUND: 1>, torch.Size([4]))
    >>> model = davi.load("runs/demo")  # trained, with averaged weights, in eval mode
    >>> model.sample(16, temperature=0.9).shape, model.reconstruct(x).shape
    (torch.Size([16, 1, 8, 8]), torch.Size([4, 1, 8, 8]))
    >>> davi.show(model.sample(16, seed=1), levels=model.levels).size
    (970, 970)

Importing this package costs next to nothing: torch is loaded when a name that needs it is used for the first time.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import PIL.Image
    import torch

    from davi.evidence import Evidence, Kind
    from davi.model import Classifier, Hierarchy, LatentModel, Model
    from davi.run import Run

__version__ = "0.1.0"

__all__ = ["Classifier", "Evidence", "Hierarchy", "Kind", "LatentModel", "Model", "Run", "__version__"]
__all__ += ["build", "import_rbm", "load", "load_classifier", "show", "train"]

_HOMES = {
    "Evidence": "davi.evidence",
    "Kind": "davi.evidence",
    "Classifier": "davi.model",
    "Hierarchy": "davi.model",
    "LatentModel": "davi.model",
    "Model": "davi.model",
    "Run": "davi.run",
}


def train(
    recipe: str | Path,
    images: Any = None,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    training: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Train the model of a recipe on images, and leave a run that every verb of the program understands.

    The same as ``davi train``, bit for bit: split, protocol and weights are those of the program on a file of the same
    images.

    Arguments:
        recipe: name of a recipe that comes with the program, or the path of a ``.yaml`` file.
        images: a NumPy array ``[N, H, W]`` or ``[N, H, W, C]``, a tensor ``[N, H, W]`` or ``[N, C, H, W]``, a list of
            PIL images (or of single arrays or tensors), a torch data set whose items are images or tuples (image,
            label), or a Hugging Face data set with a column of images; all of them are kept in the run's folder
            (``images.npz``). Or a path or a name, as for ``davi train --data``: images in files stay where they are.
            None: those of the recipe. Values are integers, or floats k / (levels - 1) with whole k.
        run: the run's folder, new or empty; None: ``runs/RECIPE-1``, ``-2``, ...
        resume: go on with the run in that folder, on the same images; begin it if it has not begun.
        minutes, steps, epochs: budgets over those of the recipe; the first that is used up ends the training.
        lr: the highest learning rate.
        batch_size: images a step.
        seed: of initial weights, order of the images and draws.
        device: where to compute, such as ``"cpu"`` or ``"cuda"``; None: an accelerator where there is one.
        training: further options of the section ``training``, such as ``{"ema_decay": 0.99}``.
        options: ``labels=True`` reads the labels of a data set as well, ``labels=y`` gives those of an array. Options
            of the images (:class:`davi.data.DataConfig`): ``validation``, ``test_fraction``, ``binarization``,
            ``levels``, ``flip``, ``crop``, ... All others are options of the model: ``width=8``; of a section as a
            mapping, ``likelihood={"family": "categorical"}``, which leaves the section's other options as they are.

    Raises:
        davi.errors.UserError: a ``ValueError`` of one line, if the images or an option cannot be used.
        KeyboardInterrupt: if training was interrupted, once everything is saved; ``resume=True`` goes on.

    Example:
        >>> import davi, numpy as np
        >>> images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)  # channels last
        >>> run = davi.train("vae_digits_tiny", images, run="runs/noise", steps=2, validation=4)  # doctest: +ELLIPSIS
        run runs/noise
        data: 32 training, 4 validation and 4 test images...
        next: davi evaluate runs/noise
        >>> run.samples(4).shape
        torch.Size([4, 3, 8, 8])
    """
    from davi.run import train

    given = {"minutes": minutes, "steps": steps, "epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
    chosen = {**(training or {}), **{name: value for name, value in given.items() if value is not None}}
    return train(recipe, images, run, resume, device, chosen, options)


def build(
    recipe: str | Path,
    *overrides: str,
    shape: tuple[int, int, int] | None = None,
    levels: int | None = None,
    classes: int = 0,
    **options: Any,
) -> Model:
    """The untrained model of a recipe, in eval mode; its initial weights are drawn from torch's default generator.

    A training loop of your own calls ``model.train()`` first, as for any module of PyTorch. In training mode batch
    norms let the evidence of an image depend on the other images of the batch, and then it is no bound on log p(x).

    Arguments:
        recipe: name of a recipe that comes with the program, or the path of a ``.yaml`` file.
        overrides: options in place of the recipe's, as on the command line: ``"model.layers=[4]"``.
        shape: (C, H, W) of the images; that of the recipe's images when None.
        levels: values per channel; those of the recipe's images when None.
        classes: of the images, for a model that is to be conditional; 0: labels play no part.
        options: of the model, as for :func:`train`: ``layers=[4]``.

    Raises:
        davi.errors.UserError: a ``ValueError`` of one line, if the recipe, an option or the shape cannot be used, or
            what it builds is no model of log p(x) (:func:`davi.recipes.build` builds anything).

    Example:
        >>> import davi
        >>> model = davi.build("attentive_photos", width=8, shape=(3, 48, 64), levels=256)
        >>> model.dims
        9216
        >>> model  # doctest: +ELLIPSIS
        AttentiveVAE for images [3, 48, 64] with 256 levels: 263,010 parameters
          latents, 6 layers, 27,648 numbers, top first: 2 of [8, 12, 16], 4 of [8, 24, 32]
          parameters of its parts: preprocess 8,628, encoder 63,984, inference 27,228, top 6,144, ...
    """
    from davi import recipes
    from davi.data import geometry_of
    from davi.errors import UserError
    from davi.keywords import assignments, check_known, model_keywords
    from davi.model import Classifier, Model
    from davi.models import MODELS

    found = recipes.load(recipe, overrides)
    if options:
        check_known(options, model_keywords(found), found.model_name)
        found = recipes.load(recipe, [*overrides, *assignments("model", options)])
    if shape is None or levels is None:
        if found.data is None:
            raise UserError(f"{recipe}: got no data section, expected one, or shape and levels")
        usual = geometry_of(found.data)
        shape, levels = shape or usual[0], levels or usual[1]
    kind = MODELS[found.model_name]
    if not issubclass(kind, Model):
        why = "a classifier" if issubclass(kind, Classifier) else "which has no likelihood by itself"
        raise UserError(f"{recipe}: got {kind.name}, {why}; davi.recipes.build builds it")
    model = recipes.build(found, shape, levels, classes)
    assert isinstance(model, Model)
    return model


def load(run: str | Path) -> Model:
    """The trained model of a run, with averaged weights where the run kept an average, in eval mode on the CPU.

    Its weights want no gradients, so that evidence costs no graph; ``model.requires_grad_(True)`` changes that. Without
    its partition function an energy can only be drawn from; ``davi evaluate`` estimates it.

    Arguments:
        run: the run's folder, or a ``model.safetensors`` file. Of a run that has not ended the newest checkpoint is
            used, with a warning.

    Raises:
        davi.errors.UserError: a ``ValueError`` of one line, if there is no such run, its file is damaged, or what it
            holds is no model of images.
    """
    import warnings

    from davi.runs import load_model

    model, _ = load_model(run, lambda line: warnings.warn(line, stacklevel=6))
    return model


def load_classifier(run: str | Path) -> Classifier:
    """The trained classifier of a run; otherwise as :func:`load`.

    Arguments:
        run: the run's folder, or a ``model.safetensors`` file.

    Raises:
        davi.errors.UserError: as there, and if what it holds is no classifier.
    """
    import warnings

    from davi.runs import load_classifier

    classifier, _ = load_classifier(run, lambda line: warnings.warn(line, stacklevel=5))
    return classifier


def import_rbm(
    source: Any,
    run: str | Path,
    *,
    shape: tuple[int, int, int] | None = None,
    data: str | Path | None = None,
    **options: Any,
) -> Run:
    """A run of a restricted Boltzmann machine that another program has trained, as ``davi import rbm`` makes it.

    Arguments:
        source: a fitted ``sklearn.neural_network.BernoulliRBM``; a mapping with the couplings ``W`` ``[V, H]``, the
            fields ``b`` ``[V]`` of visible and ``c`` ``[H]`` of hidden units, and perhaps ``shape``; or the path of a
            ``.npz`` file with such arrays.
        run: the run's folder, new or empty.
        shape: (C, H, W) of the images, whose pixels are the visible units in this order; None: that of the source, or
            of the named set, or else (1, 1, V).
        data: images it is for, a name or a path as for :func:`train`; None: they are named when it is evaluated.
        options: of these images (:class:`davi.data.DataConfig`), such as ``binarization="threshold"``.

    Raises:
        davi.errors.UserError: a ``ValueError`` of one line, if the arrays do not fit each other or the images, or are
            not finite.

    Example:
        >>> import davi, numpy as np
        >>> from sklearn.neural_network import BernoulliRBM
        >>> fitted = BernoulliRBM(3, n_iter=1, random_state=0).fit(np.eye(4))
        >>> davi.import_rbm(fitted, "runs/theirs", shape=(1, 2, 2)).samples(5).shape
        4 visible units, read as the pixels of 1x2x2 (channels, rows, columns), 3 hidden
        images of 1x2x2 with 2 levels; data set: unknown: give --data when evaluating
        the run is runs/theirs
        torch.Size([5, 1, 2, 2])
    """
    from davi.cli.import_ import import_rbm
    from davi.run import Run

    return Run(import_rbm(source, Path(run).expanduser(), shape, data, options))


def show(images: Any, levels: Any = 256, columns: int | None = None, scale: int | None = None) -> PIL.Image.Image:
    """Images as one picture, which a notebook shows inline.

    Arguments:
        images: integers ``[N, C, H, W]`` in a tensor, a :class:`davi.data.Images`, or whatever else :func:`train` takes
            that is no path.
        levels: values of a channel; or the model or the run whose images these are.
        columns: images in a row; by default such that the picture is nearly square.
        scale: each pixel becomes scale x scale; by default so large that the picture has about 1000 pixels a side.

    Raises:
        ValueError: if the images have another shape, or values beyond the levels.

    Example:
        >>> import davi
        >>> model = davi.load("runs/demo")
        >>> davi.show(model.sample(6, seed=0), model, columns=3, scale=4).size
        (104, 70)
    """
    from davi.notebook import show

    return show(images, levels, columns, scale)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next look-up finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""What the verbs on a trained model share: the run, its images, the device, and progress."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from davi import recipes
from davi.cli.options import Request
from davi.cli.sets import anchored, needing_labels, of_another_set, of_run, select_told, tell
from davi.data import DataConfig, DataSets, Images, Selection, check_same, load, repeated
from davi.data.config import HOW_READ
from davi.data.labels import classes_digest, listed
from davi.errors import UserError, one_line
from davi.model import Claiming, Invertible, LatentModel, Model
from davi.progress import ProgressBar
from davi.run_folder import RECIPE, run_folder
from davi.runs import load_claiming

_SPLITTING = ("validation", "test", "test_fraction")

_NO_OTHER_SET = tuple(f"--data.{key}=" for key in HOW_READ)
"""Assignments that say where and how images are read, not which."""


def open_claiming(request: Request) -> tuple[Claiming, dict[str, Any], Path]:
    """The trained model or classifier on the device asked for, what its file says, and the folder of the run.

    Raises:
        UserError: if there is no such run, its model is damaged, or there is no such device.
    """
    given = Path(request.options.run)
    folder = run_folder(given)
    model, info = load_claiming(given, lambda line: print(line, file=sys.stderr))
    return model.to(device_of(request.options.device)), info, folder


def open_run(request: Request) -> tuple[Model, dict[str, Any], Path]:
    """:func:`open_claiming` for verbs that need a model of images.

    Raises:
        UserError: also if the run holds a classifier.
    """
    model, info, folder = open_claiming(request)
    if not isinstance(model, Model):
        raise UserError(
            f"run: {info['name']} is a classifier, expected a model of images for davi {request.verb}; davi evaluate, "
            "inspect, compare and score take classifiers"
        )
    return model, info, folder


def open_with_latents(request: Request) -> tuple[LatentModel | Invertible, dict[str, Any], Path]:
    """:func:`open_run` of a model that has latent variables.

    Raises:
        UserError: also if it has none.
    """
    model, info, folder = open_run(request)
    if not isinstance(model, LatentModel | Invertible):
        raise UserError(f"run: {info['name']} has no latent variables, expected a model that has some")
    return model, info, folder


@dataclass(frozen=True, eq=False)
class Opened:
    """Images that a verb looks at.

    Arguments:
        images: as they are evaluated; called after what the user has given if they are not the run's own.
        split: ``test``, ``validation``, ``train`` or ``all``.
        train: training images, for the baselines: of the same set, else of the run; None where neither is known.
        protocol: of the data sets. Its ``other_images`` are the user's options if the images are not the run's own,
            else null; ``training_images`` is how many of them the run was trained on, null where that is not known.
    """

    images: Images
    split: str
    train: Images | None
    protocol: dict[str, Any]


def open_images(request: Request, info: Mapping[str, Any], folder: Path, unlabeled: bool = False) -> Opened:
    """The images to be measured.

    Arguments:
        request: ``--data`` and ``--data.OPTION`` say which images are wanted knowingly: without ``--split`` or an
            option that splits, all images of another set, or its test images if it says itself which these are.
            Without them (but for ``--data.root``, the folder, and the like) the images must be those that the model
            was trained with, and are its test images.
        info: what the model's file says.
        folder: of the run.
        unlabeled: whether images without labels will do for a model with classes.

    Raises:
        UserError: if the run does not say which images it is for, these have changed or have no such split.
    """
    own, data = _wanted(request, folder)
    split = request.options.split
    if split is None and ((own is not None and own.set == data.set) or _given(request, _SPLITTING)):
        split = "test"
    binary = info["levels"] == 2 and data.levels in (None, 2) and not _given(request, ("binarization",))
    with needing_labels(info["name"] if info.get("classes") and not unlabeled else None):
        chosen = select_told(data, split, binary, info["levels"])
    _check_fit(chosen.images, info, unlabeled)
    knowingly = _words(request)
    if not knowingly:
        remedy = f"--data {data.set} evaluates on these images deliberately"
        check_same(info.get("protocol", {}), chosen.protocol, remedy)
    images, train = chosen.images, chosen.train
    protocol = {**chosen.protocol, "other_images": None, "training_images": None}
    if knowingly or request.verb == "evaluate":
        tell([chosen.told], sys.stderr)
    known = info.get("protocol", {})
    if knowingly and not _is_own(own, data, chosen, known):
        other = data.test if own is not None and data.test not in (None, own.test) else data.set
        name = _written(request, str(other)) + ("" if chosen.split == "all" else f"/{chosen.split}")
        images = dataclasses.replace(images, name=name, checked=True)
        if own is not None:
            protocol["other_images"] = one_line(" ".join(knowingly))
            mine = "training" if chosen.split == "train" else chosen.split.replace("all", "test")
            tell([f"{name}: not the run's own {mine} images"], sys.stderr)
    trained_on = known.get("train_sha256")
    if own is not None and trained_on is not None and trained_on != chosen.protocol.get("train_sha256"):
        trained, protocol["training_images"] = _trained_on(folder / RECIPE, trained_on, chosen)
        train = train or trained
    return Opened(images, chosen.split, train, protocol)


def _check_fit(images: Images, info: Mapping[str, Any], unlabeled: bool) -> None:
    """Refuse images that the model was not made for, before anything is measured."""
    shape, levels = info["shape"], info["levels"]
    if (list(images.shape), images.levels) != (shape, levels):
        raise UserError(
            f"data: got images {list(images.shape)} with {images.levels} levels, expected {shape} with {levels} "
            "levels, for which the model was made"
        )
    known = info.get("protocol", {}).get("classes_sha256")
    if unlabeled and not images.classes:
        return
    if info.get("classes") and known is not None and classes_digest(images.classes) != known:
        names = ", ".join(images.classes)[:80]
        given = f"with the classes {names}" if names else "without labels"
        own = f" {listed(info['class_names'])}," if info.get("class_names") else ""
        remedy = "" if names else " (--data.labels true reads the labels)"
        remedy = " (--data.labels false leaves the labels out)" if unlabeled else remedy
        raise UserError(
            f"data: got {images.name} {given}, expected the classes{own} with which the model was trained{remedy}"
        )


def _wanted(request: Request, folder: Path) -> tuple[DataConfig | None, DataConfig]:
    """The ``data`` section of a run, if it has one, and that of the images to be measured."""
    path, assignments = folder / RECIPE, request.assignments
    if not path.is_file():
        raise UserError(f"run: {folder} holds no {RECIPE}, which says what images the model is for")
    begun, data = recipes.load(path).data, of_run(path, assignments).data
    if data is None:
        raise UserError(f"{path}: got no section data, expected one, or --data SET")
    if begun is None:
        return None, anchored(data)
    begun, wanted = anchored(begun), anchored(data)
    plain, undone = f"--data.test_fraction={DataConfig.test_fraction}", []
    if begun.set != wanted.set:
        undone = [*of_another_set(begun, wanted), "--data.validation=0", plain]
    elif begun.test != wanted.test:
        undone = [plain]
    data = of_run(path, assignments, undone).data
    assert data is not None
    return begun, anchored(data)


def _given(request: Request, options: Sequence[str]) -> bool:
    """Whether the user gives one of some options of the images, other than 0 or null."""
    given = (word.removeprefix("--data.").partition("=") for word in request.assignments)
    return any(name in options and value not in ("0", "null") for name, _, value in given)


def _written(request: Request, name: str) -> str:
    """The name of the images, as the user wrote it."""
    given = [request.options.data, *(word.partition("=")[2] for word in request.assignments)]
    return next((text for text in given if text and str(Path(text).expanduser().absolute()) == name), name)


def _words(request: Request) -> list[str]:
    """What in the command asks for other images than those of the run."""
    data = request.options.data
    words = [word for word in request.assignments if not word.startswith(_NO_OTHER_SET)]
    words = [f"--data {data}" if data and word.startswith("--data.set=") else word for word in words]
    return [*words, *(["--split all"] if request.options.split == "all" else [])]


def _is_own(own: DataConfig | None, data: DataConfig, chosen: Selection, known: Mapping[str, Any]) -> bool:
    """Whether images are, to the last value, those of the same split that the run was begun with.

    Of weights from elsewhere only the names are known.
    """
    if not known:
        return own is not None and (own.set, own.test) == (data.set, data.test)
    digest = chosen.protocol.get(f"{chosen.split}_sha256")
    return digest is not None and digest == known.get(f"{chosen.split}_sha256")


def _trained_on(recipe: Path, known: str, chosen: Selection) -> tuple[Images | None, int | None]:
    """The run's training images, and how many of those chosen are among them; None where that cannot be known."""
    try:
        own = of_run(recipe, ()).data
        assert own is not None
        with ProgressBar("decoding") as progress:
            sets = load(anchored(own), progress)
        trouble = "its training images have changed" if sets.protocol["train_sha256"] != known else None
    except UserError as error:
        trouble = str(error)
    if trouble is not None:
        tell([f"not known how many of them the run was trained on: {trouble}"], sys.stderr)
        return None, None
    assert sets.stored is not None
    # As stored, and as the model saw them: the same image may be kept as gray and as black and white.
    again = int((repeated(chosen.stored, sets.stored) | repeated(chosen.images, sets.train)).sum())
    if again:
        several = f"{again} of these {len(chosen.stored)} images were training images of the run"
        tell([several if len(chosen.stored) > 1 else "this image was a training image of the run"], sys.stderr)
    elif (trouble := _incomparable(chosen, sets)) is not None:
        tell([f"not known how many of them the run was trained on: {trouble}"], sys.stderr)
        return sets.train, None
    return sets.train, again


def _incomparable(chosen: Selection, sets: DataSets) -> str | None:
    """Why images that are equal nowhere may still be training images; None if they are none."""
    assert sets.stored is not None
    here, there = chosen.protocol, sets.protocol
    if here["set"] == there["set"] and here.get("fit") != there.get("fit"):
        return "they are cut from the files in another way"
    if chosen.stored.levels != sets.stored.levels and chosen.images.levels != sets.train.levels:
        return "the run's training images are drawn from gray values"
    return None


def device_of(name: str | torch.device | None, option: str = "--device") -> torch.device:
    """The device of that name; without one a GPU where there is one, else the CPU. Messages begin with ``option``.

    Raises:
        UserError: if this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch's errors for what it does not know or have
        raise UserError(
            f"{option}: got {str(name)!r}, expected a device of this machine, such as cpu or cuda"
        ) from None
    if device.type == "meta":
        raise UserError(f"{option}: got 'meta', expected a device that computes")
    return device

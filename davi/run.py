"""A run in Python: trained by one call or opened by its folder, with all that the program can do with it.

What is trained, measured and written is what the program ``davi`` makes of the same words: the functions here turn
keywords into them. Images that a Python program holds are kept in the run's folder (:mod:`davi.kept`), so that every
verb of the program works on it, and ``--resume`` as well.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Generator, Tensor

from davi import gaps, measurements, recipes
from davi.cli import encode as encode_verb
from davi.cli import evaluate as evaluate_verb
from davi.cli import inspect as inspect_verb
from davi.cli import paths
from davi.cli import train as train_verb
from davi.cli.loading import device_of
from davi.cli.options import parse
from davi.cli.sample import draw
from davi.errors import UserError, one_line
from davi.evaluation.classification import ERROR_RATE
from davi.evaluation.gap_result import GapResult
from davi.keywords import DATA, assignments, check_known, model_keywords
from davi.latents import check_latents, decoded, read_latents
from davi.measurements import Measured
from davi.metrics import read_metrics
from davi.model import Claiming, Classifier, Invertible, LatentModel, Model, Temperature, WithPartition
from davi.notebook import Page
from davi.recipes import Recipe
from davi.run_folder import METRICS, run_folder
from davi.run_images import image_words
from davi.runs import MODEL, RECIPE, load_claiming
from davi.training.parallel import Processes

_TRAINING = {"lr": "learning_rate"} | {name: name for name in ("minutes", "steps", "epochs", "batch_size", "seed")}
"""Keywords of :func:`davi.train` -> options of the section ``training``."""


def train(
    recipe: str | Path,
    images: Any,
    run: str | Path | None,
    resume: bool,
    device: str | torch.device | None,
    training: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Run:
    """:func:`davi.train`, with the options of its budget and the like in ``training`` and all others in ``options``."""
    base = recipes.load(recipe)
    words = _option_words(base, training, options)
    if run is None and resume:
        raise UserError("run: got None with resume=True, expected the folder of the run to go on with")
    with _on(device):
        processes = Processes()
        folder = processes.share(_free_folder(base.name) if run is None else _path(run))
        begun = resume and (folder / RECIPE).is_file()
        if begun and (own := recipes.load(folder / RECIPE).name) != base.name:
            raise UserError(f"recipe: got {base.name}, expected {own}, with which {folder} was begun")
        with contextlib.ExitStack() as undone:
            if processes.main and not folder.exists():
                undone.callback(_remove_empty, folder)
            with processes.together():
                words += image_words(images, options, folder, resume, begun, undone if processes.main else None)
            first = [] if begun else [str(recipe)]
            _train([*first, f"--run={folder}", *["--resume"] * resume, *words], folder)
    return Run(folder, device)


def _train(words: Sequence[str], folder: Path) -> None:
    try:
        status = train_verb.run(parse(["train", *words]))
    except UserError as error:  # what was said in Python has not been typed
        raise UserError(str(error).removeprefix("command line: "), error.details) from None
    if status:
        raise KeyboardInterrupt(f"{folder}: training was interrupted and is saved; resume=True goes on with it")


def _option_words(base: Recipe, training: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Keywords as words of the command line."""
    model = model_keywords(base)
    known = {*model, *DATA, *_TRAINING, "labels", "run", "resume", "device", "training"}
    check_known(options, known, f"davi.train and of {base.model_name}")
    given = {_TRAINING.get(key, key): value for key, value in training.items()}
    found = assignments("training", given)
    found += assignments("data", {key: value for key, value in options.items() if key in DATA})
    found += assignments("model", {key: value for key, value in options.items() if key in model})
    return [f"--{word}" for word in found]


def _remove_empty(folder: Path) -> None:
    """Remove a folder that nothing was written into."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _path(run: str | Path) -> Path:
    """The path of a run's folder, as a shell would find it."""
    try:
        return Path(run).expanduser()
    except RuntimeError:
        raise UserError(f"run: got {str(run)!r}, expected a path; there is no such user") from None


def _free_folder(name: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that does not exist."""
    tried = (Path("runs") / f"{name}-{number}" for number in itertools.count(1))
    return next(folder for folder in tried if not folder.exists())


@contextlib.contextmanager
def _on(device: str | torch.device | None) -> Iterator[None]:
    """A block in which training takes place on a device; None: an accelerator where there is one, else the CPU.

    Raises:
        UserError: if there is no such device, or several processes have theirs from their launcher.
    """
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        if device is not None:
            raise UserError(f"device: got {device} in {count} processes, expected None: each has its own")
        yield
        return
    chosen = None if device is None else device_of(device, "device")
    # Accelerate looks for a device once in the life of a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    before = os.environ.get("ACCELERATE_USE_CPU")
    with contextlib.ExitStack() as stack:
        if chosen is not None and chosen.type == "cuda":
            stack.enter_context(torch.cuda.device(chosen))
        if chosen is not None:
            os.environ["ACCELERATE_USE_CPU"] = str(chosen.type == "cpu").lower()
        try:
            yield
        finally:
            os.environ.pop("ACCELERATE_USE_CPU", None)
            if before is not None:
                os.environ["ACCELERATE_USE_CPU"] = before
            AcceleratorState._reset_state(reset_partial_state=True)


class Run:
    """A run: its model, its numbers, its pictures. Nothing is read before it is asked for.

    Arguments:
        folder: of the run.
        device: where its model computes; None: an accelerator where there is one, else the CPU.

    Raises:
        davi.errors.UserError: if there is no such folder, or it holds no run.

    Example:
        >>> import davi
        >>> run = davi.Run("runs/demo")
        >>> run.samples(4, seed=1).shape
        torch.Size([4, 1, 8, 8])
        >>> run.metrics[0]["kind"]
        'train'
    """

    def __init__(self, folder: str | Path, device: str | torch.device | None = None) -> None:
        self.folder = run_folder(_path(folder))
        self.device = device
        if not any((self.folder / name).is_file() for name in (RECIPE, MODEL)):
            raise UserError(f"run: {folder} holds no {RECIPE}, expected the folder of a run")

    @cached_property
    def _claiming(self) -> Claiming:
        """The trained model or classifier."""
        return load_claiming(self.folder)[0].to(device_of(self.device, "device"))

    @property
    def model(self) -> Model:
        """The trained model, with averaged weights where the run kept an average, in eval mode, without gradients.

        ``model.requires_grad_(True)`` makes it ready for a training loop of your own.

        Raises:
            davi.errors.UserError: if the run holds a classifier.
        """
        model = self._claiming
        if not isinstance(model, Model):
            raise UserError(f"run: {model.name} is a classifier, expected a model of images; run.classifier has it")
        return model

    @property
    def classifier(self) -> Classifier:
        """The same of a run that holds a classifier.

        Raises:
            davi.errors.UserError: if it holds a model of images.
        """
        classifier = self._claiming
        if not isinstance(classifier, Classifier):
            raise UserError(f"run: {classifier.name} is a model of images, expected a classifier; run.model has it")
        return classifier

    @property
    def levels(self) -> int:
        """Values that a channel of the run's images can take."""
        return self._claiming.levels

    @cached_property
    def recipe(self) -> Recipe:
        """The complete recipe: model, images, training."""
        return recipes.load(self.folder / RECIPE)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was recorded in training, oldest first: mappings with ``kind`` (``train``, ``validation``, ...) and
        ``step``. They are read anew each time; an empty list where weights come from elsewhere."""
        return read_metrics(self.folder) if (self.folder / METRICS).is_file() else []

    @property
    def evaluation(self) -> Measured | None:
        """What the last :meth:`evaluate`, or ``davi evaluate``, has left; None if there was none."""
        path = self.folder / f"{measurements.EVALUATION}.json"
        return measurements.load(self.folder) if path.is_file() else None

    def evaluate(self, importance_samples: int = 1, **options: Any) -> Measured:
        """Say how probable the model finds images, or a classifier their classes, as ``davi evaluate`` does, and keep
        the numbers in the folder.

        Arguments:
            importance_samples: K, draws of each image; 1: the evidence lower bound.
            options: those of the program: ``limit`` (only so many images, spread evenly), ``split`` (``"test"``,
                ``"validation"``, ``"train"`` or ``"all"``), ``data`` (a path or a name: other images), ``seed``,
                ``batch_size``, ``device``; of an energy ``ais_temperatures``, ``ais_chains``, ``ais_base``,
                ``ais_reverse``, ``ais_again``.

        Returns:
            The numbers with their protocol (``.result``) and those of each image (``.elbo``, ``.bound``: nats,
            ``[N]``). Printed, or at the end of a cell of a notebook, it is the table of the program.

        Raises:
            davi.errors.UserError: if an option cannot be used, or the images are not those of the run any more.
        """
        words = self._words(importance_samples=importance_samples, **options)
        with contextlib.redirect_stdout(io.StringIO()):  # the table is the value's own representation
            evaluate_verb.run(parse(["evaluate", *words]))
        if isinstance(self.__dict__.get("_claiming"), WithPartition):
            del self._claiming  # whose partition function may have been estimated: it is loaded anew
        return measurements.load(self.folder)

    def gap(self, **options: Any) -> GapResult:
        """Divide what lies between the ELBO and log p(x), as ``davi evaluate --gap`` does, and keep the numbers.

        Arguments:
            options: those of the program: ``gap_images``, ``gap_steps``, ``gap_samples``, ``split``, ``data``,
                ``seed``, ``batch_size``, ``device``.

        Returns:
            The numbers (:class:`davi.evaluation.gap_result.GapResult`).

        Raises:
            davi.errors.UserError: as for :meth:`evaluate`, and for a model without importance weights.
        """
        request = parse(["evaluate", *self._words(gap=True, **options)])
        paths.check(request)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate_verb.run(request)
        return gaps.read(self.folder)

    def inspect(self, **options: Any) -> Page:
        """Write the page about the run, as ``davi inspect`` does; a notebook shows it inline.

        Arguments:
            options: those of the program: ``limit``, ``importance_samples``, ``split``, ``data``, ``seed``, ``device``,
                ``out`` (the file, ``inspection.html`` in the folder by default), ``no_figures=True``.

        Raises:
            davi.errors.UserError: as for :meth:`evaluate`.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            inspect_verb.run(parse(["inspect", *self._words(**options)]))
        return Page(Path(options.get("out") or self.folder / inspect_verb.PAGE))

    def samples(self, n: int = 16, temperature: Temperature = 1.0, seed: int = 0, y: Tensor | None = None) -> Tensor:
        """Images that the model draws, integers ``[n, C, H, W]`` on the CPU: those of ``davi sample``.

        Arguments:
            n: how many.
            temperature: scale of the spread, one number, or one for each layer, the top first.
            seed: of all draws.
            y: class of each image, ``[n]``, of a model with classes; None: one class after the other.

        Raises:
            ValueError: as for :meth:`davi.model.Model.sample`.
        """
        model = self.model
        parameter = next(model.parameters(), None)
        generator = Generator("cpu" if parameter is None else parameter.device).manual_seed(seed)
        classes = model.classes_in_turn(n) if y is None else y
        return draw(model, n, temperature, generator, classes)

    def encode(self, **options: Any) -> list[Tensor]:
        """The latents of images, as ``davi encode`` writes them, and keep the file: the codes of a quantized model
        (int64), posterior means of other models with latents, latents of a flow.

        Arguments:
            options: those of the program: ``split``, ``data``, ``seed``, ``batch_size``, ``device``, ``out`` (the file,
                ``latents.npz`` in the folder by default).

        Returns:
            Those of each layer, the top first, or of each scale of a flow, the finest first; ``[N, ...]`` on the CPU.

        Raises:
            davi.errors.UserError: as for :meth:`evaluate`, and for a model without latents.
        """
        request = parse(["encode", *self._words(**options)])
        paths.check(request)
        with contextlib.redirect_stdout(io.StringIO()):
            encode_verb.run(request)
        found = read_latents(Path(options.get("out") or self.folder / encode_verb.LATENTS), self._with_latents())
        return [torch.from_numpy(layer) for layer in found]

    def decode(self, latents: Sequence[Tensor] | str | Path | None = None, batch_size: int = 100) -> Tensor:
        """Make images of latents, as ``davi decode`` does: reconstructions, or the very images if the model is a flow.

        Arguments:
            latents: as :meth:`encode` returns them, or the path of its file; None: the one in the folder.
            batch_size: images a pass.

        Returns:
            Integers ``[N, C, H, W]`` on the CPU.

        Raises:
            davi.errors.UserError: if the file or the tensors hold no latents of this model.
        """
        model = self._with_latents()
        if latents is None or isinstance(latents, (str, Path)):
            found = read_latents(Path(latents or self.folder / encode_verb.LATENTS), model)
        else:
            found = check_latents("latents", [layer.detach().cpu().numpy() for layer in latents], model)
        return decoded(model, found, batch_size)

    def _with_latents(self) -> LatentModel | Invertible:
        model = self.model
        if not isinstance(model, LatentModel | Invertible):
            raise UserError(f"run: {model.name} has no latent variables, expected a model that has some")
        return model

    def _words(self, **options: Any) -> list[str]:
        """Options as words of the command line."""
        words = [str(self.folder.absolute()) if str(self.folder).startswith("-") else str(self.folder)]
        for name, value in {"device": self.device, **options}.items():
            if value is not None and value is not False:
                given = "" if value is True else f"={value}"
                words.append(f"--{name.replace('_', '-')}{given}")
        return words

    def __repr__(self) -> str:
        """A few lines; the model is not loaded for it."""
        lines = [f"Run({str(self.folder)!r})"]
        if (self.folder / RECIPE).is_file():
            recipe = self.recipe
            lines[0] += f": {recipe.model_name}, recipe {recipe.name}"
            if recipe.data is not None:
                lines.append(f"  images: {one_line(recipe.data.set)}")
        last = {record["kind"]: record for record in self.metrics}
        trained, measured = last.get("train"), last.get("validation")
        validated = f"validation of {measured['stage']}" if measured and measured.get("stage") else "validation"
        if trained is not None:
            ended = "" if (self.folder / MODEL).is_file() else ", not ended"
            lines.append(f"  trained: {trained['step']:,} steps{ended}")
        if measured is not None and measured.get("bits_per_dim") is not None:
            lines.append(f"  {validated}: {measured['bits_per_dim']:.4g} bits/dim at step {measured['step']:,}")
        elif measured is not None and measured.get("unit") is not None and measured.get("loss") is not None:
            terms = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in measured["terms"].items()]
            told = ", ".join([f"{measured['loss']:.4g} {measured['unit']}", *terms])
            lines.append(f"  {validated}: {told} at step {measured['step']:,}")
        if (self.folder / f"{measurements.EVALUATION}.json").is_file():
            lines.append(f"  evaluated: {self._evaluated()}")
        return "\n".join(lines)

    def _evaluated(self) -> str:
        """The last evaluation in one line."""
        try:
            result = measurements.read_result(self.folder / f"{measurements.EVALUATION}.json")
        except UserError:
            return "the file cannot be read"
        protocol, wrong = result.protocol, result.measure(ERROR_RATE)
        images = f"{protocol.images:,} images of {protocol.set}"
        if result.bound.bits_per_dim is None:
            error = "" if wrong is None else f"error {wrong.value:.4g} %, "
            return f"{result.log_p} {result.bound.nats.mean:.4g} nats, {error}{images}"
        return f"{result.bound.bits_per_dim.mean:.4g} bits/dim, K = {protocol.importance_samples}, {images}"

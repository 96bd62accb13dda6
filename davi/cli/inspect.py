"""``davi inspect``: one page about a run."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from davi import estimates, files, gaps, page, report
from davi.cli.closing import closing, to_try
from davi.cli.loading import Opened, open_claiming, open_images
from davi.cli.normalizing import estimated
from davi.cli.options import Request
from davi.data import Images, evenly
from davi.data.cache import location
from davi.data.protocol import digest
from davi.errors import UserError
from davi.evaluation import evaluate
from davi.evaluation.baseline_cache import cached_baselines
from davi.evaluation.baselines import Baseline
from davi.evaluation.gap_result import GapResult
from davi.evaluation.log_z import LogZ
from davi.evaluation.result import Protocol, Result
from davi.formatting import duration, size
from davi.inspection import inspect
from davi.measurements import read_result
from davi.metrics import read_metrics
from davi.model import Claiming, Hierarchy, Model, Partition, Unnormalized, WithPartition
from davi.model.quantized import Quantized
from davi.page.flows import in_lines
from davi.progress import ProgressBar
from davi.run_folder import METRICS
from davi.runs import MODEL, RECIPE

PAGE, FIGURES, EVALUATION = "inspection.html", "inspection", "evaluation.json"

_LIMIT, _LIMIT_OF_CLASSIFIERS, _SAMPLES, _BATCH = 100, 10_000, 10, 50
"""Defaults: images, those for classifiers, importance samples, images a pass."""


def run(request: Request) -> int:
    """Measure unless that was done, look inside, write the page and its figures; the exit status."""
    options = request.options
    model, info, folder = open_claiming(request)
    opened = open_images(request, info, folder)
    images = opened.images
    target = Path(options.out or folder / PAGE)
    if not target.parent.is_dir():
        raise UserError(f"{target}: cannot be written, no such folder {target.parent}")
    if not options.no_figures:
        _make_room(folder / FIGURES)
    if options.estimates:
        model = estimated(request, model, folder, opened.train)
    unknown = isinstance(model, WithPartition) and model.partition is None
    result, measured = (None, "") if unknown else _numbers(request, model, info, folder, opened)
    limit = min(options.limit or _most(model), len(images))
    with ProgressBar("inspecting", limit) as progress:
        training = _training(model, opened)
        found = inspect(
            model, images, limit=limit, seed=options.seed, batch_size=_BATCH, progress=progress, training=training
        )
    records = read_metrics(folder) if (folder / METRICS).is_file() else []
    divided, no_gap = _gap(folder, model, info, images, opened.split)
    contents = page.Contents(
        title=folder.resolve().name,
        facts=_facts(info, model, opened, records, folder),
        result=result,
        measured=measured,
        inspection=found,
        model=model,
        levels=model.levels,
        records=records,
        recipe=(folder / RECIPE).read_text(encoding="utf-8", errors="replace") if (folder / RECIPE).is_file() else None,
        remedy="" if result is None else str(to_try(model, folder, result) or ""),
        gap=divided,
        no_gap=no_gap,
        no_result=_UNKNOWN.format(name=model.name, folder=shlex.quote(str(folder))),
        estimates=estimates.kept(model.saved, folder) if isinstance(model.saved, Unnormalized) else (),
        no_estimates="There are no estimates to compare: davi inspect "
        f"{shlex.quote(str(folder))} --estimates makes some with several numbers of temperatures, in minutes.",
    )
    sections = page.write(contents, target)
    if not options.no_figures:
        page.save_figures(sections, folder / FIGURES)
        print(f"figures as PNG and SVG: {folder / FIGURES}")
    if found.flow is not None:
        print(in_lines(found.flow, contents.unit))
    print(f"open:   {target}" if result is None else closing(result, folder, target))
    return 0


_UNKNOWN = (
    "the partition function of this {name} is not known yet, without which there is no likelihood; davi evaluate "
    "{folder} estimates it"
)


def _training(model: Claiming, opened: Opened) -> Images | None:
    """Training images to set beside what is inspected; for samples of a quantized model they must be the run's own."""
    other = opened.protocol.get("other_images") is not None and isinstance(model, Quantized)
    return None if other or opened.split == "train" else opened.train


def _most(model: Claiming) -> int:
    """Images that are looked at where the user does not say; those of a classifier need one pass and no more."""
    return _LIMIT if isinstance(model, Model) else _LIMIT_OF_CLASSIFIERS


def _make_room(figures: Path) -> None:
    """Make the folder of the figures before anything is measured: a run may be read-only.

    Raises:
        UserError: if it cannot be written to.
    """
    try:
        figures.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=figures):
            pass
    except OSError as error:
        raise UserError(
            f"{figures}: cannot be written ({error.strerror}); --no-figures writes the page alone, --out FILE.html "
            "says where"
        ) from None


def _numbers(
    request: Request, model: Claiming, info: Mapping[str, Any], folder: Path, opened: Opened
) -> tuple[Result, str]:
    """The numbers of the run's evaluation where it is of this model and these images, else measured now."""
    options, images = request.options, opened.images
    asked = options.limit is not None or options.importance_samples is not None
    known, why = (None, "") if asked else _evaluated(folder / EVALUATION, model, info, images, opened.split)
    if known is not None:
        if why:
            print(f"{EVALUATION} {why}")
        others = f"; it {why}" if why else " for these very weights"
        return known, f"The numbers are those of {EVALUATION}, written by davi evaluate{others}."
    if why:
        print(f"{EVALUATION} {why}; measuring anew")
    samples, limit = options.importance_samples or _SAMPLES, min(options.limit or _most(model), len(images))
    with ProgressBar("evaluating", limit) as progress:
        evaluation = evaluate(model, images, samples, _BATCH, options.seed, limit, progress)
    protocol = report.protocol_of(evaluation, info, opened.protocol, opened.split)
    compared: list[Baseline] = []
    if isinstance(model, Model):  # a classifier codes no images
        compared = cached_baselines(opened.train, evenly(images, limit), location(None))
    result = report.result_of(evaluation, compared, protocol)
    short = "" if limit == len(images) else f": {evaluation.subset}; davi evaluate measures all images"
    others = f" {EVALUATION} {why}." if why else ""
    return result, f"The numbers were measured for this page{short}.{others}"


def _evaluated(
    path: Path, model: Claiming, info: Mapping[str, Any], images: Images, split: str
) -> tuple[Result | None, str]:
    """An evaluation of this model on these images, or None; and what is to be said about it."""
    if not path.exists():
        return None, ""
    try:
        result = read_result(path)
    except (UserError, OSError):
        return None, "cannot be read"
    if why := _about_others(result.protocol, model, info, images, split):
        return None, why
    if isinstance(model, WithPartition) and _other_log_z(result.log_z, model.partition):
        return None, "is with another partition function than the run holds now"
    if result.protocol.model.weights_sha256 is None:
        return result, "does not say which weights it is of, since an older version wrote it; davi evaluate says so"
    return result, ""


def _other_log_z(told: LogZ | None, known: Partition | None) -> bool:
    """Whether a result takes another log Z than is known now."""
    return told is not None and known is not None and told.log_z != known.log_z


def _gap(
    folder: Path, model: Claiming, info: Mapping[str, Any], images: Images, split: str
) -> tuple[GapResult | None, str]:
    """The gap where it was measured of this model on these images; else None, and a sentence instead."""
    remedy = f"davi evaluate {folder} --gap measures it"
    if not (folder / gaps.GAP).is_file():
        return None, f"Not measured: {remedy}, and the page shows it from then on."
    try:
        found = gaps.read(folder)
    except (UserError, OSError):
        return None, f"Left out: {gaps.GAP} cannot be read; {remedy}."
    why = _about_others(found.protocol, model, info, images, split)
    return (None, f"Left out: {gaps.GAP} {why}; {remedy} anew.") if why else (found, "")


def _about_others(protocol: Protocol, model: Claiming, info: Mapping[str, Any], images: Images, split: str) -> str:
    """In words, if what was measured is of other images or of another model; empty if it is of these."""
    if (protocol.set, protocol.split) != (images.name, split):
        return "is about other images"
    # The same name does not make them the same images: they can be cut or drawn in another way now.
    limit = protocol.limit
    measured = images.subset(slice(limit)) if protocol.subset is None else evenly(images, limit)
    if protocol.images_sha256 != digest(measured):
        return "is about other images"
    known = protocol.model
    keys = ("name", "parameters", "step", "config", "ema", "ema_decay")
    weights = known.weights_sha256
    same = weights is None or weights == files.digest(model.saved.state_dict())
    same = same and known.trained_with == info.get("version")
    if not same or any(getattr(known, key) != info.get(key) for key in keys):
        return "is of other weights than the run holds now"
    return ""


def _facts(
    info: Mapping[str, Any], model: Claiming, opened: Opened, records: Sequence[Mapping[str, Any]], folder: Path
) -> list[tuple[str, str]]:
    """What stands at the top of the page: model, data, date and training time, as far as they are known."""
    layers = f", {model.num_layers} latent layers" if isinstance(model, Hierarchy) else ""
    colors = "binary" if model.levels == 2 else f"{model.levels} levels"
    known = opened.protocol.get("set")
    name = opened.images.name if known is None else Path(known).name or known
    facts = [
        ("Model", f"{info['name']}, {info['parameters']:,} parameters{layers}"),
        ("Data", f"{name}, {size(model.shape)}, {colors}"),
    ]
    weights = next((path for path in (folder / MODEL, folder / METRICS) if path.is_file()), None)
    if weights is not None:
        written = datetime.fromtimestamp(weights.stat().st_mtime).astimezone()
        facts.append(("Date", f"{written.day} {written:%B %Y}"))
    seconds = [record.get("seconds") for record in records]
    spent = max((value for value in seconds if isinstance(value, float) and 0.0 <= value < math.inf), default=None)
    parts = [] if spent is None else [duration(spent)]
    parts += [f"{info['step']:,} steps"] if "step" in info else []
    parts += ["averaged weights"] if info.get("ema") else []
    return [*facts, ("Training", ", ".join(parts))] if parts else facts

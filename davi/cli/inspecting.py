"""``davi inspect``: one page about a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from davi import page, report
from davi.baselines import baselines
from davi.cli.opened import Opened, open_images, open_run
from davi.cli.options import Request
from davi.cli.telling import Telling
from davi.data import Images
from davi.data.protocol import digest
from davi.errors import UserError
from davi.evaluation import evaluate
from davi.inspection import inspect
from davi.measurements import read_result
from davi.model import Model
from davi.runs import METRICS, RECIPE, read_metrics

PAGE, FIGURES, EVALUATION = "inspection.html", "inspection", "evaluation.json"

_LIMIT, _SAMPLES, _BATCH = 100, 10, 50
"""What is measured if nothing else is asked for: images, importance samples, images a pass."""


def run(request: Request) -> int:
    """Measure unless that was done, look inside, write the page and its figures; the exit status."""
    options = request.options
    model, info, folder = open_run(request)
    opened = open_images(request, info, folder)
    images = opened.images
    target = Path(options.out or folder / PAGE)
    if not target.parent.is_dir():
        raise UserError(f"{target}: cannot be written, no such folder {target.parent}")
    result, measured = _numbers(request, model, info, folder, opened)
    limit = min(options.limit or _LIMIT, len(images))
    with Telling("inspecting", limit) as telling:
        found = inspect(model, images, limit=limit, seed=options.seed, batch_size=_BATCH, progress=telling)
    contents = page.Contents(
        title=folder.resolve().name,
        subtitle=_subtitle(info),
        result=result,
        measured=measured,
        inspection=found,
        levels=model.levels,
        records=read_metrics(folder) if (folder / METRICS).is_file() else [],
        recipe=(folder / RECIPE).read_text(encoding="utf-8", errors="replace") if (folder / RECIPE).is_file() else None,
    )
    sections = page.write(contents, target)
    if not options.no_figures:
        page.save_figures(sections, folder / FIGURES)
        print(f"figures as PNG and SVG: {folder / FIGURES}")
    print(page.headline(result))
    print(f"the page, for any browser: {target}")
    return 0


def _numbers(
    request: Request, model: Model, info: Mapping[str, Any], folder: Path, opened: Opened
) -> tuple[Mapping[str, Any], str]:
    """The numbers of the run's evaluation where it is of this model and these images, else measured now."""
    options, images = request.options, opened.images
    asked = options.limit is not None or options.importance_samples is not None
    known = None if asked else _evaluated(folder / EVALUATION, info, images, opened.split)
    if known is not None:
        return known, f"The numbers are those of {EVALUATION}, which davi evaluate has written for this very model."
    samples, limit = options.importance_samples or _SAMPLES, min(options.limit or _LIMIT, len(images))
    with Telling("evaluating", limit) as telling:
        evaluation = evaluate(model, images, samples, _BATCH, options.seed, limit, telling)
    protocol = report.protocol_of(evaluation, info, opened.protocol, opened.split)
    result = report.to_json(evaluation, baselines(opened.train, images.subset(slice(limit))), protocol)
    short = "" if limit == len(images) else "; davi evaluate measures all images"
    return result, f"The numbers were measured for this page, on {limit} of {len(images)} images{short}."


def _evaluated(path: Path, info: Mapping[str, Any], images: Images, split: str) -> Mapping[str, Any] | None:
    """An evaluation of this model on these images; None if there is none, or only one of others."""
    try:
        result = read_result(path)
    except (UserError, OSError):
        return None
    protocol = result["protocol"]
    same = (protocol["set"], protocol["split"]) == (images.name, split)
    known: Mapping[str, Any] = protocol["model"]
    keys = ("name", "parameters", "step", "config", "ema", "ema_decay")
    same = same and known.get("trained_with") == info.get("version")
    same = same and all(known.get(key) == info.get(key) for key in keys)
    # The same name does not make them the same images: they can be cut or drawn in another way now.
    same = same and protocol.get("images_sha256") == digest(images.subset(slice(protocol["limit"])))
    return result if same else None


def _subtitle(info: Mapping[str, Any]) -> str:
    parts = [str(info["name"]), f"{info['parameters']:,} parameters"]
    if "step" in info:
        parts.append(f"step {info['step']:,}")
    if "ema" in info:
        parts.append("averaged weights" if info["ema"] else "last weights")
    return ", ".join(parts)

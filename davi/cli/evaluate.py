"""``davi evaluate``: how probable a trained model finds images, and with ``--gap`` how much of that a bound misses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from davi import gaps, measurements, records, report
from davi.cli.closing import to_try
from davi.cli.loading import Opened, open_claiming, open_images
from davi.cli.normalizing import normalized
from davi.cli.options import Request
from davi.data import evenly
from davi.data.cache import location
from davi.errors import UserError
from davi.evaluation import evaluate, gap
from davi.evaluation.baseline_cache import cached_baselines
from davi.evaluation.baselines import Baseline
from davi.evaluation.gap_result import GapResult
from davi.evaluation.result import Protocol, Result
from davi.evidence import Kind
from davi.model import Classifier, Model, WithPartition
from davi.progress import ProgressBar


def run(request: Request) -> int:
    """Measure, print the numbers and keep them in the folder (:mod:`davi.measurements`); the exit status."""
    options = request.options
    model, info, folder = open_claiming(request)
    if options.gap and isinstance(model, Classifier):
        raise UserError(f"--gap: got it for {model.name}, a classifier; expected a model whose claim is a bound")
    opened = open_images(request, info, folder)
    if options.gap and isinstance(model, WithPartition) and model.claim is Kind.EXACT:
        raise UserError(
            f"--gap: got it for {model.name}, which has no latents; expected a model whose claim is a bound"
        )
    model = normalized(request, model, folder, opened.train)
    if options.gap:
        assert isinstance(model, Model)
        return _gap(request, model, info, folder, opened)
    images, samples = opened.images, options.importance_samples or 1
    with ProgressBar("evaluating", min(options.limit or len(images), len(images))) as progress:
        evaluation = evaluate(model, images, samples, options.batch_size, options.seed, options.limit, progress)
    protocol = report.protocol_of(evaluation, info, opened.protocol, opened.split)
    others: list[Baseline] = []
    if not options.no_baselines and isinstance(model, Model):  # a classifier codes no images
        with ProgressBar("compressing the images by other methods") as progress:
            others = cached_baselines(opened.train, evenly(images, options.limit), location(None), progress)
    result = report.result_of(evaluation, others, protocol)
    replaced = _replaced(folder, protocol)
    try:
        path = measurements.save(folder, result, evaluation)
    finally:  # hours of work shall not be lost because the folder cannot be written to
        print(_json(result) if options.json else report.to_terminal(result))
    if not options.json:
        advice = to_try(model, folder, result)
        if advice:
            print(f"\nagainst inactive layers train again with this added:\n  {advice.switch}\n({advice.effect})")
        print(f"\nwritten to {path}{replaced}")
    return 0


def _gap(request: Request, model: Model, info: Mapping[str, Any], folder: Path, opened: Opened) -> int:
    """Divide the gap between the ELBO and log p(x), print the numbers and keep them; the exit status."""
    options = request.options
    images = min(options.gap_images or gap.IMAGES, len(opened.images))
    sizes = (options.gap_samples or gap.SAMPLES, options.gap_steps or gap.STEPS, images)
    with ProgressBar("measuring the gap", images) as progress:
        found = gap.measure_gap(model, opened.images, *sizes, options.batch_size, options.seed, progress)
    result = gaps.result_of(found, report.protocol_of(found.evaluation, info, opened.protocol, opened.split))
    try:
        path = gaps.write(folder, result)
    finally:
        print(_json(result) if options.json else gaps.to_terminal(result))
    if not options.json:
        print(f"\nwritten to {path}")
    return 0


def _json(result: Result | GapResult) -> str:
    return json.dumps(records.to_json(result), indent=2, allow_nan=False)


def _replaced(folder: Path, protocol: Protocol) -> str:
    """What the result replaces, in words; empty where that adds nothing."""
    path = folder / f"{measurements.EVALUATION}.json"
    if not path.is_file():
        return ""
    try:
        before = measurements.read_result(path).protocol
    except UserError:  # a damaged file is no loss
        return ""
    keys = ("images_sha256", "importance_samples", "seed")
    same = all(getattr(before, key) == getattr(protocol, key) for key in keys)
    return "" if same else f", in place of the evaluation on {before.set} with K = {before.importance_samples}"

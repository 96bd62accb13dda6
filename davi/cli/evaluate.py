"""``davi evaluate``: how probable a trained model finds images."""

from __future__ import annotations

import json

from davi import measurements, report
from davi.baselines import baselines
from davi.cli.loading import open_images, open_run
from davi.cli.options import Request
from davi.data import evenly
from davi.evaluation import evaluate
from davi.progress import ProgressBar


def run(request: Request) -> int:
    """Measure, print the numbers and keep them in the folder (:mod:`davi.measurements`); the exit status."""
    options = request.options
    model, info, folder = open_run(request)
    opened = open_images(request, info, folder)
    images = opened.images
    with ProgressBar("evaluating", min(options.limit or len(images), len(images))) as progress:
        evaluation = evaluate(
            model, images, options.importance_samples, options.batch_size, options.seed, options.limit, progress
        )
    protocol = report.protocol_of(evaluation, info, opened.protocol, opened.split)
    with ProgressBar("compressing the images by other methods") as progress:
        others = baselines(opened.train, evenly(images, options.limit), progress)
    result = report.to_json(evaluation, others, protocol)
    try:
        path = measurements.save(folder, result, evaluation)
    finally:  # hours of work shall not be lost because the folder cannot be written to
        print(json.dumps(result, indent=2, allow_nan=False) if options.json else report.to_terminal(result))
    if not options.json:
        print(f"\nwritten to {path}")
    return 0

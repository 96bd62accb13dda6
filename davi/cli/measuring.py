"""``davi evaluate``: how probable a trained model finds images."""

from __future__ import annotations

import json

from davi import report
from davi.baselines import baselines
from davi.cli.opened import Telling, open_images, open_run
from davi.cli.options import Request
from davi.evaluation import evaluate


def run(request: Request) -> int:
    """Measure, write ``evaluation.json`` and print the numbers; the exit status."""
    options = request.options
    model, info, folder = open_run(request)
    sets, images = open_images(request, info, folder)
    with Telling("evaluating", min(options.limit or len(images), len(images))) as telling:
        evaluation = evaluate(
            model, images, options.importance_samples, options.batch_size, options.seed, options.limit, telling
        )
    data = dict(sets.protocol)
    if options.split == "train" and sets.train.levels != sets.levels:
        data["evaluated"] = f"training images drawn once, seed {data['binarization_seed']}"
    protocol = report.protocol_of(evaluation, info, data, options.split)
    others = baselines(sets.train, images.subset(slice(options.limit)))
    result = report.to_json(evaluation, others, protocol)
    # Told first: hours of work shall not be lost because the folder cannot be written to.
    print(json.dumps(result, indent=2, allow_nan=False) if options.json else report.to_terminal(result))
    path = folder / "evaluation.json"
    report.write_json(path, result)
    if not options.json:
        print(f"\nwritten to {path}")
    return 0

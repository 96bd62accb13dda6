"""Train a recipe on its budget and measure it: the numbers of the README's table.

python benchmarks/train_and_measure.py attentive_mnist --data-root FOLDER --importance-samples 100 --limit 500
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--importance-samples", type=int, default=100)
    parser.add_argument("--limit", type=int, help="N test images, spread evenly over the set")
    options, overrides = parser.parse_known_args()
    davi = [sys.executable, "-m", "davi"]
    root = ["--data.root", options.data_root] if options.data_root else []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / options.recipe
        began = time.monotonic()
        subprocess.run([*davi, "train", options.recipe, *root, "--run", str(run), *overrides], check=True)
        training = time.monotonic() - began
        limit = ["--limit", str(options.limit)] if options.limit else []
        samples = ["--importance-samples", str(options.importance_samples)]
        subprocess.run([*davi, "evaluate", str(run), *samples, *limit], check=True)
        evaluation = json.loads((run / "evaluation.json").read_text())
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in metrics if record.get("kind") == "train"][-1]
    measured = {"recipe": options.recipe, "overrides": overrides, "process_seconds": training, "last_step": last}
    print(write(options.recipe, {**measured, "evaluation": evaluation}))


if __name__ == "__main__":
    main()

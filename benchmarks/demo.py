"""``make demo`` from an empty clone: wall time, and the number of 1,000 test images of static binarized MNIST.

    python benchmarks/demo.py

Clones this repository's committed state into a temporary folder and runs ``make demo`` there as a stranger would.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

from common import ROOT, write


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "davi"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        began = time.monotonic()
        subprocess.run(["make", "demo"], cwd=clone, check=True)
        seconds = time.monotonic() - began
        run = clone / "runs" / "demo"
        evaluation = json.loads((run / "evaluation.json").read_text())
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = max(record.get("seconds", 0.0) for record in metrics)
    measured = {"wall_seconds": seconds, "training_seconds": training, "evaluation": evaluation}
    print(f"make demo: {seconds:.0f} s, of which training {training:.0f} s")
    print(write("demo", measured))


if __name__ == "__main__":
    main()

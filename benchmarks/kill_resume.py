"""Runs that are killed (SIGKILL) at random instants and resumed: how many end with the weights of one that was not.

Each run trains a small Deep Attentive VAE on images streamed from a folder, with dynamic binarization, mirroring,
gradient accumulation, skipped steps and the moving average, and saves every third step (``tests/killed_runs.py``). It
is killed at one to three random instants, counted in the time that an uninterrupted run takes, and resumed after each.
A kill that comes when a run has ended already is no kill; runs are made until enough kills have happened.

    python benchmarks/kill_resume.py [--kills 100] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, write
from PIL import Image

PROGRAM = ROOT / "tests" / "killed_runs.py"
MOST_KILLS_OF_A_RUN = 3
LATEST = 0.95
"""Of the time of an uninterrupted run: later, many a run has ended before it could be killed."""


def draw_pictures(folder: Path) -> None:
    """Fifty gray pictures [4, 4] of random levels."""
    folder.mkdir()
    for i, picture in enumerate(np.random.default_rng(3).integers(0, 256, (50, 4, 4), dtype=np.uint8)):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")


def draw_points(random: np.random.Generator, kills: int) -> list[str]:
    """Runs with ``kills`` kills altogether, in the form that the program takes; no two alike."""
    points: list[str] = []
    while kills > 0:
        count = min(kills, int(random.integers(1, MOST_KILLS_OF_A_RUN + 1)))
        points.append("+".join(f"at:{fraction:.6f}" for fraction in random.uniform(0.0, LATEST, count)))
        kills -= count
    return points


def killed(folder: Path, points: list[str]) -> dict[str, int]:
    """Let the program make the runs; how often each was killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROGRAM.parent}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(PROGRAM), str(folder), *points]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {point: int(kills) for point, _, kills in (line.partition(": killed ") for line in done.stdout.splitlines())}


def weights(run: Path) -> str:
    """SHA-256 of the file of the trained model."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    began = time.perf_counter()
    runs: dict[str, int] = {}
    identical: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as place:
        batch = 0
        while (missing := options.kills - sum(runs.values())) > 0:
            folder = Path(place, str(batch))
            folder.mkdir()
            draw_pictures(folder / "images")
            made = killed(folder, draw_points(random, missing))
            whole = weights(folder / "whole")
            identical.update({point: weights(folder / point.replace(":", "-")) == whole for point in made})
            runs.update(made)
            batch += 1
    measured = {
        "kills": sum(runs.values()),
        "runs": len(runs),
        "runs_by_kills": {str(n): list(runs.values()).count(n) for n in sorted(set(runs.values()))},
        "identical": sum(identical.values()),
        "different": [point for point, same in identical.items() if not same],
        "seconds": time.perf_counter() - began,
        "seed": options.seed,
    }
    print(measured)
    print(write("kill_resume", measured))


if __name__ == "__main__":
    main()

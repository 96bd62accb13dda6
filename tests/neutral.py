"""Pins the numbers that a change of structure must leave alone; run by hand, on the tree before and on the tree after.

    PYTHONPATH=BEFORE python tests/neutral.py record before.json
    PYTHONPATH=AFTER python tests/neutral.py record after.json
    python tests/neutral.py compare before.json after.json

For each recipe whose name ends in ``_tiny`` it records, as hexadecimal floats, so that not a bit is lost:

- the terms of the evidence and the log weights of four random images in evaluation mode, for the initial weights
  (``torch.manual_seed(0)``) and for weights that are all moved, since initial weights close gates and switch flows off;
- what ``davi train`` logs in 20 steps: loss, claim, terms, length of the gradients, and the final validation.

It uses ``davi.build``, ``model.evidence``, ``evidence.log_weight`` and the command line alone, to run on any tree.
Where options have other names, they follow the file: ``record FILE --training.steps 20 --training.log_every 1``.
Bits depend on the machine and on torch: compare files of one machine.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMAGES = 4
OPTIONS = ("--training.steps", "20", "--training.log_every", "1")
LOGGED = ("loss", "nats", "kl", "gradient_norm", "terms")
LOG_WEIGHT = "log_weight"
"""How the paths of log weights end."""

Record = dict[str, list[str] | None]
"""Path -> hexadecimal floats; None where the model has no such number."""


def measured(recipe: str) -> Record:
    """Evidence of an untrained model, before and after all its weights were moved."""
    import torch

    import davi

    torch.manual_seed(0)
    model = davi.build(recipe).eval()
    pixels = torch.Generator().manual_seed(1)
    x = torch.randint(model.levels, (IMAGES, *model.shape), generator=pixels)
    found: Record = {}
    for weights in ("initial", "moved"):
        with torch.no_grad():
            evidence = model.evidence(x, torch.Generator().manual_seed(2))
            log_weight = evidence.log_weight
            for name, term in evidence.terms.items():
                found[f"{recipe}/{weights}/{name}"] = [number.hex() for number in term.tolist()]
            weight = None if log_weight is None else [number.hex() for number in log_weight.tolist()]
            found[f"{recipe}/{weights}/{LOG_WEIGHT}"] = weight
            for parameter in model.parameters():  # the same for any order of the parameters
                places = torch.arange(parameter.numel(), dtype=parameter.dtype)
                parameter.add_(0.1 * torch.sin(1.0 + places).view(parameter.shape))
    return found


def trained(recipe: str, options: list[str]) -> Record:
    """What a short training logs."""
    found: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "davi", "train", recipe, "--run", str(run), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for line in (run / "metrics.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["kind"] not in ("train", "validation"):
                continue
            for name in LOGGED:
                for key, value in _named(name, event.get(name)):
                    found[f"{recipe}/{event['kind']}/{event['step']}/{key}"] = [float(value).hex()]
    return found


def _named(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """A number by its name; of a dictionary each of its numbers."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(f"{name}/{key}", inner)
    elif value is not None:
        yield name, value


def record(file: Path, options: list[str]) -> None:
    """Measure and train all tiny recipes of the ``davi`` that Python finds; write their numbers to a file."""
    import davi

    package = Path(davi.__file__).parent
    recipes = sorted(path.stem for path in (package / "recipes").glob("*_tiny.yaml"))
    print(f"{len(recipes)} recipes of {package}")
    found: Record = {}
    for recipe in recipes:
        found.update(measured(recipe))
        found.update(trained(recipe, options or list(OPTIONS)))
        print(f"{recipe}: {sum(path.startswith(recipe + '/') for path in found)} entries")
    file.write_text(json.dumps(found, indent=0) + "\n")


def differences(before: Record, after: Record, tolerance: float = 0.0) -> Iterator[str]:
    """One line for each entry of ``before`` that ``after`` lacks or has otherwise, and for each new entry of a recipe
    that both have.

    Arguments:
        before, after: what :func:`record` wrote.
        tolerance: of log weights, relative to their size or to 1; all other numbers must agree in every bit.
    """
    recipes = {path.partition("/")[0] for path in before}
    for path in before:
        if path not in after:
            yield f"{path}: missing afterwards"
        elif before[path] != after[path]:
            old, new = before[path] or [], after[path] or []
            near = tolerance if path.endswith("/" + LOG_WEIGHT) else 0.0
            if len(old) != len(new):
                yield f"{path}: {len(old)} numbers before, {len(new)} after"
                continue
            for a, b in zip(map(float.fromhex, old), map(float.fromhex, new), strict=True):
                if a.hex() != b.hex() and not (near and math.isclose(a, b, rel_tol=near, abs_tol=near)):
                    yield f"{path}: {a!r} before, {b!r} after ({a.hex()}, {b.hex()})"
                    break
    for path in after:
        if path not in before and path.partition("/")[0] in recipes:
            yield f"{path}: not there before"


def compare(first: Path, second: Path, tolerance: float) -> int:
    """Print the first difference of two files; the exit status."""
    before, after = json.loads(first.read_text()), json.loads(second.read_text())
    found = list(differences(before, after, tolerance))
    if found:
        print(found[0] + (f"; {len(found) - 1} more entries differ" if found[1:] else ""))
        return 1
    print(f"{len(before)} entries agree" + (f", log weights within {tolerance:g}" if tolerance else " in every bit"))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="write the numbers of this tree to FILE; more options go to davi train")
    recording.add_argument("file", type=Path)
    comparing = verbs.add_parser("compare", help="print the first difference of two files")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    comparing.add_argument("--log-weights", type=float, default=0.0, metavar="TOLERANCE", help="relative; default: 0")
    arguments, options = parser.parse_known_args()
    if arguments.verb == "record":
        record(arguments.file, options)
        return 0
    if options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    return compare(arguments.first, arguments.second, arguments.log_weights)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m davi.published.parity FIXTURE.safetensors``: is our model the authors' model?

Builds our model from the JSON beside the fixture, loads its weights, runs it with every latent at the posterior mean
(and unconditionally at the prior mean) and prints ours beside theirs. Exit status 0: everything agrees; 1: something
differs, and the first such tensor in the order of the computation is named; 2: the files cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from davi.errors import UserError
from davi.published.agreement import Comparison, report
from davi.published.attentive.parity import AttentiveParity
from davi.published.flowpp.parity import FlowPPParity
from davi.published.irevnet.parity import IRevNetParity
from davi.published.nvae.parity import NvaeParity
from davi.published.pixelcnn.parity import PROGRAMS, PixelParity
from davi.published.real_nvp.parity import RealNVPParity
from davi.published.revnet.parity import RevNetParity
from davi.published.sonnet.parity import SonnetParity
from davi.published.sylvester.parity import SylvesterParity
from davi.published.vdvae.parity import VdvaeParity

Compare = Callable[[Mapping[str, Tensor], Mapping[str, Any], torch.dtype], list[Comparison]]

FAMILIES: dict[str, Compare] = {
    "deep_attentive_vi": lambda tensors, facts, dtype: AttentiveParity(tensors, facts, dtype).comparisons(),
    "flowpp": lambda tensors, facts, dtype: FlowPPParity(tensors, facts, dtype).comparisons(),
    "irevnet": lambda tensors, facts, dtype: IRevNetParity(tensors, facts, dtype).comparisons(),
    "nvae": lambda tensors, facts, dtype: NvaeParity(tensors, facts, dtype).comparisons(),
    "realnvp": lambda tensors, facts, dtype: RealNVPParity(tensors, facts, dtype).comparisons(),
    "revnet": lambda tensors, facts, dtype: RevNetParity(tensors, facts, dtype).comparisons(),
    "sylvester": lambda tensors, facts, dtype: SylvesterParity(tensors, facts, dtype).comparisons(),
    "vdvae": lambda tensors, facts, dtype: VdvaeParity(tensors, facts, dtype).comparisons(),
    "vq_sonnet1": lambda tensors, facts, dtype: SonnetParity(tensors, facts, dtype).comparisons(),
    "vq_sonnet2": lambda tensors, facts, dtype: SonnetParity(tensors, facts, dtype).comparisons(),
}
"""The field ``model`` of a fixture's JSON -> how to compare; that of an exact model has a second file of tensors."""


def read_fixture(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a fixture.

    Raises:
        UserError: if the safetensors file or the JSON file beside it is missing or unreadable.
    """
    beside = path.with_suffix(".json")
    for needed in (path, beside):
        if not needed.is_file():
            raise UserError(f"{needed}: no such file; a fixture is a .safetensors file with a .json file beside it")
    tensors = _tensors(path)
    try:
        facts = json.loads(beside.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of brackets within brackets without end
        raise UserError(f"{beside}: not readable JSON ({error})") from error
    model = facts.get("model") if isinstance(facts, dict) else None
    if not isinstance(model, str) or model not in {*FAMILIES, *PROGRAMS}:
        raise UserError(f"{beside}: model is {model!r}, expected one of {', '.join([*FAMILIES, *PROGRAMS])}")
    return tensors, facts


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _initialization(path: Path) -> dict[str, Tensor]:
    """Tensors of the initialization of a fixture, which lie in a file beside it."""
    beside = path.with_name(f"{path.stem}_init.safetensors")
    if not beside.is_file():
        raise UserError(f"{beside}: no such file; a fixture of an exact model has its initialization beside it")
    return _tensors(beside)


def compare(path: Path, dtype: torch.dtype = torch.float32) -> list[Comparison]:
    """All comparisons of a fixture, in the order of the computation."""
    tensors, facts = read_fixture(path)
    initialization = _initialization(path) if facts["model"] in PROGRAMS else None
    try:
        if initialization is not None:
            return PixelParity(tensors, initialization, facts, dtype).comparisons()
        return FAMILIES[facts["model"]](tensors, facts, dtype)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyError as error:
        raise UserError(f"{path}: fixture lacks {error}") from error
    except (AttributeError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        # Facts and tensors may be anything: texts where numbers are due, other shapes than the configuration's.
        raise UserError(f"{path}: fixture cannot be used ({' '.join(str(error).split())[:200]})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m davi.published.parity", description=__doc__)
    parser.add_argument("fixture", type=Path, help="a .safetensors file with a .json file beside it")
    parser.add_argument(
        "--float64", action="store_true", help="compute in double precision; gradients are compared too"
    )
    options = parser.parse_args(arguments)
    try:
        first = report(compare(options.fixture, torch.float64 if options.float64 else torch.float32))
    except UserError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    if first is not None:
        print(f"DIFFERS: {first} is the first, in the order of the computation, that does not agree")
        return 1
    print("AGREES: everything compared is within its tolerance")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a run of a quantized model says at the end of each stage: how its bits divide, and how many codes it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from davi.data import Images
from davi.evaluation import RECONSTRUCTION, evaluate
from davi.evaluation.codes import CODE_COSTS, CODE_PERPLEXITY, CODES_IN_USE, code_costs, prior_doubt
from davi.evidence import bits_per_dim
from davi.formatting import UNITS
from davi.model.quantized import Quantized


def code_record(model: Quantized, images: Images, batch_size: int, seed: int) -> dict[str, Any]:
    """What a record of the kind ``codes`` says.

    Arguments:
        model: the whole, with averaged weights.
        images: as they are evaluated.
        batch_size: images at once.
        seed: of all draws.

    Returns:
        ``images``, their number; ``nats`` that an image takes, of the reconstruction and of the codes with each prior;
        ``perplexity``, ``in_use`` and ``out_of`` of each layer, the top first; and, where there is reason for it, a
        ``warning``.
    """
    found = evaluate(model, images, 1, batch_size, seed)
    costs = code_costs(found.measures, found.dims)
    nats = {RECONSTRUCTION: -float(found.terms[RECONSTRUCTION].mean())}
    nats |= {name: values.nats.mean for name, values in costs.items()}
    perplexity, used = found.measure(CODE_PERPLEXITY), found.measure(CODES_IN_USE)
    assert perplexity is not None
    assert used is not None
    record = {"perplexity": perplexity.layers, "in_use": used.layers, "out_of": used.out_of}
    doubt = prior_doubt(costs)
    return {"images": len(found), "nats": nats, **record, **({"warning": doubt} if doubt else {})}


def code_lines(record: Mapping[str, Any], stage: str, levels: int, dims: int) -> list[str]:
    """The same in lines for the user.

    Arguments:
        record: of :func:`code_record`.
        stage: name of the stage that has ended; empty in a run of one.
        levels: of a pixel: of binary images costs are told in nats.
        dims: values in one image.
    """
    binary = levels == 2
    costs = {name: nats if binary else bits_per_dim(-nats, dims) for name, nats in record["nats"].items()}
    told = ", ".join(f"{name.removeprefix('codes, ')} {costs[name]:.4g}" for name in CODE_COSTS if name in costs)
    unit = UNITS["nats" if binary else "bits_per_dim"]
    used = zip(record["perplexity"], record["in_use"], record["out_of"], strict=True)
    layers = "; ".join(f"{perplexity:.4g}, {count:.0f} of {most:.0f} in use" for perplexity, count, most in used)
    lines = [
        f"{f'after stage {stage}: ' if stage else ''}reconstruction {costs[RECONSTRUCTION]:.4g} {unit}; codes {told} "
        f"({record['images']} images)",
        f"perplexity of codes by layer, top first: {layers}",
    ]
    return [*lines, *([f"warning: {record['warning']}"] if "warning" in record else [])]

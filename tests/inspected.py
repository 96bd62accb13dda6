"""A made-up run with everything that a page can show, for the tests of the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import davi
from davi import gaps
from davi.evaluation import Evaluation
from davi.evaluation.activity import active_units
from davi.evaluation.baselines import Baseline
from davi.evaluation.gap import Gap
from davi.evaluation.gap_result import GapResult
from davi.evaluation.optimized import Optimized
from davi.evaluation.result import Result
from davi.evidence import Kind
from davi.inspection import (
    BitMaps,
    Chosen,
    DepthAttentionView,
    Inspection,
    Layer,
    Progressive,
    SpatialAttentionView,
    Strip,
)
from davi.page import Contents
from davi.report import protocol_of, result_of

MODEL = {
    "name": "attentive_vae",
    "shape": [1, 8, 8],
    "levels": 16,
    "config": {"width": 4},
    "parameters": 12345,
    "version": "0.1.0",
    "ema": True,
    "ema_decay": 0.999,
    "step": 77,
    "source": "runs/demo/model.safetensors",
}
DATA = {"set": "digits", "shape": [1, 8, 8], "levels": 16, "binarization": "none"}


def result(samples: int = 100, data: dict[str, Any] | None = None, **changes: Any) -> Result:
    """Numbers of three images."""
    values: dict[str, Any] = {
        "elbo": np.array([-84.0, -88.0, -92.0]),
        "bound": np.array([-83.0, -87.0, -91.0]),
        "terms": {"reconstruction": np.array([-80.0, -84.0, -88.0]), "kl/00": np.full(3, -4.0)},
        "kind": Kind.LOWER_BOUND,
        "measures": (active_units((3,), (4,), images=3, draws=16),),
        "samples": samples,
        "seed": 5,
        "batch_size": 64,
        "limit": 3,
        "available": 10,
        "set": "digits/test",
        "dims": 64,
        "device": "cpu",
        "precision": "float32",
    }
    measured = Evaluation(**{**values, **changes})
    others = [
        Baseline("independent pixels", 2.5, 0.01, "counts of 1000 training images"),
        Baseline("PNG", 14.25, 0.1, "one file for each image"),
        Baseline("lossless WebP", None, None, "the format does not hold these images"),
    ]
    return result_of(measured, others, protocol_of(measured, MODEL, data or DATA))


def gap() -> GapResult:
    """What lies between the ELBO and log p(x) of the three images."""
    curve = np.array([[-84.0, -88.0, -92.0], [-83.5, -87.0, -91.0], [-82.9, -86.0, -90.4]])
    values = {"elbo": curve[0], "bound": curve[-1], "terms": {}, "kind": Kind.LOWER_BOUND, "samples": 4, "seed": 0}
    where = {"batch_size": 64, "limit": 3, "available": 10, "set": "digits/test", "device": "cpu"}
    evaluation = Evaluation(**values, **where, dims=64, precision="float32")  # type: ignore[arg-type]
    optimized = Optimized(np.array([-83.2, -86.9, -91.5]), np.array([1, 2, 3]))
    found = Gap(evaluation, (1, 2, 4), (4, 2, 1), curve, 500, optimized)
    return gaps.result_of(found, protocol_of(evaluation, MODEL, DATA))


def records(steps: int = 20) -> list[dict[str, Any]]:
    """The metrics of a run that was rolled back once and warned twice."""
    lines: list[dict[str, Any]] = []
    for i in range(1, steps + 1):
        train = {"bits_per_dim": 2 + 3 / i, "kl": 4 - 3 / i, "learning_rate": 0.01 / i}
        lines.append({"kind": "train", "step": 10 * i, **train})
        if i % 5 == 0:
            lines.append({"kind": "validation", "step": 10 * i, "bits_per_dim": 2.1 + 3 / i, "kl": 4 - 3 / i})
    lines.append({"kind": "rollback", "step": 50, "failed_step": 57, "where": "the loss", "learning_rate_factor": 0.5})
    lines.append(
        {
            "kind": "watch",
            "step": 100,
            "what": "collapse",
            "layers": ["kl/01"],
            "message": "kl/01 stays near 0 nats",
        }
    )
    lines.append({"kind": "watch", "step": 150, "what": "plateau", "layers": [], "message": "no progress"})
    return lines


def inspection(
    latents: int = 3, shape: tuple[int, int, int] = (1, 8, 8), levels: int = 16, **changes: Any
) -> Inspection:
    """Random pictures and maps of ``latents`` latent layers over images of any shape."""
    g = torch.Generator().manual_seed(3)
    _, h, w = shape
    n, half = 2, (max(h // 2, 1), max(w // 2, 1))

    def draws(*size: int) -> Tensor:
        return torch.randint(levels, (*size, *shape), generator=g, dtype=torch.int32)

    def weights(*size: int) -> Tensor:
        return torch.rand(size, generator=g)

    def depth(side: str) -> DepthAttentionView:
        readers = tuple(str(i) for i in range(1, latents))
        sources = tuple(str(i) for i in range(latents - 1))
        maps = weights(n, latents - 1, latents - 1, *half)
        offered = torch.ones(latents - 1, latents - 1).tril().bool()[:, :, None, None]
        maps = maps.where(offered, torch.nan)
        maps = maps / maps.nansum(2, keepdim=True)
        matrix = maps.mean((0, 3, 4))
        return DepthAttentionView(side, readers, sources, matrix, (0.25,) * (latents - 1), maps)

    space = weights(n, 3, *half).flatten(2).softmax(2).unflatten(2, half)
    queries = ((0, 0), (half[0] // 2, half[1] // 2), (half[0] - 1, half[1] - 1))
    depths = (0, 1, latents)
    values: dict[str, Any] = {
        "images": 40,
        "seed": 0,
        "set": "digits/test",
        "samples": {t: draws(16) for t in (0.6, 0.8, 1.0)},
        "chosen": tuple(
            Chosen(role, 4 * k + i, f"test image {4 * k + i}", 1.5 + k + 0.1 * i, draws(), draws())
            for k, role in enumerate(("best", "typical", "worst"))
            for i in range(4)
        ),
        "layers": tuple(
            Layer(f"kl/{i:02d}", half if i else (1, 1), 2, float(i), 0.1, i, 2 * half[0] * half[1], i == 0)
            for i in range(latents)
        ),
        "progressive": Progressive(
            draws(n), depths, torch.stack([draws(n) for _ in depths]), tuple(90.0 - 2 * k for k in depths)
        ),
        "depth_attention": (depth("generative"), depth("inference")),
        "spatial_attention": (SpatialAttentionView("decoder cell 0", half, half, 0.125, queries, space),),
        "bits": BitMaps(draws(n), weights(n, h, w), weights(n, latents, h, w)),
        "expected": {t: (levels - 1) * weights(16, *shape) for t in (0.6, 0.8, 1.0)},
        "pixels": "means",
        "shown": ("test image 0", "test image 4"),
        "strips": tuple(
            Strip(kind, f"row {i}", ("original", "", "0.50"), (levels - 1) * weights(3, *shape))
            for kind in ("interpolation", "variations")
            for i in range(2)
        ),
    }
    return Inspection(**{**values, **changes})


def contents(**changes: Any) -> Contents:
    """A page with every section filled."""
    values: dict[str, Any] = {
        "title": "demo",
        "facts": [("Model", "attentive_vae, 12,345 parameters"), ("Training", "2m05s")],
        "result": result(),
        "measured": "Measured for a test.",
        "inspection": inspection(),
        "model": davi.build("attentive_digits_tiny"),
        "levels": 16,
        "records": records(),
        "recipe": "name: demo\nmodel:\n  width: 4\n",
        "gap": gap(),
    }
    return Contents(**{**values, **changes})

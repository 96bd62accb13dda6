"""The figure of :doc:`concepts/variational_gap`: posteriors of a VAE with two latent variables.

``python docs/posteriors.py RUN`` writes ``docs/_static/variational_gap.svg``. RUN is a run of ``vae_2d_digits``. With
two latents everything is known: the true posterior p(z | x) is p(x, z) on a fine grid, divided by its sum. Beside it
stand the encoder's q, what importance weighting makes of it, and the best that each family of posteriors can do for the
image, with the divergence from the truth on the same grid.

The importance-weighted bound with K samples is the ELBO of another posterior,

    q_K(z) = q(z) E[ K w(z) / (w(z) + w(z_2) + ... + w(z_K)) ],    w(z) = p(x, z) / q(z),    z_k ~ q,

up to what averaging over z_2 .. z_K loses.

References:
    Reinterpreting Importance-Weighted Autoencoders, C. Cremer, Q. Morris, D. Duvenaud, 2017,
    https://arxiv.org/abs/1704.02916
    Inference Suboptimality in Variational Autoencoders, C. Cremer, X. Li, D. Duvenaud, ICML 2018,
    https://arxiv.org/abs/1801.03558
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

import davi
from davi import recipes
from davi.data import load
from davi.distributions import Normal, TransformedNormal
from davi.flows.amortized import AmortizedFlow, PosteriorFlowConfig
from davi.flows.householder import HouseholderConfig
from davi.flows.iaf import IAFConfig
from davi.flows.planar import PlanarConfig
from davi.flows.posterior import make_posterior_flow
from davi.flows.sylvester import SylvesterOrthogonalConfig
from davi.model import Hierarchy
from davi.run_folder import RECIPE

STATIC = Path(__file__).parent / "_static"
SIDE = 81
"""Points of the grid along each axis."""
CANDIDATES, SHOWN = 20, 4
STEPS, DRAWS, RATE = 400, 32, 0.03
"""Of the optimization of one posterior for one image."""
FEATURES = 8
"""Of the constant context from which the parameters of a flow follow."""

LogDensity = Callable[[Tensor], Tensor]
"""``[N, 2] -> [N]``, nats."""


class Grid(NamedTuple):
    """A window on the latent plane.

    Arguments:
        first, second: coordinates along the axes, ``[SIDE]``.
        points: all pairs, ``[SIDE * SIDE, 2]``.
        log_area: logarithm of a cell's area.
    """

    first: Tensor
    second: Tensor
    points: Tensor
    log_area: float


def grid(center: Tensor, half: float) -> Grid:
    """A square window."""
    axes = [torch.linspace(float(c) - half, float(c) + half, SIDE, dtype=torch.float64) for c in center]
    points = torch.cartesian_prod(*axes)
    return Grid(axes[0], axes[1], points, 2.0 * math.log(2.0 * half / (SIDE - 1)))


def joint(model: Hierarchy, x: Tensor) -> LogDensity:
    """log p(x, z) of one image ``[C, H, W]`` as a function of z."""

    def log_joint(z: Tensor) -> Tensor:
        prior = Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z)
        images = x[None].expand(len(z), *x.shape)
        return model.decode([z[:, :, None, None]]).log_prob(images) + prior

    return log_joint


def posterior_on(window: Grid, log_joint: LogDensity) -> tuple[Tensor, float]:
    """log p(z | x) on a grid, and log p(x)."""
    with torch.no_grad():
        values = torch.cat([log_joint(part) for part in window.points.split(2048)])
    log_px = float(values.logsumexp(0)) + window.log_area
    return values - log_px, log_px


def moments(log_joint: LogDensity) -> Normal:
    """A Normal with the means and the standard deviations of the true posterior, ``[1, 2, 1, 1]``."""
    coarse = grid(torch.zeros(2), 5.0)
    weights = (posterior_on(coarse, log_joint)[0] + coarse.log_area).exp()
    mean = weights @ coarse.points
    deviation = (weights @ (coarse.points - mean).square()).sqrt()
    return Normal(mean.view(1, 2, 1, 1), deviation.view(1, 2, 1, 1))


def window_of(*distributions: Normal) -> Grid:
    """A square that holds four standard deviations of each."""
    low = torch.stack([(q.mean - 4.0 * q.scale).flatten() for q in distributions]).amin(0)
    high = torch.stack([(q.mean + 4.0 * q.scale).flatten() for q in distributions]).amax(0)
    return grid((low + high) / 2, float((high - low).max()) / 2)


def importance_weighted(q: Normal, log_joint: LogDensity, k: int, window: Grid, sets: int = 400) -> Tensor:
    """log q_K on the grid (module docstring), the expectation over ``sets`` draws of the other samples."""
    generator = Generator().manual_seed(k)
    mean, scale = q.mean.flatten(), q.scale.flatten()
    noise = torch.randn(sets * (k - 1), 2, generator=generator, dtype=mean.dtype)
    with torch.no_grad():
        others = mean + scale * noise
        log_w = torch.cat([log_joint(part) for part in others.split(4096)]) - density(q)(others)
        rest = log_w.unflatten(0, (sets, k - 1)).logsumexp(1)  # [sets]
        own = torch.cat([log_joint(part) for part in window.points.split(4096)]) - density(q)(window.points)
        share = (own[:, None] - torch.logaddexp(own[:, None], rest[None])).exp().mean(1)
    return density(q)(window.points) + (k * share).log()


def density(q: Normal) -> LogDensity:
    """Of a Normal of two variables."""
    flat = Normal(q.mean.reshape(1, 2), q.scale.reshape(1, 2))
    return flat.log_prob


class Fitted(nn.Module):
    """A posterior for one image: a Normal with free parameters, and a flow whose context is free."""

    def __init__(self, q: Normal, flow: AmortizedFlow | None) -> None:
        super().__init__()
        self.mean = nn.Parameter(q.mean.detach().clone())
        self.log_scale = nn.Parameter(q.scale.detach().log().clone())
        self.flow = flow
        self.context = nn.Parameter(torch.zeros(1, FEATURES, 1, 1, dtype=q.mean.dtype)) if flow is not None else None

    def forward(self, n: int) -> Normal | TransformedNormal:
        """The posterior, n times."""
        base = Normal(self.mean.expand(n, -1, -1, -1), self.log_scale.exp().expand(n, -1, -1, -1))
        if self.flow is None or self.context is None:
            return base
        return TransformedNormal(base, self.flow, self.flow.inverse, self.context.expand(n, -1, -1, -1))


def fit(q: Normal, config: PosteriorFlowConfig | None, log_joint: LogDensity) -> Fitted:
    """The best posterior of a family for one image, by ascent on the ELBO from q, and from a flow that is near to the
    identity."""
    torch.manual_seed(0)
    fitted = Fitted(q, None if config is None else make_posterior_flow(2, FEATURES, config).to(q.mean.dtype))
    optimizer = torch.optim.Adam(fitted.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        posterior = fitted(DRAWS)
        z = posterior.sample()
        loss = (posterior.log_prob(z) - log_joint(z.flatten(1))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return fitted


def on_grid(fitted: Fitted, window: Grid) -> Tensor:
    """Its log-density on the grid, by the inverse of the flow."""
    with torch.no_grad():
        found: Tensor = fitted(len(window.points)).log_prob(window.points[:, :, None, None])
    return found


def divergence(log_q: Tensor, log_p: Tensor, window: Grid) -> float:
    """KL(q || p) on the grid, nats."""
    q = (log_q - log_q.logsumexp(0)).exp()
    return float((q * (log_q - log_q.logsumexp(0) - log_p + log_p.logsumexp(0))).nan_to_num().sum())


FAMILIES: Mapping[str, PosteriorFlowConfig] = {
    "planar": PlanarConfig(steps=8),
    "Householder": HouseholderConfig(),
    "Sylvester": SylvesterOrthogonalConfig(steps=8, vectors=2),
    "IAF": IAFConfig(width=32),
}
"""What the figure calls a flow -> its options, for two latent variables."""


def panels(model: Hierarchy, x: Tensor) -> tuple[Grid, dict[str, Tensor], dict[str, float]]:
    """Log-densities on a grid for one image ``[C, H, W]``, and their divergences from the true posterior."""
    log_joint = joint(model, x)
    q, near = encoder_posterior(model, x), moments(log_joint)
    window = window_of(q, near)
    truth, _ = posterior_on(window, log_joint)
    found = {"true posterior": truth, "encoder's q": density(q)(window.points)}
    found |= {f"q, K = {k}": importance_weighted(q, log_joint, k, window) for k in (5, 50)}
    found["best Normal"] = on_grid(fit(near, None, log_joint), window)
    for title, config in FAMILIES.items():
        found[title] = on_grid(fit(near, config, log_joint), window)
    return window, found, {name: divergence(values, truth, window) for name, values in found.items()}


def encoder_posterior(model: Hierarchy, x: Tensor) -> Normal:
    """q(z | x), ``[1, 2, 1, 1]``."""
    kept: list[Normal] = []

    def choose(layer: int, prior: object, posterior: object) -> Tensor:
        assert isinstance(posterior, Normal)
        kept.append(posterior)
        return posterior.mean

    with torch.no_grad():
        model.top_down(choose, model.encode(x[None]))
    return kept[0]


def odd_ones(model: Hierarchy, images: Tensor) -> list[int]:
    """The images whose true posterior is least like the encoder's q: what a Normal cannot be is seen best."""
    worst = []
    for i, x in enumerate(images):
        log_joint = joint(model, x)
        q = encoder_posterior(model, x)
        window = window_of(q, moments(log_joint))
        truth, _ = posterior_on(window, log_joint)
        worst.append((divergence(density(q)(window.points), truth, window), i))
    step = len(worst) // (2 * SHOWN)
    return [i for _, i in sorted(worst, reverse=True)[: SHOWN * step : step]]  # from the worst to the middle


def _draw(axes: Axes, window: Grid, log_density: Tensor, truth: Tensor, color: str) -> None:
    """Contours that hold 50, 80 and 95 percent of a density, over those of the true posterior in gray."""
    for values, ink, width in ((truth, "#bbbbbb", 0.7), (log_density, color, 1.0)):
        weights = (values - values.logsumexp(0)).exp()
        ordered, _ = weights.sort(descending=True)
        held = ordered.cumsum(0)
        levels = sorted(float(ordered[int((held < share).sum())]) for share in (0.5, 0.8, 0.95))
        if levels[0] < levels[1] < levels[2]:
            axes.contour(window.first, window.second, weights.view(SIDE, SIDE).T, levels, colors=ink, linewidths=width)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color("#cccccc")


def variational_gap(run: Path) -> Figure:
    """Four images: the true posterior and what stands for it, with KL(q || p) in nats."""
    model = davi.load(run).double()
    assert isinstance(model, Hierarchy)
    data = recipes.load(run / RECIPE).data
    assert data is not None
    images = load(data).test.pixels[:CANDIDATES]
    shown = odd_ones(model, images)
    columns = ["", "true posterior", "encoder's q", "q, K = 5", "q, K = 50", "best Normal", *FAMILIES]
    figure = Figure(figsize=(1.06 * len(columns), 1.24 * len(shown)), layout="constrained")
    grids = figure.subplots(len(shown), len(columns), squeeze=False)
    for row, number in zip(grids, shown, strict=True):
        row[0].imshow(images[number, 0], cmap="gray_r", interpolation="nearest")
        row[0].set_axis_off()
        window, densities, losses = panels(model, images[number])
        truth = densities["true posterior"]
        for axes, (name, values) in zip(row[1:], densities.items(), strict=True):
            _draw(axes, window, values, truth, "#333333" if values is truth else "#0072b2")
            if values is not truth:
                axes.set_xlabel(f"{losses[name]:.2f}", fontsize=8, labelpad=2)
    for axes, title in zip(grids[0], columns, strict=True):
        axes.set_title(title, fontsize=8)
    return figure


def main(run: Path, folder: Path = STATIC) -> None:
    """Write the figure."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "davi", "svg.image_inline": True}):
        variational_gap(run).savefig(folder / "variational_gap.svg", metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

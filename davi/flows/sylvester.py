r"""Sylvester flows: planar flow with M directions at once, whose determinant is one of an M x M triangular matrix.

.. math:: z' = z + Q R_1 \tanh(R_2 Q^\top z + b)

with Q of C x M, its columns orthonormal, and :math:`R_1, R_2` upper triangular. By Sylvester's identity

.. math:: \log \left| \det \frac{\partial z'}{\partial z} \right|
          = \sum_{m=1}^M \log \left( 1 + r^1_{mm} r^2_{mm} h'_m \right), \qquad h' = 1 - \tanh^2(R_2 Q^\top z + b)

It is invertible if :math:`r^1_{mm} r^2_{mm} > -1`: the diagonals are tanh of what the encoder says. Above them, one
matrix D serves both: :math:`R_1` has its upper triangle, :math:`R_2` that of its transpose. The inverse solves for the
entries of :math:`Q^\top z` one after the other, from the last.

Three ways to have Q:

- orthogonal: the nearest matrix with orthonormal columns to what the encoder says (:mod:`davi.flows.orthogonal`);
- Householder: a product of reflections, M = C;
- triangular: the identity, and in every second step the reversal of the channels, M = C.

References:
    Sylvester Normalizing Flows for Variational Inference, R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling,
    UAI 2018, https://arxiv.org/abs/1803.05649
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from davi.errors import OptionError
from davi.flows.amortized import PosteriorFlowConfig
from davi.flows.orthogonal import nearest_orthonormal, product_of_reflections, published_orthonormal
from davi.flows.vectors import VectorFlow, VectorStep, full_precision, solve_tanh


@final
class SylvesterStep(VectorStep):
    """One step (module docstring).

    Arguments:
        q: Q, ``[B, P, C, M]`` or ``[C, M]``.
        r1, r2: upper triangular, ``[B, P, M, M]``.
        b: ``[B, P, M]``.
    """

    def __init__(self, q: Tensor, r1: Tensor, r2: Tensor, b: Tensor) -> None:
        self.q, self.r1, self.r2, self.b = q, r1, r2, b

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        tanh = (_times(self.r2, _times(self.q.mT, z)) + self.b).tanh()
        diagonal = _diagonal(self.r1) * _diagonal(self.r2)
        log_det = (diagonal * (1 - tanh.square())).log1p().sum(-1)
        return z + _times(self.q, _times(self.r1, tanh)), log_det

    def inverse(self, y: Tensor) -> Tensor:
        target = _times(self.q.mT, y)
        v, tanh = target[..., :0], target[..., :0]  # of the entries solved: a growing tail of Q^T z
        for m in reversed(range(target.shape[-1])):
            beside1, beside2 = self.r1[..., m, m + 1 :], self.r2[..., m, m + 1 :]
            inside = self.b[..., m] + (beside2 * v).sum(-1)
            outside = target[..., m] - (beside1 * tanh).sum(-1)
            scale1, scale2 = self.r1[..., m, m], self.r2[..., m, m]
            own = solve_tanh(scale1, scale2, inside, outside)
            v = torch.cat([own[..., None], v], -1)
            tanh = torch.cat([(scale2 * own + inside).tanh()[..., None], tanh], -1)
        return y - _times(self.q, _times(self.r1, tanh))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


class SylvesterFlow(VectorFlow, ABC):
    """Sylvester steps whose parameters are linear in the encoder's features.

    Arguments:
        channels, features, config: of :class:`~davi.flows.amortized.AmortizedFlow`.
        size: M.
    """

    def __init__(self, channels: int, features: int, config: PosteriorFlowConfig, size: int) -> None:
        super().__init__(channels, features, config)
        self.size = size
        self.triangles = nn.Linear(features, config.steps * size * size)
        self.diagonal1 = nn.Linear(features, config.steps * size)
        self.diagonal2 = nn.Linear(features, config.steps * size)
        self.b = nn.Linear(features, config.steps * size)

    @abstractmethod
    def orthonormal(self, features: Tensor) -> Tensor:
        """Q of all steps.

        Arguments:
            features: the context, ``[B, P, F]``.

        Returns:
            ``[K, B, P, C, M]`` or ``[K, C, M]``.
        """

    @final
    def vector_steps(self, features: Tensor) -> list[SylvesterStep]:
        matrices = self.of_each_step(self.triangles(features), self.size, self.size)
        diagonal1, diagonal2, b = (
            self.of_each_step(head(features), self.size) for head in (self.diagonal1, self.diagonal2, self.b)
        )
        with torch.autocast(features.device.type, enabled=False):
            r1 = matrices.triu(1) + diagonal1.tanh().diag_embed()
            r2 = matrices.mT.triu(1) + diagonal2.tanh().diag_embed()
        return [SylvesterStep(*of_one) for of_one in zip(self.orthonormal(features), r1, r2, b, strict=True)]

    @final
    def of_each_step(self, parameters: Tensor, *shape: int) -> Tensor:
        """``[B, P, K * numbers]`` -> ``[K, B, P, *shape]``, in float32 at least."""
        return full_precision(parameters).unflatten(-1, (self.config.steps, *shape)).movedim(2, 0)


@final
@dataclass(frozen=True)
class SylvesterOrthogonalConfig(PosteriorFlowConfig):
    """Options of the orthogonal Sylvester flow.

    Arguments:
        name: ``sylvester_orthogonal``.
        steps: how many.
        vectors: M, columns of Q; at most the channels.
        stopping: of the iteration that makes Q orthonormal: ``converged``; or ``published``, the rule of the authors'
            program, with which the posterior of an image depends on the rest of its batch.
    """

    name: Literal["sylvester_orthogonal"] = "sylvester_orthogonal"
    vectors: int = 8
    stopping: Literal["converged", "published"] = "converged"


@final
class SylvesterOrthogonalFlow(SylvesterFlow):
    """Q by iteration.

    Raises:
        OptionError: a ``ValueError``, if there are more vectors than channels, or none.
    """

    name: ClassVar[str] = "sylvester_orthogonal"
    Config: ClassVar[type[PosteriorFlowConfig]] = SylvesterOrthogonalConfig
    config: SylvesterOrthogonalConfig

    def __init__(self, channels: int, features: int, config: SylvesterOrthogonalConfig) -> None:
        if not 1 <= config.vectors <= channels:
            expected = f"expected 1 to {channels}, the channels of the latents"
            raise OptionError("posterior_flow.vectors", f"got {config.vectors}, {expected}")
        super().__init__(channels, features, config, config.vectors)
        self.q = nn.Linear(features, config.steps * channels * config.vectors)

    def orthonormal(self, features: Tensor) -> Tensor:
        matrices = self.of_each_step(self.q(features), self.channels, self.config.vectors)
        with torch.autocast(features.device.type, enabled=False):
            return (nearest_orthonormal if self.config.stopping == "converged" else published_orthonormal)(matrices)


@final
@dataclass(frozen=True)
class SylvesterHouseholderConfig(PosteriorFlowConfig):
    """Options of the Householder Sylvester flow.

    Arguments:
        name: ``sylvester_householder``.
        steps: how many.
        reflections: H, whose product is Q.
    """

    name: Literal["sylvester_householder"] = "sylvester_householder"
    reflections: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reflections < 1:
            raise ValueError(f"reflections: got {self.reflections}, expected at least 1")


@final
class SylvesterHouseholderFlow(SylvesterFlow):
    """Q as a product of reflections."""

    name: ClassVar[str] = "sylvester_householder"
    Config: ClassVar[type[PosteriorFlowConfig]] = SylvesterHouseholderConfig
    config: SylvesterHouseholderConfig

    def __init__(self, channels: int, features: int, config: SylvesterHouseholderConfig) -> None:
        super().__init__(channels, features, config, channels)
        self.q = nn.Linear(features, config.steps * config.reflections * channels)

    def orthonormal(self, features: Tensor) -> Tensor:
        vectors = self.of_each_step(self.q(features), self.config.reflections, self.channels)
        with torch.autocast(features.device.type, enabled=False):
            return product_of_reflections(vectors)


@final
@dataclass(frozen=True)
class SylvesterTriangularConfig(PosteriorFlowConfig):
    """Options of the triangular Sylvester flow.

    Arguments:
        name: ``sylvester_triangular``.
        steps: how many.
    """

    name: Literal["sylvester_triangular"] = "sylvester_triangular"


@final
class SylvesterTriangularFlow(SylvesterFlow):
    """Q the identity and the reversal of the channels, in turn."""

    name: ClassVar[str] = "sylvester_triangular"
    Config: ClassVar[type[PosteriorFlowConfig]] = SylvesterTriangularConfig

    def __init__(self, channels: int, features: int, config: SylvesterTriangularConfig) -> None:
        super().__init__(channels, features, config, channels)

    def orthonormal(self, features: Tensor) -> Tensor:
        identity = torch.eye(self.channels, dtype=self.b.weight.dtype, device=features.device)
        return torch.stack([identity.flip(0) if step % 2 else identity for step in range(self.config.steps)])

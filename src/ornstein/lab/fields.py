"""Gaussian images with a dense covariance: the exact denoiser on every kind of path whose mean is linear in x_0.

With x_t = G_t·x_0 + σ_t·z and x_0 ~ N(m, C), whatever the linear map G_t does to the shape of the state,

    E[x_0 | x_t] = m + C Gᵀ (G C Gᵀ + σ²)⁻¹ (x_t − G m),   cov[x_0 | x_t] = C − C Gᵀ (G C Gᵀ + σ²)⁻¹ G C

G_t is read off `Path.diffuse` itself, one unit image at a time, so `PyramidPath`, `ShiftedPath` (with any linear shift)
and affine paths are served alike. Dense linear algebra: for small images.

`Drawing` answers with a draw of p(x_0 | x_t) in place of its mean. Then q(x_s | x_t, x_0) integrates to the exact
p(x_s | x_t), and one `Ancestral` sampler reproduces the law of every path to rounding in any number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.errors import UsageError
from ornstein.estimates import Estimate
from ornstein.paths.base import Path
from ornstein.randomness import NoiseSource
from ornstein.scalars import Time

from .targets import OnPath


@dataclass(frozen=True, slots=True, eq=False)
class FieldTarget:
    """N(mean, covariance) on images: mean (C, H, W), covariance (D, D) with D = C·H·W, both float64."""

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        size = self.mean.numel()
        if self.covariance.shape != (size, size):
            raise UsageError(f"the covariance of {size} numbers is {size}×{size}, got {tuple(self.covariance.shape)}")

    def law(self, path: Path, t: float) -> tuple[Tensor, Tensor]:
        """(mean (*event at t), covariance (D_t, D_t)) of x_t, exactly."""
        mean, gain, std = self._forward(path, t)
        return mean, gain @ self.covariance @ gain.T + std**2 * torch.eye(len(gain), dtype=torch.float64)

    def root(self, path: Path, t: float) -> Tensor:
        """Rows of coefficients of the law at t, (D_t, *event): what `ornstein.lab.meters.propagate` starts from."""
        mean, covariance = self.law(path, t)
        return torch.linalg.cholesky(covariance).T.reshape(-1, *mean.shape)

    def posterior(self, path: Path, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """(E[x_0 | x_t] (B, C, H, W), cov[x_0 | x_t] (D, D))."""
        mean, gain, std = self._forward(path, t)
        cross = self.covariance @ gain.T
        total = gain @ cross + std**2 * torch.eye(len(gain), dtype=torch.float64)
        pull = torch.linalg.solve(total, cross.T).T
        clean = self.mean.flatten() + (x - mean).flatten(1) @ pull.T
        return clean.reshape(-1, *self.mean.shape), self.covariance - pull @ cross.T

    def denoiser(self, path: Path) -> FieldDenoiser:
        """E[x_0 | x_t] on ``path``."""
        return FieldDenoiser(self, path)

    def _forward(self, path: Path, t: float) -> tuple[Tensor, Tensor, float]:
        """(G m, G, σ) at time t."""
        size, shape = self.mean.numel(), self.mean.shape
        event = path.state_shape(shape, t)
        units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        gain = path.diffuse(units, t, torch.zeros(size, *event, dtype=torch.float64)).reshape(size, -1).T
        ones = torch.ones(1, *event, dtype=torch.float64)
        std = float(path.diffuse(torch.zeros(1, *shape, dtype=torch.float64), t, ones).flatten()[0])
        return (gain @ self.mean.flatten()).reshape(event), gain, std


@dataclass(frozen=True, slots=True, eq=False)
class FieldDenoiser(OnPath):
    """`DenoiserLike` of a `FieldTarget`."""

    target: FieldTarget
    path: Path

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The exact conditional mean at x (B, *event at t)."""
        return Estimate(x, t, self.path, clean=self.target.posterior(self.path, x, float(t))[0])


@dataclass(slots=True, eq=False)
class Drawing(OnPath):
    """A denoiser that answers with a draw from p(x_0 | x_t), its normals taken from ``noise``; for one descent."""

    target: FieldTarget
    path: Path
    noise: NoiseSource

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """x_0 ~ p(x_0 | x_t), keyed by the time."""
        clean, covariance = self.target.posterior(self.path, x, float(t))
        values, frame = torch.linalg.eigh(covariance)
        root = frame * values.clamp_min(0.0).sqrt()
        noise = self.noise.normal(("x0", str(float(t))), self.target.mean.shape)
        return Estimate(x, t, self.path, clean=clean + (noise.flatten(1) @ root.T).reshape(clean.shape))


def smooth_field(side: int = 4, channels: int = 1, length: float = 1.5) -> FieldTarget:
    """A correlated Gaussian image with a mean: covariance exp(−distance²/2·length²) plus a little white noise."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    where = torch.stack((rows, columns), dim=-1).reshape(-1, 2).to(torch.float64)
    square = (where[:, None] - where).square().sum(-1)
    one = torch.exp(-square / (2.0 * length**2)) + 0.05 * torch.eye(side * side, dtype=torch.float64)
    covariance = torch.block_diag(*[one * (1.0 + 0.3 * c) for c in range(channels)])
    mean = torch.sin(torch.arange(channels * side * side, dtype=torch.float64)).reshape(channels, side, side)
    return FieldTarget(mean * math.sqrt(0.5), covariance)

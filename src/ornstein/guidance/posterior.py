"""Measurements as guidance: diffusion posterior sampling, and the exact posterior of Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..denoisers import DenoiserLike
from ..errors import ConfigError
from ..estimates import Estimate
from ..grids import GridLike
from ..paths.base import AffinePath
from ..scalars import Time, expand
from ..typed import typed
from .base import CachedEvaluation, Rule, affine_path, detached, differentiable, finite_rows, pulled
from .cfg import next_time
from .energies import Linear, Measured, slope


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DPS(Rule):
    """Diffusion posterior sampling (Chung et al. 2023, algorithm 1): after each step, one of descent on the misfit,

        x_s ← x_s − ζ·∇_x ‖y − A(x̂_0(x))‖,

    their ζ' with ∇‖·‖²/‖·‖ = 2∇‖·‖ being ζ/2. ``misfit`` is any clean (B, *event) → (B,), for instance
    `misfit_of` a `Measured`. In terms of the clean estimate it is a shift by −ζ/k·∇, with k the weight of x̂_0 in the
    sampler's step: so it must know the ``grid``, and with `Ancestral` (η = 1) or `DDIM` of this ``eta`` on that grid it
    is their algorithm exactly. `Universal` is the form whose strength belongs to the noise level instead of the step.

    ``scale`` ζ = 0 is no guidance, bit for bit. Needs an `AffinePath`.
    """

    misfit: Callable[[Tensor], Tensor | None]
    scale: float
    grid: GridLike
    eta: float = 1.0

    @property
    def differentiates(self) -> bool:
        """Through the network."""
        return True

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """x̂_0 − (ζ/k)·∇_x misfit(x̂_0(x))."""
        if self.scale == 0.0:
            return inner(x, t)
        if isinstance(t, Tensor):
            raise ConfigError("DPS belongs to the steps of a sampler: it has no meaning at a time for each sample")
        path = affine_path(inner.path, "DPS")
        weight = _step_weight(path, t, next_time(self.grid, inner, t), self.eta)
        outer = torch.is_grad_enabled() and x.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            leaf, known = differentiable(inner, x, t)
            cotangent = slope(((1.0, self.misfit),), known.clean)[0]
            gradient = pulled(known, leaf, cotangent, keep=outer or isinstance(inner, CachedEvaluation))
        plain = known if outer else detached(known, x)
        return plain.replace(clean=plain.clean - (self.scale / weight) * finite_rows(gradient.detach()))


def _step_weight(path: AffinePath, t: float, s: float, eta: float) -> float:
    """k in x_s = … + k·x̂_0: α_s − √(σ_s² − η²·bridge²)/σ_t·α_t."""
    std = path.sigma(s)
    fresh = eta * path.bridge_std(t, s) if std > 0.0 else 0.0
    return path.alpha(s) - math.sqrt(max(std**2 - fresh**2, 0.0)) / path.sigma(t) * path.alpha(t)


def misfit_of(measured: Measured) -> Callable[[Tensor], Tensor]:
    """‖y − A·x_0‖ of a measurement, (B,): what `DPS` descends. The gradient of a perfect fit is zero."""

    def misfit(clean: Tensor) -> Tensor:
        square = measured.residual(clean).square().flatten(1).sum(1)
        return torch.where(square > 0.0, square, 1.0).sqrt() * (square > 0.0)

    return misfit


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearPosterior(Rule):
    """The posterior mean under a linear measurement y = A·x_0 + std·z, with the denoiser's own covariance.

        x̂_0 ← D + C·Aᵀ·(std² + A·C·Aᵀ)⁻¹·(y − A·D),   C = (σ²/α)·∂D/∂x ≈ Cov[x_0 | x]

    Tweedie's second-order formula makes C of products with the network's Jacobian, and conjugate gradients solve the
    system, as in moment-matching posterior sampling (Rozet et al. 2024, section 3). Exact for Gaussian data once
    ``iterations`` reach the number of distinct eigenvalues of A·C·Aᵀ (the smaller of the numbers of measurements and of
    distinct variances); for other data it is the covariance-corrected form of forward guidance, which takes C = 0 in
    the inverse. Each iteration is one backward pass through the network, without another evaluation.

    ``measured`` holds A, y and std. ``weight`` scales the shift: 0 is no guidance, bit for bit. At pure noise (α = 0)
    the Jacobian says nothing, and the model is left unguided. Needs an `AffinePath`.
    """

    measured: Measured
    iterations: int = 5
    weight: float = 1.0
    tolerance: float = field(default=1e-12, repr=False)

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ConfigError(f"at least one iteration is needed, got {self.iterations}")

    @property
    def differentiates(self) -> bool:
        """Through the network."""
        return True

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The corrected estimate."""
        path = affine_path(inner.path, "LinearPosterior")
        alpha = path.alpha(t)
        if self.weight == 0.0 or (not isinstance(alpha, Tensor) and alpha == 0.0):
            return inner(x, t)
        outer = torch.is_grad_enabled() and x.requires_grad
        scale = expand(path.sigma(t) ** 2 / alpha, x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf, known = differentiable(inner, x, t)
            clean = known.clean.detach()
            back = _adjoint(self.measured.operator, clean)

            def spread(v: Tensor) -> Tensor:
                """C·Aᵀ·v."""
                return (scale * pulled(known, leaf, back(v), keep=True)).detach()

            residual = self.measured.residual(clean).detach()
            solved = self._solve(lambda v: self.measured.std**2 * v + self.measured.operator(spread(v)), residual)
            shift = finite_rows(spread(solved))
        plain = known if outer else detached(known, x)
        return plain.replace(clean=plain.clean + self.weight * shift)

    def _solve(self, apply: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
        """Conjugate gradients, each sample by itself; a sample that has converged stands still."""
        with torch.no_grad():
            found, left = torch.zeros_like(target), target
            direction, size = target, _dot(target, target)
            enough = size * self.tolerance**2
            for _ in range(self.iterations):
                image = apply(direction)
                curve = _dot(direction, image)
                going = (size > enough) & (curve > 0.0)
                step = torch.where(going, size / torch.where(going, curve, 1.0), 0.0)
                found, left = found + step * direction, left - step * image
                new = _dot(left, left)
                direction = left + torch.where(going, new / torch.where(going, size, 1.0), 0.0) * direction
                size = new
        return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each sample, (B, 1, …)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))


def _adjoint(operator: Linear, like: Tensor) -> Callable[[Tensor], Tensor]:
    """Aᵀ of a linear map, by differentiating it once."""
    leaf = torch.zeros_like(like).requires_grad_()
    image: Any = operator(leaf)

    def back(v: Tensor) -> Tensor:
        return torch.autograd.grad(image, leaf, v, retain_graph=True)[0]

    return back


__all__ = ["DPS", "LinearPosterior", "misfit_of"]

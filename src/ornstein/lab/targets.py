"""Targets whose denoiser is known exactly: Gaussians, mixtures of Gaussians, and sets of points.

Every target is one mixture ∑ w_k·N(μ_k, Q_k diag(v_k) Q_kᵀ) on vectors (B, d). On a path with x_t = a·x_0 + σ·z its law
at time t is the mixture with means a·μ_k and variances c_k = a²·v_k + σ², and

    E[x_0 | x_t] = ∑_k r_k(x_t)·( μ_k + Q_k diag(a·v_k/c_k) Q_kᵀ (x_t − a·μ_k) ),   r_k ∝ w_k·N(x_t; a·μ_k, c_k)

with the responsibilities r_k by log-sum-exp. Everything is computed in float64 and answered in the dtype of the state.
`ShiftedPath` is served as well when its shift is a multiple of the clean sample (a = α + k·ρ).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ornstein.errors import PathError, UsageError
from ornstein.estimates import Estimate
from ornstein.paths.base import AffinePath, Cond, LocationPath, Path
from ornstein.randomness import NoiseSource, generator
from ornstein.scalars import Time

_LOG_2PI = math.log(2.0 * math.pi)


def gain_of(path: Path, t: Time) -> Time:
    """a in x_t = a·x_0 + σ·z, for an affine path or a `ShiftedPath` whose shift is a multiple of x_0."""
    if isinstance(path, AffinePath):
        return path.alpha(t)
    if not isinstance(path, LocationPath):
        raise PathError(
            f"{type(path).__name__} does not scale x_0 by one number: use FieldTarget from ornstein.lab.fields"
        )
    one = torch.ones((t.numel() if isinstance(t, Tensor) else 1, 1), dtype=torch.float64)
    gain, double = path.mean(one, t), path.mean(2.0 * one, t)
    if not torch.allclose(double, 2.0 * gain, rtol=1e-12, atol=1e-12):
        raise PathError(
            f"the shift of this {type(path).__name__} is no multiple of x_0: its exact denoiser is not known"
        )
    return gain[:, 0] if isinstance(t, Tensor) else float(gain)


def _column(c: Time) -> Tensor:
    """A coefficient as (1, 1, 1) or (B, 1, 1), float64."""
    return torch.as_tensor(c, dtype=torch.float64).reshape(-1, 1, 1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _f64(values: Tensor | Sequence[float] | Sequence[Sequence[float]] | float) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class MixtureTarget:
    """∑ w_k·N(μ_k, Q_k diag(v_k) Q_kᵀ).

    ``weights`` (K,) sum to one, ``means`` (K, d), ``variances`` (K, d), ``frames`` (K, d, d) with the eigenvectors Q_k
    in the columns, or None for the unit frame. Build it with `MixtureTarget.of`.

    >>> from ornstein.paths import VE
    >>> M1().law(VE(), 2.0).variances.flatten().tolist()
    [4.09, 4.25, 4.0225]
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    frames: Tensor | None = None

    @classmethod
    def of(
        cls,
        weights: Sequence[float] | Tensor,
        means: Sequence[Sequence[float]] | Tensor,
        *,
        stds: Sequence[float] | Sequence[Sequence[float]] | Tensor | None = None,
        covariances: Tensor | None = None,
    ) -> MixtureTarget:
        """A mixture from stds ((K,) isotropic or (K, d)) or from covariances (K, d, d), diagonalised once."""
        w, mu = _f64(weights), _f64(means)
        if w.ndim != 1 or mu.ndim != 2 or len(w) != len(mu):
            raise UsageError(
                f"a mixture needs weights (K,) and means (K, d), got {tuple(w.shape)} and {tuple(mu.shape)}"
            )
        if bool((w <= 0.0).any()):
            raise UsageError("the weights of a mixture must be positive: drop the empty components")
        if (stds is None) == (covariances is None):
            raise UsageError("a mixture needs either stds or covariances")
        w = w / w.sum()
        if covariances is not None:
            values, frames = torch.linalg.eigh(_f64(covariances))
            return cls(w, mu, values.clamp_min(0.0), frames)
        sd = _f64(stds if stds is not None else 0.0)
        sd = sd[:, None] if sd.ndim == 1 else sd
        return cls(w, mu, sd.expand(mu.shape).square())

    @property
    def dim(self) -> int:
        """d."""
        return self.means.shape[1]

    def denoiser(self, path: Path) -> ExactDenoiser:
        """E[x_0 | x_t] on ``path``."""
        return ExactDenoiser(self, path)

    def law(self, path: Path, t: float) -> MixtureTarget:
        """The exact law of x_t."""
        gain, std = float(gain_of(path, t)), float(_std(path, t))
        return MixtureTarget(self.weights, gain * self.means, gain**2 * self.variances + std**2, self.frames)

    def sample(self, noise: NoiseSource, key: str = "target") -> Tensor:
        """One draw a sample of ``noise``: (B, d), float64."""
        edges = self.weights.cumsum(0)[:-1]
        chosen = torch.searchsorted(edges, noise.uniform_per_sample((key, "component")).cpu(), right=True)
        z = noise.normal(key, (self.dim,)).to("cpu", torch.float64)
        local = self.variances[chosen].sqrt() * z
        if self.frames is not None:
            local = torch.einsum("bij,bj->bi", self.frames[chosen], local)
        return self.means[chosen] + local

    def start(self, noise: NoiseSource, path: Path, t: float) -> Tensor:
        """A draw from the exact law at t, (B, d): the start of a sampler whose initialisation is not the question."""
        return self.law(path, t).sample(noise, "start")

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) of x (B, d), shape (B,); needs positive variances."""
        return torch.logsumexp(self._log_joint(x.to(torch.float64), 1.0, 0.0)[0], dim=1)

    def cdf(self, x: Tensor) -> Tensor:
        """P(X ≤ x) of a 1-D target, x (B,)."""
        if self.dim != 1:
            raise UsageError(f"the distribution function needs a 1-D target, this one has d = {self.dim}")
        z = (x.to(torch.float64)[:, None] - self.means[:, 0]) / self.variances[:, 0].sqrt()
        return (self.weights * torch.special.ndtr(z)).sum(1)

    def score(self, x: Tensor, path: Path, t: Time) -> Tensor:
        """∇ log p_t(x), shape of x."""
        gain, std = _column(gain_of(path, t))[:, 0], _column(_std(path, t))[:, 0]
        # Tweedie: σ²·score = a·E[x_0|x_t] − x_t.
        return (gain * self.clean(x, gain_of(path, t), _std(path, t)) - x) / std**2

    def clean(self, x: Tensor, gain: Time, std: Time) -> Tensor:
        """E[x_0 | gain·x_0 + std·z = x], x (B, d); gain and std are numbers or (B,)."""
        joint, local, c = self._log_joint(_wide(x), gain, std)
        pull = _column(gain) * self.variances / c
        # A direction of no variance at a noiseless time carries no information: 0/0 is 0.
        shift = torch.where(c > 0.0, pull, torch.zeros_like(pull)) * local
        if self.frames is not None:
            shift = torch.einsum("kij,bkj->bki", self.frames.to(shift.dtype), shift)
        # Softmax by hand: it must also pass complex numbers, by which the lab differentiates (see laws.py).
        weights = torch.exp(joint - joint.real.amax(1, keepdim=True))
        weights = weights / weights.sum(1, keepdim=True)
        return (weights[:, :, None] * (self.means + shift)).sum(1).to(x.dtype)

    def _log_joint(self, x: Tensor, gain: Time, std: Time) -> tuple[Tensor, Tensor, Tensor]:
        """(log w_k N(x; …) (B, K), local coordinates (B, K, d), variances c (B or 1, K, d))."""
        a = _column(gain)
        local = x[:, None, :] - a * self.means
        if self.frames is not None:
            local = torch.einsum("kji,bkj->bki", self.frames.to(local.dtype), local)
        c = a**2 * self.variances + _column(std) ** 2
        if len(self.weights) == 1:
            return torch.zeros_like(local[:, :, 0]) if not bool((c > 0.0).all()) else self._normal(local, c), local, c
        return self._normal(local, c), local, c

    def _normal(self, local: Tensor, c: Tensor) -> Tensor:
        return self.weights.log() - 0.5 * (local.square() / c + c.log() + _LOG_2PI).sum(-1)


@dataclass(frozen=True, slots=True, eq=False, init=False)
class GaussianTarget(MixtureTarget):
    """N(mean, diag(variances)), or any covariance with `GaussianTarget.full`: a mixture of one, (d,) and (d,).

    >>> GaussianTarget([0.0], [1.0]).clean(torch.ones(1, 1).double(), 0.6, 0.8).item()
    0.6
    """

    def __init__(
        self, mean: Sequence[float] | Tensor, variances: Sequence[float] | Tensor, frame: Tensor | None = None
    ) -> None:
        m, v = _f64(mean), _f64(variances)
        if m.ndim != 1 or m.shape != v.shape or bool((v < 0.0).any()):
            raise UsageError(
                f"a Gaussian needs a mean and non-negative variances (d,), got {tuple(m.shape)}, {tuple(v.shape)}"
            )
        object.__setattr__(self, "weights", torch.ones(1, dtype=torch.float64))
        object.__setattr__(self, "means", m[None])
        object.__setattr__(self, "variances", v[None])
        object.__setattr__(self, "frames", None if frame is None else _f64(frame)[None])

    @classmethod
    def full(cls, mean: Sequence[float] | Tensor, covariance: Tensor) -> GaussianTarget:
        """N(mean, covariance), diagonalised once."""
        values, frame = torch.linalg.eigh(_f64(covariance))
        return cls(mean, values.clamp_min(0.0), frame)

    @property
    def mean(self) -> Tensor:
        """(d,)."""
        return self.means[0]

    @property
    def variance(self) -> Tensor:
        """Along the eigenvectors, (d,)."""
        return self.variances[0]

    def clean(self, x: Tensor, gain: Time, std: Time) -> Tensor:
        """m + Q diag(a·v/c) Qᵀ (x − a·m)."""
        a, s = (c.to(torch.float64)[:, None] if isinstance(c, Tensor) and c.ndim else c for c in (gain, std))
        pull = a * self.variance
        c = a * pull + s * s
        # A direction of no variance at a noiseless time carries no information: 0/0 is 0.
        slope = pull / torch.where(c > 0.0, c, 1.0)
        local = _wide(x) - a * self.mean
        if self.frames is None:
            return (self.mean + slope * local).to(x.dtype)
        frame = self.frames[0].to(local.dtype)
        return (self.mean + (slope * (local @ frame)) @ frame.T).to(x.dtype)

    def law(self, path: Path, t: float) -> GaussianTarget:
        """N(a·m, a²·C + σ²)."""
        gain, std = float(gain_of(path, t)), float(_std(path, t))
        frame = None if self.frames is None else self.frames[0]
        return GaussianTarget(gain * self.mean, gain**2 * self.variance + std**2, frame)


@dataclass(frozen=True, slots=True, eq=False, init=False)
class PointsTarget(MixtureTarget):
    """Equal masses at ``points`` (n, d): the law whose exact denoiser memorises a data set."""

    def __init__(self, points: Sequence[Sequence[float]] | Tensor) -> None:
        p = _f64(points)
        if p.ndim != 2 or len(p) == 0:
            raise UsageError(f"points must be (n, d) with n ≥ 1, got {tuple(p.shape)}: flatten images first")
        object.__setattr__(self, "weights", torch.full((len(p),), 1.0 / len(p), dtype=torch.float64))
        object.__setattr__(self, "means", p)
        object.__setattr__(self, "variances", torch.zeros(1, 1, dtype=torch.float64).expand(p.shape))
        object.__setattr__(self, "frames", None)

    def clean(self, x: Tensor, gain: Time, std: Time) -> Tensor:
        """The weighted mean of the points; at std = 0 the nearest one."""
        a, s = _column(gain)[:, :, 0], _column(std)[:, :, 0]
        if bool((a != a[0]).any()):  # one gain a row
            square = (x.to(torch.float64)[:, None] - a[:, :, None] * self.means).square().sum(-1)
        else:
            square = torch.cdist(
                x.to(torch.float64), a[0] * self.means, compute_mode="donot_use_mm_for_euclid_dist"
            ).square()
        # Subtract the nearest first: at σ → 0 its weight stays one.
        logits = -(square - square.amin(1, keepdim=True)) / (2.0 * s**2).clamp_min(1e-300)
        return (torch.softmax(logits, dim=1) @ self.means).to(x.dtype)


class OnPath(ABC):
    """A denoiser of a law on ``path``, the only part that may depend on a condition."""

    __slots__ = ()
    path: Path

    @abstractmethod
    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate at x (B, *event) and time t."""

    def with_condition(self, cond: Cond) -> Self:
        """The same law on the path of that condition."""
        return replace(self, path=self.path.with_condition(cond))  # pyright: ignore[reportArgumentType]

    def predict_conditions(self, x: Tensor, t: Time, conds: Sequence[Cond]) -> list[Estimate]:
        """One estimate for each condition."""
        return [self.with_condition(cond)(x, t) for cond in conds]


@dataclass(frozen=True, slots=True, eq=False)
class ExactDenoiser(OnPath):
    """`DenoiserLike` of a target: clean = E[x_0 | x_t]. The state may have any event shape of d numbers."""

    target: MixtureTarget
    path: Path

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The exact estimate at x (B, *event) and time t."""
        clean = self.target.clean(x.reshape(x.shape[0], -1), gain_of(self.path, t), _std(self.path, t))
        return Estimate(x, t, self.path, clean=clean.reshape(x.shape))


def _std(path: Path, t: Time) -> Time:
    if not isinstance(path, LocationPath):
        raise PathError(f"{type(path).__name__} has no std(t): use FieldTarget from ornstein.lab.fields")
    return path.std(t)


# ruff: noqa: N802 - the names of the targets are those of the literature and of the reports
# The named targets. Their numbers are fixed: regression constants depend on them.


def G8() -> GaussianTarget:
    """Eight independent directions, variances from 1e-3 to 10."""
    return GaussianTarget([0.5, -0.3, 1.0, 0.2, -1.0, 0.0, 0.7, 2.0], [1e-3, 1e-2, 0.05, 0.2, 0.7, 1.0, 3.0, 10.0])


def Giso(dim: int = 1) -> GaussianTarget:
    """N(0, I): one-step identities."""
    return GaussianTarget(torch.zeros(dim), torch.ones(dim))


def Gdeg(dim: int = 10) -> GaussianTarget:
    """d directions, the first min(d, max(10, d/5)) with variances U[0, 10], the rest without any: degenerate data."""
    active = min(dim, max(10, dim // 5))
    variances = torch.zeros(dim, dtype=torch.float64)
    variances[:active] = torch.from_numpy(generator("lab", "Gdeg", dim).uniform(0.0, 10.0, active))
    return GaussianTarget(torch.zeros(dim), variances)


def _m1(stds: Sequence[float]) -> MixtureTarget:
    return MixtureTarget.of([0.3, 0.5, 0.2], [[-1.5], [0.4], [1.8]], stds=stds)


def M1() -> MixtureTarget:
    """Three overlapping modes on the line."""
    return _m1([0.3, 0.5, 0.15])


def M1s() -> MixtureTarget:
    """The same, nearly singular; stop at σ̄ = .01."""
    return _m1([0.02, 0.05, 0.01])


def M1p() -> MixtureTarget:
    """The same as three point masses; stop at σ̄ = .02."""
    return _m1([1e-9, 1e-9, 1e-9])


def M2() -> MixtureTarget:
    """Five turned ellipses in the plane."""
    shapes = [(0.3, 0.3, 0.08), (1.2, 0.25, 0.05), (-0.5, 0.35, 0.1), (2.0, 0.15, 0.15), (0.9, 0.2, 0.04)]
    frames = [[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a, _, _ in shapes]
    means = [[-1.2, -0.6], [1.2, -0.5], [0.1, 1.3], [-0.4, 0.3], [0.6, 0.4]]
    variances = _f64([[a, b] for _, a, b in shapes]).square()
    return MixtureTarget(
        _f64([0.25, 0.2, 0.25, 0.15, 0.15]), _f64(means), variances, torch.tensor(frames, dtype=torch.float64)
    )


def M64(dim: int = 64) -> MixtureTarget:
    """Eight components, each with 8 eigenvalues in [.05, .5] and the rest at 1e-4, in random frames."""
    rng = generator("lab", "M64", dim)
    means = torch.from_numpy(rng.standard_normal((8, dim)))
    frames = torch.linalg.qr(torch.from_numpy(rng.standard_normal((8, dim, dim))))[0]
    variances = torch.full((8, dim), 1e-4, dtype=torch.float64)
    variances[:, :8] = torch.from_numpy(rng.uniform(0.05, 0.5, (8, 8)))
    return MixtureTarget(torch.full((8,), 0.125, dtype=torch.float64), means, variances, frames)

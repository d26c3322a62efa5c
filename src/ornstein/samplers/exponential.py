"""Exponential integrators on the half log-SNR λ = log(α/σ): the DPM-Solver++ family, deterministic and stochastic.

Between two times, with h = λ_s − λ_t and y = c·h (c = 1: probability-flow ODE, c = 2: reverse SDE), exactly

    x_s = (σ_s/σ_t)·e^{−(c−1)h}·x_t + α_s·y ∫₀¹ e^{−y(1−θ)} D(λ_t + θh) dθ + [c = 2] σ_s·√(1 − e^{−2h})·z

(Lu et al., "DPM-Solver++", 2022, eq. 8 and app. B). The methods differ in how they guess D, the clean estimate, inside
the step. A step to σ_s = 0 or from α_t = 0 has h = ∞ and is of first order: only ratios appear, so nothing overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..paths.base import AffinePath
from ..randomness import Key, NoiseSource
from ..typed import typed
from .base import Memory, Query, Step, Steps

_LINE, _PARABOLA, _LONG = 0.3, 0.5, 1.0
"""The least distance of points that a line and a parabola are laid through, in steps; the longest y of a parabola."""
Point = TypeVar("Point", bound=tuple[Any, ...])  # (place, …)


def moments(y: float, count: int) -> tuple[float, ...]:
    """m_j = y·∫₀¹ e^{−y(1−θ)} θʲ dθ for j = 0 … count − 1; equal to y·j!·φ_{j+1}(−y), and 1 at y = ∞."""
    out = [-math.expm1(-y)]
    for j in range(1, count):
        # Upwards the recursion loses digits for small y, where the series has them.
        out.append(_series(y, j) if y < 1.0 else 1.0 - j / y * out[-1])
    return tuple(out)


@lru_cache(maxsize=16)
def _coefficients(j: int) -> tuple[float, ...]:
    return tuple((-1) ** k * math.factorial(j) / math.factorial(j + k + 1) for k in reversed(range(18)))


def _series(y: float, j: int) -> float:
    """m_j = y·∑_k (−y)ᵏ·j!/(j + k + 1)!, by Horner's rule."""
    total = 0.0
    for coefficient in _coefficients(j):
        total = total * y + coefficient
    return y * total


def quadrature(y: float, nodes: Sequence[float]) -> tuple[float, ...]:
    """Weights w of y·∫₀¹ e^{−y(1−θ)} D(θ) dθ ≈ ∑ wᵢ·D(θᵢ), exact for polynomials of degree len(nodes) − 1.

    ``nodes`` are distinct, the first is 0; those before the step are negative, 1 is its end.
    """
    first, *rest = moments(y, len(nodes))
    matrix = np.array([[node ** (j + 1) for node in nodes[1:]] for j in range(len(rest))])
    weights: list[float] = np.linalg.solve(matrix, np.array(rest)).tolist() if rest else []
    return (first - math.fsum(weights), *weights)


def combine(x: Tensor, keep: float, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """keep·x + ∑ weight·tensor."""
    out = x * keep
    for weight, term in terms:
        out.add_(term, alpha=weight)  # out is ours: no copy
    return out


def spaced(points: Sequence[Point], h: float) -> list[Point]:
    """The remembered points, newest first, without those nearer to a newer one than a hundredth of the step h.

    A polynomial through nearly the same place twice is carried over the step with a weight of the ratio, so that it
    would magnify whatever the two estimates differ by: rounding, or the roughness of a network.
    """
    kept = list(points[:1])
    for point in points[1:]:
        if not abs(point[0] - kept[-1][0]) < 0.01 * abs(h):
            kept.append(point)
    return kept


def reliable(points: Sequence[Point], h: float, y: float) -> list[Point]:
    """The remembered points, newest first, from which an extrapolation over the step h is worth having.

    D bends over a length of about one in λ, whatever the data are. So a parabola is no guess of it for y > 1, nor where
    its points are nearer to each other than half of the step, and a line none from points nearer than 0.3 of it.
    """
    kept = spaced(points, h)
    gaps = [(a[0] - b[0]) / h for a, b in pairwise(kept)]
    if gaps and gaps[0] < _LINE:
        return kept[:1]
    return kept[:2] if y > _LONG or any(gap < _PARABOLA for gap in gaps) else kept


def half_log_snr(path: AffinePath, t: float) -> float:
    """λ(t) = log(α/σ)."""
    return 0.5 * path.log_snr(t)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialStep:
    """The exact coefficients between times t and s: state kept, gain α_s, y of the integral, std of fresh noise."""

    h: float
    y: float
    keep: float
    gain: float
    fresh: float

    @classmethod
    def between(cls, path: AffinePath, t: float, s: float, c: int = 1) -> ExponentialStep:
        """For the ODE (c = 1) or the SDE (c = 2)."""
        h = half_log_snr(path, s) - half_log_snr(path, t)
        keep = path.sigma(s) / path.sigma(t) * (math.exp(-h) if c == 2 else 1.0)
        fresh = path.sigma(s) * math.sqrt(-math.expm1(-2.0 * h)) if c == 2 else 0.0
        return cls(h=h, y=c * h, keep=keep, gain=path.alpha(s), fresh=fresh)

    def to(self, x: Tensor, weights: Sequence[float], clean: Sequence[Tensor]) -> Tensor:
        """The mean of x_s for quadrature ``weights`` on the estimates ``clean``."""
        return combine(x, self.keep, [(self.gain * w, d) for w, d in zip(weights, clean, strict=True)])


def _draw(path: AffinePath, noise: NoiseSource, key: Key, t: float, s: float, like: Tensor, brownian: bool) -> Tensor:
    """Standard normal noise for the stretch t → s: keyed, or the normalised increment of one Brownian path."""
    event = like.shape[1:]
    if not brownian:
        return noise.normal(key, event)
    low, high = path.t_range
    t0, t1 = (s - low) / (high - low), (t - low) / (high - low)
    return noise.brownian_increment("brownian", t0, t1, event) / math.sqrt(t1 - t0)


def _two_stage(
    path: AffinePath, x: Tensor, clean: Tensor, step: Step, noise: NoiseSource, c: int, brownian: bool
) -> Steps:
    """From t to s with the estimate at the midpoint in λ, which is reached from ``clean``; one evaluation."""
    middle = path.time_of(path.log_snr(step.t) + 0.5 * (path.log_snr(step.s) - path.log_snr(step.t)))
    whole, half = ExponentialStep.between(path, step.t, step.s, c), ExponentialStep.between(path, step.t, middle, c)
    x_middle = half.to(x, moments(half.y, 1), [clean])
    if c == 1:
        estimate = yield Query(x_middle, middle)
        return whole.to(x, moments(whole.y, 1), [estimate.clean])
    rest = ExponentialStep.between(path, middle, step.s, c)
    first = _draw(path, noise, ("middle", step.index), step.t, middle, x, brownian)
    second = _draw(path, noise, step.index, middle, step.s, x, brownian)
    estimate = yield Query(torch.add(x_middle, first, alpha=half.fresh), middle)
    # The noise of the first half decays over the second: together they have variance fresh² of the whole.
    mean = whole.to(x, moments(whole.y, 1), [estimate.clean])
    return combine(mean, 1.0, [(rest.keep * half.fresh, first), (rest.fresh, second)])


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class DPMSolver:
    """DPM-Solver++ 1, 2M and 3M and their SDE forms (Lu et al. 2022, algorithm 2 and app. B).

    D is extrapolated from the last ``points`` estimates: 1 is DDIM (η = 1 when stochastic), 2 the paper's 2M with
    weights ½(1 − e^{−y})·h/h₀, 3 integrates the parabola exactly. One evaluation a step. The deterministic 3M evaluates
    once more in its first step, a midpoint step, since a first-order one would limit the whole run to order 2
    (``start="plain"``).

    The widespread 3M code multiplies the curvature h²·D[λ₀, λ₋₁, λ₋₂] = ½h²D'' with the weight that belongs to h²D'',
    half of what is needed, and is of order 2; here the weight is whole.

    Over a step with y > 1 two points serve in place of three, and points near to each other are left out, as after a
    restart between long steps (`reliable`): 7 steps of Karras' grid ended at 4.3 times the size of the data with
    3M-SDE, and 10 are six times as near as they were. A step with h = ∞ (to σ_s = 0, or from α_t = 0) is of first
    order, however many points there are. ``brownian`` takes the noise from one Brownian path over the span, so that
    finer grids converge to the same image.
    """

    needs = AffinePath
    """The method lives on the log-SNR."""

    points: Literal[1, 2, 3] = 2
    stochastic: bool = False
    brownian: bool = False
    start: Literal["midpoint", "plain"] = "midpoint"

    def __post_init__(self) -> None:
        if self.points not in (1, 2, 3):
            raise ConfigError(f"DPM-Solver++ extrapolates from 1, 2 or 3 points, got {self.points}")

    @property
    def order(self) -> int:
        """``points`` for the ODE (3 with a plain start: 2); for the SDE, in law, at most 2."""
        limited = self.stochastic or self.start == "plain"
        return min(self.points, 2) if limited else self.points

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Extrapolate through the remembered estimates of this descent."""
        estimate = yield Query(x, step.t)
        c = 2 if self.stochastic else 1
        leap, now = ExponentialStep.between(path, step.t, step.s, c), half_log_snr(path, step.t)
        points: list[tuple[float, Tensor]] = [(now, estimate.clean), *memory.get("points", [])][: self.points]
        memory["points"] = points if math.isfinite(now) else []
        first = len(points) == 1
        points = points[:1] if math.isinf(leap.h) else reliable(points, leap.h, leap.y)
        if first and self.order == 3 and math.isfinite(leap.h):
            return (yield from _two_stage(path, x, estimate.clean, step, noise, c, self.brownian))
        nodes = [(at - now) / leap.h for at, _ in points] if len(points) > 1 else [0.0]
        if len(nodes) == 2:
            (whole,) = moments(leap.y, 1)
            slope = 0.5 * whole / nodes[1]
            weights = (whole - slope, slope)
        else:
            weights = quadrature(leap.y, nodes)
        x_s = leap.to(x, weights, [clean for _, clean in points])
        if leap.fresh == 0.0:
            return x_s
        z = _draw(path, noise, step.index, step.t, step.s, x, self.brownian)
        return torch.add(x_s, z, alpha=leap.fresh)


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class DPMSolver2S:
    """DPM-Solver++ 2S with its inner point at the middle of the step in λ (Lu et al. 2022, algorithm 1, r = ½).

    Two evaluations a step, one where h = ∞. The SDE form draws z₁ to the midpoint and z₂ from there on, as the
    Ornstein–Uhlenbeck process that both belong to composes them; it is of weak order 2.
    """

    order = 2
    needs = AffinePath

    stochastic: bool = False
    brownian: bool = False

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """A first-order step to the midpoint, then the whole step with the estimate found there."""
        del memory
        estimate = yield Query(x, step.t)
        c = 2 if self.stochastic else 1
        leap = ExponentialStep.between(path, step.t, step.s, c)
        if math.isfinite(leap.h):
            return (yield from _two_stage(path, x, estimate.clean, step, noise, c, self.brownian))
        x_s = leap.to(x, (1.0,), [estimate.clean])
        if leap.fresh == 0.0:
            return x_s
        return torch.add(x_s, _draw(path, noise, step.index, step.t, step.s, x, self.brownian), alpha=leap.fresh)

"""What theorems about deterministic samplers assume beyond an accurate score: its divergence, and a good start.

An error of the score that is small in L2 may still bend the flow. `Rippled` is the counter-example: the score of
N(0, 1) with ripples of height c/w and frequency w. Its L2 error is c/(w·√2) and vanishes with growing w, the error of
its divergence stays c/√2, and so does the total variation at the end of the probability flow:

    TV → ½·mean_y |1/(cosh cT + cos y·sinh cT) − 1| = (4/π)·arctan e^{cT/2} − 1

The reverse SDE with the same score has a path KL of at most T·c²/(2w²), which vanishes. For a network, whose divergence
nothing trains, `score_errors` measures both errors with random probes. `start_tv` is the error of starting from the
prior, which the probability flow keeps to the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import UsageError
from ornstein.estimates import Estimate
from ornstein.paths.base import AffinePath
from ornstein.randomness import NoiseSource
from ornstein.scalars import Time

from .extended import jacobian
from .meters import tv_normal
from .targets import MixtureTarget, OnPath


@dataclass(frozen=True, slots=True)
class Rippled(OnPath):
    """The score −y + (height/frequency)·sin(frequency·y) of N(0, 1), y the variance-preserving state x/√(α² + σ²)."""

    path: AffinePath
    height: float
    frequency: float

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """The estimate at x (B, *event) and host time t; analytic in x."""
        time = float(t)
        norm = math.hypot(self.path.alpha(time), self.path.sigma(time))
        y = x / norm
        score = -y + (self.height / self.frequency) * torch.sin(self.frequency * y)
        return Estimate(x, time, self.path, noise=-(self.path.sigma(time) / norm) * score)

    @property
    def errors(self) -> ScoreErrors:
        """c/(w√2) and c/√2, but for terms of e^{−2w²}."""
        rest = 0.5 * math.exp(-2.0 * self.frequency**2)
        return ScoreErrors(
            score=self.height / self.frequency * math.sqrt(0.5 - rest), divergence=self.height * math.sqrt(0.5 + rest)
        )


def rippled_limit(height_time: float) -> float:
    """The total variation at frequency ∞ after a time T of the Ornstein–Uhlenbeck clock, from cT.

    >>> [round(rippled_limit(ct), 4) for ct in (0.25, 0.5, 1.0, 2.0, 4.0)]
    [0.0794, 0.1575, 0.3058, 0.5512, 0.8287]
    """
    return 4.0 / math.pi * math.atan(math.exp(0.5 * height_time)) - 1.0


def rippled_tv(height_time: float, frequency: float, points_per_ripple: int = 64) -> float:
    """The same at a finite frequency: tan(w·Y/2) = e^{cT}·tan(w·Y_0/2), by the exact density of Y against N(0, 1)."""
    reach = 8.5
    count = points_per_ripple * math.ceil(2.0 * reach * frequency / (2.0 * math.pi)) + 1
    y = torch.linspace(-reach, reach, count, dtype=torch.float64)
    phase = frequency * y
    ripple = torch.round(phase / (2.0 * math.pi)) * 2.0 * math.pi
    # The inverse flow of every ripple, its centre a fixed point.
    start = (ripple + 2.0 * torch.atan(math.exp(-height_time) * torch.tan(0.5 * (phase - ripple)))) / frequency
    thinning = 1.0 / (math.cosh(height_time) + math.sinh(height_time) * torch.cos(phase))
    gap = torch.exp(-0.5 * start.square()) * thinning - torch.exp(-0.5 * y.square())
    return float(0.5 * torch.trapezoid(gap.abs(), y)) / math.sqrt(2.0 * math.pi)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreErrors:
    """Root mean squares over the exact law: of the score's error (its Euclidean norm) and of its divergence's."""

    score: float
    divergence: float


def score_errors(
    denoiser: DenoiserLike, target: MixtureTarget, t: float, noise: NoiseSource, *, probes: int = 16
) -> ScoreErrors:
    """ε_score and ε_div of a denoiser at time t, in the variance-preserving state y, over draws from the exact law.

    div s = E[zᵀ(∂s/∂y)z] over random signs z (Hutchinson), by one vector–Jacobian product a probe, so any network
    will do. Two independent halves of the ``probes`` are multiplied: the mean of the product is the square of the error
    without the probes' own variance. Where that leaves nothing but noise the answer is 0.

    Raises:
        UsageError: fewer than two probes.
    """
    if probes < 2:
        raise UsageError(f"the divergence error needs two probes or more, got {probes}")
    path = denoiser.path
    if not isinstance(path, AffinePath):
        raise UsageError(f"score errors are measured on affine paths, not on {type(path).__name__}")
    x = target.start(noise, path, t)
    norm = math.hypot(path.alpha(t), path.sigma(t))
    std = path.sigma(t) / norm
    exact, slope = jacobian(lambda rows: target.denoiser(path)(rows, t).noise, x)
    with torch.enable_grad():
        rows = x.clone().requires_grad_()
        answer = denoiser(rows, t).noise
        own = norm * slope.diagonal(dim1=1, dim2=2).sum(1)
        halves = [torch.zeros_like(own), torch.zeros_like(own)]
        for i in range(probes):
            sign = torch.where(noise.normal(("probe", i), x.shape[1:]).to(x) >= 0.0, 1.0, -1.0)
            (pulled,) = torch.autograd.grad(answer, rows, sign, retain_graph=True)
            share = len(range(i % 2, probes, 2))
            halves[i % 2] += norm * (pulled * sign).sum(1) / share
    gap = (answer.detach() - exact).square().sum(1).mean().sqrt()
    product = ((halves[0] - own) * (halves[1] - own)).mean().clamp_min(0.0).sqrt()
    return ScoreErrors(score=float(gap) / std, divergence=float(product) / std)


def start_tv(mean: float, variance: float, path: AffinePath, t: float) -> float:
    """TV between the law of one direction at t and the prior it is started from, exactly.

    On a path whose σ keeps growing (σ > 1, `VE`) the prior is N(0, σ²), otherwise N(0, 1).
    """
    gain, square = path.alpha(t), path.sigma(t) ** 2
    prior = square if path.sigma(t) > 1.0 else 1.0
    return tv_normal(gain * mean, gain**2 * variance + square, 0.0, prior)


def start_tv_leading(mean: float, variance: float, path: AffinePath, t: float) -> tuple[float, float]:
    """The leading terms of `start_tv`, of the mean and of the variance: |m|/(√(2π)·σ̄') and |v'|/(√(2πe)·σ̄'²).

    σ̄'² is the prior's variance over α²: σ̄² with v' = v on an exploding path, 1/ᾱ with v' = v − 1 where the variance is
    preserved. So an exploding path needs σ of order 1/ε, a preserving one a horizon of order log(1/ε); centred data
    has no first term.
    """
    square, exploding = path.sigma(t) ** 2, path.sigma(t) > 1.0
    level = (square if exploding else 1.0) / path.alpha(t) ** 2
    change = variance if exploding else abs(variance - 1.0)
    return abs(mean) / math.sqrt(2.0 * math.pi * level), change / (math.sqrt(2.0 * math.pi * math.e) * level)


__all__ = ["Rippled", "ScoreErrors", "rippled_limit", "rippled_tv", "score_errors", "start_tv", "start_tv_leading"]

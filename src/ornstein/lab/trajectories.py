"""Errors by coupling: the same start, driven by a sampler and by a much finer solution, in any dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import PathError
from ornstein.paths.base import AffinePath
from ornstein.randomness import NoiseSource
from ornstein.samplers.base import Sampler, run, solve


def flow(denoiser: DenoiserLike, x: Tensor, t: float, s: float, steps: int = 3000) -> Tensor:
    """The probability-flow ODE from t to s by the classical Runge–Kutta rule of order 4 in λ = log(α/σ).

    In u = x/α the ODE is du/dλ = −σ̄·z. Works for any denoiser on an affine path, a trained network included.
    """
    path = denoiser.path
    if not isinstance(path, AffinePath):
        raise PathError(
            f"{type(path).__name__} has no alpha(t) and sigma(t): the reference solution needs an AffinePath"
        )
    affine = path
    low, high = (0.5 * affine.log_snr(time) for time in (t, s))
    h = (high - low) / steps

    def slope(u: Tensor, time: float) -> Tensor:
        return denoiser(affine.alpha(time) * u, time).noise * -affine.sigma_bar(time)

    times = [affine.time_of(2.0 * low + k * h) for k in range(2 * steps + 1)]
    times[0], times[-1] = t, s
    u = x / affine.alpha(t)
    with torch.no_grad():
        for i in range(steps):
            begin, middle, end = times[2 * i : 2 * i + 3]
            k1 = slope(u, begin)
            k2 = slope(u + 0.5 * h * k1, middle)
            k3 = slope(u + 0.5 * h * k2, middle)
            k4 = slope(u + h * k3, end)
            u = u + (h / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)
    return u * affine.alpha(s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """Euclidean distances between two sets of coupled points: basin switching spoils the mean, not the median."""

    median: float
    mean: float
    rms: float


def distances(x: Tensor, reference: Tensor) -> Distances:
    """Median, mean and root mean square of ‖x − reference‖ over the batch."""
    gap = (x - reference).flatten(1).norm(dim=1)
    return Distances(median=float(gap.median()), mean=float(gap.mean()), rms=float(gap.square().mean().sqrt()))


def coupled(
    sampler: Sampler, denoiser: DenoiserLike, x: Tensor, times: Sequence[float], noise: NoiseSource, reference: Tensor
) -> Distances:
    """How far ``sampler`` ends from ``reference`` (see `flow`), both started at x (B, d)."""
    return distances(run(solve(sampler, denoiser.path, x, times, noise), denoiser), reference)

"""Ancestral sampling: draw x_s from the path's own posterior. The only sampler that works on every path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError, PathError
from ..estimates import Estimate, Gaussian
from ..paths.base import LocationPath, Path
from ..randomness import NoiseSource
from ..typed import typed
from .base import Memory, Query, Step, Steps


@typed()
@dataclass(frozen=True, slots=True)
class Ancestral:
    """x_s ~ q(x_s | x_t, x̂_0) (Ho et al. 2020, eq. 6–7; UDPM; ContextDiff).

    ``variance``: "small" is the posterior's own, exact where the data are a point; "large" that of x_s given x_t where
    the data are N(0, 1) (both Ho et al., sec. 3.2); "learned" interpolates their logarithms with
    ``extras["variance"]`` in [−1, 1] (Nichol & Dhariwal 2021, eq. 15). The last two need a `LocationPath`. With
    V = gain(0, ·)² + std², the variance at a time of data of variance 1,

        large = spread²·V_s/V_t,   spread² = V_t − gain²·V_s

    On a variance-preserving path V = 1, and this is the papers' β_t = spread².
    """

    order = 1

    variance: Literal["small", "large", "learned"] = "small"

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large", "learned"):
            raise ConfigError(f"unknown variance {self.variance!r}: choose small, large or learned")

    @property
    def needs(self) -> type[Any]:
        """Any path for the posterior's own variance."""
        return Path if self.variance == "small" else LocationPath

    def step(self, path: Path, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """One draw; no noise is added where the posterior is a point (at the clean end)."""
        del memory
        estimate = yield Query(x, step.t)
        posterior = path.posterior(x, estimate, step.t, step.s)
        if posterior.root == 0.0:
            return posterior.mean
        if self.variance != "small" and isinstance(path, LocationPath):
            posterior = self._widened(path, posterior, estimate, step)
        return posterior.sample(noise.normal(step.index, posterior.mean.shape[1:]))

    def _widened(self, path: LocationPath, posterior: Gaussian, estimate: Estimate, step: Step) -> Gaussian:
        large = _large(path, step.t, step.s)
        if self.variance == "large":
            return Gaussian(mean=posterior.mean, root=large)
        if "variance" not in estimate.extras:
            raise PathError("variance='learned' needs extras['variance'], and this network predicts none: use 'small'")
        low, high = math.log(path.bridge_std(step.t, step.s)), math.log(large)
        fraction = 0.5 * (estimate.extras["variance"] + 1.0)
        std = torch.exp(fraction * high + (1.0 - fraction) * low)
        return Gaussian(mean=posterior.mean, root=std.mul)


def _large(path: LocationPath, t: float, s: float) -> float:
    """Standard deviation of x_s given x_t where the data are N(0, 1)."""
    clean = path.t_range[0]
    at_t, at_s = (path.gain(clean, time) ** 2 + path.std(time) ** 2 for time in (t, s))
    return path.spread(s, t) * math.sqrt(at_s / at_t)

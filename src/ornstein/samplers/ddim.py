"""DDIM: keep the estimated noise, or part of it (Song, Meng & Ermon 2021, eq. 12)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from ..paths.base import LocationPath
from ..randomness import NoiseSource
from ..typed import typed
from .base import Memory, Query, Step, Steps


@typed()
@dataclass(frozen=True, slots=True)
class DDIM:
    """x_s = mean(x̂_0, s) + √(std_s² − w²)·ẑ + w·z,  w = η·bridge_std(t, s).

    η = 0 is the deterministic first-order exponential integrator of the probability-flow ODE, η = 1 ancestral sampling.
    Works on any path with a mean and a std, the condition-shifted included.
    """

    order = 1
    needs = LocationPath

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"eta must lie in [0, 1], got {self.eta}")

    def step(self, path: LocationPath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """One step, one evaluation."""
        del memory
        estimate = yield Query(x, step.t)
        std = path.std(step.s)
        if std == 0.0:
            return path.mean_of(estimate, step.s)
        fresh = self.eta * path.bridge_std(step.t, step.s) if self.eta else 0.0
        x = path.ddim_step(x, estimate, math.sqrt(max(std**2 - fresh**2, 0.0)) / path.std(step.t), step.s)
        return x.add_(noise.normal(step.index, x.shape[1:]), alpha=fresh) if fresh else x

"""Runge–Kutta steps on the probability-flow ODE: Euler in the path's own time, Heun in the noise level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..paths.base import AffinePath
from ..randomness import NoiseSource
from ..typed import typed
from .base import Memory, Query, Step, Steps


@typed()
@dataclass(frozen=True, slots=True)
class Euler:
    """x_s = x_t + (s − t)·dx/dt, in the path's own time.

    On `VE` and `Flow` this is DDIM; on a variance-preserving path it is a different, usually worse, first-order rule.
    """

    order = 1
    needs = AffinePath
    """The velocity needs rates(t)."""

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """One step, one evaluation."""
        del path, noise, memory
        estimate = yield Query(x, step.t)
        return x + (step.s - step.t) * estimate.velocity


@typed()
@dataclass(frozen=True, slots=True)
class Heun:
    """Heun's second-order rule in u = x/α over σ̄ = σ/α, where du/dσ̄ = z (Karras et al. 2022, algorithm 1).

    Two evaluations a step; one where σ̄_s = 0 (the last) and, on paths that begin at pure noise (α_t = 0), on the
    first, whose local error is of second order already. EDM's churn is a climbing grid (`ornstein.grids.churn`).

    The trapezoid of a step from noise above the data to noise below it keeps half of the noise, since the second slope
    is almost zero there: samples of 29 times the size of the data at two steps. So a step from σ̄ above 1 to less
    than a quarter of it is DDIM's, with one evaluation. (Steps as wide from weaker noise keep the published rule: what
    they can leave is less than half of a standard deviation of data of scale one.)
    """

    order = 2
    needs = AffinePath

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Predict with DDIM, then average the two noises."""
        del noise, memory
        t, s = step.t, step.s
        first = yield Query(x, t)
        if path.sigma(s) == 0.0:
            return path.mean(first.clean, s)
        euler = path.ddim_step(x, first, path.sigma(s) / path.sigma(t), s)
        if path.alpha(t) == 0.0 or path.sigma_bar(t) > max(1.0, 4.0 * path.sigma_bar(s)):
            return euler
        second = yield Query(euler, s)
        half = 0.5 * path.alpha(s) * (path.sigma_bar(s) - path.sigma_bar(t))
        return (path.gain(t, s) * x).add_(first.noise, alpha=half).add_(second.noise, alpha=half)

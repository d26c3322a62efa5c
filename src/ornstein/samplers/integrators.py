"""Integrators of the probability-flow ODE beside the DPM-Solver++ family: what is frozen or interpolated, and in what.

`ExponentialIntegrator` is the scheme of Li, Di & Gu 2025 (arXiv 2410.14237) and its two first-order relatives, `DEIS`
extrapolates the noise (Zhang & Chen 2023, arXiv 2204.13902), `Collocation` solves a step by sweeps over inner nodes
(Li, Zhou, Wei & Chen 2025, arXiv 2506.24042). `u` is x/α, `σ̄` is σ/α and ᾱ = 1/(1 + σ̄²); a step to σ_s = 0 or from
α_t = 0 is of first order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from torch import Tensor

from ..errors import ConfigError
from ..paths.base import AffinePath
from ..randomness import NoiseSource
from ..typed import typed
from .accelerated import alpha_bar, is_jump, jump, moved, variance_between
from .base import Memory, Query, Step, Steps
from .exponential import ExponentialStep, half_log_snr, quadrature, spaced


@typed()
@dataclass(frozen=True, slots=True)
class ExponentialIntegrator:
    """One evaluation a step; with β = 1 − ᾱ_t/ᾱ_s and the score s of the variance-preserving state y = √ᾱ·u,

        y_s = (y_t + c·s)/√(1 − β)

        freeze      c                                     what is constant in the step
        "score"     1 − √(1 − β)                          the score, in the time of the Ornstein–Uhlenbeck process
        "noise"     (1 − ᾱ_t)·(1 − √(1 − β/(1 − ᾱ_t)))    the noise: DDIM
        "variance"  ½β                                    the score of u, in σ̄²

    "score" is the paper's: dy = (y + s) dτ with its linear part exact. It beats DDIM on smooth laws at few steps and
    loses near singular ones. All three are called "DDIM" or "exponential integrator" somewhere. Meant for
    `ornstein.grids.early_stopping`, whose end the theory compares with.
    """

    order = 1
    needs = AffinePath

    freeze: Literal["score", "noise", "variance"] = "score"

    def __post_init__(self) -> None:
        if self.freeze not in ("score", "noise", "variance"):
            raise ConfigError(f"an exponential integrator freezes 'score', 'noise' or 'variance', got {self.freeze!r}")

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """One step, one evaluation."""
        del noise, memory
        t, s = step.t, step.s
        estimate = yield Query(x, t)
        if is_jump(path, t, s):
            return jump(path, estimate, s)
        bar, after = path.sigma_bar(t), path.sigma_bar(s)
        beta = alpha_bar(bar) * variance_between(bar, after)
        if self.freeze == "noise":
            return moved(path, x, t, s, [(after - bar, estimate.noise)])
        c = 0.5 * beta if self.freeze == "variance" else beta / (1.0 + math.sqrt(1.0 - beta))
        # s = −z/√(1 − ᾱ), y = √ᾱ·u: the weight of z in u is −c/√(ᾱ·(1 − ᾱ)) = −c·(1 + σ̄²)/σ̄.
        return moved(path, x, t, s, [(-c / (alpha_bar(bar) * bar), estimate.noise)])


_GAUSS = tuple(zip(*(column.tolist() for column in np.polynomial.legendre.leggauss(16)), strict=True))


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class DEIS:
    """The diffusion exponential integrator sampler: the noise, extrapolated through the last ``points`` estimates.

        u_s = u_t + ∑_j C_j·z_j,   C_j = ∫ ℓ_j dσ̄ over the step

    ℓ_j are Lagrange's polynomials in ``variable``: the path's own "time" (tAB), the noise level σ̄ ("sigma", ρAB), its
    logarithm ("log-sigma", as in diffusers), or ᾱ ("gain"; with two points the memory form of `AcceleratedODE`). One
    evaluation a step; with three points the first step evaluates once more, at its middle in σ̄: a first-order one
    would limit the run to order 2.
    """

    needs = AffinePath

    points: Literal[1, 2, 3] = 3
    variable: Literal["time", "sigma", "log-sigma", "gain"] = "time"

    def __post_init__(self) -> None:
        if self.points not in (1, 2, 3):
            raise ConfigError(f"DEIS extrapolates from 1, 2 or 3 points, got {self.points}")
        if self.variable not in ("time", "sigma", "log-sigma", "gain"):
            raise ConfigError(f"DEIS knows 'time', 'sigma', 'log-sigma' and 'gain', got {self.variable!r}")

    @property
    def order(self) -> int:
        """``points``."""
        return self.points

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Extrapolate the remembered noises of this descent."""
        del noise
        t, s = step.t, step.s
        estimate = yield Query(x, t)
        now, place = half_log_snr(path, t), self._place(path, t)
        points = [(now, place, estimate.noise), *memory.get("points", [])][: self.points]
        memory["points"] = points if math.isfinite(place) else []
        if is_jump(path, t, s):
            return jump(path, estimate, s)
        bar, after = path.sigma_bar(t), path.sigma_bar(s)
        points = spaced(points, half_log_snr(path, s) - now)
        if len(points) == 1 and self.points == 3:
            centre = 0.5 * (bar + after)
            middle = path.time_of(-2.0 * math.log(centre))
            found = yield Query(moved(path, x, t, middle, [(centre - bar, estimate.noise)]), middle)
            return moved(path, x, t, s, [(after - bar, found.noise)])
        weights = self._weights(path, bar, after, [at for _, at, _ in points])
        return moved(path, x, t, s, list(zip(weights, (z for _, _, z in points), strict=True)))

    def _place(self, path: AffinePath, t: float) -> float:
        bar = path.sigma_bar(t)
        if self.variable == "time":
            return t
        if self.variable == "gain":
            return alpha_bar(bar)
        return math.log(bar) if self.variable == "log-sigma" and 0.0 < bar < math.inf else bar

    def _weights(self, path: AffinePath, bar: float, after: float, places: Sequence[float]) -> list[float]:
        """C_j by Gauss–Legendre nodes in log σ̄, on which every one of the variables is smooth."""
        if len(places) == 1:
            return [after - bar]
        width = math.log(after / bar)
        out = [0.0] * len(places)
        for node, weight in _GAUSS:
            here = bar * math.exp(0.5 * (node + 1.0) * width)
            place = self._place(path, path.time_of(-2.0 * math.log(here)))
            for j, own in enumerate(places):
                ratio = math.prod((place - other) / (own - other) for i, other in enumerate(places) if i != j)
                out[j] += 0.5 * weight * width * here * ratio
        return out


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Collocation:
    """A step solved by successive refinement over Chebyshev–Lobatto nodes θ_j = ½(1 − cos(πj/(K − 1))) in λ.

    The clean estimate is interpolated through its values at the ``nodes`` and integrated exactly, to every node and to
    the end; the first sweep knows the value at the start only, every further one evaluates at the other nodes of the
    states that the sweep before gave. 1 + (sweeps − 1)·(nodes − 1) evaluations a step, all of a sweep independent of
    each other; order min(nodes, sweeps). It pays only above some 150 evaluations.
    """

    needs = AffinePath

    nodes: int = 3
    sweeps: int = 3

    def __post_init__(self) -> None:
        if not (2 <= self.nodes <= 6 and 1 <= self.sweeps <= 8):
            raise ConfigError(f"collocation needs 2–6 nodes and 1–8 sweeps, got {self.nodes} and {self.sweeps}")

    @property
    def order(self) -> int:
        """min(nodes, sweeps)."""
        return min(self.nodes, self.sweeps)

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """Sweep over the nodes."""
        del noise, memory
        t, s = step.t, step.s
        estimate = yield Query(x, t)
        if is_jump(path, t, s):
            return jump(path, estimate, s)
        nodes = _lobatto(self.nodes)
        low, high = path.log_snr(t), path.log_snr(s)
        times = [*(path.time_of(low + (high - low) * node) for node in nodes[1:-1]), s]
        leaps = [ExponentialStep.between(path, t, time) for time in times]
        clean = [estimate.clean]
        for _ in range(self.sweeps - 1):
            states = [_integrated(leap, x, nodes, node, clean) for leap, node in zip(leaps, nodes[1:], strict=True)]
            found: list[Tensor] = []
            for state, time in zip(states, times, strict=True):
                found.append((yield Query(state, time)).clean)
            clean = [estimate.clean, *found]
        return _integrated(leaps[-1], x, nodes, 1.0, clean)


@lru_cache
def _lobatto(count: int) -> tuple[float, ...]:
    return tuple(0.5 * (1.0 - math.cos(math.pi * j / (count - 1))) for j in range(count))


def _integrated(
    leap: ExponentialStep, x: Tensor, nodes: Sequence[float], node: float, clean: Sequence[Tensor]
) -> Tensor:
    """The state at ``node`` from the polynomial through the estimates at all nodes (through one: a constant)."""
    places = [0.0] if len(clean) == 1 else [other / node for other in nodes]
    return leap.to(x, quadrature(leap.y, places), clean)

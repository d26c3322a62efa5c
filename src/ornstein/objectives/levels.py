"""Pairs of noise levels σ̄ > σ̄' for a consistency loss: intervals of a grid, or a ratio of each level.

Host numbers in double precision throughout, so that a level is the same on every device.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

from ..errors import ConfigError
from ..scalars import sigmoid

SpacingName = Literal["grid", "ratio"]
LevelLaw = Literal["log-normal", "uniform"]


@lru_cache(maxsize=64)
def grid(count: int, low: float, high: float, rho: float) -> tuple[float, ...]:
    """σ̄_0 = high > … > σ̄_S = low, σ̄^{1/ρ} in equal steps (Karras et al. 2022, eq. 5); the ends are exact.

    >>> levels = grid(640, 0.002, 80.0, 7.0)
    >>> levels[0], levels[-1], round(levels[420], 4), round(levels[480], 5)
    (80.0, 0.002, 0.5286, 0.16975)
    """
    top, bottom = high ** (1.0 / rho), low ** (1.0 / rho)
    return (high, *((top + (bottom - top) * i / count) ** rho for i in range(1, count)), low)


@lru_cache(maxsize=64)
def level_probabilities(levels: tuple[float, ...], mean: float, std: float) -> tuple[float, ...]:
    """Probabilities of the intervals: those of a log-normal σ̄, cut to the grid (Song & Dhariwal 2024, eq. 5).

    p_i ∝ Φ((log σ̄_i − mean)/std) − Φ((log σ̄_{i+1} − mean)/std).

    Raises `ConfigError` for a law that has nothing between the ends of the grid.
    """
    normal = NormalDist(mean, std)
    sums = [normal.cdf(_log(level)) for level in levels]
    total = sums[0] - sums[-1]
    if not total > 0.0:
        raise ConfigError(
            f"objective.mean {mean:g} and objective.std {std:g} put no level between {levels[-1]:g} and {levels[0]:g}: "
            "-1.1 and 2 are usual"
        )
    return tuple((upper - lower) / total for upper, lower in itertools.pairwise(sums))


def places(us: Sequence[float], levels: tuple[float, ...], law: LevelLaw, mean: float, std: float) -> list[int]:
    """The intervals [σ̄_{i+1}, σ̄_i] at the quantiles us in [0, 1) of the law."""
    last = len(levels) - 2
    if law == "uniform":
        return [min(int(u * (last + 1)), last) for u in us]
    sums = list(itertools.accumulate(level_probabilities(levels, mean, std)))
    return [min(bisect.bisect_right(sums, u), last) for u in us]


def level(u: float, low: float, high: float, law: LevelLaw, mean: float, std: float) -> float:
    """The level at the quantile u of the log-normal law, or of a uniform one, cut to [low, high]."""
    if law == "uniform":
        return low + (high - low) * u
    normal = NormalDist(mean, std)
    bottom, top = normal.cdf(_log(low)), normal.cdf(math.log(high))
    inside = min(max(bottom + (top - bottom) * u, 2.0**-54), 1.0 - 2.0**-53)
    return min(max(math.exp(normal.inv_cdf(inside)), low), high)


def lower(upper: float, count: int, low: float, slope: float = 8.0) -> float:
    """σ̄' = σ̄·(1 − n(σ̄)/S), not below ``low``, with n = 1 + slope·sigmoid(−σ̄) (Geng et al. 2025, ECT).

    With S = 2·2^stage that is their 1/q^a at q = 2. At few intervals small levels are paired with ``low`` itself, which
    is the denoising loss: a diffusion model is where this curriculum begins.
    """
    return max(upper * (1.0 - (1.0 + slope * sigmoid(-upper)) / count), low)


def _log(level: float) -> float:
    return math.log(level) if level > 0.0 else -math.inf

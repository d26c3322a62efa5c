"""Schedules of theory papers, which end above the clean end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import GridError
from ..paths.base import Path
from ..typed import typed
from .base import Grid, affine, count_of, positive


@typed(GridError)
def li2024(steps: int, *, c0: float = 2.0, c1: float = 4.0) -> Grid:
    """The step sizes of the accelerated samplers' theory (Li et al. 2024): T = ``steps`` levels ᾱ_t = ∏(1 − β).

        β_1 = T^{−c0},   β_{t+1} = (c1·log T/T)·min{β_1·(1 + c1·log T/T)^t, 1}

    From ᾱ_T ≈ T^{−(c1−c0)} to 1 − ᾱ_1 = T^{−c0}, where the theory stops: no jump to the clean end. Levels noisier than
    the path's own noisiest are left out. The step is log T/T, so orders show over T/log T. It needs c1 ≥ 2·c0.

    Raises:
        GridError: T below 3, c1 < 2·c0, or a first level at which nothing of the path is left.
    """
    if count_of(steps) < 3 or not c1 >= 2.0 * positive(c0, "c0"):
        raise GridError(f"this schedule needs at least 3 levels and c1 ≥ 2·c0, got {steps}, c0={c0:g}, c1={c1:g}")
    most = c1 * math.log(steps) / steps
    betas = [steps**-c0]
    betas += [min(most * min(betas[0] * math.exp(t * math.log1p(most)), 1.0), 0.999) for t in range(1, steps)]
    logs = np.cumsum(np.log1p(-np.array(betas)))
    return _levels(f"li2024({steps}, c0={c0:g}, c1={c1:g})", [float(v - math.log(-math.expm1(v))) for v in logs[::-1]])


@typed(GridError)
def li2025(steps: int, *, c0: float = 2.0, c1: float = 5.0, beyond: int = 0) -> Grid:
    """The cells of the randomized midpoint method (Li & Jiao 2025): about equal steps of log(ᾱ/(1 − ᾱ)).

        ᾱ_{T+1} = T^{−c0},   ᾱ_{t−1} = ᾱ_t + (c1·log T/T)·ᾱ_t·(1 − ᾱ_t)

    T = ``steps`` of them and one before the first, at which nothing is evaluated, then ``beyond`` more (half a round
    of `rounds`, that each round overshoots by). Ends near 1 − ᾱ = T^{−(c1−c0)}, with no jump to the clean end.

    Raises:
        GridError: T below 3, steps larger than one, or a level noisier than the path's noisiest.
    """
    width = c1 * math.log(count_of(steps)) / steps
    if steps < 3 or not 0.0 < width < 1.0:
        raise GridError(f"c1·log T/T must lie in (0, 1), got {width:g} for T={steps}: raise T or lower c1={c1:g}")
    gain, values = steps ** -positive(c0, "c0"), list[float]()
    rest = 1.0 - gain  # both kept, so that neither end loses its digits
    for _ in range(steps + 2 + beyond):
        values.append(math.log(gain) - math.log(rest))
        gain, rest = gain * (1.0 + width * rest), rest * (1.0 - width * gain)
    return _levels(f"li2025({steps}, c0={c0:g}, c1={c1:g})", values, strict=True)


@typed(GridError)
def early_stopping(steps: int, *, delta: float = 0.01, horizon: float = 5.0) -> Grid:
    """The schedule of exponential integrators' theory (Li, Di & Gu 2025): steps ≤ κ·min{1, τ} in the time of the
    Ornstein–Uhlenbeck process, ᾱ = e^{−2τ}, from τ = ``horizon`` down to τ = ``delta``, and there it stops.

    Equal steps above τ = 1 and a geometric tail below, the ``steps`` shared out so that κ is about equal in both.

    Raises:
        GridError: fewer than 2 steps, or not 0 < delta < 1 < horizon.
    """
    if count_of(steps) < 2 or not 0.0 < delta < 1.0 < horizon < math.inf:
        raise GridError(f"need 2 steps or more and 0 < delta < 1 < horizon, got {steps}, {delta:g} and {horizon:g}")
    flat = min(max(round(steps * (horizon - 1.0) / (horizon - 1.0 - math.log(delta))), 1), steps - 1)
    taus = [horizon + (1.0 - horizon) * i / flat for i in range(flat)]
    taus += [delta ** (i / (steps - flat)) for i in range(steps - flat + 1)]
    return _levels(f"early_stopping({steps}, delta={delta:g})", [-math.log(math.expm1(2.0 * tau)) for tau in taus])


def _levels(name: str, values: Sequence[float], *, strict: bool = False) -> Grid:
    """A grid of log-SNRs; those noisier than the path's noisiest are left out, or refused where each one counts."""

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        least = base.log_snr(base.t_range[1])
        kept = [value for value in values if value >= least - 1e-9]
        if len(kept) < 2 or (strict and len(kept) < len(values)):
            raise GridError(
                f"{name} starts at log-SNR {values[0]:g}, beyond the {least:g} of {type(base).__name__}: "
                "give the path a noisier end, or the grid another start"
            )
        return tuple(min(base.time_of(value), base.t_range[1]) for value in kept)

    return Grid(name, rule)

"""Grids that fall from noise to the clean end, and the one that is taken where none is named."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import GridError
from ..paths.base import AffinePath, LocationPath, Path
from ..paths.shifted import ShiftedPath
from ..paths.ve import VE
from ..typed import typed
from .base import Grid, affine, closed, count_of, ends, positive


@typed(GridError)
def uniform(steps: int, *, start: float | None = None) -> Grid:
    """Equal steps in the path's own time, from ``start`` (default: pure noise) to the clean end."""
    count_of(steps)

    def rule(path: Path) -> tuple[float, ...]:
        low, high = path.t_range[0], path.t_range[1] if start is None else start
        return (*(high + (low - high) * i / steps for i in range(steps)), low)

    return Grid(f"uniform({steps})", rule)


@typed(GridError)
def power(steps: int, *, exponent: float = 2.0, start: float | None = None) -> Grid:
    """t_i ∝ (1 − i/n)^exponent: exponent 2 is the time-quadratic grid of Song et al. 2021."""
    count_of(steps)
    positive(exponent, "exponent")

    def rule(path: Path) -> tuple[float, ...]:
        low, high = path.t_range[0], path.t_range[1] if start is None else start
        return (*(low + (high - low) * (1.0 - i / steps) ** exponent for i in range(steps)), low)

    return Grid(f"power({steps}, {exponent:g})", rule)


@typed(GridError)
def karras(steps: int, *, rho: float = 7.0, start: float | None = None) -> Grid:
    """σ̄_i^{1/ρ} in equal steps from the noisiest to `t_min`, then the clean end (Karras et al. 2022, eq. 5).

    As published, two steps go straight to `t_min`: below four steps `few` serves better.
    """
    count_of(steps)
    positive(rho, "rho")

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        top, low = (base.sigma_bar(t) ** (1.0 / rho) for t in ends(base, start))
        bars = [(top + (low - top) * i / max(steps - 1, 1)) ** rho for i in range(steps)]
        return closed(base, [base.time_of(-2.0 * math.log(bar)) for bar in bars], start)

    return Grid(f"karras({steps}, rho={rho:g})", rule)


@typed(GridError)
def log_snr(steps: int, *, start: float | None = None) -> Grid:
    """Equal steps in log-SNR from the noisiest to the path's `t_min`, then the clean end (Lu et al. 2022).

    As published, two steps go straight to `t_min`: below four steps `few` serves better.
    """
    count_of(steps)

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        low, high = (base.log_snr(t) for t in ends(base, start))
        values = [low + (high - low) * i / max(steps - 1, 1) for i in range(steps)]
        return closed(base, [base.time_of(value) for value in values], start)

    return Grid(f"log_snr({steps})", rule)


@typed(GridError)
def cauchy(
    steps: int, *, first: float, last: float, centre: float = 0.3, width: float = 2.0, start: float | None = None
) -> Grid:
    """A grid for few evaluations: one step from the noisiest level to σ̄ = ``first``, then dense around e^(−centre).

    With λ = −log σ̄, the levels from ``first`` to ``last`` are λ_i = centre + width·tan φ_i with φ_i in equal steps:
    their density in λ is that of a Cauchy law, and equal steps in λ for a large width. Then the clean end. With
    ``first`` near the noisiest level or above it there is no leap: all levels follow the law, from the noisiest one. A
    ``last`` below the path's `t_min` is drawn in. `ornstein.samplers.auto` chooses the four numbers.

    Raises:
        GridError: not 0 < last < first, or a width that is not positive.
    """
    count_of(steps)
    positive(width, "width")
    if not 0.0 < last < first < math.inf or not math.isfinite(centre):
        raise GridError(f"need 0 < last < first and a finite centre, got {last}, {first} and {centre}")

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        top, floor = (base.sigma_bar(t) for t in ends(base, start))
        if steps == 1:
            return closed(base, [base.time_of(-2.0 * math.log(top))], start)
        # Near the noisiest level there is nothing to leap over: all levels follow the law.
        leap = first < 0.75 * top
        high, count = (first, steps - 1) if leap else (top, steps)
        low = min(max(last, floor), high * (floor / high) ** 0.5)
        begin, end = (math.atan((-math.log(bar) - centre) / width) for bar in (high, low))
        angles = [begin + (end - begin) * (i / (count - 1) if count > 1 else 0.5) for i in range(count)]
        times = [base.time_of(2.0 * (centre + width * math.tan(angle))) for angle in angles]
        return closed(base, [base.t_range[1], *times] if leap else times, start)

    return Grid(f"cauchy({steps}, first={first:g}, last={last:g}, centre={centre:g}, width={width:g})", rule)


@typed(GridError)
def span_log_snr(steps: int, low: float, high: float) -> Grid:
    """Equal steps between two log-SNRs, both ends included and no last jump: the grid of order measurements."""
    count_of(steps)

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        return tuple(base.time_of(low + (high - low) * i / steps) for i in range(steps + 1))

    return Grid(f"span_log_snr({steps}, {low:g}, {high:g})", rule)


@typed(GridError)
def timesteps(steps: Sequence[int], *, table: int = 1000) -> Grid:
    """The time indices of a discrete table of ``table`` steps, noisiest first, then the clean end.

    >>> from ornstein.paths import VP
    >>> timesteps([999, 499])(VP.table())
    (1.0, 0.5, 0.0)
    """
    count_of(table, "a table has at least one step")
    return Grid(f"timesteps({len(steps)})", lambda path: (*((k + 1) / table for k in steps), path.t_range[0]))


@typed(GridError)
def pyramid_levels() -> Grid:
    """Every level of a path with whole levels (`PyramidPath`), top to image."""
    return Grid("pyramid_levels", lambda path: tuple(np.arange(path.t_range[1], path.t_range[0] - 1.0, -1.0).tolist()))


@typed(GridError)
def few(steps: int) -> Grid:
    """For one to three steps: from the noisiest time to the levels σ/α = (n − i)/i, then the clean end.

    They are those of equal times on `Flow`. Grids down to `t_min` have no use for their last evaluation here: of data
    of std ½ two steps by way of σ/α = 1 keep a std of .2, by way of `t_min` .012.
    """
    count_of(steps)

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        top, low = (base.sigma_bar(t) for t in ends(base, None))
        levels = [(steps - i) / i for i in range(1, steps)]
        kept = [level for level in levels if low < level < top]
        if len(kept) < len(levels):  # a path of other levels: equal steps between its own
            return log_snr(steps)(path)
        return (path.t_range[1], *(base.time_of(-2.0 * math.log(level)) for level in kept), path.t_range[0])

    return Grid(f"few({steps})", rule)


@typed(GridError)
def default(path: Path, steps: int) -> Grid:
    """What `ornstein.sample` uses: equal log-SNR steps on variance-preserving paths, Karras' grid on `VE`, equal times
    where a path ends in pure noise (`Flow`), every level on a pyramid; `few` below four steps.
    """
    base = path.base if isinstance(path, ShiftedPath) else path
    if not isinstance(base, LocationPath):
        return pyramid_levels()
    if isinstance(base, AffinePath) and count_of(steps) < 4:
        return few(steps)
    if isinstance(base, VE):
        return karras(steps)
    if isinstance(base, AffinePath) and base.alpha(base.t_range[1]) > 0.0:
        # Nearer to the fine solution than Karras' spacing at 5 to 20 evaluations of DDIM, 2M and UniPC on a trained
        # model with cosine betas, whose noisy end (σ̄ ≈ 640) would draw most of Karras' steps.
        return log_snr(steps)
    return uniform(steps)

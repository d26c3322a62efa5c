"""Grids made of grids: parts of them, and climbs, where samples get fresh noise."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from itertools import pairwise

from ..errors import GridError
from ..paths.base import Path
from ..paths.shifted import ShiftedPath
from ..paths.times import is_near
from ..paths.ve import VE
from ..randomness import NoiseSource
from ..typed import typed
from .base import Grid, GridLike, affine, count_of, finite, positive, times_of


@typed(GridError)
def rounds(grid: GridLike, count: int, *, draw: NoiseSource | None = None, climb: bool = True) -> Grid:
    """The rounds of the randomized midpoint method as a climbing grid (Li & Jiao 2025).

    Every one of ``count`` rounds goes down over 2·H cells of ``grid`` and climbs back over H with fresh noise, so the
    grid has (count + 1)·H cells and ends H cells below the level that is kept; ``climb=False`` leaves out the climb
    after the last round and ends at the lowest level. The grid must end above σ = 0.

    With ``draw`` rounds begin and end at random points inside a cell, uniform in ᾱ, as in the paper: (count + 1)·H + 1
    cells, for `RandomizedMidpoint(opening="single")`. The climb returns to the very point that the next round starts
    from.

    Raises:
        GridError: a number of cells that does not divide, or a grid that reaches the clean end.
    """
    count_of(count, "there is at least one round")

    def rule(path: Path) -> tuple[float, ...]:
        base, nodes = affine(path), times_of(grid, path)
        cells = len(nodes) - 1 - (draw is not None)
        half = cells // (count + 1)
        if half < 1 or half * (count + 1) != cells:
            extra = "" if draw is None else " and one more"
            raise GridError(f"{count} rounds need a multiple of {count + 1} cells{extra}, got {len(nodes) - 1}")
        if base.sigma(nodes[-1]) == 0.0:
            raise GridError("rounds overshoot and fall back: end their grid above σ = 0 (and append the clean end)")

        def point(cell: int, name: str) -> float:
            if draw is None:
                return nodes[cell]
            one, two = (1.0 / (1.0 + base.sigma_bar(t) ** 2) for t in nodes[cell : cell + 2])
            level = one + draw.uniform((name, cell)) * (two - one)
            return base.time_of(math.log(level) - math.log1p(-level))

        out: list[float] = []
        for k in range(count):
            low, inside = k * half, int(draw is not None)
            out += [point(low, "round"), *nodes[low + 1 : low + 2 * half + inside]]
            out.append(point(low + 2 * half, "end"))
        return (*out, point(count * half, "round")) if climb else tuple(out)

    return Grid(f"rounds({count})", rule)


@typed(GridError)
def partial(grid: GridLike, start: float) -> Grid:
    """The part of a grid at or below ``start``, beginning exactly there: image-to-image, inpainting, editing."""

    def rule(path: Path) -> tuple[float, ...]:
        path.check(start)
        return (start, *(t for t in times_of(grid, path) if t < start))

    return Grid("partial", rule)


@typed(GridError)
def skip(grid: GridLike, steps: int) -> Grid:
    """A grid without its first ``steps`` steps, as Boost-and-Skip asks for (Um, Kim & Ye 2025).

    >>> from ornstein.grids import uniform
    >>> from ornstein.paths import VP
    >>> skip(uniform(4), 1)(VP())
    (0.75, 0.5, 0.25, 0.0)
    """
    return Grid(f"skip({steps})", lambda path: without_first(times_of(grid, path), steps))


@typed(GridError)
def without_first(times: Sequence[float], steps: int) -> tuple[float, ...]:
    """Times without the first ``steps``; `GridError` where fewer than two would be left."""
    if not isinstance(steps, numbers.Integral) or not 0 <= steps <= len(times) - 2:
        raise GridError(f"{steps} of {len(times) - 1} steps cannot be skipped: at least one must be left")
    return tuple(times[steps:])


@typed(GridError)
def churn(grid: GridLike, *, total: float = 40.0, low: float = 0.05, high: float = 50.0) -> Grid:
    """EDM's stochastic churn (Karras et al. 2022, algorithm 2) as a climbing grid.

    Before each step from σ̄ in [low, high] the grid climbs to (1 + γ)·σ̄ with γ = min(total/steps, √2 − 1); the climb
    stays inside `t_range`. The re-noising on the way up adds exactly the noise of the algorithm with S_noise = 1.
    """
    if not 0.0 <= total < math.inf:
        raise GridError(f"the total churn must be finite and not negative, got {total}")
    if not 0.0 <= low <= high:
        raise GridError(f"churn needs 0 ≤ low ≤ high in σ/α, got low={low} and high={high}")

    def rule(path: Path) -> tuple[float, ...]:
        base, times = affine(path), times_of(grid, path)
        gamma = min(total / max(len(times) - 1, 1), math.sqrt(2.0) - 1.0)
        out: list[float] = []
        for i, t in enumerate(times):
            out.append(t)
            if i == len(times) - 1 or base.alpha(t) == 0.0:
                continue
            bar = base.sigma_bar(t)
            if gamma > 0.0 and low <= bar <= high:
                climbed = min(base.time_of(-2.0 * math.log((1.0 + gamma) * bar)), base.t_range[1])
                if climbed > t:
                    out.append(climbed)
        return tuple(out)

    return Grid(f"churn({total:g})", rule)


@typed(GridError)
def resample(grid: GridLike, times: int) -> Grid:
    """Every step down is taken ``times`` times: down, back up, down again (universal guidance's recurrence, RePaint).

    The step to the clean end as well, as in the paper's algorithm and in the code: from there the way up is the forward
    law itself. (Only `ShiftedPath` with ``bend="data"`` cannot climb from its clean end, and takes that step once.)
    """
    count_of(times, "every step is taken at least once")

    def rule(path: Path) -> tuple[float, ...]:
        nodes = times_of(grid, path)
        out = list(nodes[:1])
        for t, s in pairwise(nodes):
            dead_end = isinstance(path, ShiftedPath) and path.bend == "data" and s == path.t_range[0]
            out += (s, *(t, s) * (times - 1)) if s < t and not dead_end else (s,)
        return tuple(out)

    return Grid(f"resample({times})", rule)


@typed(GridError)
def restart(grid: GridLike, *, low: float, high: float, rounds: int = 1, steps: int = 3) -> Grid:
    """Restart sampling (Xu et al. 2023): at time ``low``, climb to ``high`` and come down again, ``rounds`` times.

    ``low`` and ``high`` are times of the path; ``steps`` is the length of each new descent, in the grid's log-SNR. On a
    grid that climbs itself, it is done where the grid first comes down to ``low``.
    """
    count_of(steps, "a descent needs at least one step")
    count_of(rounds, "restart needs at least one round")

    def rule(path: Path) -> tuple[float, ...]:
        base, nodes = affine(path), times_of(grid, path)
        fits = nodes[-1] < low < high and (high <= nodes[0] or is_near(high, nodes[0], path))
        if not fits or is_near(low, high, path) or is_near(low, nodes[-1], path):
            raise GridError(f"restart needs {nodes[-1]:g} < low < high ≤ {nodes[0]:g}, got low={low:g}, high={high:g}")
        top, bottom = base.log_snr(finite(base, min(high, nodes[0]))), base.log_snr(low)
        descent = [base.time_of(top + (bottom - top) * i / steps) for i in range(1, steps)]
        rounds_ = [time for _ in range(rounds) for time in (high, *descent, low)]
        there = next(i for i, t in enumerate(nodes) if t <= low or is_near(t, low, path))
        return (*nodes[:there], low, *rounds_, *nodes[there:])

    return Grid(f"restart({low:g}, {high:g}, {rounds})", rule)


@typed(GridError)
def multistep(*levels: float, start: float | None = None) -> Grid:
    """Multistep sampling of consistency models (Song et al. 2023, algorithm 1) as a climbing grid.

    From the noisiest time (or ``start``) straight to the clean end; then for every one of ``levels``, noise levels
    σ̄ = σ/α, up to it and down again. Each evaluation is one step to the clean end: any sampler takes it as DDIM does.
    A level at the path's `t_min` or below adds no noise worth an evaluation and is left out. The climb adds noise of
    size σ̄, where the paper has √(σ̄² − σ_min²): a part of 10⁻⁵ less at σ̄ = 0.5.

    >>> from ornstein.paths import VE
    >>> multistep(0.53)(VE())
    (80.0, 0.0, 0.53, 0.0)

    Raises:
        GridError: a level that is not positive, or beyond the path's noisiest one.
    """
    for level in levels:
        positive(level, "a level of a multistep grid")

    def rule(path: Path) -> tuple[float, ...]:
        base, clean = affine(path), path.t_range[0]
        out = [path.t_range[1] if start is None else start, clean]
        for level in levels:
            t = level if isinstance(base, VE) else base.time_of(-2.0 * math.log(level))
            out += [t, clean] if t > path.t_min else []
        return tuple(out)

    return Grid(f"multistep({', '.join(f'{level:g}' for level in levels)})", rule)

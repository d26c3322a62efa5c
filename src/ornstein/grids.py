"""Grids: the times a sampler visits. Going down is sampling, going up is re-noising.

A `Grid` is a small value that becomes a tuple of times when it meets a path, so the same ``karras(10)`` serves a
variance-preserving, an exploding and a flow path. A plain list of times is a grid as well. Combinators (`churn`,
`resample`, `restart`, `partial`) take a grid and return a grid.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .checks import OneLine
from .errors import GridError, PathError
from .paths.base import AffinePath, LocationPath, Path
from .paths.shifted import ShiftedPath
from .paths.times import is_near, normalised
from .paths.ve import VE
from .randomness import NoiseSource
from .typed import typed

Rule = Callable[[Path], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Grid(OneLine):
    """A rule that turns a path into times; ``name`` says which."""

    name: str
    rule: Rule = field(repr=False)

    def __call__(self, path: Path) -> tuple[float, ...]:
        """The times on this path, as `paths.times.normalised` reads them."""
        return normalised(self.rule(path), path)


GridLike = Grid | Sequence[float]


def times_of(grid: GridLike, path: Path) -> tuple[float, ...]:
    """The times of a grid, or of a plain sequence, on a path: the one reading of `paths.times.normalised`."""
    if isinstance(grid, str):
        raise GridError(f"a grid is a rule or a list of times, got {grid!r}: say ornstein.grids.{grid}(20) or the like")
    return grid(path) if isinstance(grid, Grid) else normalised(grid, path)


def _count(steps: int, what: str = "a grid needs at least one step") -> int:
    if not isinstance(steps, numbers.Integral) or steps < 1:
        raise GridError(f"{what}, got {steps}: give a whole number from 1 up")
    return int(steps)


def _positive(value: float, what: str) -> float:
    if not 0.0 < value < math.inf:
        raise GridError(f"{what} must be positive and finite, got {value}")
    return value


def affine(path: Path) -> AffinePath:
    """The affine path that carries the noise levels of ``path``."""
    base = path.base if isinstance(path, ShiftedPath) else path
    if not isinstance(base, AffinePath):
        raise PathError(f"{type(path).__name__} has no noise levels: use grids.pyramid_levels() or a list of times")
    return base


def _ends(path: AffinePath, top: float | None) -> tuple[float, float]:
    """(first, last) noisy time: a path that ends in pure noise (α = 0) starts its finite log-SNR just below."""
    start = path.t_range[1] if top is None else top
    path.check(start)
    if start <= path.t_min:
        raise GridError(f"a grid in noise levels starts above the path's floor {path.t_min:g}, got {start:g}")
    return _finite(path, start), path.t_min


def _finite(path: AffinePath, t: float) -> float:
    """t, or the time of log-SNR −10 where t is pure noise and has none."""
    return path.time_of(-10.0) if path.alpha(t) == 0.0 else t


def _closed(path: AffinePath, times: Sequence[float], top: float | None) -> tuple[float, ...]:
    """Pin the ends exactly and finish at the clean end of `t_range`."""
    start = path.t_range[1] if top is None else top
    return (start, *times[1:], path.t_range[0])


@typed(GridError)
def uniform(steps: int, *, start: float | None = None) -> Grid:
    """Equal steps in the path's own time, from ``start`` (default: pure noise) to the clean end."""
    _count(steps)

    def rule(path: Path) -> tuple[float, ...]:
        low, high = path.t_range[0], path.t_range[1] if start is None else start
        return (*(high + (low - high) * i / steps for i in range(steps)), low)

    return Grid(f"uniform({steps})", rule)


@typed(GridError)
def power(steps: int, *, exponent: float = 2.0, start: float | None = None) -> Grid:
    """t_i ∝ (1 − i/n)^exponent: exponent 2 is the time-quadratic grid of Song et al. 2021."""
    _count(steps)
    _positive(exponent, "exponent")

    def rule(path: Path) -> tuple[float, ...]:
        low, high = path.t_range[0], path.t_range[1] if start is None else start
        return (*(low + (high - low) * (1.0 - i / steps) ** exponent for i in range(steps)), low)

    return Grid(f"power({steps}, {exponent:g})", rule)


@typed(GridError)
def karras(steps: int, *, rho: float = 7.0, start: float | None = None) -> Grid:
    """σ̄_i^{1/ρ} in equal steps from the noisiest to `t_min`, then the clean end (Karras et al. 2022, eq. 5).

    As published, two steps go straight to `t_min`: below four steps `few` serves better.
    """
    _count(steps)
    _positive(rho, "rho")

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        top, low = (base.sigma_bar(t) ** (1.0 / rho) for t in _ends(base, start))
        bars = [(top + (low - top) * i / max(steps - 1, 1)) ** rho for i in range(steps)]
        return _closed(base, [base.time_of(-2.0 * math.log(bar)) for bar in bars], start)

    return Grid(f"karras({steps}, rho={rho:g})", rule)


@typed(GridError)
def log_snr(steps: int, *, start: float | None = None) -> Grid:
    """Equal steps in log-SNR from the noisiest to the path's `t_min`, then the clean end (Lu et al. 2022).

    As published, two steps go straight to `t_min`: below four steps `few` serves better.
    """
    _count(steps)

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        low, high = (base.log_snr(t) for t in _ends(base, start))
        values = [low + (high - low) * i / max(steps - 1, 1) for i in range(steps)]
        return _closed(base, [base.time_of(value) for value in values], start)

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
    _count(steps)
    _positive(width, "width")
    if not 0.0 < last < first < math.inf or not math.isfinite(centre):
        raise GridError(f"need 0 < last < first and a finite centre, got {last}, {first} and {centre}")

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        top, floor = (base.sigma_bar(t) for t in _ends(base, start))
        if steps == 1:
            return _closed(base, [base.time_of(-2.0 * math.log(top))], start)
        # Near the noisiest level there is nothing to leap over: all levels follow the law.
        leap = first < 0.75 * top
        high, count = (first, steps - 1) if leap else (top, steps)
        low = min(max(last, floor), high * (floor / high) ** 0.5)
        begin, end = (math.atan((-math.log(bar) - centre) / width) for bar in (high, low))
        angles = [begin + (end - begin) * (i / (count - 1) if count > 1 else 0.5) for i in range(count)]
        times = [base.time_of(2.0 * (centre + width * math.tan(angle))) for angle in angles]
        return _closed(base, [base.t_range[1], *times] if leap else times, start)

    return Grid(f"cauchy({steps}, first={first:g}, last={last:g}, centre={centre:g}, width={width:g})", rule)


@typed(GridError)
def span_log_snr(steps: int, low: float, high: float) -> Grid:
    """Equal steps between two log-SNRs, both ends included and no last jump: the grid of order measurements."""
    _count(steps)

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        return tuple(base.time_of(low + (high - low) * i / steps) for i in range(steps + 1))

    return Grid(f"span_log_snr({steps}, {low:g}, {high:g})", rule)


@typed(GridError)
def li2024(steps: int, *, c0: float = 2.0, c1: float = 4.0) -> Grid:
    """The step sizes of the accelerated samplers' theory (Li et al. 2024): T = ``steps`` levels ᾱ_t = ∏(1 − β).

        β_1 = T^{−c0},   β_{t+1} = (c1·log T/T)·min{β_1·(1 + c1·log T/T)^t, 1}

    From ᾱ_T ≈ T^{−(c1−c0)} to 1 − ᾱ_1 = T^{−c0}, where the theory stops: no jump to the clean end. Levels noisier than
    the path's own noisiest are left out. The step is log T/T, so orders show over T/log T. It needs c1 ≥ 2·c0.

    Raises:
        GridError: T below 3, c1 < 2·c0, or a first level at which nothing of the path is left.
    """
    if _count(steps) < 3 or not c1 >= 2.0 * _positive(c0, "c0"):
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
    width = c1 * math.log(_count(steps)) / steps
    if steps < 3 or not 0.0 < width < 1.0:
        raise GridError(f"c1·log T/T must lie in (0, 1), got {width:g} for T={steps}: raise T or lower c1={c1:g}")
    gain, values = steps ** -_positive(c0, "c0"), list[float]()
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
    if _count(steps) < 2 or not 0.0 < delta < 1.0 < horizon < math.inf:
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
    _count(count, "there is at least one round")

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
def timesteps(steps: Sequence[int], *, table: int = 1000) -> Grid:
    """The time indices of a discrete table of ``table`` steps, noisiest first, then the clean end.

    >>> from ornstein.paths import VP
    >>> timesteps([999, 499])(VP.table())
    (1.0, 0.5, 0.0)
    """
    _count(table, "a table has at least one step")
    return Grid(f"timesteps({len(steps)})", lambda path: (*((k + 1) / table for k in steps), path.t_range[0]))


@typed(GridError)
def pyramid_levels() -> Grid:
    """Every level of a path with whole levels (`PyramidPath`), top to image."""
    return Grid("pyramid_levels", lambda path: tuple(np.arange(path.t_range[1], path.t_range[0] - 1.0, -1.0).tolist()))


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
    _count(times, "every step is taken at least once")

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
    _count(steps, "a descent needs at least one step")
    _count(rounds, "restart needs at least one round")

    def rule(path: Path) -> tuple[float, ...]:
        base, nodes = affine(path), times_of(grid, path)
        fits = nodes[-1] < low < high and (high <= nodes[0] or is_near(high, nodes[0], path))
        if not fits or is_near(low, high, path) or is_near(low, nodes[-1], path):
            raise GridError(f"restart needs {nodes[-1]:g} < low < high ≤ {nodes[0]:g}, got low={low:g}, high={high:g}")
        top, bottom = base.log_snr(_finite(base, min(high, nodes[0]))), base.log_snr(low)
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
        _positive(level, "a level of a multistep grid")

    def rule(path: Path) -> tuple[float, ...]:
        base, clean = affine(path), path.t_range[0]
        out = [path.t_range[1] if start is None else start, clean]
        for level in levels:
            t = level if isinstance(base, VE) else base.time_of(-2.0 * math.log(level))
            out += [t, clean] if t > path.t_min else []
        return tuple(out)

    return Grid(f"multistep({', '.join(f'{level:g}' for level in levels)})", rule)


@typed(GridError)
def few(steps: int) -> Grid:
    """For one to three steps: from the noisiest time to the levels σ/α = (n − i)/i, then the clean end.

    They are those of equal times on `Flow`. Grids down to `t_min` have no use for their last evaluation here: of data
    of std ½ two steps by way of σ/α = 1 keep a std of .2, by way of `t_min` .012.
    """
    _count(steps)

    def rule(path: Path) -> tuple[float, ...]:
        base = affine(path)
        top, low = (base.sigma_bar(t) for t in _ends(base, None))
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
    if isinstance(base, AffinePath) and _count(steps) < 4:
        return few(steps)
    if isinstance(base, VE):
        return karras(steps)
    if isinstance(base, AffinePath) and base.alpha(base.t_range[1]) > 0.0:
        # Nearer to the fine solution than Karras' spacing at 5 to 20 evaluations of DDIM, 2M and UniPC on a trained
        # model with cosine betas, whose noisy end (σ̄ ≈ 640) would draw most of Karras' steps.
        return log_snr(steps)
    return uniform(steps)

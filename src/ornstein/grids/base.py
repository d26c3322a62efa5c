"""A grid and its one reading, and what the rules of grids share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..checks import OneLine
from ..errors import GridError, PathError
from ..paths.base import AffinePath, Path
from ..paths.shifted import ShiftedPath
from ..paths.times import normalised

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
MOST_STEPS = 1_000_000
"""No grid is longer: its times are a list in memory, made before the first step."""


def times_of(grid: GridLike, path: Path) -> tuple[float, ...]:
    """The times of a grid, or of a plain sequence, on a path: the one reading of `paths.times.normalised`."""
    if isinstance(grid, str):
        raise GridError(f"a grid is a rule or a list of times, got {grid!r}: say ornstein.grids.{grid}(20) or the like")
    return grid(path) if isinstance(grid, Grid) else normalised(grid, path)


def count_of(steps: int, what: str = "a grid needs at least one step") -> int:
    """``steps`` as a whole number from 1 up; `GridError` with ``what`` where it is none."""
    if not isinstance(steps, numbers.Integral) or steps < 1:
        raise GridError(f"{what}, got {steps}: give a whole number from 1 up")
    if steps > MOST_STEPS:
        raise GridError(f"a grid has at most {MOST_STEPS:,} steps, got {steps:,}: give fewer")
    return int(steps)


def positive(value: float, what: str) -> float:
    """``value`` where it is positive and finite; `GridError` where it is not."""
    if not 0.0 < value < math.inf:
        raise GridError(f"{what} must be positive and finite, got {value}")
    return value


def affine(path: Path) -> AffinePath:
    """The affine path that carries the noise levels of ``path``."""
    base = path.base if isinstance(path, ShiftedPath) else path
    if not isinstance(base, AffinePath):
        raise PathError(f"{type(path).__name__} has no noise levels: use grids.pyramid_levels() or a list of times")
    return base


def ends(path: AffinePath, top: float | None) -> tuple[float, float]:
    """(first, last) noisy time: a path that ends in pure noise (α = 0) starts its finite log-SNR just below."""
    start = path.t_range[1] if top is None else top
    path.check(start)
    if start <= path.t_min:
        raise GridError(f"a grid in noise levels starts above the path's floor {path.t_min:g}, got {start:g}")
    return finite(path, start), path.t_min


def finite(path: AffinePath, t: float) -> float:
    """t, or the time of log-SNR −10 where t is pure noise and has none."""
    return path.time_of(-10.0) if path.alpha(t) == 0.0 else t


def closed(path: AffinePath, times: Sequence[float], top: float | None) -> tuple[float, ...]:
    """Pin the ends exactly and finish at the clean end of `t_range`."""
    start = path.t_range[1] if top is None else top
    return (start, *times[1:], path.t_range[0])

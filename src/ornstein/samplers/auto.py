"""`auto`: the sampler and the grid for a path and a number of evaluations.

On affine paths it is `BlendedAdams` on `ornstein.grids.cauchy`, with numbers for twelve counts that are interpolated in
between. They were found on points, clusters and mixtures in 1, 2 and 8 dimensions, of scale 0.1 to 10, on
variance-preserving, exploding and flow paths (benchmarks/sweep.py; none of the laboratory's targets is among them):
those with the least error whose worst ratio to DPM-Solver++ 2M is least. Pictures in few evaluations are left to the
default grid. Where the path has no α and σ it takes what works: `DDIM`, or `Ancestral` on a path that changes shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .. import grids
from ..errors import UsageError
from ..grids import Grid
from ..paths import VP
from ..paths.base import AffinePath, LocationPath, Path
from .ancestral import Ancestral
from .base import Sampler, steps_for
from .blended import BlendedAdams
from .ddim import DDIM


@dataclass(frozen=True, slots=True)
class _Tuned:
    """The numbers for one count: of the grid (levels in σ/α), and of the sampler."""

    count: int
    first: float
    last: float
    centre: float
    width: float
    scale: float
    offset: float


_TABLE = (
    _Tuned(1, 4.16, 0.156, -0.262, 3.42, 0.02, 0.76),  # the mean of all that could be: nothing is nearer in one step
    _Tuned(2, 3.0, 0.15, 0.25, 2.3, 1.0, 0.6),
    _Tuned(3, 1.72, 0.204, 0.565, 2.01, 1.0, 0.6),
    _Tuned(4, 3.0, 0.18, 0.5, 2.3, 1.0, 0.6),
    _Tuned(5, 3.2, 0.072, 1.08, 3.28, 1.0, 0.6),
    _Tuned(8, 10.8, 0.025, 0.35, 2.6, 1.0, 0.55),
    _Tuned(10, 11.5, 0.017, 0.2, 3.0, 1.0, 0.5),
    _Tuned(12, 13.0, 0.016, 0.2, 2.8, 1.0, 0.4),
    _Tuned(15, 9.0, 0.018, 0.5, 2.0, 1.0, 0.25),
    _Tuned(20, 16.0, 0.014, 0.35, 2.08, 1.0, 0.162),
    _Tuned(30, 28.0, 0.0103, 0.3, 1.85, 1.0, 0.1),
    _Tuned(50, 48.0, 0.0102, 0.0, 1.855, 1.0, 0.1),
)
_MANY = 13  # evaluations from which a grid for pictures also widens
_PLAIN = 5  # evaluations up to which pictures are nearest to the data on the default grid
_LARGE = 1024  # numbers in a sample above which that is so
_SMALL = 64  # numbers in a sample; what `auto` does above it was found on one network for pictures
_PIXELS = 0.14  # those pictures had a scale of .47, and 12,288 numbers: (12288/64)^.14 = 1/.47


def auto(path: Path, evaluations: int = 20, size: int = 1, scale: float | None = None) -> tuple[Sampler, Grid]:
    """The sampler and the grid that suit a path and a number of evaluations.

    ``size`` is how many numbers a clean sample has; `ornstein.sample` passes its own. Pictures lie further apart than
    points of few dimensions and are nearly flat, so that more is decided under strong noise and under weak noise: above
    64 numbers the grid widens. Above 1024 numbers, on variance-preserving paths, it is DDIM below five evaluations and
    takes the path's default grid at five: a step over much noise that ends high leaves noise in the picture.

    ``scale`` is the standard deviation of the clean data; `ornstein.sample` passes the model's own (``data_std``) that
    training measured. The numbers were found for data of scale one, and all levels σ/α are multiplied by it: exact
    where the path's levels go far enough, since on `VE` data times s with levels times s give samples times s. Where
    nobody knows it, it counts as one, and for pictures as that of the pixels for which their grid was found.

    It is a pure function of the four. The grid costs exactly ``evaluations`` on affine paths and at most as many
    elsewhere.

    >>> from ornstein.paths import VP
    >>> rule, grid = auto(VP(), 8)
    >>> len(grid(VP())) - 1
    8

    Raises:
        UsageError: fewer than one evaluation, or a scale that is not positive; `GridError` where the path's own grid
            costs more.
    """
    if evaluations < 1:
        raise UsageError(f"there is at least one evaluation, got {evaluations}")
    if scale is not None and not 0.0 < scale < math.inf:
        raise UsageError(f"the scale of the data must be positive and finite, got {scale}")
    if not isinstance(path, AffinePath):
        rule = DDIM() if isinstance(path, LocationPath) else Ancestral()
        return rule, steps_for(rule, path, evaluations)
    if size > _LARGE and evaluations <= _PLAIN and isinstance(path, VP):
        rule = DDIM() if evaluations < _PLAIN else rule_for(path, evaluations, scale)
        return rule, grids.default(path, evaluations)
    if size > _SMALL and evaluations in (2, 3) and not isinstance(path, VP):
        return DDIM(), grids.default(path, evaluations)  # nearer on the shipped latents: .039 for .043, .011 for .017
    return tuned(evaluations, size, scale)


def tuned(evaluations: int, size: int = 1, scale: float | None = None) -> tuple[Sampler, Grid]:
    """The rule and its grid with the tuned numbers, as `auto` takes them for most counts on affine paths."""
    at, log = _between(evaluations), math.log(max(size / _SMALL, 1.0))
    large = _rescaled(_enlarged(at, log), 1.0 if scale is None else scale * math.exp(_PIXELS * log))
    grid = grids.cauchy(evaluations, first=large.first, last=large.last, centre=large.centre, width=large.width)
    return _rule(at, scale), grid


def default_for(path: Path) -> str:
    """The name of the sampler that is used where none is named: the best on most paths that can do it.

    "dpmpp-2m" where the path has α and σ, "ddim" where it has a mean and a std, "ancestral" on a pyramid.
    """
    return "dpmpp-2m" if isinstance(path, AffinePath) else "ddim" if isinstance(path, LocationPath) else "ancestral"


def rule_for(path: Path, steps: int, scale: float | None = None) -> Sampler:
    """The sampler alone, for a grid of this many steps that somebody else chose."""
    if not isinstance(path, AffinePath):
        return DDIM() if isinstance(path, LocationPath) else Ancestral()
    return _rule(_between(steps), scale)


def _rule(at: _Tuned, scale: float | None) -> Sampler:
    times = 1.0 if scale is None else scale
    return BlendedAdams(points=3, corrector=True, scale=times * at.scale, offset=times * at.offset)


def _rescaled(at: _Tuned, scale: float) -> _Tuned:
    """For data ``scale`` times as large: every level σ/α times the scale."""
    return replace(
        at,
        first=at.first * scale,
        last=at.last * scale,
        centre=at.centre - math.log(scale),
    )


def _enlarged(at: _Tuned, log: float) -> _Tuned:
    """For samples e^log times as large as small ones: a higher first level, and with many steps a wider spread."""
    many = at.count >= _MANY
    return replace(
        at,
        first=at.first * math.exp(0.2 * log),
        last=at.last * math.exp(-0.09 * log) if many else at.last,
        centre=at.centre - (0.15 if many else 0.1) * log,
        width=at.width * math.exp(0.09 * log) if many else at.width,
    )


def _between(count: int) -> _Tuned:
    """Logarithms interpolated linearly in log count; beyond the table the grid spreads, until it fills the path."""
    low = next(row for row in reversed(_TABLE) if row.count <= count)
    high = next((row for row in _TABLE if row.count >= count), _TABLE[-1])
    part = 0.0 if high.count == low.count else math.log(count / low.count) / math.log(high.count / low.count)
    stretch = max(count / _TABLE[-1].count, 1.0)

    def mixed(one: float, two: float) -> float:
        return math.exp((1.0 - part) * math.log(one) + part * math.log(two))

    return _Tuned(
        count=count,
        first=mixed(low.first, high.first) * stretch,
        last=mixed(low.last, high.last) / stretch,
        centre=(1.0 - part) * low.centre + part * high.centre,
        width=mixed(low.width, high.width),
        scale=mixed(low.scale, high.scale),
        offset=mixed(low.offset, high.offset),
    )

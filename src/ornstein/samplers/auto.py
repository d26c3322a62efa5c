"""`auto`: the sampler and the grid for a path and a number of evaluations.

On affine paths `TrigFlowAdams`, from 13 evaluations on `BlendedAdams`, on `ornstein.grids.cauchy`, with numbers that
were tuned at ten counts on random mixtures and sets of points (benchmarks/practice_tune.py; none of the laboratory's
targets is among them) and are interpolated in between. Pictures in fewer than five evaluations are left to `DDIM` on
the default grid. Where the path has no α and σ it takes what works: `DDIM`, or `Ancestral` on a path that changes
shape.
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
from .angle import TrigFlowAdams
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


# At few evaluations an extrapolation is all there is; from 13 on the blended rule and its corrector help more than a
# large scale.
_EXPLICIT = (
    _Tuned(1, 4.16, 0.156, -0.262, 3.42, 0.02, 0.76),  # the mean of all that could be: nothing is nearer in one step
    _Tuned(2, 4.16, 0.156, -0.262, 3.42, 1.84, 0.76),
    _Tuned(3, 1.72, 0.204, 0.565, 2.01, 2.89, 0.63),
    _Tuned(4, 4.0, 0.15, 0.25, 2.3, 2.5, 0.9),
    _Tuned(5, 4.57, 0.0481, 0.778, 3.28, 1.95, 0.31),
    _Tuned(8, 15.4, 0.0203, -0.0794, 3.09, 3.5, 0.111),
    _Tuned(10, 13.9, 0.0126, -0.0536, 4.24, 2.77, 0.0829),
    _Tuned(12, 15.0, 0.0125, -0.06, 4.2, 2.8, 0.08),
)
_CORRECTED = (
    _Tuned(15, 11.0, 0.018, 0.05, 2.0, 1.0, 0.25),
    _Tuned(20, 17.5, 0.014, 0.09, 2.08, 1.0, 0.162),
    _Tuned(30, 28.0, 0.0103, 0.3, 1.85, 1.0, 0.1),
    _Tuned(50, 48.0, 0.0102, 0.0, 1.855, 1.0, 0.1),
)
_ROUGH = 18  # evaluations from which a corrector loses on a trained network
_EXTRAPOLATED = 5  # evaluations from which extrapolation helps in pixels, too
_LARGE = 1024  # numbers in a sample above which fewer than five evaluations do not extrapolate
_SMALL = 64  # numbers in a sample; what `auto` does above it was found on one network for pictures


def auto(path: Path, evaluations: int = 20, size: int = 1, scale: float = 1.0) -> tuple[Sampler, Grid]:
    """The sampler and the grid that suit a path and a number of evaluations.

    ``size`` is how many numbers a clean sample has; `ornstein.sample` passes its own. Pictures lie further apart than
    points of few dimensions and are nearly flat, so that more is decided under strong noise and under weak noise: above
    64 numbers the grid widens, and from 18 evaluations on the rule extrapolates without a corrector, which follows a
    trained network's roughness. Above 1024 numbers, on variance-preserving paths and below five evaluations, it is
    DDIM: what an extrapolation over such steps gets wrong stays in the picture as noise.

    ``scale`` is the standard deviation of the clean data; `ornstein.sample` passes the model's own (``data_std``). The
    numbers were found for data of scale one, and all levels σ/α are multiplied by it: exact where the path's levels go
    far enough, since on `VE` data times s with levels times s give samples times s.

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
    if not 0.0 < scale < math.inf:
        raise UsageError(f"the scale of the data must be positive and finite, got {scale}")
    if not isinstance(path, AffinePath):
        rule = DDIM() if isinstance(path, LocationPath) else Ancestral()
        return rule, steps_for(rule, path, evaluations)
    if size > _LARGE and evaluations < _EXTRAPOLATED and isinstance(path, VP):
        return DDIM(), grids.default(path, evaluations)
    if size > _SMALL and evaluations in (2, 3) and not isinstance(path, VP):
        return DDIM(), grids.default(path, evaluations)  # nearer on the shipped latents: .039 for .043, .011 for .017
    return tuned(evaluations, size, scale)


def tuned(evaluations: int, size: int = 1, scale: float = 1.0) -> tuple[Sampler, Grid]:
    """The rule and its grid with the tuned numbers, as `auto` takes them for most counts on affine paths."""
    at = _rescaled(_between(evaluations), scale)
    large = _enlarged(at, math.log(max(size / _SMALL, 1.0)))
    grid = grids.cauchy(evaluations, first=large.first, last=large.last, centre=large.centre, width=large.width)
    return _rule(at, explicit=size > _SMALL and evaluations >= _ROUGH), grid


def default_for(path: Path) -> str:
    """The name of the sampler that is used where none is named: the best on most paths that can do it.

    "dpmpp-2m" where the path has α and σ, "ddim" where it has a mean and a std, "ancestral" on a pyramid.
    """
    return "dpmpp-2m" if isinstance(path, AffinePath) else "ddim" if isinstance(path, LocationPath) else "ancestral"


def rule_for(path: Path, steps: int, scale: float = 1.0) -> Sampler:
    """The sampler alone, for a grid of this many steps that somebody else chose."""
    if not isinstance(path, AffinePath):
        return DDIM() if isinstance(path, LocationPath) else Ancestral()
    return _rule(_rescaled(_between(steps), scale))


def _rule(at: _Tuned, explicit: bool = False) -> Sampler:
    if at.count <= _EXPLICIT[-1].count:
        return TrigFlowAdams(points=3, corrector=False, scale=at.scale, offset=at.offset)
    return BlendedAdams(points=3, corrector=not explicit, scale=at.scale, offset=at.offset)


def _rescaled(at: _Tuned, scale: float) -> _Tuned:
    """For data ``scale`` times as large: every level σ/α times the scale."""
    return replace(
        at,
        first=at.first * scale,
        last=at.last * scale,
        centre=at.centre - math.log(scale),
        scale=at.scale * scale,
        offset=at.offset * scale,
    )


def _enlarged(at: _Tuned, log: float) -> _Tuned:
    """For samples e^log times as large as small ones: a higher first level, and with many steps a wider spread."""
    many = at.count > _EXPLICIT[-1].count
    return replace(
        at,
        first=at.first * math.exp(0.2 * log),
        last=at.last * math.exp(-0.09 * log) if many else at.last,
        centre=at.centre - (0.15 if many else 0.1) * log,
        width=at.width * math.exp(0.09 * log) if many else at.width,
    )


def _between(count: int) -> _Tuned:
    """Logarithms interpolated linearly in log count; beyond the table the grid spreads, until it fills the path."""
    table = _EXPLICIT if count <= _EXPLICIT[-1].count else _CORRECTED
    low = next((row for row in reversed(table) if row.count <= count), table[0])
    high = next((row for row in table if row.count >= count), table[-1])
    part = 0.0 if high.count == low.count else math.log(count / low.count) / math.log(high.count / low.count)
    stretch = max(count / table[-1].count, 1.0)

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

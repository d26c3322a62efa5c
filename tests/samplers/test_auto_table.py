"""The numbers behind `auto`: at the tuned counts, in between, beyond them, and for samples of many numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from ornstein import grids
from ornstein.errors import UsageError
from ornstein.paths import VE, VP, Flow, PyramidPath, ShiftedPath
from ornstein.samplers import DDIM, Ancestral, BlendedAdams, auto, default_for
from ornstein.samplers.auto import rule_for

# evaluations: first, last, centre, width of the grid; scale, offset of the sampler
TUNED = {
    1: (4.16, 0.156, -0.262, 3.42, 0.02, 0.76),
    2: (3.0, 0.15, 0.25, 2.3, 1.0, 0.6),
    3: (1.72, 0.204, 0.565, 2.01, 1.0, 0.6),
    4: (3.0, 0.18, 0.5, 2.3, 1.0, 0.6),
    5: (3.2, 0.072, 1.08, 3.28, 1.0, 0.6),
    8: (10.8, 0.025, 0.35, 2.6, 1.0, 0.55),
    10: (11.5, 0.017, 0.2, 3.0, 1.0, 0.5),
    12: (13.0, 0.016, 0.2, 2.8, 1.0, 0.4),
    15: (9.0, 0.018, 0.5, 2.0, 1.0, 0.25),
    20: (16.0, 0.014, 0.35, 2.08, 1.0, 0.162),
    30: (28.0, 0.0103, 0.3, 1.85, 1.0, 0.1),
    50: (48.0, 0.0102, 0.0, 1.855, 1.0, 0.1),
}
WIDE = VE(sigma_min=1e-4, sigma_max=1e4)  # so that no number is cut off by the path's own ends


def check(found: tuple[object, grids.Grid], count: int, numbers: Sequence[float]) -> None:
    first, last, centre, width, scale, offset = numbers
    rule, grid = found
    assert isinstance(rule, BlendedAdams)
    assert (rule.points, rule.corrector) == (3, True)
    assert (rule.scale, rule.offset) == pytest.approx((scale, offset), rel=1e-12)
    expected = grids.cauchy(count, first=first, last=last, centre=centre, width=width)
    assert grid(WIDE) == pytest.approx(expected(WIDE), rel=1e-10)


@pytest.mark.parametrize("count", TUNED)
def test_the_tuned_counts(count: int) -> None:
    check(auto(WIDE, count), count, TUNED[count])
    assert rule_for(WIDE, count) == auto(WIDE, count)[0]


def test_twenty_evaluations_of_a_small_sample_are_the_default() -> None:
    assert auto(WIDE)[0] == auto(WIDE, 20, 1)[0]
    assert auto(WIDE)[1](WIDE) == auto(WIDE, 20, 1)[1](WIDE)


@pytest.mark.parametrize(
    ("count", "low", "high"), [(6, 5, 8), (9, 8, 10), (11, 10, 12), (13, 12, 15), (17, 15, 20), (40, 30, 50)]
)
def test_between_them_logarithms_are_interpolated(count: int, low: int, high: int) -> None:
    """Linearly in log count, the centre as it is."""
    part = math.log(count / low) / math.log(high / low)
    mixed = [
        (1.0 - part) * a + part * b if i == 2 else a ** (1.0 - part) * b**part
        for i, (a, b) in enumerate(zip(TUNED[low], TUNED[high], strict=True))
    ]
    check(auto(WIDE, count), count, mixed)


def test_beyond_the_table_the_grid_spreads() -> None:
    first, last, *rest = TUNED[50]
    check(auto(WIDE, 120), 120, (first * 2.4, last / 2.4, *rest))


@pytest.mark.parametrize("count", [10, 12, 15, 30])
def test_large_samples(count: int) -> None:
    """Twenty times 64 numbers: a higher first level, and with many steps a wider spread."""
    check(auto(WIDE, 15, 64), 15, TUNED[15])
    log = math.log(20.0)
    first, last, centre, width, scale, offset = TUNED[count]
    first *= math.exp(0.2 * log)
    if count > 12:
        last, centre, width = last * math.exp(-0.09 * log), centre - 0.15 * log, width * math.exp(0.09 * log)
    else:
        centre -= 0.1 * log
    check(auto(WIDE, count, 1280), count, (first, last, centre, width, scale, offset))
    # That is the grid for pixels, whose scale was near a half: a scale that is known counts from there.
    times = 0.5 * math.exp(0.14 * log)
    known = (first * times, last * times, centre - math.log(times), width, 0.5 * scale, 0.5 * offset)
    check(auto(WIDE, count, 1280, 0.5), count, known)


def test_where_pictures_begin() -> None:
    """1025 numbers are a picture on a variance-preserving path, 1024 are not."""
    assert isinstance(auto(VP(), 4, 1024)[0], BlendedAdams)
    for count in (1, 4):
        assert auto(VP(), count, 1025)[0] == DDIM()
    assert isinstance(auto(VP(), 5, 1025)[0], BlendedAdams)
    for count in (4, 5):
        assert auto(VP(), count, 1025)[1](VP()) == grids.default(VP(), count)(VP())
    assert auto(VP(), 6, 1025)[1](VP()) != grids.default(VP(), 6)(VP())
    for path in (VE(), Flow()):
        assert isinstance(auto(path, 4, 4096)[0], BlendedAdams)


@pytest.mark.parametrize("count", [1, 3, 9, 14, 20, 40, 120])
@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_all_levels_follow_the_scale_of_the_data(count: int, scale: float) -> None:
    rule, grid = auto(WIDE, count, 1, scale)
    plain, its_grid = auto(WIDE, count)
    assert isinstance(rule, BlendedAdams)
    assert isinstance(plain, BlendedAdams)
    assert (rule.scale, rule.offset) == pytest.approx((scale * plain.scale, scale * plain.offset), rel=1e-12)
    wider = VE(sigma_min=scale * WIDE.sigma_min, sigma_max=scale * WIDE.sigma_max)
    assert grid(wider) == pytest.approx([scale * t for t in its_grid(WIDE)], rel=1e-9)
    assert rule_for(WIDE, count, scale) == rule


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match="scale of the data must be positive"):
        auto(WIDE, 10, 1, scale)


def test_what_is_used_where_nothing_is_named() -> None:
    shifted = ShiftedPath(shift=lambda clean, cond, t: 0.1 * clean)
    assert [default_for(path) for path in (VP(), VE(), Flow(), shifted, PyramidPath())] == [
        *(3 * ["dpmpp-2m"]),
        "ddim",
        "ancestral",
    ]
    assert [rule_for(path, 9) for path in (shifted, PyramidPath())] == [DDIM(), Ancestral()]

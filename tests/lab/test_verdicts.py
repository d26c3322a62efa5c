"""The fit of an order against scipy, which points it uses, and every verdict at its edges."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from ornstein.lab.slopes import Fit, fit, least_squares

COUNTS = [32, 64, 128, 256, 512, 1024]


def test_the_interval_is_that_of_linear_regression():
    """Slope and half width at 95 % by Student's t, with three to six points."""
    x, y = [0.3, 1.1, 2.0, 2.4, 3.9, 5.5], [1.0, -0.4, 0.7, -1.9, -2.2, -6.1]
    for n in range(3, 7):
        exact = stats.linregress(x[:n], y[:n])
        slope, half = least_squares(x[:n], y[:n])
        assert slope == pytest.approx(exact.slope, rel=1e-12)
        assert half == pytest.approx(stats.t.ppf(0.975, n - 2) * exact.stderr, rel=1e-10)


def test_a_fit_is_the_regression_over_its_points():
    """The last three of these: the slope before them differs by more than .15."""
    errors = [1.0, 0.5, 0.25 / 1.3, 0.25 / 1.3 / 2.1, 0.25 / 1.3 / 2.1 / 2.2]
    found = fit(COUNTS[:5], errors)
    assert found.local == pytest.approx([math.log2(a) for a in (2.0, 2.6, 2.1, 2.2)])
    exact = stats.linregress([math.log(n) for n in COUNTS[2:5]], [math.log(e) for e in errors[2:]])
    assert (found.used, found.counts) == (3, tuple(COUNTS[:5]))
    assert found.order == pytest.approx(-exact.slope, rel=1e-12)
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 1) * exact.stderr, rel=1e-10)
    assert found.last == found.local[-1]


@pytest.mark.parametrize(("jump", "used"), [(0.14, 4), (0.16, 0)])
def test_neighbouring_slopes_agree_within_fifteen_hundredths(jump, used):
    errors = [1.0]
    for p in (2.0 - jump, 2.0, 2.0 + jump):
        errors.append(errors[-1] / 2.0**p)
    assert fit(COUNTS[:4], errors).used == used


def test_errors_below_fifty_floors_are_dropped():
    errors = [1e-1, 1e-2, 1e-3, 60e-6, 40e-6, 6e-6]
    assert fit(COUNTS, errors, floor=1e-6).counts == (32, 64, 128, 256)
    assert fit(COUNTS, errors, floor=0.8e-6).counts == (32, 64, 128, 256, 512)
    assert fit(COUNTS, errors).counts == tuple(COUNTS)


def test_errors_below_four_times_their_own_noise_are_dropped():
    errors = [1.0, 0.5, 0.25, 0.125]
    assert fit(COUNTS[:4], errors, noise=[0.1, 0.1, 0.06, 0.032]).counts == (32, 64, 128)
    assert fit(COUNTS[:4], errors, noise=[0.1, 0.1, 0.06, 0.031]).counts == (32, 64, 128, 256)
    assert fit(COUNTS[:4], errors, noise=[0.1, 0.1, 0.06, 0.0], floor=0.004).counts == (32, 64, 128)


def test_what_lies_before_a_large_or_rising_error_is_dropped():
    """At the ceiling an error still counts; equal errors do not fall; nothing and less is the end."""
    assert fit(COUNTS, [1.0, 0.5, 0.25, 0.125, 0.06, 0.03], ceiling=0.5).counts == tuple(COUNTS[1:])
    assert fit(COUNTS, [0.4, 0.4, 0.2, 0.1, 0.05, 0.025]).counts == tuple(COUNTS[1:])
    assert fit(COUNTS, [0.4, 0.2, 0.1, 0.0, 0.05, 0.025]).counts == (32, 64, 128)
    assert fit(COUNTS, [0.4, math.inf, 0.2, 0.1, 0.05, 0.025]).counts == tuple(COUNTS[2:])


def test_nothing_but_rounding_is_exact():
    assert fit(COUNTS[:3], [9e-12, 1e-13, math.nan]).exact
    assert not fit(COUNTS[:3], [1.1e-11, 1e-12, 1e-13]).exact
    assert not fit(COUNTS[:3], [math.nan] * 3).exact
    assert fit([], []).verdict(1) == "open"


def test_slopes_over_a_logarithmic_schedule():
    errors = [0.3, 0.1, 0.05]
    found = fit([100, 200, 400], errors, log_over=True)
    axis = [math.log(n / math.log(n)) for n in (100, 200, 400)]
    expected = [math.log(errors[i] / errors[i + 1]) / (axis[i + 1] - axis[i]) for i in (0, 1)]
    assert found.local == pytest.approx(expected)


MEASURED = Fit(order=2.0, half_width=0.02, last=2.0, local=(2.0, 2.0), counts=(8, 16, 32), used=3)
LOOSE = Fit(order=None, half_width=None, last=2.0, local=(2.0, 2.0), counts=(8, 16, 32), used=0)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (MEASURED, "agrees"),
        (replace(MEASURED, last=2.14), "agrees"),
        (replace(MEASURED, last=2.16), "higher"),
        (replace(MEASURED, last=1.86), "agrees"),
        (replace(MEASURED, last=1.84), "below"),
        (replace(MEASURED, order=1.89), "agrees"),
        (replace(MEASURED, order=1.87), "below"),
        (replace(MEASURED, order=1.87, half_width=0.04), "agrees"),
        (replace(MEASURED, order=2.11), "agrees"),
        (replace(MEASURED, order=2.13), "higher"),
        (replace(MEASURED, order=3.0, last=3.0), "higher"),
        (replace(MEASURED, order=2.5, last=1.8), "below"),
        (replace(MEASURED, local=(2.0,)), "open"),
        (replace(MEASURED, last=None, local=()), "open"),
        (replace(MEASURED, exact=True, last=None, local=()), "exact"),
        (LOOSE, "open"),
        (replace(LOOSE, last=1.86, local=(1.95, 1.86)), "open"),
        (replace(LOOSE, last=1.84, local=(1.95, 1.84)), "below"),
        (replace(LOOSE, last=1.51, local=(1.4, 1.51)), "open"),
        (replace(LOOSE, last=1.49, local=(1.4, 1.49)), "below"),
        (replace(LOOSE, last=1.51, local=(1.51, 1.51)), "below"),
    ],
)
def test_verdicts_on_a_declared_order_of_two(found, verdict):
    assert found.verdict(2.0) == verdict
    assert found.asymptotic == (found.order is not None)

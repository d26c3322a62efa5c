import math

import pytest

from ornstein.lab.slopes import fit

COUNTS = [32, 64, 128, 256, 512, 1024]


def test_second_order_with_a_floor():
    found = fit(COUNTS, [n**-2 * (1 + 5 / n) + 1e-10 for n in COUNTS])
    assert found.order == pytest.approx(2.04, abs=0.005)
    assert found.half_width == pytest.approx(0.02, abs=0.005)
    assert found.last == pytest.approx(2.007, abs=5e-4)
    assert found.verdict(2) == "agrees"


def test_plateau_is_not_asymptotic():
    found = fit(COUNTS, [1 / n + 1e-3 for n in COUNTS])
    assert found.order is None
    assert [round(p, 2) for p in found.local] == [0.96, 0.92, 0.84, 0.73, 0.58]
    assert found.verdict(1) == "below"


def test_power_law_is_found_exactly():
    found = fit(COUNTS, [3.0 * n**-1.5 for n in COUNTS])
    assert found.order == pytest.approx(1.5, abs=1e-12)
    assert found.half_width < 1e-10
    assert (found.verdict(1), found.verdict(2)) == ("higher", "below")


def test_floor_and_ceiling_drop_points():
    errors = [0.9, 0.1, 0.025, 0.025 / 4, 1e-9, 1e-9]
    found = fit(COUNTS, errors, floor=1e-9, ceiling=0.5)
    assert found.counts == (64, 128, 256)
    assert found.local == pytest.approx((2.0, 2.0))


def test_three_points_are_the_least():
    assert not fit(COUNTS[:2], [1.0, 0.5]).asymptotic
    assert fit(COUNTS[:2], [1.0, 0.5]).verdict(2) == "open"
    assert fit(COUNTS[:3], [1.0, 0.5, 0.25]).asymptotic


def test_rising_errors_restart_the_range():
    errors = [0.01, 0.4, 0.2, 0.1, 0.05, 0.025]
    assert fit(COUNTS, errors).counts == tuple(COUNTS[1:])


def test_log_schedule():
    errors = [(math.log(n) / n) ** 2 for n in COUNTS]
    assert fit(COUNTS, errors, log_over=True).order == pytest.approx(2.0, abs=1e-12)
    assert fit(COUNTS, errors).order < 1.7


def test_exact_and_nan():
    assert fit(COUNTS, [1e-15] * 6).verdict(2) == "exact"
    assert fit(COUNTS, [math.nan, math.nan, 1, 0.5, 0.25, 0.125]).order == pytest.approx(1.0)
    assert fit(COUNTS, [math.nan] * 6).verdict(1) == "open"


def test_errors_near_their_noise_are_dropped():
    errors = [n**-2.0 for n in COUNTS]
    noise = [1e-6, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6]
    assert fit(COUNTS, errors, noise=noise).counts == (32, 64, 128, 256)
    assert fit(COUNTS, errors, noise=[1.0] * 6).verdict(2) == "open"

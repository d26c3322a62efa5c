"""Every grid against its formula, on a path whose span does not begin at zero where that can be."""

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

from ornstein import grids
from ornstein.errors import GridError, PathError
from ornstein.paths import VE, VP, AffinePath, Flow, Path, PyramidPath, ShiftedPath
from ornstein.paths.vp import Linear
from ornstein.randomness import Noise

OFF = VP(Linear(beta_min=0.3, beta_max=7.0, t_range=(0.1, 0.8), t_min=0.2))
"""A span that neither begins at 0 nor ends at 1, and a floor inside it."""
ZERO = VP.from_betas((0.1, 0.45, 0.2, 1.0))
SHIFTED = ShiftedPath(base=VE(), shift=lambda clean, cond, t: clean)


def bars(path: AffinePath, times: Any) -> list[float]:
    return [path.sigma_bar(t) for t in times]


def snrs(path: AffinePath, times: Any) -> list[float]:
    return [path.log_snr(t) for t in times]


@pytest.mark.parametrize("start", [None, 0.6])
def test_grids_in_time_and_in_noise_levels(start: float | None) -> None:
    top, n = 0.8 if start is None else start, 5
    parts = np.arange(n + 1) / n
    np.testing.assert_allclose(grids.uniform(n, start=start)(OFF), top + parts * (0.1 - top), rtol=1e-14)
    found = grids.power(n, start=start)(OFF)
    np.testing.assert_allclose(found, 0.1 + (top - 0.1) * (1 - parts) ** 2, rtol=1e-14)
    found = grids.power(n, exponent=3.0, start=start)(OFF)
    np.testing.assert_allclose(found, 0.1 + (top - 0.1) * (1 - parts) ** 3, rtol=1e-14)
    for rho in (7.0, 2.0):
        found = grids.karras(n, rho=rho, start=start)(OFF)
        ends = OFF.sigma_bar(top) ** (1 / rho), OFF.sigma_bar(0.2) ** (1 / rho)
        np.testing.assert_allclose(bars(OFF, found[:-1]), np.linspace(*ends, n) ** rho, rtol=1e-10)
        assert (len(found), found[0], found[-1]) == (n + 1, top, 0.1)
    assert grids.karras(n)(OFF) == grids.karras(n, rho=7.0)(OFF)
    found = grids.log_snr(n, start=start)(OFF)
    np.testing.assert_allclose(snrs(OFF, found[:-1]), np.linspace(OFF.log_snr(top), OFF.log_snr(0.2), n), atol=1e-10)
    assert (len(found), found[0], found[-1]) == (n + 1, top, 0.1)
    for make in (grids.karras, grids.log_snr):
        assert make(1, start=start)(OFF) == (top, 0.1)
        assert make(2, start=start)(OFF) == pytest.approx((top, 0.2, 0.1))


def test_a_path_that_ends_in_pure_noise_starts_its_levels_at_minus_ten() -> None:
    for path in (Flow(), ZERO):
        found = grids.log_snr(5)(path)
        np.testing.assert_allclose(
            snrs(path, found[1:-1]), np.linspace(-10, path.log_snr(path.t_min), 5)[1:], atol=1e-9
        )
        assert (found[0], found[-1]) == (1.0, 0.0)
        assert found[-2] == pytest.approx({Flow: 1e-3, VP: 0.25}[type(path)], rel=1e-12)
        found = grids.karras(5)(path)
        ends = math.exp(5.0) ** (1 / 7), path.sigma_bar(path.t_min) ** (1 / 7)
        np.testing.assert_allclose(bars(path, found[1:-1]), np.linspace(*ends, 5)[1:] ** 7, rtol=1e-9)
        # A start below the end has a level of its own.
        found = grids.log_snr(3, start=0.9)(path)
        middle = 0.5 * (path.log_snr(0.9) + path.log_snr(path.t_min))
        assert path.log_snr(found[1]) == pytest.approx(middle, rel=1e-9)


def test_span_log_snr_ends_at_both_values() -> None:
    found = grids.span_log_snr(4, -3.0, 1.0)(VE())
    np.testing.assert_allclose(found, np.exp([1.5, 1.0, 0.5, 0.0, -0.5]), rtol=1e-13)


@pytest.mark.parametrize("start", [None, 0.6])
@pytest.mark.parametrize("steps", [2, 3, 6])
def test_tangent_with_a_leap(steps: int, start: float | None) -> None:
    top, first, last, centre, width = (0.8 if start is None else start), 0.9, 0.55, -0.2, 1.3
    assert first < 0.75 * OFF.sigma_bar(top)
    found = grids.cauchy(steps, first=first, last=last, centre=centre, width=width, start=start)(OFF)
    count = steps - 1
    angles = np.arctan((-np.log([first, last]) - centre) / width)
    between = np.linspace(*angles, count) if count > 1 else np.array([angles.mean()])
    levels = np.exp(-(centre + width * np.tan(between)))
    np.testing.assert_allclose(bars(OFF, found[1:-1]), levels, rtol=1e-9)
    assert (len(found), found[0], found[-1]) == (steps + 1, top, 0.1)


def test_tangent_without_a_leap_and_at_its_edges() -> None:
    path, width = VE(sigma_min=0.01, sigma_max=10.0), 0.7
    for first, leaps in ((7.4, True), (7.5, False), (30.0, False)):
        found = grids.cauchy(4, first=first, last=0.2, centre=0.1, width=width)(path)
        ends = (first if leaps else 10.0, 0.2)
        angles = np.linspace(*np.arctan((-np.log(ends) - 0.1) / width), 3 if leaps else 4)
        levels = np.exp(-(0.1 + width * np.tan(angles)))
        np.testing.assert_allclose(found, [10.0, *(levels if leaps else levels[1:]), 0.0], rtol=1e-12)
    usual = grids.cauchy(4, first=5.0, last=0.2)(path)
    assert usual == grids.cauchy(4, first=5.0, last=0.2, centre=0.3, width=2.0)(path)
    assert grids.cauchy(1, first=5.0, last=0.2)(path) == (10.0, 0.0)
    # A last level below the floor is drawn in to it, and one too near the first to the middle of the two.
    assert grids.cauchy(4, first=5.0, last=1e-5)(path)[-2] == pytest.approx(0.01, rel=1e-12)
    assert grids.cauchy(4, first=5.0, last=4.9)(path)[-2] == pytest.approx(math.sqrt(5.0 * 0.01), rel=1e-12)
    assert grids.cauchy(3, first=30.0, last=9.9)(path)[-2] == pytest.approx(math.sqrt(10.0 * 0.01), rel=1e-12)
    for bad in ({"first": 1.0, "last": 1.0}, {"first": 1.0, "last": 0.0}, {"first": math.inf, "last": 1.0}):
        with pytest.raises(GridError, match="0 < last < first"):
            grids.cauchy(3, **bad)
    for bad in ({"width": 0.0}, {"centre": math.nan}, {"centre": math.inf}):
        with pytest.raises(GridError):
            grids.cauchy(3, first=2.0, last=1.0, **bad)


# ------------------------------------------------------------------------------------------- the theories' schedules


def test_the_schedule_of_the_accelerated_samplers() -> None:
    """Li et al. 2024: written down as it is, one product after the other."""
    for steps, c0, c1 in ((30, 2.0, 4.0), (40, 1.5, 6.0), (5, 2.0, 4.0)):
        most = c1 * math.log(steps) / steps
        betas = [steps**-c0]
        for t in range(1, steps):
            betas.append(min(most * min(betas[0] * (1.0 + most) ** t, 1.0), 0.999))
        products = np.cumprod(1.0 - np.array(betas))
        wanted = [math.log(p / (1.0 - p)) for p in products[::-1]]
        path = VE(sigma_max=1e9)
        found = grids.li2024(steps, c0=c0, c1=c1)(path)
        np.testing.assert_allclose(snrs(path, found), wanted, rtol=1e-9, atol=1e-9)
    assert grids.li2024(30)(VE(sigma_max=1e9)) == grids.li2024(30, c0=2.0, c1=4.0)(VE(sigma_max=1e9))
    path = VE(sigma_max=2.0)  # levels noisier than the path are left out
    assert grids.li2024(30)(path) == tuple(t for t in grids.li2024(30)(VE(sigma_max=1e9)) if t <= 2.0)
    grids.li2024(3)
    grids.li2024(3, c0=2.0, c1=4.0)
    for bad in ((2, 2.0, 4.0), (30, 2.0, 3.99), (30, 0.0, 4.0), (30, 2.0, math.nan)):
        with pytest.raises(GridError):
            grids.li2024(bad[0], c0=bad[1], c1=bad[2])
    with pytest.raises(GridError, match="beyond the"):
        grids.li2024(30)(VE(sigma_min=1e-9, sigma_max=1e-7))


def test_the_schedule_of_the_randomized_midpoint() -> None:
    """Li & Jiao 2025: ᾱ_{t−1} = ᾱ_t + (c1·log T/T)·ᾱ_t·(1 − ᾱ_t) from T^{−c0} on."""
    for steps, c0, c1, beyond in ((40, 2.0, 5.0, 0), (40, 2.0, 5.0, 3), (50, 1.5, 4.0, 1)):
        gain, levels = steps**-c0, list[float]()
        for _ in range(steps + 2 + beyond):
            levels.append(math.log(gain / (1.0 - gain)))
            gain += c1 * math.log(steps) / steps * gain * (1.0 - gain)
        path = VE(sigma_max=1e9)
        found = grids.li2025(steps, c0=c0, c1=c1, beyond=beyond)(path)
        np.testing.assert_allclose(snrs(path, found), levels, rtol=1e-7, atol=1e-9)
    assert grids.li2025(40)(VE(sigma_max=1e9)) == grids.li2025(40, c0=2.0, c1=5.0, beyond=0)(VE(sigma_max=1e9))
    with pytest.raises(GridError, match="beyond the"):
        grids.li2025(40)(VE(sigma_max=30.0))  # here each level counts
    for bad in ((2, 2.0, 1.0), (8, 2.0, 5.0), (40, 0.0, 5.0), (40, 2.0, 0.0), (40, 2.0, -1.0)):
        with pytest.raises(GridError):
            grids.li2025(bad[0], c0=bad[1], c1=bad[2])
    grids.li2025(3, c1=2.0)
    grids.li2025(100)  # a step of 0.23


def test_the_schedule_of_early_stopping() -> None:
    path = VE(sigma_max=1e9)
    for steps, delta, horizon in ((20, 0.01, 5.0), (13, 0.05, 3.0), (2, 0.01, 5.0), (3, 1e-6, 1.5), (4, 0.99, 20.0)):
        found = grids.early_stopping(steps, delta=delta, horizon=horizon)(path)
        taus = [0.5 * math.log1p(bar**2) for bar in found]  # ᾱ = e^{−2τ} and σ̄² = 1/ᾱ − 1
        assert (len(taus), taus[0], taus[-1]) == (steps + 1, pytest.approx(horizon), pytest.approx(delta))
        above = [t for t in taus if t > 1.0 - 1e-9]
        np.testing.assert_allclose(np.diff(above), (1.0 - horizon) / (len(above) - 1), rtol=1e-9)
        below = [t for t in taus if t < 1.0 + 1e-9]
        np.testing.assert_allclose(np.diff(np.log(below)), math.log(delta) / (len(below) - 1), rtol=1e-9)
        share = (horizon - 1.0) / (horizon - 1.0 - math.log(delta))
        assert len(above) - 1 == min(max(round(steps * share), 1), steps - 1)
    assert grids.early_stopping(20)(path) == grids.early_stopping(20, delta=0.01, horizon=5.0)(path)
    for bad in ({"delta": 1.0}, {"delta": 0.0}, {"horizon": 1.0}, {"horizon": math.inf}):
        with pytest.raises(GridError, match="0 < delta < 1 < horizon"):
            grids.early_stopping(20, **bad)
    with pytest.raises(GridError, match="2 steps or more"):
        grids.early_stopping(1)


def test_levels_beyond_the_path_are_left_out_until_one_step_is_left() -> None:
    grid, top = grids.early_stopping(5), math.sqrt(math.expm1(10.0))
    whole = grid(VE(sigma_max=1e9))
    for nearer, count in ((0.0, 6), (4e-10, 6), (6e-10, 5)):  # differences below 1e-9 in the log-SNR are rounding
        path = VE(sigma_max=top * (1.0 - nearer))
        found = grid(path)
        assert len(found) == count
        assert found == pytest.approx(whole[6 - count :], rel=1e-8)
        path.check(found[0])
    assert len(grid(VE(sigma_max=1.01 * whole[-2]))) == 2
    with pytest.raises(GridError, match="beyond the"):
        grid(VE(sigma_max=0.99 * whole[-2]))


def test_rounds_go_down_twice_as_far_as_they_climb() -> None:
    nodes, path = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], Flow()
    down, up = (0.9, 0.8, 0.7, 0.6, 0.5), (0.7, 0.6, 0.5, 0.4, 0.3)
    assert grids.rounds(nodes, 2)(path) == (*down, *up, 0.5)
    assert grids.rounds(nodes, 2, climb=False)(path) == (*down, *up)
    assert grids.rounds(nodes, 1)(path) == (*nodes, 0.6)
    assert grids.rounds(nodes[:4], 2)(path) == (0.9, 0.8, 0.7, 0.8, 0.7, 0.6, 0.7)
    with pytest.raises(GridError, match="multiple of 3 cells, got 0"):
        grids.rounds([0.9], 2)(path)
    for cells, count in ((6, 3), (2, 2), (5, 2)):
        with pytest.raises(GridError, match=f"multiple of {count + 1} cells, got {cells}"):
            grids.rounds(nodes[: cells + 1], count)(path)
    with pytest.raises(GridError, match="multiple of 3 cells and one more, got 6"):
        grids.rounds(nodes, 2, draw=Noise.of(0, [0]))(path)
    with pytest.raises(GridError, match="end their grid above"):
        grids.rounds([*nodes[:-1], 0.0], 2)(path)
    with pytest.raises(GridError, match="at least one round"):
        grids.rounds(nodes, 0)


class Drawn:
    """Uniform numbers by the key's name and cell."""

    def uniform(self, key: Any) -> float:
        name, cell = key
        return {"round": 0.25, "end": 0.6}[name] + 0.01 * cell


def test_random_rounds_begin_uniformly_in_the_signal_of_their_cell() -> None:
    path, nodes = OFF, [0.7, 0.65, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3]

    def point(cell: int, part: float) -> float:
        one, two = (path.alpha(t) ** 2 for t in nodes[cell : cell + 2])
        level = one + (part + 0.01 * cell) * (two - one)
        return path.time_of(math.log(level / (1.0 - level)))

    first = (point(0, 0.25), *nodes[1:5], point(4, 0.6))
    second = (point(2, 0.25), *nodes[3:7], point(6, 0.6))
    found = grids.rounds(nodes, 2, draw=Drawn())(path)  # type: ignore[arg-type]
    assert found == pytest.approx((*first, *second, point(4, 0.25)), rel=1e-12)
    assert len({found[0], nodes[0], nodes[1]}) == 3


# --------------------------------------------------------------------------------------------------------- combinators


def test_partial_skip_and_lists_of_times() -> None:
    assert grids.partial([0.8, 0.5, 0.3, 0.1], 0.6)(OFF) == (0.6, 0.5, 0.3, 0.1)
    assert grids.partial([0.8, 0.5, 0.3, 0.1], 0.5)(OFF) == (0.5, 0.3, 0.1)
    assert grids.skip([0.8, 0.5, 0.3, 0.1], 0)(OFF) == (0.8, 0.5, 0.3, 0.1)
    assert grids.skip([0.8, 0.5, 0.3, 0.1], 2)(OFF) == (0.3, 0.1)
    for steps in (3, 4, -1):
        with pytest.raises(GridError, match=f"{steps} of 3 steps cannot be skipped"):
            grids.skip([0.8, 0.5, 0.3, 0.1], steps)(OFF)
    with pytest.raises(GridError, match=r"grids\.karras\(20\)"):
        grids.times_of("karras", OFF)
    assert grids.times_of([1, 0], Flow()) == (1.0, 0.0)
    assert all(type(t) is float for t in grids.times_of(np.array([0.5, 0.25], dtype=np.float32), Flow()))  # type: ignore[arg-type]


def test_rounding_at_the_ends_of_the_span_is_mended_and_nothing_else() -> None:
    def made(*times: float) -> tuple[float, ...]:
        return grids.Grid("own", lambda path: times)(VE())

    # Two roundings to float32, relative to the time (at least to t_min): lists come in single precision, too.
    assert made(80.0 * (1 + 2e-7), -4e-10) == (80.0, 0.0)
    assert made(80.0 * (1 - 2e-7), 4e-10) == (80.0 * (1 - 2e-7), 4e-10)
    assert grids.Grid("own", lambda path: (0.8 + 1e-7, 0.1 - 1e-8))(OFF) == (0.8, 0.1)
    for bad in (80.0 * (1 + 3e-7), -6e-10):
        with pytest.raises(GridError, match="outside the span"):
            made(bad)


def test_churn_climbs_by_the_published_amount_within_the_published_range() -> None:
    path = VE()
    found = grids.churn([80.0, 51.0, 49.0, 10.0, 0.06, 0.04, 0.0])(path)
    climb = math.sqrt(2.0)  # 40/6 is more than √2 − 1
    expected = [80.0, 51.0, 49.0, 49.0 * climb, 10.0, 10.0 * climb, 0.06, 0.06 * climb, 0.04, 0.0]
    assert found == pytest.approx(expected)
    # The ends of the range belong to it, and the amount is that of one of the grid's steps.
    found = grids.churn([3.0, 2.0, 1.0, 0.5, 0.0], total=0.8, low=1.0, high=2.0)(path)
    assert found == pytest.approx((3.0, 2.0, 2.4, 1.0, 1.2, 0.5, 0.0))
    assert grids.churn([3.0, 2.0, 0.0], total=0.0)(path) == (3.0, 2.0, 0.0)
    # The last time is not climbed from even if it is above σ = 0, nor pure noise, and no climb leaves the span.
    assert grids.churn([3.0, 2.0], total=1.0)(path) == pytest.approx((3.0, 3.0 * climb, 2.0))
    assert grids.churn([3.0, 2.0], total=0.3)(path) == pytest.approx((3.0, 3.9, 2.0))
    assert grids.churn([80.0, 70.0, 0.0], high=90.0)(path) == (80.0, 70.0, 80.0, 0.0)
    assert grids.churn([1.0, 0.5, 0.0], high=math.inf)(Flow()) == pytest.approx((1.0, 0.5, climb / (1 + climb), 0.0))
    found = grids.churn([0.7, 0.4, 0.1], total=0.4)(OFF)
    climbed = [OFF.sigma_bar(t) * 1.2 for t in (0.7, 0.4)]
    assert bars(OFF, (found[1], found[3])) == pytest.approx(climbed, rel=1e-9)
    for bad in (-0.1, math.inf):
        with pytest.raises(GridError, match="total churn"):
            grids.churn([1.0, 0.0], total=bad)
    with pytest.raises(GridError, match=r"^total must be a finite number, got nan$"):
        grids.churn([1.0, 0.0], total=math.nan)


def test_recurrence_repeats_steps_in_place() -> None:
    assert grids.resample([0.8, 0.5, 0.3, 0.1], 3)(OFF) == (*(0.8, 0.5) * 3, *(0.3, 0.5) * 2, 0.3, *(0.1, 0.3) * 2, 0.1)
    # A step up is not repeated.
    assert grids.resample([0.5, 0.3, 0.5], 1)(OFF) == (0.5, 0.3, 0.5)
    assert grids.resample([0.8, 0.5, 0.3], 2)(OFF) == (0.8, 0.5, 0.8, 0.5, 0.3, 0.5, 0.3)


def test_restart_in_closed_form() -> None:
    found = grids.restart([0.8, 0.5, 0.25, 0.1], low=0.3, high=0.7, rounds=2, steps=3)(OFF)
    levels = np.linspace(OFF.log_snr(0.7), OFF.log_snr(0.3), 4)
    middle = [OFF.time_of(v) for v in levels[1:3]]
    once = (0.7, *middle, 0.3)
    assert found == pytest.approx((0.8, 0.5, 0.3, *once, *once, 0.25, 0.1), rel=1e-12)
    nodes, usual = [0.8, 0.5, 0.25, 0.1], {"low": 0.3, "high": 0.7}
    assert grids.restart(nodes, low=0.2, high=0.7, steps=1)(OFF) == (0.8, 0.5, 0.25, 0.2, 0.7, 0.2, 0.1)
    assert grids.restart(nodes, **usual)(OFF) == grids.restart(nodes, **usual, rounds=1, steps=3)(OFF)
    assert grids.restart([0.8, 0.3, 0.1], **usual, steps=1)(OFF) == (0.8, 0.3, 0.7, 0.3, 0.1)  # a node at low is one
    assert grids.restart(nodes, low=0.3, high=0.8, steps=1)(OFF) == (0.8, 0.5, 0.3, 0.8, 0.3, 0.25, 0.1)
    from_noise = grids.restart([1.0, 0.5, 0.0], low=0.5, high=1.0, steps=2)(Flow())
    assert from_noise == pytest.approx((1.0, 0.5, 1.0, Flow().time_of(-5.0), 0.5, 0.0))
    for low, high in ((0.1, 0.5), (0.5, 0.5), (0.5, 0.81), (0.6, 0.4)):
        with pytest.raises(GridError, match="restart needs"):
            grids.restart(nodes, low=low, high=high)(OFF)
    for bad in ({"steps": 0}, {"rounds": 0}):
        with pytest.raises(GridError):
            grids.restart(nodes, low=0.3, high=0.7, **bad)


def test_multistep_climbs_to_its_levels() -> None:
    ve = VE(sigma_min=0.2)
    assert grids.multistep(5.0, 0.21, 0.2, 0.1)(ve) == (
        80.0,
        0.0,
        5.0,
        0.0,
        0.21,
        0.0,
    )  # none at or below the floor
    assert grids.multistep(0.5, start=3.0)(ve) == (3.0, 0.0, 0.5, 0.0)
    found = grids.multistep(0.7)(OFF)
    assert (found[0], found[1], found[3]) == (0.8, 0.1, 0.1)
    assert OFF.sigma_bar(found[2]) == pytest.approx(0.7, rel=1e-12)
    assert grids.multistep()(ve) == (80.0, 0.0)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(GridError, match="a level of a multistep grid"):
            grids.multistep(bad)
    with pytest.raises(GridError, match="outside the span"):
        grids.multistep(81.0)(ve)


def test_indices_of_a_table() -> None:
    assert grids.timesteps([999, 250])(VP.table()) == (1.0, 0.251, 0.0)
    assert grids.timesteps([3, 0], table=4)(OFF_TABLE) == (1.0, 0.25, 0.0)
    with pytest.raises(GridError, match="a table has at least one step"):
        grids.timesteps([0], table=0)


OFF_TABLE = VP.from_betas((0.1, 0.45, 0.2, 0.6))


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (OFF, grids.log_snr(6)),
        (VP(), grids.log_snr(6)),
        (OFF_TABLE, grids.log_snr(6)),
        (ZERO, grids.uniform(6)),
        (Flow(), grids.uniform(6)),
        (VE(), grids.karras(6)),
        (SHIFTED, grids.karras(6)),
        (ShiftedPath(base=Flow(), shift=SHIFTED.shift), grids.uniform(6)),
        (ShiftedPath(base=OFF, shift=SHIFTED.shift), grids.log_snr(6)),
        (PyramidPath(), grids.pyramid_levels()),
    ],
    ids=lambda v: v.name if isinstance(v, grids.Grid) else type(v).__name__,
)
def test_the_default_of_every_kind_of_path(path: Path, wanted: grids.Grid) -> None:
    found = grids.default(path, 6)
    assert found.name == wanted.name
    assert found(path) == wanted(path)


def test_numbers_of_steps_are_whole_numbers() -> None:
    assert grids.uniform(np.int64(2))(Flow()) == (1.0, 0.5, 0.0)  # type: ignore[arg-type]
    makers = (grids.uniform, grids.power, grids.karras, grids.log_snr, grids.li2024, grids.li2025)
    others = (
        grids.early_stopping,
        lambda n: grids.cauchy(n, first=2.0, last=1.0),
        lambda n: grids.span_log_snr(n, -1.0, 1.0),
        lambda n: grids.resample([1.0, 0.0], n),
        lambda n: grids.restart([1.0, 0.0], low=0.1, high=0.2, steps=n),
        lambda n: grids.restart([1.0, 0.0], low=0.1, high=0.2, rounds=n),
        lambda n: grids.rounds([1.0, 0.5], n),
        lambda n: grids.timesteps([0], table=n),
    )
    for make, bad in itertools.product((*makers, *others), (0, -1)):
        with pytest.raises(GridError, match="give a whole number from 1 up"):
            make(bad)
    for make, bad in itertools.product((*makers, *others), (2.0, "3")):
        told = rf"^(steps|times|rounds|count|table) must be a whole number, got {re.escape(repr(bad))}$"
        with pytest.raises(GridError, match=told):
            make(bad)  # type: ignore[arg-type]


NAMES = {
    "uniform(3)": grids.uniform(3),
    "power(3, 2)": grids.power(3),
    "karras(3, rho=7)": grids.karras(3),
    "log_snr(3)": grids.log_snr(3),
    "cauchy(3, first=2, last=1, centre=0.3, width=2)": grids.cauchy(3, first=2.0, last=1.0),
    "span_log_snr(3, -1, 2)": grids.span_log_snr(3, -1.0, 2.0),
    "li2024(30, c0=2, c1=4)": grids.li2024(30),
    "li2025(40, c0=2, c1=5)": grids.li2025(40),
    "early_stopping(20, delta=0.01)": grids.early_stopping(20),
    "rounds(2)": grids.rounds([1.0, 0.5], 2),
    "timesteps(2)": grids.timesteps([999, 499]),
    "pyramid_levels": grids.pyramid_levels(),
    "partial": grids.partial([1.0, 0.0], 0.5),
    "skip(1)": grids.skip([1.0, 0.5, 0.0], 1),
    "churn(40)": grids.churn([1.0, 0.0]),
    "resample(2)": grids.resample([1.0, 0.0], 2),
    "restart(0.2, 0.5, 3)": grids.restart([1.0, 0.0], low=0.2, high=0.5, rounds=3),
    "multistep(0.7, 0.1)": grids.multistep(0.7, 0.1),
}


def test_a_grid_shows_its_name_and_not_its_rule() -> None:
    for name, grid in NAMES.items():
        assert repr(grid) == f"Grid(name={name!r})"


def test_levels_need_a_path_with_them() -> None:
    assert grids.affine(SHIFTED) == VE()
    for start in (OFF.t_min, 0.15):
        with pytest.raises(GridError, match=r"starts above the path's floor 0\.2"):
            grids.karras(3, start=start)(OFF)
    grids.karras(3, start=0.201)(OFF)
    with pytest.raises(PathError, match="no noise levels"):
        grids.cauchy(3, first=2.0, last=1.0)(PyramidPath())

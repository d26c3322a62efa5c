"""Exponential integrators, DEIS, collocation, SA-Solver and the schedules of the theory papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.errors import ConfigError, GridError
from ornstein.lab.laws import deterministic_tv
from ornstein.lab.meters import gaussian_law, kl
from ornstein.lab.rates import measuring_grid
from ornstein.lab.targets import G8, M1, M2
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import (
    DDIM,
    DEIS,
    AcceleratedODE,
    Ancestral,
    Collocation,
    ExponentialIntegrator,
    Sampler,
    SASolver,
    plan,
    run,
    solve,
)

PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}


def root_kl(rule: Sampler, times: Sequence[float], path: AffinePath) -> float:
    return math.sqrt(kl(gaussian_law(rule, G8(), path, times), G8().law(path, times[-1])))


def end(rule: Sampler, path: AffinePath, times: Sequence[float], rows: int = 8) -> Tensor:
    noise = Noise.of(5, range(rows), dtype=torch.float64)
    x = noise.normal("prior", (2,)) * path.sigma(times[0])
    return run(solve(rule, path, x, times, noise), M2().denoiser(path))


SAME: list[tuple[Sampler, Sampler]] = [
    (ExponentialIntegrator("noise"), DDIM()),
    (DEIS(points=1), DDIM()),
    (Collocation(sweeps=1), DDIM()),
    (SASolver(predictor=1, corrector=0, tau=0.0), DDIM()),
    (SASolver(predictor=1, corrector=0, tau=1.0), Ancestral()),
    (DEIS(points=2, variable="gain"), AcceleratedODE("memory")),
]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("one", "other"), SAME, ids=lambda value: repr(value)[:32])
def test_special_cases(one: Sampler, other: Sampler, path: AffinePath) -> None:
    """The same rule to rounding, jumps at both ends of the span included."""
    times = grids.log_snr(9)(path)
    gap = float((end(one, path, times) - end(other, path, times)).abs().max())
    assert gap < 1e-12 * max(path.sigma(times[0]), 1.0)


def test_the_exponential_integrator_is_exact_for_its_linear_part() -> None:
    """The paper's line in the Ornstein–Uhlenbeck time τ, ᾱ = e^{−2τ}: y' = e^η·y + (e^η − 1)·s(y)."""
    path, model = VP(), M2().denoiser(VP())
    taus = (1.2, 0.7, 0.3)
    times = tuple(path.time_of(-math.log(math.expm1(2.0 * tau))) for tau in taus)
    noise = Noise.of(5, range(8), dtype=torch.float64)
    y = noise.normal("prior", (2,)) * path.sigma(times[0])
    for i in (0, 1):
        grown = math.exp(taus[i] - taus[i + 1])
        y = grown * y + (grown - 1.0) * model(y, times[i]).score
    torch.testing.assert_close(end(ExponentialIntegrator(), path, times), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [VE(), Flow()], ids=["ve", "flow"])
def test_the_path_does_not_matter(path: AffinePath) -> None:
    for rule in (ExponentialIntegrator(), Collocation(), SASolver(), DEIS(variable="log-sigma")):
        found, expected = (root_kl(rule, measuring_grid("log-snr", 16)(p), p) for p in (path, VP()))
        assert found == pytest.approx(expected, rel=1e-8)


def test_evaluations() -> None:
    path = VP()
    times = measuring_grid("log-snr", 6)(path)
    for rule, expected in (
        (ExponentialIntegrator(), 6),
        (DEIS(points=2), 6),
        (DEIS(), 7),
        (Collocation(), 6 * 5),
        (Collocation(nodes=4, sweeps=4), 6 * 10),
        (SASolver(), 6),
    ):
        assert len(plan(rule, path, times)) == expected


def test_early_stopping_is_worth_a_factor() -> None:
    """M1 at τ = .01: constant steps and a geometric tail against equal steps; first order in the number of steps."""
    path, rule = VP(), ExponentialIntegrator()
    found = [deterministic_tv(rule, M1(), path, grids.early_stopping(n)(path), points=2001) for n in (25, 50)]
    assert found[1] == pytest.approx(0.024, rel=0.1)
    assert math.log2(found[0] / found[1]) == pytest.approx(1.0, abs=0.1)
    equal = [path.time_of(-math.log(math.expm1(2.0 * (5.0 - 4.99 * i / 50)))) for i in range(51)]
    assert deterministic_tv(rule, M1(), path, equal, points=2001) > 4.0 * found[1]


def test_the_early_stopping_schedule() -> None:
    path = VP()
    times = grids.early_stopping(40, delta=0.02, horizon=4.0)(path)
    taus = [0.5 * math.log1p(math.exp(-path.log_snr(t))) for t in times]
    assert len(taus) == 41
    assert (taus[0], taus[-1]) == pytest.approx((4.0, 0.02))
    ratios = [(a - b) / min(1.0, a) for a, b in pairwise(taus)]
    assert max(ratios) < 1.2 * min(ratios)


def test_the_schedule_of_the_accelerated_samplers() -> None:
    """β by the printed recursion, 1 − ᾱ_1 = T^{−c0}, ᾱ_T about T^{−(c1−c0)}."""
    count, path = 60, VE(sigma_min=1e-5, sigma_max=1e5)
    levels = [1.0 / (1.0 + t * t) for t in grids.li2024(count)(path)]
    assert len(levels) == count
    assert 1.0 - levels[-1] == pytest.approx(count**-2.0)
    assert 0.1 < levels[0] / count**-2.0 < 10.0
    betas = [1.0 - a / b for a, b in pairwise(levels)][::-1]
    most = 4.0 * math.log(count) / count
    expected = [most * min(count**-2.0 * (1.0 + most) ** t, 1.0) for t in range(1, count)]
    assert betas == pytest.approx(expected, rel=1e-9)


def test_the_cells_of_the_randomized_midpoint() -> None:
    count, path = 40, VE(sigma_min=1e-5, sigma_max=1e5)
    levels = [1.0 / (1.0 + t * t) for t in grids.li2025(count, beyond=4)(path)]
    assert len(levels) == count + 2 + 4
    assert levels[0] == pytest.approx(count**-2.0)
    width = 5.0 * math.log(count) / count
    for one, two in pairwise(levels):
        assert two == pytest.approx(one + width * one * (1.0 - one), rel=1e-9)


def test_schedules_that_do_not_fit_are_refused() -> None:
    with pytest.raises(GridError, match="c1 ≥ 2"):
        grids.li2024(50, c0=2.0, c1=3.0)
    with pytest.raises(GridError, match=r"must lie in \(0, 1\)"):
        grids.li2025(10)
    with pytest.raises(GridError, match="beyond the"):
        grids.li2025(400)(VP())
    with pytest.raises(GridError, match="delta < 1 < horizon"):
        grids.early_stopping(20, delta=1.5)
    assert len(grids.li2024(400)(VP())) < 400  # levels noisier than the path's are left out


def test_order_over_the_papers_schedule() -> None:
    """The step is log T/T: over T/log T the memory form is of second order, over T it seems slower."""
    path, counts = VE(sigma_min=1e-5, sigma_max=1e5), (100, 200)
    errors = [root_kl(AcceleratedODE("memory"), grids.li2024(n)(path), path) for n in counts]
    gap = math.log(errors[0] / errors[1])
    axis = math.log(counts[1] / math.log(counts[1])) - math.log(counts[0] / math.log(counts[0]))
    assert gap / axis == pytest.approx(1.94, abs=0.2)
    assert gap / math.log(2.0) < 1.75


@pytest.mark.parametrize(
    "bad",
    [
        lambda: ExponentialIntegrator("x"),  # type: ignore[arg-type]
        lambda: DEIS(points=4),  # type: ignore[arg-type]
        lambda: DEIS(variable="t"),  # type: ignore[arg-type]
        lambda: Collocation(nodes=1),
        lambda: SASolver(predictor=0),
        lambda: SASolver(tau=-1.0),
    ],
)
def test_values_out_of_range_are_refused(bad: object) -> None:
    with pytest.raises(ConfigError):
        bad()  # type: ignore[operator]

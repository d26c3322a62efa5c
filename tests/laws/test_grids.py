"""Grids end where they should, are monotone between turning points, and refuse nonsense."""

import itertools
import math

import numpy as np
import pytest
import torch

from ornstein import grids
from ornstein.errors import GridError, PathError
from ornstein.lab.meters import propagate
from ornstein.lab.targets import GaussianTarget
from ornstein.paths import VE, VP, AffinePath, Flow, PyramidPath, ShiftedPath
from ornstein.samplers.ancestral import Ancestral
from ornstein.samplers.base import Problem
from ornstein.samplers.exponential import DPMSolver

SHIFTED = ShiftedPath(shift=lambda clean, cond, t: clean)
PATHS = {"vp": VP(), "cosine": VP.cosine(), "table": VP.table(), "ve": VE(), "flow": Flow(), "shifted": SHIFTED}
MAKERS = {"uniform": grids.uniform, "power": grids.power, "karras": grids.karras, "log_snr": grids.log_snr}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 100])
def test_descents(make, path, steps: int) -> None:
    low, high = path.t_range
    for start in (None, 0.6 * high):
        times = make(steps, start=start)(path)
        assert len(times) == steps + 1
        assert (times[0], times[-1]) == (high if start is None else start, low)
        assert all(a > b for a, b in itertools.pairwise(times))
        Problem(Ancestral(), path, times)
    assert Problem(Ancestral(), path, grids.default(path, steps)(path)).times[-1] == low


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_few_steps_of_the_default_grid_are_all_of_use(path) -> None:
    """The std of N(0, s²), s from ½ to 1, in parts: with two steps .01 of it was kept where the last one is wasted."""
    base = grids.affine(path)
    for variance in (0.25, 0.5, 1.0):
        denoiser = GaussianTarget([0.0], [variance]).denoiser(base)
        found = []
        for steps in (2, 3, 4):
            times = grids.default(path, steps)(path)
            root = torch.tensor([[math.hypot(base.alpha(times[0]) * variance**0.5, base.sigma(times[0]))]])
            law = propagate(DPMSolver(), denoiser, times, torch.zeros(1, dtype=torch.float64), root.double())
            found.append(float(law.variance / variance) ** 0.5)
        assert found[0] > 0.39
        assert min(found[1:]) > 0.5


def test_karras_is_the_published_formula() -> None:
    n, rho, low, high = 18, 7.0, 0.002, 80.0
    expected = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    np.testing.assert_allclose(grids.karras(n)(VE())[:-1], expected, rtol=1e-13)
    assert grids.karras(n)(VE())[-1] == 0.0
    # The same noise levels on another path, in that path's own times.
    bars = [VP().sigma_bar(t) for t in grids.karras(5)(VP())[:-1]]
    roots = np.diff([bar ** (1 / rho) for bar in bars])
    np.testing.assert_allclose(roots, roots[0], rtol=1e-9)


def test_log_snr_steps_are_equal() -> None:
    for path in (VP(), VP.table(), VE()):
        np.testing.assert_allclose(
            np.diff(np.diff([path.log_snr(t) for t in grids.log_snr(9)(path)[:-1]])), 0, atol=1e-9
        )
        assert grids.log_snr(9)(path)[-2] == pytest.approx(path.t_min, rel=1e-9)
        values = [path.log_snr(t) for t in grids.span_log_snr(8, -3.0, 4.0)(path)]
        np.testing.assert_allclose(values, np.linspace(-3.0, 4.0, 9), atol=1e-9)
        whole = grids.span_log_snr(4, path.log_snr(path.t_range[1]), 3.0)(path)  # rounding must not leave the span
        assert whole[0] == pytest.approx(path.t_range[1], rel=1e-12)


def test_power_indices_levels() -> None:
    np.testing.assert_allclose(grids.power(4, exponent=2.0)(Flow()), [1, 9 / 16, 1 / 4, 1 / 16, 0])
    assert grids.timesteps([999, 499])(VP.table()) == (1.0, 0.5, 0.0)
    assert grids.pyramid_levels()(PyramidPath()) == (3.0, 2.0, 1.0, 0.0)
    assert grids.default(PyramidPath(), 50)(PyramidPath()) == (3.0, 2.0, 1.0, 0.0)
    assert grids.uniform(4)(Flow()) == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_churn_adds_exactly_the_variance_of_the_algorithm() -> None:
    path, base = VE(), grids.karras(10)
    plain, churned = base(path), grids.churn(base, total=3.0, low=0.01, high=60.0)(path)
    ups = [(a, b) for a, b in itertools.pairwise(churned) if b > a]
    inside = [t for t in plain if 0.01 <= t <= 60.0]
    assert [a for a, _ in ups] == inside
    for sigma, climbed in ups:
        assert climbed == pytest.approx(sigma * 1.3, rel=1e-12)
        assert path.gain(sigma, climbed) == 1.0
        assert path.spread(sigma, climbed) ** 2 == pytest.approx(climbed**2 - sigma**2, rel=1e-12)
    capped = grids.churn(base, total=100.0)(path)
    assert max(b / a for a, b in itertools.pairwise(capped) if b > a) == pytest.approx(math.sqrt(2.0))
    assert grids.churn(base, total=0.0)(path) == plain
    assert max(grids.churn(base, total=100.0, high=100.0)(path)) == 80.0
    for other in (VP(), Flow(), SHIFTED):
        Problem(Ancestral(), other, grids.churn(grids.default(other, 10))(other))


def test_recur_restart_partial() -> None:
    path = Flow()
    assert grids.resample((1.0, 0.5, 0.0), 2)(path) == (1.0, 0.5, 1.0, 0.5, 0.0, 0.5, 0.0)
    assert grids.resample((1.0, 0.0, 0.4, 0.0), 2)(path) == (1.0, 0.0, 1.0, 0.0, 0.4, 0.0, 0.4, 0.0)
    assert len(grids.resample(grids.uniform(10), 3)(path)) == 1 + 10 * (2 * 3 - 1)
    assert grids.resample((1.0, 0.5, 0.0), 1)(path) == (1.0, 0.5, 0.0)
    assert grids.partial(grids.uniform(4), 0.6)(path) == (0.6, 0.5, 0.25, 0.0)
    assert grids.partial(grids.uniform(4), 0.5)(path) == (0.5, 0.25, 0.0)
    assert grids.partial(grids.resample((1.0, 0.5, 0.25, 0.0), 2), 0.7)(path) == (
        0.7,
        0.5,
        0.25,
        0.5,
        0.25,
        0.0,
        0.25,
        0.0,
    )
    times = grids.restart(grids.uniform(4), low=0.25, high=0.75, rounds=2, steps=3)(path)
    assert times[:4] == (1.0, 0.75, 0.5, 0.25)
    assert times[-1] == 0.0
    turns = [i for i in range(1, len(times)) if times[i] > times[i - 1]]
    assert [(times[i - 1], times[i]) for i in turns] == [(0.25, 0.75)] * 2
    assert len(times) == 13  # five, and twice a climb of three steps down
    snr = [path.log_snr(t) for t in times[turns[0] : turns[0] + 4]]
    np.testing.assert_allclose(np.diff(snr), np.diff(snr)[0], rtol=1e-9)
    Problem(Ancestral(), path, grids.restart(grids.uniform(4), low=0.25, high=1.0)(path))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "make",
    [
        lambda p: grids.uniform(0),
        lambda p: grids.karras(-3),
        lambda p: grids.log_snr(NAN),
        lambda p: grids.power(2.5),
        lambda p: grids.power(3, exponent=0.0),
        lambda p: grids.karras(3, rho=NAN),
        lambda p: grids.resample([1.0, 0.0], 0),
        lambda p: grids.restart([1.0, 0.0], low=0.2, high=0.5, rounds=0),
        lambda p: grids.restart([1.0, 0.0], low=0.5, high=0.2)(p),
        lambda p: grids.restart([1.0, 0.0], low=NAN, high=0.2)(p),
        lambda p: grids.churn([1.0, 0.0], total=NAN),
        lambda p: grids.churn([1.0, 0.0], total=-1.0),
        lambda p: grids.uniform(3, start=NAN)(p),
        lambda p: grids.uniform(3, start=1.5)(p),
        lambda p: grids.karras(3, start=INF)(p),
        lambda p: grids.karras(3, start=NAN)(p),
        lambda p: grids.karras(3, start=1e-4)(p),
        lambda p: grids.log_snr(3, start=p.t_min)(p),
        lambda p: grids.span_log_snr(3, NAN, 2.0)(p),
        lambda p: grids.timesteps([1000])(p),
        lambda p: grids.timesteps([-5])(p),
        lambda p: grids.partial([1.0, 0.0], NAN)(p),
        lambda p: grids.partial([1.0, 0.0], 2.0)(p),
    ],
)
def test_nonsense_is_refused(make) -> None:
    with pytest.raises(GridError):
        make(VP())


@pytest.mark.parametrize(
    "times",
    [
        (),
        (1.0,),
        (1.0, 1.0),
        (0.0, 1e-12),
        (1.0, "0.5", 0.0),
        (1.0, None, 0.0),
        (True, 0.0),
        (1.0, NAN, 0.0),
        (NAN, 0.0),
        (1.5, 0.0),
        (INF, 0.0),
        (1.0, -0.1),
    ],
)
def test_problems_refuse_bad_times(times: tuple[float, ...]) -> None:
    with pytest.raises(GridError):
        Problem(Ancestral(), VP(), times)


def test_paths_without_noise_levels_are_named() -> None:
    for grid in (grids.karras(3), grids.log_snr(3), grids.churn([3.0, 2.0])):
        with pytest.raises(PathError, match="PyramidPath has no noise levels"):
            grid(PyramidPath())
    with pytest.raises(GridError, match="whole levels"):
        grids.uniform(5)(PyramidPath())


def test_a_base_path_is_affine() -> None:
    assert grids.affine(SHIFTED) is SHIFTED.base
    assert isinstance(grids.affine(Flow()), AffinePath)

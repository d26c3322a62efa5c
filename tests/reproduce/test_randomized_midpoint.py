"""The closed form of the rounds is the shipped sampler; the paper's experiment; the reproduction runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ornstein import grids
from ornstein.lab.meters import gaussian_law, kl, tv_normal
from ornstein.lab.targets import G8, M2, GaussianTarget
from ornstein.lab.trajectories import flow
from ornstein.randomness import Noise, NoiseSource
from ornstein.reproduce import Budget, Cells
from ornstein.reproduce.midpoint import cells as midpoint_cells
from ornstein.reproduce.midpoint import depth as midpoint_depth
from ornstein.reproduce.midpoint import experiment as randomized_midpoint
from ornstein.reproduce.midpoint import orders as midpoint_orders
from ornstein.reproduce.midpoint import rounds as closed
from ornstein.reproduce.midpoint.cells import WIDE, Fine, Together, gaussian, schedules
from ornstein.reproduce.verdicts import slope_of
from ornstein.samplers import RandomizedMidpoint, run, solve


def parts(source: NoiseSource, rounds: list[closed.Array]) -> list[closed.Array]:
    """The numbers that the shipped sampler draws in its steps."""
    index, out = 0, []
    for levels in rounds:
        n = len(levels) - 1
        out.append(np.array([[source.uniform(("midpoint", index + j))] for j in range(n)]))
        index += n + 1
    return out


@pytest.mark.parametrize("form", ["noise", "score"])
def test_closed_form_between_edges(form: str) -> None:
    """Draw by draw, to rounding."""
    v, bars = G8().variance.numpy(), closed.even(16, 80.0, 0.02, beyond=4)
    levels = closed.pinned(bars, 4)
    times = grids.rounds([WIDE.time_of(-2.0 * math.log(bar)) for bar in bars], 4)(WIDE)
    given = parts(Noise.of(5, range(1)).fork(""), levels)
    law = closed.propagate(v, levels, closed.climbs(levels, bars[16]), given, form=form)  # type: ignore[arg-type]
    found = gaussian_law(RandomizedMidpoint(form), G8(), WIDE, times, seed=5)  # type: ignore[arg-type]
    np.testing.assert_allclose(law.variance[0], found.variance.numpy(), rtol=1e-11)
    np.testing.assert_allclose(law.mean, 0.0, atol=1e-13)


def test_closed_form_of_the_papers_rounds() -> None:
    """Drawn ends, start N(0, I), degenerate directions."""
    target = GaussianTarget(torch.zeros(3), [5.0, 0.7, 0.0])
    v, grid, draw = target.variance.numpy(), grids.li2025(50, beyond=5), Noise.of(9, range(1))
    bars, half = closed.bars_of(grid, WIDE), 5
    starts = np.array([[draw.uniform(("round", k * half))] for k in range(11)])
    ends = np.array([[draw.uniform(("end", (k + 2) * half))] for k in range(10)])
    levels = closed.drawn(bars, 10, starts, ends)
    tops = closed.climbs(levels, closed.inside(bars, 10 * half, starts[-1]))
    given = parts(Noise.of(5, range(1)).fork(""), levels)
    law = closed.propagate(v, levels, tops, given, form="score", opening="single", white_start=True)
    times = grids.rounds(grid, 10, draw=draw)(WIDE)
    start = GaussianTarget(torch.zeros(3), [1.0 + times[0] ** 2] * 3)
    found = gaussian_law(RandomizedMidpoint("score", opening="single"), target, WIDE, times, seed=5, start=start)
    np.testing.assert_allclose(law.variance[0], found.variance.numpy(), rtol=1e-11)
    assert law.bar[0, 0] == pytest.approx(times[-1], rel=1e-13)
    assert law.kl(v).sum() == pytest.approx(kl(found, target.law(WIDE, times[-1])), rel=1e-9)


def test_an_error_of_the_noise_moves_the_mean() -> None:
    """One cell by hand."""
    v, off = np.array([0.5]), np.array([0.1])
    levels = [np.array([[2.0], [1.0]])]
    law = closed.propagate(v, levels, [np.array([1.0])], [np.zeros((1, 1))], error=off)
    assert law.mean[0, 0] == pytest.approx(0.1 * (1.0 - 2.0))
    assert law.variance[0, 0] == pytest.approx((1.0 - 2.0 / 4.5) ** 2 * 4.5)


def test_total_variation_of_a_draw() -> None:
    noise = np.random.default_rng(0).standard_normal((400_000, 1))
    law = closed.GaussianLaw(mean=np.array([[0.3]]), variance=np.array([[1.9]]), bar=np.array([[1.0]]))
    assert law.tv(np.array([0.5]), noise)[0] == pytest.approx(tv_normal(0.3, 1.9, 0.0, 1.5), rel=5e-3)


def test_the_references_agree() -> None:
    noise = Noise.of(1, range(4), dtype=torch.float64)
    model = Together(M2(), WIDE)
    x, times = M2().start(noise, WIDE, 3.0), (3.0, 1.0, 0.4, 0.1)
    found = run(solve(Fine(0.04), WIDE, x, times, noise), model)
    torch.testing.assert_close(found, flow(model, x, 3.0, 0.1, steps=100), rtol=1e-5, atol=1e-5)
    together = model.predict_times(torch.stack((x, x)), (3.0, 1.0))
    for answer, t in zip(together, (3.0, 1.0), strict=True):
        torch.testing.assert_close(answer.clean, model(x, t).clean, rtol=1e-14, atol=1e-14)


def test_orders_in_rounds_given_the_times() -> None:
    """Eight rounds on the eight-variance Gaussian, paper's clock, 600 schedules: 3/2; middles 2, left ends 1."""
    counts = (128, 256, 512, 1024)

    def order(places: str, draws: int) -> float:
        return slope_of(counts, [gaussian(8, n, places, "score", draws, 0)["root_kl"] for n in counts])

    assert -1.62 < order("random", 600) < -1.40
    assert -2.08 < order("middle", 1) < -1.98
    assert -1.05 < order("left", 1) < -0.85


def test_the_papers_experiment() -> None:
    """d = k = 10, ten rounds, c0 = 2, c1 = 4, T = 50 … 800: KL falls like (T/log T)^−2.8; and the values at c1 = 5."""
    steps, seeds = (50, 100, 200, 400, 800), 4

    def mean(c1: float, t: int) -> float:
        return float(np.mean([schedules(10, 10, 10, c1, t, 100, s)["mean"] for s in range(seeds)]))

    values = {c1: [mean(c1, t) for t in steps] for c1 in (4.0, 5.0)}
    assert slope_of([t / math.log(t) for t in steps], values[4.0]) == pytest.approx(-2.82, abs=0.2)
    for found, printed in zip(values[5.0], (8.2e-3, 2.2e-3, 4.7e-4, 1.3e-4, 2.0e-5), strict=True):
        assert found == pytest.approx(printed, rel=0.35)  # each printed value is a mean over 60 heavy-tailed draws


def test_degenerate_directions_hardly_count() -> None:
    found = schedules(100, 10, 10, 5.0, 400, 100, 0)
    assert 0.0 < found["flat"] < 0.05 * found["mean"]


@pytest.mark.slow
def test_the_reproduction_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On toy sizes: every claim is there, with a verdict; nothing is stored."""
    for module, name, value in (
        (midpoint_orders, "COUNTS", (32, 64, 128)),
        (midpoint_orders, "DRAWS", 5),
        (midpoint_depth, "STEPS", (32, 64, 128)),
        (randomized_midpoint, "STEPS", (50, 100)),
        (randomized_midpoint, "DIMS", (8, 16, 32)),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(midpoint_cells, "POINTS", 100)
    found = randomized_midpoint.EXPERIMENT.run(Cells(None), Budget(0.2))
    assert len(found.findings) == 12
    assert sum(f.verdict == "not testable here" for f in found.findings) == 1
    assert all(f.value is not None for f in found.findings if f.verdict != "not testable here")
    assert {table.title for table in found.tables} >= {"Errors on a Gaussian", "The paper's experiment"}
    assert all(len(row) == len(table.head) for table in found.tables for row in table.rows)
    assert all(len(line.x) == len(line.y) for plot in found.plots for line in plot.lines)

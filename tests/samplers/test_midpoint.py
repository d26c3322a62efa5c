"""The randomized midpoint method, its deterministic twin and its rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.errors import ConfigError, GridError
from ornstein.lab.laws import deterministic_tv
from ornstein.lab.meters import conditional_root_kl, gaussian_law, kl
from ornstein.lab.over_times import over_times
from ornstein.lab.rates import measuring_grid
from ornstein.lab.targets import G8, M1, M2
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise, NoiseSource
from ornstein.samplers import Query, RandomizedMidpoint, Sampler, plan, run, sampler, solve
from ornstein.samplers.base import Memory, Step, Steps

VE_WIDE = VE(sigma_min=1e-6, sigma_max=1e6)
MIDDLE = RandomizedMidpoint(places="middle")
FORMS = ("noise", "clean", "score")


def root_kl(rule: Sampler, times: Sequence[float], path: AffinePath) -> float:
    return math.sqrt(kl(gaussian_law(rule, G8(), path, times), G8().law(path, times[-1])))


def cells(path: AffinePath, count: int, first: float = 80.0, last: float = 0.02, beyond: int = 0) -> tuple[float, ...]:
    """Equal steps of log-SNR, some of them past the end."""
    return tuple(
        path.time_of(-2.0 * math.log(first * (last / first) ** (i / count))) for i in range(count + beyond + 1)
    )


def test_printed_errors_of_the_middle_points() -> None:
    """G8 √KL and M1 total variation, equal steps of log-SNR from σ̄ = 80 to .02."""
    path = VP()
    for steps, value in ((32, 1.45683e-2), (128, 8.87853e-4)):
        assert root_kl(MIDDLE, measuring_grid("log-snr", steps)(path), path) == pytest.approx(value, rel=1e-5)
    times = measuring_grid("log-snr", 32)(path)
    assert deterministic_tv(MIDDLE, M1(), path, times, points=2001) == pytest.approx(5.2130e-3, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_middle_points_by_hand(form: str) -> None:
    """Two cells: the start and the middle of the first are asked, the second goes with the last slope."""
    path, noise = VP(), Noise.of(1, range(5), dtype=torch.float64)
    model, bars = M2().denoiser(path), (1.4, 0.9, 0.6)
    times = tuple(path.time_of(-2.0 * math.log(bar)) for bar in bars)
    x = noise.normal("prior", (2,))

    def r(bar: float) -> float:
        return {"noise": bar, "clean": 1.0 / bar, "score": bar**2 / (1.0 + bar**2)}[form]

    def slope(x: Tensor, t: float) -> Tensor:
        if form == "clean":
            return model(x, t).clean
        if form == "noise":
            return model(x, t).noise
        tau = path.sigma(t) ** 2
        return -model(x, t).score / (2.0 * (1.0 - tau) ** 1.5)

    scale = path.sigma if form == "clean" else path.alpha
    middle = 0.5 * (r(bars[0]) + r(bars[1]))
    bar = math.sqrt(middle / (1.0 - middle)) if form == "score" else middle ** (1.0 if form == "noise" else -1.0)
    inside = path.time_of(-2.0 * math.log(bar))
    base = x / scale(times[0])
    first = slope(x, times[0])
    second = slope(scale(inside) * (base + first * (middle - r(bars[0]))), inside)
    expected = scale(times[2]) * (base + second * (r(bars[2]) - r(bars[0])))
    rule = RandomizedMidpoint(form, "middle")  # type: ignore[arg-type]
    torch.testing.assert_close(run(solve(rule, path, x, times, noise), model), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("form", "draws"),
    [("noise", 4000), ("clean", 4000), ("score", 4000), pytest.param("score", 100_000, marks=pytest.mark.slow)],
)
def test_a_cell_is_estimated_without_bias(form: str, draws: int) -> None:
    """Where the slope depends on time alone the mean over uniform points is the integral, to its standard error."""
    path = VP()
    t, s = (path.time_of(-2.0 * math.log(bar)) for bar in (1.4, 0.6))
    rule = RandomizedMidpoint(form)  # type: ignore[arg-type]
    from ornstein.samplers.midpoint import Clock

    clock = Clock(rule.form, path)
    ends = clock.at(t), clock.at(s)
    noise, drawn = Noise.of(7, range(1)), []
    for i in range(draws):
        place = rule.place(clock, Step(t=t, s=s, index=i), noise)
        drawn.append((clock.at(place) ** 3 - 2.0 * clock.at(place)) * (ends[1] - ends[0]))
    exact = (ends[1] ** 4 - ends[0] ** 4) / 4.0 - (ends[1] ** 2 - ends[0] ** 2)
    assert abs(float(np.mean(drawn)) - exact) < 4.0 * float(np.std(drawn)) / math.sqrt(len(drawn))
    assert float(np.std(drawn)) > 0.0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_middle_points_are_of_second_order_on_every_path(form: str, path: AffinePath) -> None:
    rule = RandomizedMidpoint(form, "middle")  # type: ignore[arg-type]
    errors = [root_kl(rule, grids.span_log_snr(n, -2.0, 4.0)(path), path) for n in (32, 64)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.15)


def test_random_points_are_of_order_three_halves_given_the_points() -> None:
    """And the start of every cell, in place of a random point, is of first order only."""
    path = VP()
    few, many = (conditional_root_kl(RandomizedMidpoint(), G8(), path, cells(path, n), 24) for n in (32, 128))
    assert 0.5 * math.log2(few / many) == pytest.approx(1.5, abs=0.25)

    @dataclass(frozen=True)
    class Left(RandomizedMidpoint):
        def place(self, clock: Any, step: Step, noise: NoiseSource) -> float:
            return step.t

    left = [root_kl(Left(), cells(path, n), path) for n in (64, 128)]
    assert math.log2(left[0] / left[1]) < 1.1


def _mixture_moments(count: int, first: float = 80.0, last: float = 0.02) -> tuple[Tensor, Tensor]:
    """(variance of the law over all draws, true one) of u on G8, exactly: E[y yᵀ] of y = (u, slope), cell by cell.

    For one direction of variance v the noise is ẑ = σ̄·u/(v + σ̄²), so a cell acts on y linearly given its point.
    """
    v = G8().variance.numpy()
    bars = [first * (last / first) ** (i / count) for i in range(count + 1)]
    nodes, weights = np.polynomial.legendre.leggauss(12)
    nodes, weights = 0.5 * (nodes + 1.0), 0.5 * weights
    begin = bars[0] / (v + bars[0] ** 2)
    scale = v + bars[0] ** 2
    uu, ue, ee = scale, scale * begin, scale * begin**2
    for bar, after in pairwise(bars[:-1]):
        width = after - bar
        sums = [np.zeros_like(v) for _ in range(3)]
        for q, w in zip(nodes, weights, strict=True):
            r = bar + q * width
            gain = r / (v + r * r)  # slope = gain·(u + (r − bar)·e)
            p, m = np.ones_like(v) + width * gain, width * gain * (r - bar)
            a, b = gain, gain * (r - bar)
            sums[0] += w * (p * p * uu + 2 * p * m * ue + m * m * ee)
            sums[1] += w * (p * a * uu + (p * b + m * a) * ue + m * b * ee)
            sums[2] += w * (a * a * uu + 2 * a * b * ue + b * b * ee)
        uu, ue, ee = sums
    width = bars[-1] - bars[-2]
    uu = uu + 2.0 * width * ue + width**2 * ee
    return torch.tensor(uu), torch.tensor(v + bars[-1] ** 2)


def test_the_law_over_all_draws_is_of_second_order() -> None:
    errors = []
    for n in (64, 128, 256, 512):
        found, exact = _mixture_moments(n)
        delta = found / exact - 1.0
        errors.append(math.sqrt(float((0.5 * (delta - torch.log1p(delta))).sum())))
    found = np.polyfit(np.log([64, 128, 256, 512]), np.log(errors), 1)[0]
    assert found == pytest.approx(-2.05, abs=0.1)


def test_the_recursion_by_hand_is_that_of_the_lab() -> None:
    found = over_times(RandomizedMidpoint(), G8(), VE(), cells(VE(), 16))
    torch.testing.assert_close(found.variance, _mixture_moments(16)[0], rtol=1e-8, atol=0.0)


def test_the_law_over_all_draws_is_what_the_sampler_has() -> None:
    """The recursion against the mean over draws of the shipped sampler."""
    path = VE()
    draws = torch.stack(
        [gaussian_law(RandomizedMidpoint(), G8(), path, cells(path, 16), seed=i).variance for i in range(60)]
    )
    exact, _ = _mixture_moments(16)
    assert bool(((draws.mean(0) - exact).abs() < 4.5 * draws.std(0) / math.sqrt(60)).all())


@dataclass(frozen=True)
class ExactFlow:
    """The exact flow map of G8 about its mean, taken with the questions of the sampler."""

    inner: RandomizedMidpoint
    order: int = 2
    needs: type[Any] = AffinePath

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        yield Query(x, step.t)
        return x * (G8().law(path, step.s).variance / G8().law(path, step.t).variance).sqrt()


@pytest.mark.parametrize("drawn", [False, True], ids=["edges", "drawn"])
def test_rounds_keep_the_marginal_law(drawn: bool) -> None:
    """With the exact flow in place of the steps, falling back with fresh noise leaves the variance exact."""
    path, draw = VE_WIDE, Noise.of(3, range(1)) if drawn else None
    times = grids.rounds(cells(path, 16, beyond=4 + drawn), 4, draw=draw)(path)
    found = gaussian_law(ExactFlow(MIDDLE), G8(), path, times)
    torch.testing.assert_close(found.variance, G8().law(path, times[-1]).variance, rtol=1e-10, atol=0.0)


def test_rounds_cost_two_evaluations_a_net_cell() -> None:
    path, edges = VE_WIDE, cells(VE_WIDE, 32, beyond=4)
    times = grids.rounds(edges, 8)(path)
    assert times[-1] == edges[32]
    assert min(times) == edges[36]
    assert len(plan(MIDDLE, path, times)) == 64
    draw = Noise.of(3, range(1))
    literal = grids.rounds(cells(path, 32, beyond=5), 8, draw=draw)(path)
    assert len(plan(RandomizedMidpoint("score", opening="single"), path, literal)) == 64
    assert len(set(literal)) == len(literal) - sum(literal.count(t) - 1 for t in set(literal))
    assert grids.rounds(edges, 8, climb=False)(path)[-1] == edges[36]


def test_rounds_refuse_what_does_not_divide() -> None:
    path = VE_WIDE
    with pytest.raises(GridError, match="multiple of 4 cells, got 18"):
        grids.rounds(cells(path, 18), 3)(path)
    with pytest.raises(GridError, match="multiple of 4 cells and one more"):
        grids.rounds(cells(path, 16), 3, draw=Noise.of(0, range(1)))(path)
    with pytest.raises(GridError, match="above σ = 0"):
        grids.rounds((*cells(path, 15), 0.0), 3)(path)


def test_orders_in_rounds() -> None:
    """Half of the work is noised away again, which lowers the error, not the order."""
    path = VE_WIDE

    def error(rule: RandomizedMidpoint, evaluations: int, count: int) -> float:
        net = evaluations // 2
        times = grids.rounds(cells(path, net, beyond=net // count), count)(path)
        return root_kl(rule, times, path)

    errors = [error(MIDDLE, n, 8) for n in (128, 256)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.25)


def test_draws_come_from_the_shared_stream() -> None:
    path, times = VP(), cells(VP(), 6)
    assert plan(RandomizedMidpoint(), path, times, seed=1) != plan(RandomizedMidpoint(), path, times, seed=2)
    assert plan(MIDDLE, path, times, seed=1) == plan(MIDDLE, path, times, seed=2)
    asked = plan(RandomizedMidpoint(), path, times, seed=1)
    assert asked[0] == times[0]
    assert all(s <= a <= t for a, t, s in zip(asked[1:], times, times[1:], strict=False))


def test_names_and_refusals() -> None:
    assert sampler("staggered-midpoint") == MIDDLE
    assert (sampler("randomized-midpoint").order, MIDDLE.order) == (1.5, 2)
    for bad, said in (
        ({"form": "v"}, "form must be one of 'noise', 'clean', 'score', got 'v'"),
        ({"places": "end"}, "places must be one of 'random', 'middle', got 'end'"),
        ({"opening": "none"}, "opening must be one of 'pair', 'single', got 'none'"),
    ):
        with pytest.raises(ConfigError, match=f"^{said}$"):
            replace(MIDDLE, **bad)  # type: ignore[arg-type]

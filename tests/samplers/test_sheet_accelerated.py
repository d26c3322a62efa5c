"""What the papers' schedule does to orders, identities of the accelerated rules, and grids of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.lab.laws import stochastic_tv
from ornstein.lab.meters import gaussian_law, kl
from ornstein.lab.rates import measuring_grid
from ornstein.lab.targets import G8, M1, M2, GaussianTarget
from ornstein.paths import VE, VP, AffinePath
from ornstein.paths.vp import Linear
from ornstein.randomness import Noise, NoiseSource
from ornstein.samplers import (
    DDIM,
    AcceleratedODE,
    AcceleratedSDE,
    Ancestral,
    DPMSolver,
    Heun,
    MidpointSDE,
    Problem,
    Query,
    Sampler,
    plan,
    run,
    solve,
)
from ornstein.samplers.base import Memory, Step, Steps

LONG = VP(Linear(beta_max=60.0))  # as noisy as the papers' schedule asks for


@dataclass(frozen=True)
class Printed:
    """The papers' one-step rules as printed, in ᾱ: "ode", "ddpm", and the stirred ones as two codes have them."""

    form: str
    order: int = 1
    needs: type[Any] = AffinePath

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        a, b = (path.alpha(time) ** 2 for time in (step.t, step.s))
        alpha, beta = a / b, 1.0 - a / b
        if self.form == "ode":
            estimate = yield Query(x, step.t)
            return (x + 0.5 * beta * estimate.score) / math.sqrt(alpha)
        one, two = (noise.normal((name, step.index), x.shape[1:]) for name in ("one", "two"))
        half = math.sqrt(0.5 * beta)
        if self.form == "ddpm":
            estimate = yield Query(x, step.t)
            return (x + beta * estimate.score + math.sqrt(beta) * one) / math.sqrt(alpha)
        stirred = x + half * one * (math.sqrt(alpha) if self.form == "cifar" else 1.0)
        estimate = yield Query(stirred, step.t)
        return (stirred + beta * estimate.score) / math.sqrt(alpha) + half * two


def error(rule: Sampler, count: int, *, prior: bool = False, c0: float = 2.0, c1: float = 4.0) -> float:
    """G8, the papers' schedule, √KL, from the exact law or from N(0, I)."""
    times = grids.li2024(count, c0=c0, c1=c1)(LONG)
    start = GaussianTarget(torch.zeros(8), torch.ones(8)) if prior else None
    return math.sqrt(kl(gaussian_law(rule, G8(), LONG, times, start=start), G8().law(LONG, times[-1])))


def slopes(rule: Sampler, counts: Sequence[int], *, prior: bool = False) -> tuple[float, float]:
    """Over T and over T/log T."""
    errors = np.log([error(rule, n, prior=prior) for n in counts])
    axis = np.log(counts)
    return float(np.polyfit(axis, errors, 1)[0]), float(np.polyfit(axis - np.log(axis), errors, 1)[0])


SCHEDULED: list[tuple[Sampler, float, float, float]] = [
    (Printed("ode"), -0.75, -0.90, -0.75),
    (DDIM(), -0.83, -0.99, -0.84),
    (AcceleratedODE(), -1.49, -1.78, -1.36),
    (AcceleratedODE("memory"), -1.63, -1.94, -1.03),
    (Heun(), -1.69, -2.01, -1.00),
    (Printed("ddpm"), -0.85, -1.01, -0.85),
    (AcceleratedSDE(), -1.69, -2.01, -1.69),
    (Printed("readme"), -0.84, -1.00, -0.84),
]


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "plain", "logged", "prior"), SCHEDULED, ids=lambda value: repr(value)[:40])
def test_printed_slopes_over_the_papers_schedule(rule: Sampler, plain: float, logged: float, prior: float) -> None:
    noisy = isinstance(rule, AcceleratedSDE) or rule in (Printed("ddpm"), Printed("readme"))
    counts = (200, 400, 800) if noisy else (200, 400, 800, 1600)
    exact = slopes(rule, counts)
    # The printed row of the probe form begins one level above the grid; here its first step is a plain one.
    near = 0.07 if rule == AcceleratedODE() else 0.02
    assert exact[0] == pytest.approx(plain, abs=near)
    assert exact[1] == pytest.approx(logged, abs=near)
    assert slopes(rule, counts, prior=True)[0] == pytest.approx(prior, abs=near)


def test_the_prior_hides_second_order_of_the_flow_alone() -> None:
    """A start from N(0, I) stays in the flow to the end, and the reverse SDE forgets it; c1 = 6 makes it vanish."""
    for rule, spoilt in ((AcceleratedODE("memory"), True), (AcceleratedSDE(), False)):
        ratio = error(rule, 200, prior=True) / error(rule, 200)
        assert (ratio > 1.5) == spoilt
        assert error(rule, 200, prior=True, c0=1.5, c1=6.0) == pytest.approx(error(rule, 200, c0=1.5, c1=6.0), rel=0.02)


@pytest.mark.parametrize("form", ["readme", "cifar"])
def test_the_codes_variants_lose_the_acceleration_on_gaussians(form: str) -> None:
    times = {n: measuring_grid("log-snr", n)(VP()) for n in (64, 128)}
    law = G8().law(VP(), times[64][-1])
    errors = [math.sqrt(kl(gaussian_law(Printed(form), G8(), VP(), times[n]), law)) for n in (64, 128)]
    assert -1.05 < math.log2(errors[1] / errors[0]) < -0.9


def test_and_on_mixtures() -> None:
    """M1 exactly, end at σ̄ = .05: printed total variations of the four rules."""
    times = measuring_grid("log-snr", 20, 0.05)(VP())
    printed = {Printed("ddpm"): 0.084, Ancestral(): 0.090, AcceleratedSDE(): 0.039, Printed("readme"): 0.073}
    for rule, value in printed.items():
        assert stochastic_tv(rule, M1(), VP(), times, points=1024) == pytest.approx(value, rel=0.02)


@pytest.mark.slow
def test_the_codes_variants_on_a_mixture_at_many_steps() -> None:
    times = measuring_grid("log-snr", 256, 0.05)(VP())
    for form, value in (("readme", 5.9e-3), ("cifar", 8.9e-3)):
        assert stochastic_tv(Printed(form), M1(), VP(), times, points=1024) == pytest.approx(value, rel=0.02)


UNEVEN = (6.0, 3.7, 1.9, 1.4, 0.6, 0.17, 0.1)  # σ̄


def test_the_history_form_with_one_more_factor_is_adams_and_bashforth_in_the_variance() -> None:
    """β²/(4β_p)·α_p in place of β²/(4β_p), and exact scores: linear extrapolation of h in σ̄², to rounding."""
    path = VP()
    model, noise = M2().denoiser(path), Noise.of(5, range(16), dtype=torch.float64)
    times = tuple(path.time_of(-2.0 * math.log(bar)) for bar in UNEVEN)
    start = noise.normal("prior", (2,)) * path.sigma(times[0])
    y, before = start, None
    a = [path.alpha(t) ** 2 for t in times]
    for i in range(len(a) - 1):
        alpha, beta = a[i] / a[i + 1], 1.0 - a[i] / a[i + 1]
        s = model(y, times[i]).score
        move = y + 0.5 * beta * s
        if before is not None:
            alpha_p, beta_p = a[i - 1] / a[i], 1.0 - a[i - 1] / a[i]
            move = move + beta**2 / (4.0 * beta_p) * alpha_p * (s - math.sqrt(alpha_p) * before)
        before, y = s, move / math.sqrt(alpha)
    u, older = start / path.alpha(times[0]), None
    for bar, after, t in zip(UNEVEN, UNEVEN[1:], times, strict=False):
        h = path.alpha(t) * model(path.alpha(t) * u, t).score
        width = bar**2 - after**2
        slope = torch.zeros_like(h) if older is None else (h - older[1]) / (older[0] - bar**2)
        # −½∫ (h + slope·(σ̄² − σ̄'²)) dσ̄'² downwards, the slope counted per unit of falling variance.
        u = u + 0.5 * (width * h + 0.5 * width**2 * slope)
        older = bar**2, h
    torch.testing.assert_close(y / path.alpha(times[-1]), u, rtol=1e-11, atol=1e-11)


ANY = [AcceleratedODE(), AcceleratedODE("history"), AcceleratedODE("memory"), AcceleratedSDE(), MidpointSDE()]


@pytest.mark.parametrize("rule", ANY, ids=repr)
def test_any_decreasing_grid_will_do(rule: Sampler) -> None:
    """Random levels, and the same levels on another path: one law; more levels between them: a smaller error."""
    gen = np.random.default_rng(0)
    bars = np.sort(np.exp(gen.uniform(math.log(0.05), math.log(30.0), 40)))[::-1]
    laws = []
    for path in (VP(), VE()):
        times = tuple(path.time_of(-2.0 * math.log(bar)) for bar in bars)
        found = gaussian_law(rule, G8(), path, times)
        laws.append((found.variance / path.alpha(times[-1]) ** 2, G8().law(path, times[-1]).variance))
        assert bool(found.variance.isfinite().all())
    torch.testing.assert_close(laws[0][0], laws[1][0], rtol=1e-10, atol=0.0)
    fine = np.sort(np.concatenate([bars, *(bars[:-1] ** w * bars[1:] ** (1.0 - w) for w in (0.25, 0.5, 0.75))]))[::-1]
    close = gaussian_law(rule, G8(), VE(), tuple(float(bar) for bar in fine))
    gap, finer = (float((v / laws[1][1] - 1.0).abs().max()) for v in (laws[1][0], close.variance))
    assert finer < 0.5 * gap


@pytest.mark.parametrize("rule", ANY, ids=repr)
def test_a_level_given_twice_is_one(rule: Sampler) -> None:
    assert Problem(rule, VE(), (3.0, 1.0, 1.0, 0.5)).times == (3.0, 1.0, 0.5)


def test_costs() -> None:
    times = measuring_grid("log-snr", 20)(VP())
    costs = {repr(rule): len(plan(rule, VP(), times)) for rule in ANY}
    assert list(costs.values()) == [39, 20, 20, 20, 40]  # the first step of the probe form has no neighbour


def test_the_same_body_with_and_without_names() -> None:
    """Posterior variance, η = 1 and the first-order SDE solver are one rule, on an uneven grid."""
    path, noise = VE(), Noise.of(1, range(6), dtype=torch.float64)
    x = 6.0 * noise.normal("prior", (2,))
    ends = [
        run(solve(rule, path, x, UNEVEN, noise), M2().denoiser(path))
        for rule in (Ancestral(), DDIM(1.0), DPMSolver(points=1, stochastic=True))
    ]
    for one, other in pairwise(ends):
        assert float((one - other).abs().max()) < 1e-12

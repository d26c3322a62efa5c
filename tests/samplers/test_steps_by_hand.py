"""Single steps written out: from pure noise, to the clean end, and the two-stage rules, with the noise in full view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.errors import PathError
from ornstein.estimates import Estimate
from ornstein.lab.meters import gaussian_law
from ornstein.lab.targets import M2, GaussianTarget
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Key, Noise
from ornstein.samplers import (
    DDIM,
    SAMPLERS,
    AcceleratedODE,
    AcceleratedSDE,
    Ancestral,
    DPMSolver,
    DPMSolver2S,
    Euler,
    ExponentialIntegrator,
    Heun,
    MidpointSDE,
    RandomizedMidpoint,
    Sampler,
    SASolver,
    TrigFlowAdams,
    run,
    sampler,
    solve,
)

PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}
TARGET = GaussianTarget([0.5, -2.0, 1.0], [0.04, 0.9, 7.0])
UNEVEN = (6.0, 3.7, 1.9, 1.4, 0.6, 0.17)  # σ̄
NARROW = (6.0, 4.7, 3.3, 2.4, 1.7, 1.2)  # over which a frozen score may be extrapolated
FLOAT64 = Noise.of(5, range(6), dtype=torch.float64)


def times_of(path: AffinePath, bars: Sequence[float] = UNEVEN) -> tuple[float, ...]:
    return tuple(path.time_of(-2.0 * math.log(bar)) for bar in bars)


@dataclass
class Conditioning:
    """The shared noise, and a list of what was asked for."""

    keys: list[Key] = field(default_factory=list)
    stretches: list[tuple[Key, float, float]] = field(default_factory=list)

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        self.keys.append(key)
        return FLOAT64.normal(key, event)

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        self.stretches.append((key, t0, t1))
        return FLOAT64.brownian_increment(key, t0, t1, event)

    def uniform(self, key: Key) -> float:
        return FLOAT64.uniform(key)


class Headed:
    """The exact denoiser of M2, which also answers with a variance head."""

    def __init__(self, path: AffinePath, head: float = 0.0) -> None:
        self.path, self.head = path, head

    def __call__(self, x: Tensor, t: float) -> Estimate:
        clean = M2().denoiser(self.path)(x, t).clean
        return Estimate(x, t, self.path, clean=clean, extras={"variance": torch.full_like(x, self.head)})


def ended(rule: Sampler, path: AffinePath, x: Tensor, times: Sequence[float], noise: Any = FLOAT64) -> Tensor:
    return run(solve(rule, path, x, times, noise), Headed(path))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_step_to_the_clean_end(name: str, path: AffinePath) -> None:
    """α_s·x̂_0 without noise; in the angle, where the end is a point like any other, by hand."""
    rule, t = sampler(name), times_of(path, (0.6,))[0]
    x = M2().start(FLOAT64, path, t)
    model, told = M2().denoiser(path), Conditioning()
    found = ended(rule, path, x, (t, 0.0), told)
    clean = model(x, t).clean
    if isinstance(rule, TrigFlowAdams):
        s, a, sigma = rule.scale, path.alpha(t), path.sigma(t)
        radius = math.hypot(s * a, sigma)
        slope = (clean - (s * s * a / radius**2) * x) * radius / (s * sigma)
        expected = s * (x / radius + math.atan(0.6 / s) * slope)
    elif isinstance(rule, Euler):
        expected = x - t * model(x, t).velocity
    else:
        expected = path.alpha(0.0) * clean
        assert told.keys == []
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_step_from_pure_noise(name: str) -> None:
    """α_s·x̂_0 + σ_s·ẑ, ẑ = x there; with fresh noise, keyed by the step, in place of ẑ where the rule is an SDE's."""
    rule, path, s, told = sampler(name), Flow(), 0.7, Conditioning()
    x = FLOAT64.normal("prior", (2,))
    clean = M2().denoiser(path)(x, 1.0).clean
    found = ended(rule, path, x, (1.0, s), told)
    if isinstance(rule, TrigFlowAdams):
        bar = path.sigma_bar(s)
        turned = x + (0.5 * math.pi - math.atan(bar / rule.scale)) * clean / rule.scale
        expected = math.hypot(rule.scale * path.alpha(s), path.sigma(s)) * turned
    elif isinstance(rule, SASolver):
        expected = path.alpha(s) * clean + path.sigma(s) * FLOAT64.normal(0, (2,))
    else:
        fresh = FLOAT64.normal(0, (2,))
        wide = math.hypot(path.alpha(s), path.sigma(s))  # all that is known of x_s where the data are N(0, 1)
        learned = math.sqrt(path.sigma(s) * wide)
        std = {"ancestral-large": wide, "ancestral-learned": learned}.get(name, path.sigma(s))
        expected = path.alpha(s) * clean + std * (fresh if told.keys else x)
        assert told.keys in ([], [0])
        assert bool(told.keys) == (name in STIRRED)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


STIRRED = {
    *("ancestral", "ancestral-large", "ancestral-learned", "ddpm", "ddim-eta1", "accelerated-sde"),
    *("dpmpp-1-sde", "dpmpp-2m-sde", "dpmpp-2s-sde", "dpmpp-3m-sde", "sde-midpoint", "sde-midpoint-exponential"),
}


def test_after_a_start_from_pure_noise_nothing_is_extrapolated_over_it() -> None:
    """The score at pure noise has no finite σ̄: the second step freezes the score; and so does a probe there."""
    path, times = Flow(), (1.0, 0.8, 0.76)
    x = FLOAT64.normal("prior", (2,))
    expected = ended(ExponentialIntegrator("variance"), path, x, times)
    for form in ("probe", "history"):
        found = ended(AcceleratedODE(form), path, x, times)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for rule in (DPMSolver(start="plain"), DPMSolver(points=3, start="plain")):
        torch.testing.assert_close(
            ended(rule, path, x, times), ended(DPMSolver(points=1), path, x, times), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("form", ["noise", "clean", "score"])
def test_middle_points_from_pure_noise_by_hand(form: str) -> None:
    """The slope found there reaches into the second cell, but for the paper's form, which has none at pure noise."""
    path, times, x = Flow(), (1.0, 0.8, 0.6, 0.45), FLOAT64.normal("prior", (2,))
    model = M2().denoiser(path)
    bars = [path.sigma_bar(t) for t in times]

    def clock(bar: float) -> float:
        return {"noise": bar, "clean": 1.0 / bar, "score": bar**2 / (1.0 + bar**2)}[form]

    def slope(x: Tensor, t: float) -> Tensor:
        estimate = model(x, t)
        if form == "score":
            tau = bar_of(t) ** 2 / (1.0 + bar_of(t) ** 2)
            return estimate.noise / (2.0 * math.sqrt(tau) * (1.0 - tau) ** 1.5)
        return estimate.clean if form == "clean" else estimate.noise

    def bar_of(t: float) -> float:
        return path.sigma(t) / path.alpha(t)

    scale = path.sigma if form == "clean" else path.alpha
    first = model(x, 1.0)
    state = path.alpha(times[1]) * first.clean + path.sigma(times[1]) * x
    known = slope(state, times[1]) if form == "score" else (first.clean if form == "clean" else first.noise)
    centre = 0.5 * (clock(bars[1]) + clock(bars[2]))
    bar = {"noise": centre, "clean": 1.0 / centre, "score": math.sqrt(abs(centre / (1.0 - centre)))}[form]
    middle = path.time_of(-2.0 * math.log(bar))
    base = state / scale(times[1])
    inside = scale(middle) * (base + known * (centre - clock(bars[1])))
    known = slope(inside, middle)
    expected = scale(times[3]) * (base + known * (clock(bars[3]) - clock(bars[1])))
    found = ended(RandomizedMidpoint(form, "middle"), path, x, times)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_single_opening_asks_at_the_start_of_the_first_cell_alone() -> None:
    path, rule = VE(), RandomizedMidpoint(places="middle", opening="single")
    x, model = 4.0 * FLOAT64.normal("prior", (2,)), M2().denoiser(path)
    first = model(x, 4.0).noise
    inner = model(x + (2.0 - 4.0) * first + (1.5 - 2.0) * first, 1.5).noise
    expected = x - 2.0 * first + (1.0 - 2.0) * inner + (0.4 - 1.0) * inner
    found = ended(rule, path, x, (4.0, 2.0, 1.0, 0.4))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------ two questions a step


def test_two_stage_steps_by_hand() -> None:
    """2S in λ and Heun in σ̄, on the exploding path, where x is u."""
    path, model = VE(), M2().denoiser(VE())
    x = y = 6.0 * FLOAT64.normal("prior", (2,))
    start = x
    for bar, after in pairwise(UNEVEN):
        middle = math.sqrt(bar * after)
        inside = middle / bar * x + (1.0 - middle / bar) * model(x, bar).clean
        x = after / bar * x + (1.0 - after / bar) * model(inside, middle).clean
        first = (y - model(y, bar).clean) / bar
        euler = y + (after - bar) * first
        y = y + 0.5 * (after - bar) * (first + (euler - model(euler, after).clean) / after)
    for rule, expected in ((DPMSolver2S(), x), (Heun(), y)):
        torch.testing.assert_close(ended(rule, path, start, UNEVEN), expected, rtol=1e-12, atol=1e-12)


MIDDLES = {
    "2s": (DPMSolver2S(stochastic=True), lambda bar, after: math.sqrt(bar * after)),
    "exponential": (MidpointSDE("exponential"), lambda bar, after: math.sqrt(2.0 / (bar**-2 + after**-2))),
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("name", MIDDLES)
def test_stochastic_two_stage_steps_by_hand(name: str, path: AffinePath) -> None:
    """u_m = a·u + (1 − a)·D + f·z₁, u_s = A·u + (1 − A)·D(u_m) + (σ̄_s²/σ̄_m²)·f·z₁ + g·z₂: law and samples."""
    rule, middle_of = MIDDLES[name]
    times, v = times_of(path), TARGET.variance
    total = v + UNEVEN[0] ** 2
    u = M2().start(FLOAT64, path, times[0]) / path.alpha(times[0])
    start, model = u * path.alpha(times[0]), M2().denoiser(VE())
    for i, (bar, after) in enumerate(pairwise(UNEVEN)):
        middle = middle_of(bar, after)
        a, whole = middle**2 / bar**2, after**2 / bar**2
        f, g = middle * math.sqrt(1.0 - a), after * math.sqrt(1.0 - after**2 / middle**2)
        here, there = v / (v + bar**2), v / (v + middle**2)
        own = whole + (1.0 - whole) * there * (a + (1.0 - a) * here)
        first = ((1.0 - whole) * there + after**2 / middle**2) * f
        total = own**2 * total + first**2 + g**2
        one, two = FLOAT64.normal(("middle", i), (2,)), FLOAT64.normal(i, (2,))
        inside = a * u + (1.0 - a) * model(u, bar).clean + f * one
        u = whole * u + (1.0 - whole) * model(inside, middle).clean + after**2 / middle**2 * f * one + g * two
    found = gaussian_law(rule, TARGET, path, times)
    torch.testing.assert_close(found.variance, path.alpha(times[-1]) ** 2 * total, rtol=1e-11, atol=0.0)
    torch.testing.assert_close(ended(rule, path, start, times), path.alpha(times[-1]) * u, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_stochastic_rules_of_the_theory_by_hand(path: AffinePath) -> None:
    """Half of the noise before the question and half after; and the question in the middle of D = σ̄_t² − σ̄_s²."""
    times, model = times_of(path), M2().denoiser(VE())
    u = w = M2().start(FLOAT64, path, times[0]) / path.alpha(times[0])
    start = u * path.alpha(times[0])
    for i, (bar, after) in enumerate(pairwise(UNEVEN)):
        width = bar**2 - after**2
        half = math.sqrt(0.5 * width)
        stirred = u + half * FLOAT64.normal(("first", i), (2,))
        u = stirred - width * model(stirred, bar).noise / bar + half * FLOAT64.normal(i, (2,))
        one, two, middle = FLOAT64.normal(("middle", i), (2,)), FLOAT64.normal(i, (2,)), math.sqrt(bar**2 - 0.5 * width)
        inside = w - 0.5 * width * model(w, bar).noise / bar + half * one
        w = w - width * model(inside, middle).noise / middle + half * (one + two)
    for rule, expected in ((AcceleratedSDE(), u), (MidpointSDE(), w)):
        found = ended(rule, path, start, times)
        torch.testing.assert_close(found, path.alpha(times[-1]) * expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_accelerated_flow_by_hand(path: AffinePath) -> None:
    """In u with h = −ẑ/σ̄: ½D·h + ¼D·(β/β_before)·(h − h_before), h_before of a probe, or of the step before."""
    times, model = times_of(path, NARROW), M2().denoiser(VE())
    start = M2().start(FLOAT64, path, times[0])
    for form in ("probe", "history"):
        u, last = start / path.alpha(times[0]), None
        for i, (bar, after) in enumerate(pairwise(NARROW)):
            width, h = bar**2 - after**2, -model(u, bar).noise / bar
            move = 0.5 * width * h
            if i:
                before = NARROW[i - 1]
                rise = before**2 - bar**2
                beta, older = width / (1.0 + bar**2), rise / (1.0 + before**2)
                if form == "probe":
                    # √α_before·(x − ½β_before·s) in u: the rise counts (1 + σ̄²)/(1 + σ̄_before²) of itself.
                    probe = u - 0.5 * rise * (1.0 + bar**2) / (1.0 + before**2) * h
                    last = -model(probe, before).noise / before
                move = move + 0.25 * width * (beta / older) * (h - last)
            u, last = u + move, h
        found = ended(AcceleratedODE(form), path, start, times)  # type: ignore[arg-type]
        torch.testing.assert_close(found, path.alpha(times[-1]) * u, rtol=1e-10, atol=1e-10)


# --------------------------------------------------------------------------------------------------- variances, noise


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_variances_of_ancestral_steps_by_hand(path: AffinePath) -> None:
    """small: σ̄_s²·(1 − σ̄_s²/σ̄_t²); large: that of x_s given x_t for data N(0, 1); learned: between their logarithms."""
    t, s = times_of(path, (1.9, 0.6))
    x = M2().start(FLOAT64, path, t)
    u, clean, noise = x / path.alpha(t), M2().denoiser(path)(x, t).clean, FLOAT64.normal(0, (2,))
    mean = path.alpha(s) * (0.36 / 3.61 * u + (1.0 - 0.36 / 3.61) * clean)
    small = path.alpha(s) * 0.6 * math.sqrt(1.0 - 0.36 / 3.61)
    large = path.alpha(s) * math.sqrt((3.61 - 0.36) * (1.0 + 0.36) / (1.0 + 3.61))
    if isinstance(path, VP):  # the papers' β_t
        assert large == pytest.approx(path.alpha(t) * math.sqrt(3.61 - 0.36), rel=1e-12)
    for head in (-1.0, -0.4, 0.3, 1.0):
        part = 0.5 * (1.0 + head)
        learned = small ** (1.0 - part) * large**part
        for rule, std in ((Ancestral(), small), (Ancestral("large"), large), (Ancestral("learned"), learned)):
            found = run(solve(rule, path, x, (t, s), FLOAT64), Headed(path, head))  # type: ignore[arg-type]
            torch.testing.assert_close(found, mean + std * noise, rtol=1e-11, atol=1e-11)
    with pytest.raises(PathError, match="predicts none"):
        run(solve(Ancestral("learned"), path, x, (t, s), FLOAT64), M2().denoiser(path))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_part_of_the_noise_of_ddim_by_hand(path: AffinePath) -> None:
    """x_s = α_s·x̂_0 + √(σ_s² − w²)·ẑ + w·z, w = η·σ_s·√(1 − σ̄_s²/σ̄_t²)."""
    t, s = times_of(path, (1.9, 0.6))
    x = M2().start(FLOAT64, path, t)
    estimate, sigma = M2().denoiser(path)(x, t), path.sigma(s)
    for eta in (0.0, 0.3, 1.0):
        fresh = eta * sigma * math.sqrt(1.0 - (0.6 / 1.9) ** 2)
        expected = path.alpha(s) * estimate.clean + math.sqrt(sigma**2 - fresh**2) * estimate.noise
        if eta:
            expected = expected + fresh * FLOAT64.normal(0, (2,))
        told = Conditioning()
        torch.testing.assert_close(ended(DDIM(eta), path, x, (t, s), told), expected, rtol=1e-11, atol=1e-11)
        assert told.keys == ([0] if eta else [])


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_brownian_noise_is_the_normalised_increment_over_the_stretch(path: AffinePath) -> None:
    """Stretches in parts of the span, one key for all; 2S asks for the two halves of its step."""
    low, high = path.t_range
    t, s = times_of(path, (1.9, 0.6))
    x = M2().start(FLOAT64, path, t)

    def part(time: float) -> float:
        return (time - low) / (high - low)

    told = Conditioning()
    found = ended(DPMSolver(stochastic=True, brownian=True), path, x, (t, s), told)
    assert told.stretches == [("brownian", pytest.approx(part(s)), pytest.approx(part(t)))]
    noise = FLOAT64.brownian_increment("brownian", part(s), part(t), (2,)) / math.sqrt(part(t) - part(s))
    plain = ended(DPMSolver(stochastic=True), path, x, (t, s))
    std = path.sigma(s) * math.sqrt(1.0 - (0.6 / 1.9) ** 2)
    torch.testing.assert_close(found - plain, std * (noise - FLOAT64.normal(0, (2,))), rtol=1e-9, atol=1e-11)

    told, middle = Conditioning(), times_of(path, (math.sqrt(1.9 * 0.6),))[0]
    ended(DPMSolver2S(stochastic=True, brownian=True), path, x, (t, s), told)
    assert [(k, pytest.approx(a), pytest.approx(b)) for k, a, b in told.stretches] == [
        ("brownian", part(middle), part(t)),
        ("brownian", part(s), part(middle)),
    ]


def test_keys_of_the_noise() -> None:
    """One normal a step by its index; what comes before a question has a name of its own."""
    times = grids.span_log_snr(2, -2.0, 3.0)(VP())
    x = M2().start(FLOAT64, VP(), times[0])
    named = {
        "ancestral": [0, 1],
        "dpmpp-2m-sde": [0, 1],
        "sa-solver": [0, 1],
        "accelerated-sde": [("first", 0), 0, ("first", 1), 1],
        "sde-midpoint": [("middle", 0), 0, ("middle", 1), 1],
        "dpmpp-2s-sde": [("middle", 0), 0, ("middle", 1), 1],
        "heun": [],
    }
    for name, keys in named.items():
        told = Conditioning()
        ended(sampler(name), VP(), x, times, told)
        assert told.keys == keys

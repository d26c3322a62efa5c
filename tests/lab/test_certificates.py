"""Certificates of deterministic samplers, and what such certificates assume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.denoisers import Denoiser
from ornstein.errors import PathError, UsageError
from ornstein.lab.assumptions import Rippled, rippled_limit, rippled_tv, score_errors, start_tv, start_tv_leading
from ornstein.lab.certificates import certify, monotonicity
from ornstein.lab.extended import SampledStep, at_ou_time, extend, field, jacobian, norm_of, ou_time, pull_back
from ornstein.lab.laws import deterministic_tv
from ornstein.lab.rates import measuring_grid
from ornstein.lab.targets import M1, M2, Giso, M1s, MixtureTarget
from ornstein.paths import VE, VP, AffinePath, Flow, PyramidPath
from ornstein.randomness import Noise, NoiseSource
from ornstein.samplers import (
    DDIM,
    AcceleratedODE,
    DPMSolver,
    DPMSolver2S,
    ExponentialIntegrator,
    Heun,
    Query,
    Sampler,
    run,
    sampler,
    solve,
)
from ornstein.samplers.base import Memory, Step, Steps

PATH = VP()


def uniform(steps: int) -> list[float]:
    """τ from 5 to .01."""
    return [5.0 - 4.99 * i / steps for i in range(steps + 1)]


def halves(steps: int) -> list[float]:
    """Half of the steps equal from τ = 5 to 1, half geometric down to .01."""
    half = steps // 2
    return [5.0 - 4.0 * i / half for i in range(half)] + [0.01 ** (i / (steps - half)) for i in range(steps - half + 1)]


def at(taus: Sequence[float], path: AffinePath = PATH) -> tuple[float, ...]:
    return tuple(at_ou_time(path, tau) for tau in taus)


Rule = Callable[[int], list[float]]
ROWS: list[tuple[Callable[[], MixtureTarget], Rule, tuple[float, ...]]] = [
    (M1, uniform, (0.125, 0.073, 0.040, 0.0205)),
    (M1, halves, (0.0240, 0.0122, 0.0062, 0.0031)),
    (M1s, uniform, (0.371, 0.238, 0.139, 0.075)),
    (M1s, halves, (0.057, 0.029, 0.0145, 0.0074)),
]
COUNTS = (50, 100, 200, 400)


def _check(target: MixtureTarget, rule: Rule, steps: int, printed: float) -> None:
    found = certify(ExponentialIntegrator(), target, PATH, at(rule(steps)), points=1201)
    assert found.tv == pytest.approx(printed, rel=0.02)
    assert 3.0 < found.bound / found.tv < 5.0
    assert 1.0 < found.tight / found.tv < 1.6
    assert found.bound == pytest.approx(found.divergence + found.drift)
    assert sum(found.shares) == pytest.approx(found.bound)
    assert len(found.shares) == steps
    assert found.holds


@pytest.mark.parametrize(("target", "rule", "printed"), ROWS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_bound_holds_and_is_near(
    target: Callable[[], MixtureTarget], rule: Rule, printed: tuple[float, ...]
) -> None:
    """The printed total variations of the exponential integrator, and the printed ratios."""
    _check(target(), rule, COUNTS[0], printed[0])


@pytest.mark.slow
@pytest.mark.parametrize(("target", "rule", "printed"), ROWS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_bound_holds_and_is_near_at_many_steps(
    target: Callable[[], MixtureTarget], rule: Rule, printed: tuple[float, ...]
) -> None:
    for steps, value in zip(COUNTS[1:], printed[1:], strict=True):
        _check(target(), rule, steps, value)


def test_its_total_variation_is_the_exact_one() -> None:
    for rule in (DDIM(), Heun()):
        times = grids.early_stopping(12)(PATH)
        found, exact = certify(rule, M1(), PATH, times), deterministic_tv(rule, M1(), PATH, times, points=2001)
        assert found.tv == pytest.approx(exact, rel=1e-4)
        assert found.tv < found.tight < found.bound


FIELDS: list[tuple[Sampler, AffinePath]] = [
    *((ExponentialIntegrator(freeze), VP()) for freeze in ("score", "noise", "variance")),
    *((Heun(), VE()), (DPMSolver2S(), Flow()), (sampler("collocation-3"), VP()), (AcceleratedODE("probe"), Flow())),
]


@pytest.mark.parametrize(("rule", "path"), FIELDS, ids=lambda value: repr(value)[:40])
def test_the_field_of_a_step_leads_to_its_end(rule: Sampler, path: AffinePath) -> None:
    """The field integrated over the step by Runge and Kutta (100 substeps) gives the numerical step to 1e-9."""
    closed = isinstance(rule, ExponentialIntegrator)
    times = at((0.95, 0.8, 0.7), path)
    step = Step(t=times[1], s=times[2], index=0, before=times[0])
    model, noise = M2().denoiser(path), Noise.of(2, range(6), dtype=torch.float64)
    x = M2().start(noise, path, step.t)
    end = run(rule.step(path, x, step, noise, {}), model) * norm_of(path, step.s)
    width, y = ou_time(path, step.t) - ou_time(path, step.s), x * norm_of(path, step.t)
    count = 100 if closed else 8  # the fields by stencils are dear
    h = width / count

    def w(y: Tensor, r: float) -> Tensor:
        return field(rule, model, step, y, r)

    for i in range(count):
        r = i * h
        one = w(y, r)
        two = w(y + 0.5 * h * one, r + 0.5 * h)
        three = w(y + 0.5 * h * two, r + 0.5 * h)
        four = w(y + h * three, r + h)
        y = y + h / 6.0 * (one + 2.0 * (two + three) + four)
    assert float((y - end).abs().max()) < (1e-9 if closed else 1e-7)


@pytest.mark.parametrize("freeze", ["score", "noise", "variance"])
def test_closed_forms_agree_with_the_samplers_own_step(freeze: str) -> None:
    rule, times = ExponentialIntegrator(freeze), at((0.8, 0.65))  # type: ignore[arg-type]
    step, model = Step(t=times[0], s=times[1], index=0), M2().denoiser(PATH)
    y = M2().start(Noise.of(2, range(6), dtype=torch.float64), PATH, step.t)
    closed, stepped = extend(rule, model, step, y), SampledStep(rule, model, PATH, step, y)
    assert closed.width == pytest.approx(stepped.width)
    for r in (0.02, 0.1, closed.width):
        for one, other in zip(closed.at(r), stepped.at(r), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pull_back(rule, model, step, closed.at(0.1).y, 0.1), y, rtol=1e-12, atol=1e-12)


def test_exploding_and_preserving_paths_are_one_scheme() -> None:
    """u' = u + σ(σ − σ')·h(u) on the exploding path is DDIM in x = √ᾱ·u."""
    bars = (20.0, 9.0, 3.0, 1.1, 0.4, 0.1)
    ve, vp = VE(), VP()
    noise = Noise.of(3, range(32), dtype=torch.float64)
    u = start = M2().start(noise, ve, bars[0])
    for bar, after in pairwise(bars):
        u = u + bar * (bar - after) * M2().score(u, ve, bar)
    times = tuple(vp.time_of(-2.0 * math.log(bar)) for bar in bars)
    for rule in (DDIM(), ExponentialIntegrator("noise")):
        x = run(solve(rule, vp, vp.alpha(times[0]) * start, times, noise), M2().denoiser(vp))
        assert float((x / vp.alpha(times[-1]) - u).abs().max()) < 1e-13 * bars[0]


def test_the_path_does_not_matter() -> None:
    taus = halves(10)
    found = [certify(DDIM(), M1(), p, at(taus, p), points=601) for p in (VP(), VE(sigma_max=200.0), Flow())]
    for other in found[1:]:
        assert (other.bound, other.tight, other.tv) == pytest.approx((found[0].bound, found[0].tight, found[0].tv))


def test_drawn_nodes_agree_with_the_line_and_serve_the_plane() -> None:
    times = at(halves(16))
    line = certify(DDIM(), M1(), PATH, times)
    noise = Noise.of(1, range(4000), dtype=torch.float64)
    drawn = certify(DDIM(), M1(), PATH, times, noise=noise)
    pairs = ((line.bound, drawn.bound), (line.tight, drawn.tight), (line.tv, drawn.tv))
    for (exact, found), error in zip(pairs, drawn.error, strict=True):
        assert 0.0 < error < 0.03 * exact
        assert abs(found - exact) < 4.0 * error
    plane = certify(DDIM(), M2(), PATH, times, noise=Noise.of(1, range(500), dtype=torch.float64))
    assert plane.tv + 3.0 * plane.error[2] < plane.tight < plane.bound


def test_a_wrong_score_is_seen() -> None:
    """Rippled scores: the bound is that of the divergence error, c·T·E|cos| and the drift, and it holds."""
    ripples = Rippled(PATH, 1.0, 10.0)
    times = at([1.2 - i / 32 for i in range(33)])
    found = certify(Heun(), Giso(), PATH, times, denoiser=ripples, points=3001)
    assert found.tv == pytest.approx(rippled_tv(1.0, 10.0), rel=1e-3)
    assert found.divergence == pytest.approx(2.0 / math.pi, rel=1e-3)
    assert found.tv < found.tight < 1.1 * found.tv


def test_what_has_no_certificate_is_refused() -> None:
    times = at(halves(8))
    for name in ("ancestral", "accelerated-sde", "randomized-midpoint"):
        with pytest.raises(UsageError, match="draws noise"):
            certify(sampler(name), M1(), PATH, times)
    for name in ("dpmpp-2m", "unipc", "deis-2", "accelerated-ode-memory"):
        with pytest.raises(UsageError, match="remembers earlier steps"):
            certify(sampler(name), M1(), PATH, times)
    with pytest.raises(UsageError, match="noise="):
        certify(DDIM(), M2(), PATH, times)
    with pytest.raises(UsageError, match="one descent"):
        certify(DDIM(), M1(), PATH, (*times[:3], times[1]))
    with pytest.raises(PathError):
        certify(DDIM(), M1(), PyramidPath(), (2.0, 1.0))  # type: ignore[call-arg]


def test_folds_void_the_certificate() -> None:
    times = measuring_grid("log-snr", 8, 0.01)(PATH)
    found = certify(Heun(), M1s(), PATH, times)
    assert not found.holds
    assert math.isnan(found.bound)
    assert math.isnan(found.tv)
    assert math.isnan(deterministic_tv(Heun(), M1s(), PATH, times, points=2001))


@dataclass(frozen=True)
class NoiseMidpoint:
    """DPM-Solver-2: the noise of the middle in λ, where `DPMSolver2S` keeps the clean estimate."""

    order: int = 2
    needs: type[Any] = AffinePath

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        middle = path.time_of(0.5 * (path.log_snr(step.t) + path.log_snr(step.s)))
        bars = [path.sigma_bar(t) for t in (step.t, middle, step.s)]
        first = yield Query(x, step.t)
        u = x / path.alpha(step.t)
        second = yield Query(path.alpha(middle) * (u + (bars[1] - bars[0]) * first.noise), middle)
        return path.alpha(step.s) * (u + (bars[2] - bars[0]) * second.noise)


FOLDS: list[tuple[Sampler, int, float]] = [
    (DDIM(), 8, 0.013),
    (sampler("dpmpp-2m"), 8, -0.003),
    (Heun(), 8, -26.0),
    (NoiseMidpoint(), 8, -1100.0),
]


@pytest.mark.parametrize(("rule", "steps", "least"), FOLDS, ids=lambda value: repr(value)[:24])
def test_printed_folds(rule: Sampler, steps: int, least: float) -> None:
    """Least derivative of the map on the nearly singular target, equal steps of log-SNR from σ̄ = 80 to .01."""
    times = measuring_grid("log-snr", steps, 0.01)(PATH)
    x = torch.linspace(-7.5, 7.5, 80001, dtype=torch.float64)[:, None]  # the deepest folds are narrow
    found = monotonicity(rule, M1s().denoiser(PATH), x, times)
    assert found.determinants[-1] == pytest.approx(least, rel=0.1, abs=6e-4)
    assert len(found.determinants) == len(found.singular) == steps
    assert (found.folded > 0.0) == (least < 0.0)
    assert found.least <= found.determinants[-1]


def test_first_order_schemes_never_fold() -> None:
    times = measuring_grid("log-snr", 4, 0.01)(PATH)
    x = M1s().start(Noise.of(0, range(400), dtype=torch.float64), PATH, times[0])
    for freeze in ("score", "noise", "variance"):
        found = monotonicity(ExponentialIntegrator(freeze), M1s().denoiser(PATH), x, times)  # type: ignore[arg-type]
        assert found.least > 0.0


def test_singular_values_in_the_plane() -> None:
    """Of an isotropic Gaussian, whose flow is a multiple of the identity; and the sign of a fold in one direction."""
    times = at((2.0, 1.0, 0.5))
    x = Noise.of(0, range(5), dtype=torch.float64).normal("x", (2,))
    found = monotonicity(DPMSolver(), Giso(2).denoiser(PATH), x, times)
    assert found.singular[-1] ** 2 == pytest.approx(found.determinants[-1], rel=1e-12)


PRINTED_LIMITS = {0.25: 0.0794, 0.5: 0.1575, 1.0: 0.3058, 2.0: 0.5512, 4.0: 0.8287}


def test_an_accurate_score_is_not_enough() -> None:
    """The printed table; the total variation does not care how small the error of the score is."""
    for ct, value in PRINTED_LIMITS.items():
        assert rippled_limit(ct) == pytest.approx(value, abs=1e-4)
        y = torch.linspace(0.0, math.pi, 20001, dtype=torch.float64)
        density = 1.0 / (math.cosh(ct) + math.sinh(ct) * y.cos())
        mean = float(torch.trapezoid((density - 1.0).abs(), y)) / math.pi
        assert rippled_limit(ct) == pytest.approx(0.5 * mean, abs=1e-6)
    for frequency, score, tv in ((10, 0.071, 0.3072), (40, 0.018, 0.3059), (160, 0.0044, 0.3058)):
        assert rippled_tv(1.0, frequency) == pytest.approx(tv, abs=1e-4)
        assert Rippled(PATH, 1.0, frequency).errors.score == pytest.approx(score, rel=0.02)
    assert abs(rippled_tv(1.0, 40.0) - rippled_tv(1.0, 160.0)) < 2e-4


def test_score_and_divergence_errors_by_probes() -> None:
    """Against the closed form of the ripples, on each path; an exact denoiser has none."""
    for path in (VP(), VE()):
        t, noise = at_ou_time(path, 0.7), Noise.of(0, range(3000), dtype=torch.float64)
        ripples = Rippled(path, 0.8, 3.0)
        found = score_errors(ripples, Giso(), t, noise)
        assert found.score == pytest.approx(ripples.errors.score, rel=0.03)
        assert found.divergence == pytest.approx(ripples.errors.divergence, rel=0.03)
    noise = Noise.of(0, range(50), dtype=torch.float64)
    exact = score_errors(M2().denoiser(VP()), M2(), 0.4, noise)
    assert exact.score < 1e-12

    def stretched(x: Tensor, time: Tensor) -> Tensor:
        return M2().denoiser(PATH)(x, 0.4).noise - 0.3 * PATH.sigma(0.4) * x * torch.tensor([1.0, -2.0])

    tilted = score_errors(Denoiser(stretched, path=PATH), M2(), 0.4, Noise.of(0, range(400), dtype=torch.float64),
                          probes=200)  # fmt: skip
    assert tilted.divergence == pytest.approx(0.3, rel=0.1)
    with pytest.raises(UsageError, match="two probes"):
        score_errors(ripples, Giso(), 0.5, noise, probes=1)


def test_starting_from_the_prior() -> None:
    """The printed initialisation errors, to 1e-4."""
    vp, ve = VP(), VE()
    assert start_tv(1.0, 1.0, vp, 1.0) == pytest.approx(0.0026, abs=1e-4)
    assert start_tv(1.0, 1.0, ve, 80.0) == pytest.approx(0.0050, abs=1e-4)
    assert start_tv(0.0, 1.0, ve, 10.0) == pytest.approx(0.0024, abs=1e-4)
    assert start_tv(0.0, 1.0, ve, 80.0) == pytest.approx(3.8e-5, abs=1e-6)
    assert start_tv_leading(1.0, 1.0, ve, 10.0) == pytest.approx((0.0398, 0.0024), abs=1e-4)
    assert start_tv_leading(1.0, 2.0, vp, 1.0) == pytest.approx((0.0026, 1.04e-5), abs=1e-4)
    for path, t in ((vp, 1.0), (ve, 80.0)):
        assert start_tv(1.0, 1.0, path, t) == pytest.approx(start_tv_leading(1.0, 1.0, path, t)[0], rel=1e-3)


def test_jacobians() -> None:
    x = torch.tensor([[0.3, -1.2], [2.0, 0.1]], dtype=torch.float64)
    value, slope = jacobian(lambda y: torch.stack((y[:, 0] * y[:, 1], y[:, 0].exp()), dim=1), x)
    torch.testing.assert_close(value, torch.stack((x[:, 0] * x[:, 1], x[:, 0].exp()), dim=1))
    expected = torch.stack((torch.stack((x[:, 1], x[:, 0]), 1), torch.stack((x[:, 0].exp(), 0.0 * x[:, 0]), 1)), 1)
    torch.testing.assert_close(slope, expected)

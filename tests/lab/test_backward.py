"""Errors in law from local errors: against the exact law on the line, and plain Monte Carlo."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from ornstein.errors import UsageError
from ornstein.lab.backward import blurred_w1
from ornstein.lab.meters import gaussian_law
from ornstein.lab.rates import measuring_grid
from ornstein.lab.targets import G8, M1, GaussianTarget, MixtureTarget
from ornstein.paths import VE, VP, Flow
from ornstein.paths.base import AffinePath
from ornstein.randomness import Noise
from ornstein.samplers import DPMSolver, Query, SASolver, run, sampler, solve

BLUR = 0.1


def normal_w1(mean, variance, mean0, variance0):
    """∫ |F − F0| of two blurred normals."""
    y = torch.linspace(-8.0, 8.0, 20001, dtype=torch.float64)
    one, two = (torch.special.ndtr((y - m) / math.sqrt(v + BLUR**2)) for m, v in ((mean, variance), (mean0, variance0)))
    return float((one - two).abs().sum() * (y[1] - y[0]))


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize("name", ["ancestral", "dpmpp-2m-sde", "dpmpp-3m-sde"])
def test_a_gaussian_has_a_closed_form(name, path):
    """The law is known exactly there, memory or not."""
    target, times = GaussianTarget([0.4], [0.3]), measuring_grid("log-snr", 16)(path)
    exact, law = gaussian_law(sampler(name), target, path, times), target.law(path, times[-1])
    expected = normal_w1(float(exact.mean), float(exact.variance), float(law.mean), float(law.variance))
    found = blurred_w1(sampler(name), target, path, times, samples=8000)
    assert found.evaluations == 16
    assert found.w1 == pytest.approx(expected, abs=4.0 * found.noise + 1e-4)
    assert found.noise < 0.006


def test_an_exact_step_has_no_error():
    """One component of no variance: the clean estimate is the point itself, and ancestral steps are exact."""
    times = measuring_grid("log-snr", 8)(VP())
    found = blurred_w1(sampler("ancestral"), MixtureTarget.of([1.0], [[0.3]], stds=[1e-9]), VP(), times, samples=800)
    assert found.w1 < 1e-6


@pytest.mark.slow
def test_plain_monte_carlo_agrees():
    """M1, 10 steps of SDE-DPM-Solver++(2M): the blurred distribution function of 4e5 samples."""
    path, rule, rows = VP(), sampler("dpmpp-2m-sde"), range(400_000)
    times, noise = measuring_grid("log-snr", 10)(path), Noise.of(1, rows)
    end = run(solve(rule, path, M1().start(noise, path, times[0]), times, noise), M1().denoiser(path))
    law = M1().law(path, times[-1])
    blur = BLUR * np.random.default_rng(0).standard_normal((2, len(rows)))
    exact = law.sample(Noise.of(2, rows))[:, 0].numpy() + blur[0]
    plain = float(np.abs(np.sort(end[:, 0].numpy() + blur[1]) - np.sort(exact)).mean())
    found = blurred_w1(rule, M1(), path, times, samples=100_000)
    assert found.w1 == pytest.approx(plain, abs=0.006)


def test_noise_falls_faster_than_the_error_of_first_order():
    found = [
        blurred_w1(sampler("ancestral"), M1(), VP(), measuring_grid("log-snr", n)(VP()), samples=4000) for n in (16, 64)
    ]
    assert math.log(found[0].w1 / found[1].w1) / math.log(4.0) == pytest.approx(1.0, abs=0.15)
    assert found[1].noise < 0.1 * found[1].w1


def test_refusals():
    times = measuring_grid("log-snr", 8)(VP())
    with pytest.raises(UsageError, match="noise before a question"):
        blurred_w1(sampler("accelerated-sde"), M1(), VP(), times, samples=80)
    with pytest.raises(UsageError, match="given them"):
        blurred_w1(sampler("randomized-midpoint"), M1(), VP(), times, samples=80)
    with pytest.raises(UsageError, match="climbs"):
        blurred_w1(SASolver(), M1(), VP(), (0.5, 0.2, 0.4), samples=80)


def test_noise_of_one_brownian_path_is_noise():
    """Increments of a step are normals like any other; what is divided by is the root of the stretch."""
    times = measuring_grid("log-snr", 12)(VP())
    keyed, brownian = (
        blurred_w1(DPMSolver(stochastic=True, brownian=flag), M1(), VP(), times, samples=4000) for flag in (False, True)
    )
    assert brownian.w1 == pytest.approx(keyed.w1, abs=4.0 * keyed.noise)
    assert 0.5 < brownian.noise / keyed.noise < 2.0


@dataclass(frozen=True)
class Asking:
    """DDIM that asks its noise for something else as well, before or after its question."""

    what: str
    order, needs = 1, AffinePath

    def step(self, path, x, step, noise, memory):
        source = noise.fork("of its own")
        if self.what == "before":
            x = x + 0.0 * source.normal(("a", step.index), x.shape[1:])
        found = yield Query(x, step.t)
        if self.what == "uniforms":
            source.uniform_per_sample(0)
        x = path.ddim_step(x, found, path.sigma(step.s) / path.sigma(step.t), step.s)
        for key in ("a", "b") if self.what == "twice" else ():
            x = x + source.normal((key, step.index), x.shape[1:])
        return x


def test_what_has_no_local_errors_is_refused():
    times = measuring_grid("log-snr", 3)(VP())
    for what, said in (("twice", "noise before a question"), ("uniforms", "given them")):
        with pytest.raises(UsageError, match=said):
            blurred_w1(Asking(what), M1(), VP(), times, samples=80)
    # A normal that changes no question is none.
    assert blurred_w1(Asking("before"), M1(), VP(), times, samples=80).evaluations == 3


def test_the_target_must_lie_on_the_line():
    with pytest.raises(UsageError, match="d = 8"):
        blurred_w1(SASolver(), G8(), VP(), measuring_grid("log-snr", 3)(VP()), samples=80)

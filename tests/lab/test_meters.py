"""The meters against closed forms: recursions by hand, error functions, printed constants, Monte Carlo."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from ornstein.lab.laws import deterministic_tv, is_one_step, stochastic_tv
from ornstein.lab.meters import Moments, aligned, gaussian_law, kl, tv_normal, w2
from ornstein.lab.rates import measuring_grid
from ornstein.lab.targets import G8, M1, M2, GaussianTarget
from ornstein.lab.trajectories import coupled, flow
from ornstein.paths import VE, VP, Flow
from ornstein.paths.base import AffinePath
from ornstein.randomness import Noise
from ornstein.samplers.base import Query, plan, run, solve
from ornstein.samplers.ddim import DDIM
from ornstein.samplers.named import SAMPLERS, sampler

PATH = VP()
# The learned variance needs a network's output; Euler on a variance-preserving path does not keep the mean.
UNCONDITIONAL = [name for name in SAMPLERS if name not in ("ancestral-learned", "euler")]


def times_of(steps, path=PATH, grid="log-snr"):
    return measuring_grid(grid, steps)(path)


class ExactFlow:
    """The exact flow map of a Gaussian as a sampler."""

    order, needs = 1, AffinePath

    def __init__(self, target):
        self.target = target

    def step(self, path, x, step, noise, memory):
        yield Query(x, step.t)
        t, s = self.target.law(path, step.t), self.target.law(path, step.s)
        out = x * (s.variance / t.variance).sqrt()
        # Works on a batch of points as on rows of coefficients: the mean is known at both ends.
        if x.shape[0] == 1 or x.shape[0] > 2:
            return s.mean + (x - t.mean) * (s.variance / t.variance).sqrt()
        out[:1] += s.mean - t.mean * (s.variance / t.variance).sqrt()
        return out


def test_exact_flow_has_no_error():
    target, times = G8(), times_of(32)
    found = gaussian_law(ExactFlow(target), target, PATH, times)
    assert kl(found, target.law(PATH, times[-1])) < 1e-24
    line = GaussianTarget([0.3], [0.5])
    assert deterministic_tv(ExactFlow(line), line, PATH, times, points=2001) < 1e-12


def _heun_factor(v, s0, s1):
    d, g0, g1 = s1 - s0, v + s0**2, v + s1**2
    return 1 + (d / 2) * (s0 / g0 + (1 + d * s0 / g0) * s1 / g1)


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_recursions_by_hand(path):
    """DDIM, Heun, ancestral and DDIM(eta) against their variance recursions in u = x/α, relative 1e-12."""
    target, times = G8(), times_of(24, path)
    v = target.variance
    heun = ddim = ancestral = v + path.sigma_bar(times[0]) ** 2
    eta_half = heun.clone()
    for t, s in itertools.pairwise(times):
        s0, s1 = path.sigma_bar(t), path.sigma_bar(s)
        heun = heun * _heun_factor(v, s0, s1) ** 2
        ddim = ddim * ((v + s0 * s1) / (v + s0**2)) ** 2
        q = s1**2 * (1 - s1**2 / s0**2)
        ancestral = ancestral * ((v + s1**2) / (v + s0**2)) ** 2 + q
        keep = math.sqrt(s1**2 - 0.25 * q)
        eta_half = eta_half * ((v + s0 * keep) / (v + s0**2)) ** 2 + 0.25 * q
    scale = path.alpha(times[-1]) ** 2
    expected = {"heun": heun, "ddim": ddim, "ancestral": ancestral, "ddim-eta1": ancestral}
    for name, value in expected.items():
        found = gaussian_law(sampler(name), target, path, times)
        torch.testing.assert_close(found.variance, scale * value, rtol=2e-12, atol=0)
    found = gaussian_law(DDIM(0.5), target, path, times)
    torch.testing.assert_close(found.variance, scale * eta_half, rtol=2e-12, atol=0)


def test_recursions_of_the_theory_papers_by_hand():
    """Accelerated SDE and the midpoint SDE in u, the accelerated ODE's probe in x, relative 1e-12."""
    target, times = G8(), times_of(24)
    v, bars = target.variance, [PATH.sigma_bar(t) for t in times]
    bars_of = [1.0 / (1.0 + bar**2) for bar in bars]
    stirred = middle = v + bars[0] ** 2
    deviation = (v + bars[0] ** 2).sqrt() * math.sqrt(bars_of[0])  # in x, for a variance-preserving path
    for i, (s0, s1) in enumerate(itertools.pairwise(bars)):
        d, g = s0**2 - s1**2, v + s0**2
        stirred = (1 - d / g) ** 2 * (stirred + 0.5 * d) + 0.5 * d
        km = 1 / (v + s0**2 - 0.5 * d)
        middle = middle * (1 - d * km * (1 - 0.5 * d / g)) ** 2 + 0.5 * d * (1 - d * km) ** 2 + 0.5 * d
        a, c = bars_of[i] / bars_of[i + 1], bars_of[i] * v + 1 - bars_of[i]
        beta, bend = 1 - a, 0.0
        if i:
            ap = bars_of[i - 1] / bars_of[i]
            bp, cp = 1 - ap, bars_of[i - 1] * v + 1 - bars_of[i - 1]
            bend = beta**2 / (4 * bp) * (1 / c - ap * (1 + bp / (2 * c)) / cp)
        jump = v / g + s1 / s0 * (1 - v / g)  # the first step, of σ̄ to less than ¾, is DDIM's
        deviation = deviation * (1 - beta / (2 * c) - bend if i else jump) / math.sqrt(a)
    scale = PATH.alpha(times[-1]) ** 2
    expected = {
        "accelerated-sde": scale * stirred,
        "sde-midpoint": scale * middle,
        "accelerated-ode": deviation.square(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(gaussian_law(sampler(name), target, PATH, times).variance, value, rtol=1e-11, atol=0)


def test_two_step_recursion_by_hand():
    """2M with its memory: e' = (S'/S)e + A'(1 − e^{−h})(D + (D − D₋)/(2r)), D = E[x_0] as a deviation."""
    target, times = G8(), times_of(16)
    v = target.variance
    e, before, h0 = target.law(PATH, times[0]).variance.sqrt(), None, None
    for t, s in itertools.pairwise(times):
        a, c = PATH.alpha(t), PATH.alpha(t) ** 2 * v + PATH.sigma(t) ** 2
        h = 0.5 * (PATH.log_snr(s) - PATH.log_snr(t))
        d = a * v * e / c
        guess = d if before is None else d + (d - before) * h / (2 * h0)
        e = PATH.sigma(s) / PATH.sigma(t) * e - PATH.alpha(s) * math.expm1(-h) * guess
        before, h0 = d, h
    found = gaussian_law(sampler("dpmpp-2m"), target, PATH, times)
    torch.testing.assert_close(found.variance, e.square(), rtol=2e-12, atol=0)


ANGLES = ("angle-adams", "angle-adams-explicit")  # hold neither ẑ nor x̂_0 constant, so even the mean has an error


@pytest.mark.parametrize("name", [name for name in UNCONDITIONAL if name not in ANGLES])
def test_mean_is_exact_and_cost_is_planned(name):
    """With an exact start these samplers move the mean exactly; the counter agrees with the dry run."""
    target, times = G8(), times_of(12)
    found = gaussian_law(sampler(name), target, PATH, times)
    torch.testing.assert_close(found.mean, target.law(PATH, times[-1]).mean, rtol=0, atol=1e-12)
    assert found.evaluations == len(plan(sampler(name), PATH, times))


@pytest.mark.parametrize("name", ANGLES)
def test_mean_in_the_angle_converges_like_the_rest(name):
    """The mean's F = (m/s)·sin θ bends, so it is found to the order of the rule and not exactly."""
    target, errors = G8(), list[float]()
    for n in (64, 128, 256):
        times = times_of(n)
        found = gaussian_law(sampler(name), target, PATH, times)
        assert found.evaluations == len(plan(sampler(name), PATH, times))
        errors.append(float((found.mean - target.law(PATH, times[-1]).mean).abs().max()))
    assert math.log2(errors[0] / errors[1]) > 2.7
    assert math.log2(errors[1] / errors[2]) > 2.7


def test_full_covariance_is_its_eigenframe():
    frame = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    v = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
    turned, times = GaussianTarget.full([1.0, 0.0, -1.0], frame @ torch.diag(v) @ frame.T), times_of(12)
    plain = GaussianTarget([0.0] * 3, v)
    a = gaussian_law(sampler("ancestral"), turned, PATH, times)
    b = gaussian_law(sampler("ancestral"), plain, PATH, times)
    torch.testing.assert_close(a.variance.sort()[0], b.variance.sort()[0], rtol=1e-10, atol=0)
    assert kl(a, aligned(turned).law(PATH, times[-1])) == pytest.approx(kl(b, plain.law(PATH, times[-1])), rel=1e-8)


def test_brownian_increments_are_normals():
    """A sampler that takes its noise from a Brownian path has the law of one with independent normals."""
    target, times, rule = G8(), times_of(12), sampler("dpmpp-2m-sde")
    a = gaussian_law(replace(rule, brownian=True), target, PATH, times)
    b = gaussian_law(rule, target, PATH, times)
    torch.testing.assert_close(a.variance, b.variance, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "coarse", "fine"),
    [
        ("ddim", 2.42344e-1, 6.20636e-2),
        ("dpmpp-2m", 1.57710e-2, 1.00766e-3),
        ("accelerated-ode-memory", 3.74841e-2, 2.43872e-3),
        ("accelerated-sde", 8.65246e-2, 5.39625e-3),
    ],
)
def test_regression_w2(name, coarse, fine):
    """G8, λ-uniform grid σ̄ 80 → .02 on a variance-preserving path, N = 32 and 128."""
    for steps, value in ((32, coarse), (128, fine)):
        times = times_of(steps)
        found = w2(gaussian_law(sampler(name), G8(), PATH, times), G8().law(PATH, times[-1]))
        assert found == pytest.approx(value, rel=5e-6)


@pytest.mark.parametrize(
    ("name", "coarse", "fine"),
    [
        ("ddim", 4.7580e-2, 1.1917e-2),
        ("dpmpp-2m", 6.3263e-3, 3.6914e-4),
        ("unipc-3", 3.7710e-4, 2.1597e-6),
        ("accelerated-ode-memory", 8.4695e-3, 6.6307e-4),
    ],
)
def test_regression_tv(name, coarse, fine):
    """M1, the same grid: exact total variation."""
    for steps, value in ((32, coarse), (128, fine)):
        found = deterministic_tv(sampler(name), M1(), PATH, times_of(steps), points=8001)
        assert found == pytest.approx(value, rel=5e-5)


def test_line_laws_agree_with_error_functions():
    target, times = GaussianTarget([0.4], [0.3]), times_of(8)
    end = target.law(PATH, times[-1])

    def expected(name):
        found = gaussian_law(sampler(name), target, PATH, times)
        return tv_normal(float(found.mean), float(found.variance), float(end.mean), float(end.variance))

    assert deterministic_tv(sampler("ddim"), target, PATH, times) == pytest.approx(expected("ddim"), abs=1e-8)
    for name in ("ancestral", "ancestral-large", "dpmpp-2s-sde"):
        assert stochastic_tv(sampler(name), target, PATH, times) == pytest.approx(expected(name), abs=1e-6)


@pytest.mark.parametrize("name", ["accelerated-sde", "sde-midpoint"])
def test_line_laws_of_the_theory_papers_steps(name):
    """They are violent on few steps: 24 of them."""
    target, times = GaussianTarget([0.4], [0.3]), times_of(24)
    end, found = target.law(PATH, times[-1]), gaussian_law(sampler(name), target, PATH, times)
    expected = tv_normal(float(found.mean), float(found.variance), float(end.mean), float(end.variance))
    assert stochastic_tv(sampler(name), target, PATH, times) == pytest.approx(expected, abs=1e-6)


def test_tv_normal():
    assert tv_normal(0.0, 1.0, 0.0, 1.0) == 0.0
    assert tv_normal(0.0, 1.0, 1.0, 1.0) == pytest.approx(math.erf(0.5 / math.sqrt(2)))
    x = torch.linspace(-20, 20, 400001, dtype=torch.float64)
    p, q = (torch.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v) for m, v in ((0.2, 2.0), (-0.3, 0.7)))
    assert tv_normal(0.2, 2.0, -0.3, 0.7) == pytest.approx(0.5 * float((p - q).abs().sum()) * 1e-4, abs=1e-8)


def test_distances_of_small_errors_keep_their_digits():
    law = GaussianTarget([0.0], [2.0])
    found = Moments(law.mean, law.variance * (1 + 1e-9), None, 0)
    assert kl(found, law) == pytest.approx(0.25e-18, rel=1e-6)
    assert w2(found, law) == pytest.approx(math.sqrt(2.0) * 0.5e-9, rel=1e-6)


def test_memory_is_noticed():
    times = times_of(16)
    assert is_one_step(sampler("ancestral"), M1(), PATH, times)
    assert not is_one_step(sampler("dpmpp-2m-sde"), M1(), PATH, times)
    assert not is_one_step(sampler("dpmpp-2m-sde"), M1(), VE(), times_of(16, VE()))


def test_reference_solution_converges():
    noise, target, times = Noise.of(1, range(8)), M2(), times_of(1)
    x, denoiser = target.start(noise, PATH, times[0]), target.denoiser(PATH)
    coarse, fine = (flow(denoiser, x, times[0], times[-1], n) for n in (300, 600))
    assert (coarse - fine).norm(dim=1).median() < 1e-6
    errors = [coupled(sampler("heun"), denoiser, x, times_of(n), noise, fine).median for n in (32, 64)]
    assert 3.0 < errors[0] / errors[1] < 6.0


@pytest.mark.slow
def test_twice_as_close_as_ancestral_sampling_on_a_mixture():
    """TV of ancestral steps over the accelerated SDE's at equal evaluations, as printed: 2.1 to 2.5."""
    for n in (128, 256):
        pair = [stochastic_tv(sampler(name), M1(), PATH, times_of(n)) for name in ("ancestral", "accelerated-sde")]
        assert 2.1 < pair[0] / pair[1] < 2.5


@pytest.mark.slow
def test_halving_the_reference_moves_no_reported_digit():
    """The median distances of the coupled meter, three digits of them."""
    noise, target, times = Noise.of(0, range(64)), M2(), times_of(1)
    x, denoiser = target.start(noise, PATH, times[0]), target.denoiser(PATH)
    fine, half = (flow(denoiser, x, times[0], times[-1], n) for n in (1200, 600))
    for name in ("ddim", "unipc-3"):
        pair = [coupled(sampler(name), denoiser, x, times_of(64), noise, end).median for end in (fine, half)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-3)


@pytest.mark.slow
def test_reference_solution_to_nine_digits():
    noise, target, times = Noise.of(1, range(64)), M2(), times_of(1)
    x, denoiser = target.start(noise, PATH, times[0]), target.denoiser(PATH)
    coarse, fine = (flow(denoiser, x, times[0], times[-1], n) for n in (1500, 3000))
    assert (coarse - fine).norm(dim=1).median() < 1e-9


@pytest.mark.slow
def test_monte_carlo_agrees():
    """A stochastic multistep sampler at N = 8, 1e6 draws a direction: variance within 4 standard errors."""
    target, times, rows = GaussianTarget([0.5, -1.0], [0.05, 3.0]), times_of(8), 1_000_000
    rule = sampler("dpmpp-2m-sde")
    generator = torch.Generator().manual_seed(0)

    class Plain:
        def normal(self, key, event):
            return torch.randn(rows, *event, generator=generator, dtype=torch.float64)

    begin = target.law(PATH, times[0])
    x = begin.mean + begin.variance.sqrt() * torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    x = run(solve(rule, PATH, x, times, Plain()), target.denoiser(PATH))
    exact = gaussian_law(rule, target, PATH, times).variance
    assert ((x.var(0) - exact).abs() < 4.0 * exact * math.sqrt(2.0 / rows)).all()

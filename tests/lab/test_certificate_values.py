"""Certificates, fields and their assumptions in closed form on Gaussians, where every map is a multiple."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

from ornstein.errors import PathError, UsageError
from ornstein.lab.assumptions import Rippled, rippled_tv, score_errors, start_tv, start_tv_leading
from ornstein.lab.certificates import Certificate, Nodes, certify, monotonicity
from ornstein.lab.extended import FrozenStep, SampledStep, affine_of, at_ou_time, extend, field, norm_of, ou_time
from ornstein.lab.meters import tv_normal
from ornstein.lab.perturbed import ScoreError
from ornstein.lab.targets import M2, GaussianTarget, Giso, MixtureTarget
from ornstein.paths import VE, VP, AffinePath, Flow, PyramidPath
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, DPMSolver, ExponentialIntegrator, Heun, Query
from ornstein.samplers.base import Step

DOUBLE = torch.float64
V = 0.3
TAUS = (1.1, 0.95, 0.8, 0.68, 0.55)
LINE = MixtureTarget.of([1.0], [[0.0]], stds=[math.sqrt(V)])
PATHS = {"vp": VP(), "ve": VE(), "flow": Flow()}


def bar_of(tau):
    return math.sqrt(math.exp(2.0 * tau) - 1.0)


def spread(tau, v=V):
    """Variance of y at τ: ᾱ·v + 1 − ᾱ."""
    return math.exp(-2.0 * tau) * v + 1.0 - math.exp(-2.0 * tau)


def factor(tau, after, v=V):
    """Of a DDIM step in y, from its factor (v + σ₀σ₁)/(v + σ₀²) in u."""
    a, b = bar_of(tau), bar_of(after)
    return (v + a * b) / (v + a * a) * math.sqrt((1.0 + a * a) / (1.0 + b * b))


def total(v=V):
    """∑|log of the numerical factor − log of the exact one|: ∫|div(w − v)| where that keeps its sign in a step."""
    return sum(abs(math.log(factor(a, b, v)) - 0.5 * math.log(spread(b, v) / spread(a, v))) for a, b in pairwise(TAUS))


def times_of(path):
    return tuple(at_ou_time(path, tau) for tau in TAUS)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_clock_of_a_path(path):
    """α²/(α² + σ²) = e^{−2τ}, y = x/√(α² + σ²)."""
    t = at_ou_time(path, 0.8)
    a, s = path.alpha(t), path.sigma(t)
    assert a * a / (a * a + s * s) == pytest.approx(math.exp(-1.6), rel=1e-12)
    assert ou_time(path, t) == pytest.approx(0.8, rel=1e-12)
    assert norm_of(path, t) == pytest.approx((a * a + s * s) ** -0.5, rel=1e-12)
    with pytest.raises(PathError, match="PyramidPath has no alpha"):
        affine_of(PyramidPath())


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_certificate_on_the_line_in_closed_form(path):
    """div(w − v) = a(r), the drift −a·y²/V: equal shares, and a positive part of 2φ(1) = .4839 of one of them."""
    found = certify(DDIM(), LINE, path, times_of(path), points=2001)
    assert found.divergence == pytest.approx(total(), rel=2e-4)
    assert found.drift == pytest.approx(total(), rel=2e-4)
    assert found.bound == pytest.approx(2.0 * total(), rel=2e-4)
    assert found.tight == pytest.approx(2.0 * math.exp(-0.5) / math.sqrt(2.0 * math.pi) * total(), rel=2e-3)
    ends = math.prod(factor(a, b) for a, b in pairwise(TAUS))
    assert found.tv == pytest.approx(tv_normal(0.0, ends**2 * spread(TAUS[0]), 0.0, spread(TAUS[-1])), abs=1e-6)
    assert found.least == pytest.approx(ends, rel=1e-9)
    one = abs(math.log(factor(*TAUS[:2])) - 0.5 * math.log(spread(TAUS[1]) / spread(TAUS[0])))
    assert found.shares[0] == pytest.approx(2.0 * one, rel=2e-4)
    assert found.error == (0.0, 0.0, 0.0)
    assert found.holds


def test_a_certificate_in_the_plane_in_closed_form():
    """Isotropic: div 2a, drift −a·|y|²/V with a mean of 2a, and a positive part of (2/e)·a."""
    plane, path = GaussianTarget([0.0, 0.0], [V, V]), VP()
    noise = Noise.of(1, range(4000), dtype=DOUBLE)
    found = certify(DDIM(), plane, path, times_of(path), noise=noise)
    assert abs(found.divergence - 2.0 * total()) < 0.02 * total()
    assert abs(found.bound - 4.0 * total()) < 4.0 * found.error[0]
    assert abs(found.tight - 2.0 / math.e * total()) < 4.0 * found.error[1]
    assert 0.0 < found.error[1] < 0.05 * found.tight
    ends = math.prod(factor(a, b) for a, b in pairwise(TAUS))
    assert found.least < ends**2 * 1.0001
    # The law of |y|² is a multiple of χ² with two degrees of freedom.
    ratio = ends**2 * spread(TAUS[0]) / spread(TAUS[-1])
    cut = 2.0 * math.log(ratio) / (1.0 - 1.0 / ratio)
    exact = abs(math.exp(-0.5 * cut) - math.exp(-0.5 * cut / ratio))
    assert abs(found.tv - exact) < 4.0 * found.error[2]


def test_errors_of_drawn_nodes_are_standard_errors():
    """Over twenty draws of the nodes the spread of the bound is what one draw says of itself."""
    path, plane = VP(), GaussianTarget([0.0, 0.5], [V, 2.0])
    runs = [
        certify(DDIM(), plane, path, times_of(path)[:3], noise=Noise.of(i, range(300), dtype=DOUBLE)) for i in range(20)
    ]
    for j, name in enumerate(("bound", "tight", "tv")):
        values = torch.tensor([getattr(one, name) for one in runs])
        said = sum(one.error[j] for one in runs) / 20
        assert float(values.std()) == pytest.approx(said, rel=0.5)


def test_nodes_integrate_a_density():
    """∫ p = 1 and ∫ y²·p on the line and over draws; points far out do not count for folds."""
    target, path, t = MixtureTarget.of([1.0], [[0.7]], stds=[0.5]), Flow(), 0.6
    scale = norm_of(path, t)
    law = target.law(path, t)
    mean, variance = scale * float(law.means), scale**2 * float(law.variances)
    for nodes, rel in (
        (Nodes.line(target, path, t, 1001), 1e-9),
        (Nodes.drawn_from(target, path, t, Noise.of(0, range(4000), dtype=DOUBLE)), 0.05),
    ):
        y = nodes.y[:, 0]
        p = torch.exp(-((y - mean) ** 2) / (2.0 * variance)) / math.sqrt(2.0 * math.pi * variance)
        mass = nodes.log_weight.exp() * p
        assert float(mass.sum()) == pytest.approx(1.0, rel=1e-9)
        assert float((mass * y).sum()) == pytest.approx(mean, rel=rel)
        assert float((mass * (y - mean) ** 2).sum()) == pytest.approx(variance, rel=rel)
        inner = (y - mean).abs() < 7.0 * math.sqrt(variance)
        assert bool(nodes.counted[inner].all())
        assert nodes.drawn == (rel > 0.01)
    line = Nodes.line(target, path, t, 1001)
    assert not bool(line.counted[0])
    assert float(line.y[0, 0]) == pytest.approx(mean - 7.5 * math.sqrt(variance), rel=1e-9)


def test_a_certificate_that_holds_says_so():
    fine = Certificate(bound=1.0, tight=0.5, tv=0.4, divergence=0.6, drift=0.4, shares=(1.0,), least=1e-9)
    assert fine.holds
    assert fine.error == (0.0, 0.0, 0.0)
    assert not Certificate(bound=1.0, tight=0.5, tv=0.4, divergence=0.6, drift=0.4, shares=(1.0,), least=0.0).holds


def test_what_draws_noise_has_no_map():
    @dataclass(frozen=True)
    class Asks:
        """A rule that asks its noise for one thing."""

        what: str
        order: int = 1
        needs: type[Any] = AffinePath

        def step(self, path, x, step, noise, memory):
            yield Query(x, step.t)
            if self.what == "uniform":
                noise.fork("a").uniform(0)
            elif self.what == "uniforms":
                noise.uniform_per_sample(0)
            else:
                noise.brownian_increment(0, 0.0, 1.0, x.shape[1:])
            return x

    for what in ("uniform", "uniforms", "increment"):
        with pytest.raises(UsageError, match="this one draws noise"):
            certify(Asks(what), LINE, VP(), times_of(VP()))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("freeze", ["score", "noise", "variance"])
def test_the_three_frozen_steps_in_closed_form(freeze, path):
    """y_r, its derivative in y and both rates against the formulas in u, by differences in r."""
    tau, width = 0.9, 0.25
    step = Step(t=at_ou_time(path, tau), s=at_ou_time(path, tau - width), index=0)
    y = torch.tensor([[0.4], [-1.3]], dtype=DOUBLE)
    flow = extend(ExponentialIntegrator(freeze), GaussianTarget([0.0], [V]).denoiser(path), step, y)
    assert isinstance(flow, FrozenStep)
    assert flow.width == pytest.approx(width, rel=1e-10)

    def multiple(r):
        a, b = bar_of(tau), bar_of(tau - r)
        noise = a / (V + a * a)  # of u
        if freeze == "noise":
            change = (b - a) * noise
        elif freeze == "variance":
            change = (b * b - a * a) / (2.0 * a) * noise
        else:  # the score of y, whose linear part is exact
            e = math.exp(r)
            return e - (e - 1.0) / spread(tau)
        return (1.0 + change) * math.sqrt((1.0 + a * a) / (1.0 + b * b))

    for r in (0.1, width):
        found, h = flow.at(r), 1e-5
        rate = (multiple(r + h) - multiple(r - h)) / (2.0 * h)
        torch.testing.assert_close(found.y, multiple(r) * y, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.jacobian, torch.full((2, 1, 1), multiple(r), dtype=DOUBLE), rtol=1e-10, atol=0)
        torch.testing.assert_close(found.rate, rate * y, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.jacobian_rate, torch.full((2, 1, 1), rate, dtype=DOUBLE), rtol=1e-7, atol=0)
        for one, other in zip(flow.reach(r), found[:2], strict=True):
            assert torch.equal(one, other)
    w = field(ExponentialIntegrator(freeze), GaussianTarget([0.0], [V]).denoiser(path), step, y, 0.1)
    rate = (multiple(0.1 + 1e-5) - multiple(0.1 - 1e-5)) / 2e-5
    torch.testing.assert_close(w, rate / multiple(0.1) * y, rtol=1e-6, atol=1e-7)


def test_which_rules_have_a_closed_form():
    """DDIM and its other name freeze the noise; everything else is followed by its own steps, from themselves at 0."""
    path = VP()
    step, y = Step(t=at_ou_time(path, 0.9), s=at_ou_time(path, 0.7), index=0), torch.ones(1, 2, dtype=DOUBLE)
    model = M2().denoiser(path)
    for rule in (DDIM(), DPMSolver(points=1)):
        flow = extend(rule, model, step, y)
        assert isinstance(flow, FrozenStep)
        assert flow.freeze == "noise"
    stepped = extend(Heun(), model, step, y)
    assert isinstance(stepped, SampledStep)
    value, slope = stepped.reach(0.0)
    assert torch.equal(value, y)
    assert torch.equal(slope, torch.eye(2, dtype=DOUBLE)[None])
    assert stepped.width == pytest.approx(0.2, rel=1e-10)


def test_a_fold_has_no_inverse():
    """Heun over a long step on three points of no width."""
    path = VP()
    spikes = MixtureTarget.of([1.0, 1.0], [[-1.0], [1.0]], stds=[0.01, 0.01])
    step = Step(t=at_ou_time(path, 0.3), s=at_ou_time(path, 0.002), index=0)
    y = torch.linspace(-1.0, 1.0, 9, dtype=DOUBLE)[:, None]
    with pytest.raises(UsageError, match="it may fold"):
        field(Heun(), spikes.denoiser(path), step, y, ou_time(path, step.t) - ou_time(path, step.s))


def test_monotonicity_in_closed_form():
    """Determinants multiply, the least singular value is that of the narrowest direction, and nothing folds."""
    path, target = VE(), GaussianTarget([0.4, -1.0], [0.3, 2.0])
    bars = (3.0, 1.2, 0.5)
    found = monotonicity(DDIM(), target.denoiser(path), torch.ones(3, 2, dtype=DOUBLE), bars)
    grown = torch.ones(2, dtype=DOUBLE)
    for i, (a, b) in enumerate(pairwise(bars)):
        grown = grown * (target.variance + a * b) / (target.variance + a * a)
        assert found.determinants[i] == pytest.approx(float(grown.prod()), rel=1e-10)
        assert found.singular[i] == pytest.approx(float(grown.min()), rel=1e-10)
    assert found.folded == 0.0
    assert found.least == min(found.determinants) == found.determinants[-1]
    with pytest.raises(UsageError, match="one descent"):
        monotonicity(DDIM(), target.denoiser(path), torch.ones(1, 2, dtype=DOUBLE), (1.0, 0.5, 0.7))


# --------------------------------------------------------------------------------------------------------- assumptions


@pytest.mark.parametrize("frequency", [0.4, 3.0])
def test_errors_of_ripples_are_integrals(frequency):
    y = torch.linspace(-12.0, 12.0, 40001, dtype=DOUBLE)
    p = torch.exp(-0.5 * y * y) / math.sqrt(2.0 * math.pi)
    found = Rippled(VP(), 0.8, frequency).errors
    for value, wave in (
        (found.score, torch.sin(frequency * y) / frequency),
        (found.divergence, torch.cos(frequency * y)),
    ):
        assert value == pytest.approx(0.8 * math.sqrt(float(torch.trapezoid(p * wave * wave, y))), rel=1e-9)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_rippled_score_by_hand(path):
    t = at_ou_time(path, 0.7)
    x, ripples = torch.tensor([[0.4], [-1.1]], dtype=DOUBLE), Rippled(path, 0.8, 3.0)
    norm = math.hypot(path.alpha(t), path.sigma(t))
    expected = (-x / norm + 0.8 / 3.0 * torch.sin(3.0 * x / norm)) / norm
    for answer in (ripples(x, t), ripples.with_condition({})(x, t), *ripples.predict_conditions(x, t, [{}, {}])):
        torch.testing.assert_close(answer.score, expected, rtol=1e-12, atol=1e-12)
    assert len(ripples.predict_conditions(x, t, [{}, {}])) == 2


@pytest.mark.parametrize(("cT", "frequency"), [(0.7, 2.0), (1.5, 5.0)])
def test_total_variation_of_ripples_by_integrating_the_flow(cT, frequency):
    """dy/ds = (c/w)·sin(w·y) from N(0, 1), by many steps of Euler on the inverse, and its Jacobian."""
    y = torch.linspace(-8.0, 8.0, 40001, dtype=DOUBLE)
    start, log = y.clone(), torch.zeros_like(y)
    n = 400
    h = cT / n
    for _ in range(n):
        middle = start - 0.5 * h * torch.sin(frequency * start) / frequency
        log = log - h * torch.cos(frequency * middle)
        start = start - h * torch.sin(frequency * middle) / frequency
    gap = torch.exp(-0.5 * start**2 + log) - torch.exp(-0.5 * y**2)
    exact = 0.5 * float(torch.trapezoid(gap.abs(), y)) / math.sqrt(2.0 * math.pi)
    assert rippled_tv(cT, frequency, 512) == pytest.approx(exact, rel=5e-5)
    assert rippled_tv(cT, frequency) == pytest.approx(exact, rel=1e-3)  # 64 points a ripple


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("probes", [2, 3, 16])
def test_score_errors_on_the_line_are_exact(path, probes):
    """One dimension: the square of a random sign is one, so any number of probes gives the divergence itself."""
    t, noise, target = at_ou_time(path, 0.7), Noise.of(2, range(40), dtype=DOUBLE), GaussianTarget([0.3], [V])
    found = score_errors(ScoreError(scale=0.1)(target.denoiser(path)), target, t, noise, probes=probes)
    norm, v = math.hypot(path.alpha(t), path.sigma(t)), spread(0.7)
    y = (target.start(noise, path, t) - path.alpha(t) * 0.3) / norm
    assert found.score == pytest.approx(0.1 * math.sqrt(float(y.square().mean())) / v, rel=1e-9)
    assert found.divergence == pytest.approx(0.1 / v, rel=1e-9)


def test_score_errors_refuse():
    class Elsewhere:
        path = PyramidPath()

    with pytest.raises(UsageError, match="two probes or more, got 1"):
        score_errors(Giso().denoiser(VP()), Giso(), 0.5, Noise.of(0, range(2)), probes=1)
    with pytest.raises(UsageError, match="not on PyramidPath"):
        score_errors(Elsewhere(), Giso(), 1.0, Noise.of(0, range(2)))


@pytest.mark.parametrize(
    ("path", "t"), [(VP(), 0.6), (Flow(), 0.9), (VE(), 0.8), (VE(), 30.0)], ids=["vp", "flow", "ve-low", "ve"]
)
def test_the_error_of_the_start_by_hand(path, t):
    """Against N(0, σ²) where σ exceeds one, N(0, 1) elsewhere; leading terms of the mean and of the variance."""
    a, s = path.alpha(t), path.sigma(t)
    prior = s * s if s > 1.0 else 1.0
    assert start_tv(2.0, 3.0, path, t) == pytest.approx(tv_normal(2.0 * a, 3.0 * a * a + s * s, 0.0, prior), rel=1e-12)
    level = prior / (a * a)
    change = 3.0 if s > 1.0 else 2.0
    expected = (2.0 / math.sqrt(2.0 * math.pi * level), change / (math.sqrt(2.0 * math.pi * math.e) * level))
    assert start_tv_leading(-2.0, 3.0, path, t) == pytest.approx(expected, rel=1e-12)

"""The meters in closed form with everything different at once: means, variances, rows, increments, drawn times."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy import integrate, stats

from ornstein.errors import ConfigError, PathError, UsageError
from ornstein.lab.laws import deterministic_tv, is_one_step, pushed, scale_of, stochastic_tv
from ornstein.lab.meters import (
    Affine,
    Moments,
    NoiseBasis,
    aligned,
    conditional_root_kl,
    gaussian_law,
    kl,
    propagate,
    tv_normal,
    w2,
)
from ornstein.lab.perturbed import ScoreError
from ornstein.lab.rates import measuring_grid
from ornstein.lab.targets import M1, M2, GaussianTarget, MixtureTarget
from ornstein.lab.trajectories import coupled, distances, flow
from ornstein.paths import VE, VP, Flow, PyramidPath
from ornstein.paths.base import AffinePath
from ornstein.randomness import Noise, mix
from ornstein.samplers import DDIM, DPMSolver, RandomizedMidpoint, run, sampler, solve
from ornstein.samplers.base import Query

DOUBLE = torch.float64
TWO = GaussianTarget([0.4, -1.0], [0.3, 2.0])


def moments(mean, variance):
    return Moments(torch.tensor(mean, dtype=DOUBLE), torch.tensor(variance, dtype=DOUBLE), None, 0)


def test_divergence_of_normals_from_each_other():
    """KL(found ‖ law), not the other way round; both means and both variances differ."""

    def divergence(m, v, m0, v0):
        p, q = stats.norm(m, math.sqrt(v)), stats.norm(m0, math.sqrt(v0))
        return integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -30.0, 30.0, points=[m, m0])[0]

    found = moments([0.1, -2.0], [0.5, 1.3])
    expected = divergence(0.1, 0.5, 0.4, 0.3) + divergence(-2.0, 1.3, -1.0, 2.0)
    assert kl(found, TWO) == pytest.approx(expected, rel=1e-8)
    assert kl(moments([0.0], [1.0]), GaussianTarget([1.0], [2.0])) == pytest.approx(0.5 * (math.log(2.0) + 1.0 - 1.0))


def test_transport_between_normals():
    """√∑((m − m₀)² + (s − s₀)²), the distance of the quantile functions."""
    expected = 0.3**2 + 1.0 + (math.sqrt(0.5) - math.sqrt(0.3)) ** 2 + (math.sqrt(1.3) - math.sqrt(2.0)) ** 2
    assert w2(moments([0.1, -2.0], [0.5, 1.3]), TWO) == pytest.approx(math.sqrt(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ((0.2, 2.0), (-0.3, 0.7)),
        ((1.0, 0.5), (-1.0, 0.5)),
        ((0.0, 3.0), (0.0, 0.4)),
        ((0.7, 0.2), (0.6, 0.2)),
    ],
)
def test_total_variation_of_normals(one, two):
    p, q = (stats.norm(m, math.sqrt(v)) for m, v in (one, two))
    points = sorted({one[0], two[0], 0.0})
    exact = 0.5 * integrate.quad(lambda x: abs(p.pdf(x) - q.pdf(x)), -15.0, 15.0, points=points, limit=400)[0]
    assert tv_normal(*one, *two) == pytest.approx(exact, abs=1e-7)
    assert tv_normal(*two, *one) == pytest.approx(exact, abs=1e-7)


def test_rows_of_noise():
    """Same key, same rows; another name, key or shape, others; dense gives every number a row."""
    basis = NoiseBasis()
    for source in (basis, basis.fork("a")):
        source.normal("x", (3,))
        source.normal("y", (2,))
    again = basis.recorded(2)
    assert again.total == 6
    one, two, three = again.normal("x", (3,)), again.normal("y", (2,)), again.fork("a").normal("x", (3,))
    assert one.shape == (6, 3)
    assert torch.equal(one, again.normal("x", (3,)))
    for rows, index in ((one, 2), (two, 3), (three, 4), (again.fork("a").normal("y", (2,)), 5)):
        expected = torch.zeros_like(rows)
        expected[index] = 1.0
        assert torch.equal(rows, expected)
    assert basis.stochastic
    assert not NoiseBasis().stochastic
    dense = NoiseBasis(dense=True)
    dense.normal("x", (2, 2))
    dense.normal("y", (3,))
    rows = dense.recorded(1)
    assert rows.total == 8
    assert torch.equal(rows.normal("x", (2, 2)).flatten(1), torch.eye(8, dtype=DOUBLE)[:, 1:5])
    assert torch.equal(rows.normal("y", (3,)), torch.eye(8, dtype=DOUBLE)[:, 5:])


def test_rows_of_brownian_increments():
    """Variance |t1 − t0|, independent over disjoint stretches, additive, and with the sign of the direction."""
    basis = NoiseBasis()
    for t0, t1 in ((0.2, 0.7), (0.7, 0.3), (0.9, 1.0)):
        basis.brownian_increment("w", t0, t1, (1,))
    again = basis.recorded(1)

    def at(t0, t1):
        return again.brownian_increment("w", t0, t1, (1,))[:, 0]

    assert again.total == 1 + 4  # between .2, .3, .7, .9 and 1
    for t0, t1 in ((0.2, 0.7), (0.3, 0.7), (0.9, 1.0)):
        assert float(at(t0, t1).square().sum()) == pytest.approx(t1 - t0)
        assert torch.equal(at(t1, t0), -at(t0, t1))
    torch.testing.assert_close(at(0.2, 0.3) + at(0.3, 0.7), at(0.2, 0.7))
    assert float(at(0.2, 0.3) @ at(0.9, 1.0)) == 0.0
    assert basis.stochastic
    dense = NoiseBasis(dense=True)
    dense.brownian_increment("w", 0.0, 0.25, (2,))
    dense.normal("x", (2,))
    rows = dense.recorded(1)
    assert rows.total == 5
    assert rows.brownian_increment("w", 0.0, 0.25, (2,)).square().sum(0).tolist() == [0.25, 0.25]
    assert float((rows.brownian_increment("w", 0.0, 0.25, (2,)) * rows.normal("x", (2,))).abs().sum()) == 0.0


def test_drawn_numbers_are_the_true_ones():
    basis = NoiseBasis(times=Noise.of(7, range(1)))
    assert not basis.draws_times
    true = Noise.of(7, range(1)).fork("")
    assert basis.uniform("a") == true.uniform("a")
    assert basis.fork("n").uniform("a") == Noise.of(7, range(1)).fork("/n").uniform("a") != basis.uniform("a")
    assert basis.draws_times
    assert basis.uniform_per_sample("b").tolist() == true.uniform_per_sample("b").tolist()
    other = NoiseBasis()
    other.uniform_per_sample("b")
    assert other.draws_times
    basis.normal("x", (1,))
    assert basis.recorded(3).uniform_per_sample("b").tolist() == 4 * true.uniform_per_sample("b").tolist()


def test_an_affine_denoiser_on_rows():
    """Row 0 sees D(x), the others D(x) − D(0); questions are counted."""
    rows = torch.tensor([[1.0, 2.0], [0.5, 0.0], [0.0, -1.0]], dtype=DOUBLE)
    affine, plain = Affine(TWO.denoiser(VP())), TWO.denoiser(VP())
    found = affine(rows, 0.4).clean
    zero = plain(torch.zeros(1, 2, dtype=DOUBLE), 0.4).clean
    torch.testing.assert_close(found[:1], plain(rows[:1], 0.4).clean)
    torch.testing.assert_close(found[1:], plain(rows[1:], 0.4).clean - zero)
    affine(rows, 0.3)
    assert affine.evaluations == 2
    assert torch.equal(affine.predict_conditions(rows, 0.4, [{}])[0].clean, found)
    assert torch.equal(affine.with_condition({})(rows, 0.4).clean, found)


def test_moments_from_any_start_with_any_denoiser():
    """DDIM on the exploding path multiplies deviations by (v' + σ₀σ₁)/(v' + σ₀²), v' what the denoiser believes."""
    times, believed = (3.0, 1.2, 0.4), GaussianTarget([0.0, 0.0], [0.5, 1.0])
    start = GaussianTarget([1.0, -3.0], [4.0, 0.2])
    found = gaussian_law(DDIM(), TWO, VE(), times, start=start, denoiser=believed.denoiser(VE()))
    factor = torch.ones(2, dtype=DOUBLE)
    for a, b in pairwise(times):
        factor = factor * (believed.variance + a * b) / (believed.variance + a * a)
    torch.testing.assert_close(found.variance, factor**2 * start.variance, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found.mean, factor * start.mean, rtol=1e-12, atol=1e-12)
    assert found.evaluations == 2
    assert found.covariance is None
    with pytest.raises(UsageError, match="1 directions, the target 2"):
        gaussian_law(DDIM(), TWO, VE(), times, start=GaussianTarget([0.0], [1.0]))


def test_a_dense_run_knows_the_covariance():
    """Ancestral steps with a full covariance: the covariance is that of the eigenframe, turned back."""
    frame = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))[0]
    turned = GaussianTarget([1.0, -2.0], [0.3, 2.0], frame)
    times = (3.0, 1.2, 0.4)
    law = turned.law(VE(), times[0])
    root = (frame * law.variance.sqrt()).T
    found = propagate(sampler("ancestral"), turned.denoiser(VE()), times, law.mean, root, dense=True)
    plain = gaussian_law(sampler("ancestral"), turned, VE(), times)
    torch.testing.assert_close(found.covariance, frame @ torch.diag(plain.variance) @ frame.T, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.variance, found.covariance.diagonal(), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(frame.T @ found.mean, plain.mean, rtol=1e-11, atol=1e-12)
    assert aligned(TWO) is TWO
    torch.testing.assert_close(aligned(turned).mean, frame.T @ turned.mean)


def test_the_conditional_error_is_the_root_of_the_mean_divergence():
    rule, times = RandomizedMidpoint(), measuring_grid("log-snr", 8)(VP())
    law = TWO.law(VP(), times[-1])
    found = [kl(gaussian_law(rule, TWO, VP(), times, seed=mix("lab", "times", i)), law) for i in range(3)]
    assert conditional_root_kl(rule, TWO, VP(), times, 3) == pytest.approx(math.sqrt(sum(found) / 3), rel=1e-12)
    assert len(set(found)) == 3


# --------------------------------------------------------------------------------------------------- laws on the line


def test_scale_of_a_law():
    target, path = M1(), VP()
    w, m, v = ([0.3, 0.5, 0.2], [-1.5, 0.4, 1.8], [0.09, 0.25, 0.0225])
    mean = sum(a * b for a, b in zip(w, m, strict=True))
    variance = sum(a * (b + (c - mean) ** 2) for a, b, c in zip(w, v, m, strict=True))
    a, s = path.alpha(0.3), path.sigma(0.3)
    assert scale_of(target, path, 0.3) == pytest.approx((a * mean, math.sqrt(a * a * variance + s * s)))
    with pytest.raises(UsageError, match="this one has d = 2"):
        scale_of(M2(), path, 0.3)


def test_a_map_and_its_derivative():
    x = torch.tensor([0.3, -1.0], dtype=DOUBLE)
    path, times = VE(), (2.0, 0.5)
    value, slope = pushed(lambda at: solve(DDIM(), path, at, times, Noise.of(0, range(2))), M1().denoiser(path), x)
    h = 1e-5
    ends = [
        run(solve(DDIM(), path, (x + d)[:, None], times, Noise.of(0, range(2))), M1().denoiser(path))[:, 0]
        for d in (0.0, h, -h)
    ]
    torch.testing.assert_close(value, ends[0])
    torch.testing.assert_close(slope, (ends[1] - ends[2]) / (2.0 * h), rtol=1e-7, atol=1e-9)


@dataclass(frozen=True)
class Shifted:
    """x_s = scale·x + shift, noise of ``spread`` after the question and of ``inside`` before it."""

    scale: float
    shift: float = 0.0
    spread: float = 0.0
    inside: float = 0.0
    order: int = 1
    needs: type[Any] = AffinePath

    def step(self, path, x, step, noise, memory):
        if self.inside:
            x = x + self.inside * noise.normal(("in", step.index), x.shape[1:])
        yield Query(x, step.t)
        x = self.scale * x + self.shift
        return x + self.spread * noise.normal(step.index, x.shape[1:]) if self.spread else x


LINE = MixtureTarget.of([1.0], [[0.4]], stds=[math.sqrt(0.3)])


def test_total_variation_of_a_linear_map():
    """The exact answer of two normals whose mean and variance differ; folds and the window are refused with NaN."""
    path, times = VE(), (2.0, 1.0)
    expected = tv_normal(0.8 * 0.4 + 0.1, 0.64 * 4.3, 0.4, 1.3)
    assert deterministic_tv(Shifted(0.8, 0.1), LINE, path, times) == pytest.approx(expected, abs=1e-9)
    assert math.isnan(deterministic_tv(Shifted(-0.8), LINE, path, times))
    for rule, variance in (
        (Shifted(0.8, 0.1, 0.5), 0.64 * 4.3 + 0.25),
        (Shifted(0.8, 0.1, 0.5, 0.7), 0.64 * (4.3 + 0.49) + 0.25),
    ):
        expected = tv_normal(0.8 * 0.4 + 0.1, variance, 0.4, 1.3)
        assert stochastic_tv(rule, LINE, path, times, points=1024) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(stochastic_tv(Shifted(-0.8, 0.0, 0.1), LINE, path, times, points=256))
    assert math.isnan(stochastic_tv(Shifted(0.8, 12.0, 0.1), LINE, path, times, points=256))


def test_another_denoiser_may_be_measured():
    """The score one percent too large on a Gaussian: the exact law of the linear recursion."""
    path, times, error = VE(), (3.0, 1.5, 0.6), ScoreError(scale=0.2)
    line = GaussianTarget([0.4], [0.3])
    wrong = error(line.denoiser(path))
    for rule, meter in ((DDIM(), deterministic_tv), (sampler("ancestral"), stochastic_tv)):
        found = gaussian_law(rule, line, path, times, denoiser=wrong)
        expected = tv_normal(float(found.mean), float(found.variance), 0.4, 0.3 + 0.36)
        assert meter(rule, LINE, path, times, denoiser=wrong) == pytest.approx(expected, abs=2e-5)


@dataclass(frozen=True)
class Drawn(Shifted):
    """A number of the whole batch, drawn in the step, is the factor."""

    def step(self, path, x, step, noise, memory):
        yield Query(x, step.t)
        return (0.5 + noise.uniform(("part", step.index))) * x


def test_numbers_that_are_drawn_are_those_of_the_seed():
    for seed in (0, 5):
        factor = 0.5 + Noise.of(seed, range(1)).uniform(("part", 0))
        expected = tv_normal(factor * 0.4, factor**2 * 4.3, 0.4, 1.3)
        assert deterministic_tv(Drawn(1.0), LINE, VE(), (2.0, 1.0), seed=seed) == pytest.approx(expected, abs=1e-9)
    assert deterministic_tv(Drawn(1.0), LINE, VE(), (2.0, 1.0)) == deterministic_tv(
        Drawn(1.0), LINE, VE(), (2.0, 1.0), seed=0
    )
    with pytest.raises(UsageError, match="draws its times has no exact law"):
        stochastic_tv(Drawn(1.0), LINE, VE(), (2.0, 1.0))


@dataclass(frozen=True)
class Thrice(Shifted):
    """Three normals before the question."""

    def step(self, path, x, step, noise, memory):
        for k in ("a", "b", "c"):
            x = x + noise.normal((k, step.index), x.shape[1:])
        yield Query(x, step.t)
        return x


def test_brownian_noise_is_noise_of_a_step():
    """A rule that takes increments has the law of one with keyed normals; three normals inside are too dear."""
    path, times = VE(), (2.0, 1.0, 0.5)
    plain, brownian = (DPMSolver(points=1, stochastic=True, brownian=flag) for flag in (False, True))
    found = [stochastic_tv(rule, LINE, path, times, points=256) for rule in (plain, brownian)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    with pytest.raises(UsageError, match="3 normals inside"):
        stochastic_tv(Thrice(1.0), LINE, path, times)


def test_two_times_leave_no_room_for_memory():
    assert is_one_step(DPMSolver(stochastic=True), M1(), VP(), (0.9, 0.1))
    assert is_one_step(DDIM(), M1(), VP(), (0.9, 0.5, 0.1))
    assert not is_one_step(DPMSolver(), M1(), VP(), (0.9, 0.5, 0.1))


# -------------------------------------------------------------------------------------------------------- trajectories


def test_distances_by_hand():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]], dtype=DOUBLE)
    found = distances(x, torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 0.0]], dtype=DOUBLE))
    assert (found.median, found.mean) == (2.0, pytest.approx(7.0 / 3.0))
    assert found.rms == pytest.approx(math.sqrt(29.0 / 3.0))


@pytest.mark.parametrize("path", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_the_flow_of_a_gaussian_is_known(path):
    """x_s = a_s·m + √(c_s/c_t)·(x − a_t·m); of order four in the number of steps."""
    t, s = (path.time_of(log_snr) for log_snr in (-3.0, 2.0))
    x = torch.tensor([[0.3, 1.0], [2.0, -1.0]], dtype=DOUBLE)
    one, two = TWO.law(path, t), TWO.law(path, s)
    exact = two.mean + (two.variance / one.variance).sqrt() * (x - one.mean)
    torch.testing.assert_close(flow(TWO.denoiser(path), x, t, s, 400), exact, rtol=1e-9, atol=1e-9)
    errors = [float((flow(TWO.denoiser(path), x, t, s, n) - exact).abs().max()) for n in (10, 20)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4.0, abs=0.4)
    ended = run(solve(DDIM(), path, x, (t, s), Noise.of(0, range(2))), TWO.denoiser(path))
    found = coupled(DDIM(), TWO.denoiser(path), x, (t, s), Noise.of(0, range(2)), exact)
    assert found == distances(ended, exact)


def test_the_reference_needs_an_affine_path():
    class Elsewhere:
        path = PyramidPath()

    with pytest.raises(PathError, match="PyramidPath has no alpha"):
        flow(Elsewhere(), torch.zeros(1, 2), 2.0, 1.0)


# --------------------------------------------------------------------------------------------------------- wrong scores


def test_score_errors_are_read_and_shown():
    found = ScoreError.parse("scale=0.01, height=0.5,frequency=20")
    assert found == ScoreError(scale=0.01, height=0.5, frequency=20.0)
    assert str(found) == "1.01·s + 0.025·sin(20x)"
    assert str(ScoreError(height=-0.5)) == "s + -0.5·sin(1x)"
    assert str(ScoreError(scale=-0.5)) == "0.5·s"
    assert (found.linear, ScoreError(scale=0.1).linear) == (False, True)
    assert ScoreError() == ScoreError(scale=0.0, height=0.0, frequency=1.0)
    assert ScoreError.parse("height=2").height == 2.0
    assert ScoreError.parse("scale=-0.02").scale == -0.02
    for nothing in ("scale=0", "frequency=3", "height=0,scale=0"):
        with pytest.raises(ConfigError, match="changes nothing"):
            ScoreError.parse(nothing)
    for bad in (
        {"scale": math.nan},
        {"height": math.inf},
        {"frequency": 0.0},
        {"frequency": math.inf},
        {"frequency": -1.0},
    ):
        with pytest.raises(ConfigError, match="finite numbers and a positive frequency"):
            ScoreError(**bad)


def test_a_wrong_score_needs_a_path_with_noise():
    class Elsewhere:
        path = PyramidPath()

    with pytest.raises(PathError, match="no std"):
        _ = ScoreError(scale=0.1)(Elsewhere()).path


def test_a_wrong_score_answers_many_conditions():
    x = torch.linspace(-1.0, 1.0, 4, dtype=DOUBLE)[:, None]
    wrong = ScoreError(scale=0.1, height=0.2)(M1().denoiser(VP()))
    for one in wrong.predict_conditions(x, 0.3, [{}, {}]):
        assert torch.equal(one.noise, wrong(x, 0.3).noise)

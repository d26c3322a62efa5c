"""Closed forms of every path at points where nothing is symmetric, and the edges of tables of betas."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein.errors import ConfigError, GridError
from ornstein.estimates import Estimate
from ornstein.paths import VE, VP, AffinePath, Flow, LocationPath, ShiftedPath
from ornstein.paths.vp import Cosine, Linear, ScaledLinear, Table
from ornstein.randomness import Noise

DOUBLE = torch.float64
LINEAR, SCALED, COSINE = VP(Linear(beta_min=0.3, beta_max=7.0)), VP(ScaledLinear(beta_min=0.4, beta_max=9.0)), Cosine()


def both(f: Any, t: float) -> list[float]:
    """The value at a float, and at the two rows of a tensor of times."""
    found = f(torch.tensor([t, t], dtype=DOUBLE))
    assert isinstance(f(t), float)
    assert found.dtype == DOUBLE
    return [f(t), *found.tolist()]


def theta(t: float, offset: float) -> float:
    return (t + offset) / (1.0 + offset) * math.pi / 2.0


def root_beta(t: float) -> float:
    return math.sqrt(0.4) + t * (3.0 - math.sqrt(0.4))


# α(t), σ(t), α'(t), σ'(t), the network's time; every one written as its paper does.
FORMS: dict[str, tuple[AffinePath, Any, Any]] = {
    "linear": (LINEAR, lambda t: math.exp(-0.25 * t**2 * 6.7 - 0.5 * t * 0.3), lambda t: -0.5 * (0.3 + 6.7 * t)),
    "scaled-linear": (
        SCALED,
        lambda t: math.exp(-0.5 * (root_beta(t) ** 3 - root_beta(0.0) ** 3) / (3.0 * (3.0 - math.sqrt(0.4)))),
        lambda t: -0.5 * root_beta(t) ** 2,
    ),
    "cosine": (
        VP(Cosine(offset=0.02)),
        lambda t: math.cos(theta(t, 0.02)) / math.cos(theta(0.0, 0.02)),
        lambda t: -math.pi / 2.04 * math.tan(theta(t, 0.02)),
    ),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("t", [0.017, 0.31, 0.83])
def test_variance_preserving_schedules_are_the_published_formulas(name: str, t: float) -> None:
    path, alpha, rate = FORMS[name]
    a, slope = alpha(t), rate(t)
    s = math.sqrt(1.0 - a * a)
    for f, wanted in (
        (path.alpha, a),
        (path.sigma, s),
        (path.std, s),
        (path.sigma_bar, s / a),
        (path.log_snr, 2.0 * math.log(a / s)),
        (path.timestep_of, 1000.0 * t),
        (lambda u: path.rates(u)[0], a * slope),
        (lambda u: path.rates(u)[1], -a * a * slope / s),
        (lambda u: path.time_of(path.log_snr(u)), t),
        (lambda u: path.time_of(u * 0.0 + 2.0 * math.log(a / s)), t),
    ):
        assert both(f, t) == pytest.approx([wanted] * 3, rel=1e-10)


@pytest.mark.parametrize("t", [0.017, 0.31, 0.83])
def test_flow_and_exploding_paths_are_the_published_formulas(t: float) -> None:
    flow, ve = Flow(), VE(sigma_max=70.0)
    for path, values in (
        (flow, (1.0 - t, t, -1.0, 1.0, 1000.0 * t)),
        (ve, (1.0, t, 0.0, 1.0, math.log(t) / 4.0)),
    ):
        alpha, sigma, d_alpha, d_sigma, clock = values
        for f, wanted in (
            (path.alpha, alpha),
            (path.sigma, sigma),
            (path.std, sigma),
            (path.sigma_bar, sigma / alpha),
            (path.log_snr, 2.0 * math.log(alpha / sigma)),
            (path.timestep_of, clock),
            (lambda u, p=path: p.rates(u)[0], d_alpha),
            (lambda u, p=path: p.rates(u)[1], d_sigma),
            (lambda u, p=path: p.time_of(p.log_snr(u)), t),
        ):
            assert both(f, t) == pytest.approx([wanted] * 3, rel=1e-13)
    assert (VE(sigma_min=0.3).t_min, ve.t_range, ve.t_min, flow.t_min, flow.t_range) == (
        0.3,
        (0, 70.0),
        0.002,
        1e-3,
        (0, 1),
    )


@pytest.mark.parametrize("t", [1e-9, 1e-6])
@pytest.mark.parametrize("schedule", [Linear(), ScaledLinear(), Cosine()])
def test_small_times_keep_their_digits_in_every_schedule(schedule: Any, t: float) -> None:
    """log α is its slope times t there, and its inverse is that divided by it."""
    wanted = t * schedule.rate(0.5 * t)  # the midpoint rule, exact to t² beside one
    assert both(schedule.log_alpha, t) == pytest.approx([wanted] * 3, rel=1e-6)
    # Cosine's inverse is an arc cosine near one, which keeps half of the digits.
    rel, smallest = (1e-6, 0.0) if isinstance(schedule, Linear) else (1e-6, 1e-12)
    assert schedule.time_of(schedule.log_alpha(t)) == pytest.approx(t, rel=rel, abs=smallest)


# ---------------------------------------------------------------------------------------------------- tables of betas

BETAS = (0.1, 0.45, 0.2, 0.6)
LOGS = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.array(BETAS)))])


def test_a_table_is_linear_in_log_alpha_between_its_nodes() -> None:
    table = Table(betas=BETAS)
    path = VP.from_betas(list(BETAS))
    assert path.schedule == table
    assert (table.t_range, table.t_min, table.ends_in_noise) == ((0.0, 1.0), 0.25, False)
    points = [0.0, 0.1, 0.25, 0.3, 0.5, 0.62, 0.75, 0.99, 1.0]
    wanted = np.interp(points, np.arange(5) / 4, LOGS)
    for t, value in zip(points, wanted, strict=True):
        assert both(table.log_alpha, t) == pytest.approx([value] * 3, rel=1e-14)
        assert both(path.alpha, t) == pytest.approx([math.exp(value)] * 3, rel=1e-14)
        assert both(table.time_of, float(value)) == pytest.approx([t] * 3, rel=1e-14)
        assert both(table.timestep_of, t) == [4.0 * t - 1.0] * 3
    for outside, value in ((-0.3, 0.0), (1.4, LOGS[-1])):
        assert both(table.log_alpha, outside) == pytest.approx([value] * 3)
        assert both(table.time_of, float(value) - outside) == pytest.approx([min(max(outside, 0.0), 1.0)] * 3)
    slopes = 4.0 * np.diff(LOGS)
    for t, place in ((0.0, 0), (0.1, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.7, 2), (0.8, 3), (1.0, 3), (1.5, 3)):
        assert both(table.rate, t) == pytest.approx([slopes[place]] * 3, rel=1e-14)


def test_a_table_without_noise_at_its_end_is_linear_in_alpha_there() -> None:
    betas = (0.1, 0.45, 0.2, 1.0)
    table, path = Table(betas=betas), VP.from_betas(betas)
    logs = 0.5 * np.cumsum(np.log1p(-np.array(betas[:3])))
    assert table.ends_in_noise
    assert (path.alpha(1.0), path.sigma(1.0), path.log_snr(1.0)) == (0.0, 1.0, -math.inf)
    for t in (0.1, 0.25, 0.5, 0.7, 0.75):
        before = Table(betas=betas[:3])
        assert both(table.log_alpha, t) == pytest.approx([before.log_alpha(t * 4 / 3)] * 3, rel=1e-12)
        assert both(table.time_of, table.log_alpha(t)) == pytest.approx([t] * 3, rel=1e-12)
    last = math.exp(logs[-1])
    for t in (0.76, 0.8, 0.9, 0.99):
        left = 4.0 * (1.0 - t)
        assert both(path.alpha, t) == pytest.approx([last * left] * 3, rel=1e-12)
        assert both(table.rate, t) == pytest.approx([-4.0 / left] * 3, rel=1e-12)
        assert both(lambda u: path.rates(u)[0], t) == pytest.approx([-4.0 * last] * 3, rel=1e-12)
        assert both(table.time_of, math.log(last * left)) == pytest.approx([t] * 3, rel=1e-12)
    assert both(table.time_of, -math.inf) == [1.0] * 3
    assert both(table.rate, 1.0) == pytest.approx([-4e12] * 3)
    assert both(table.rate, 0.75) == pytest.approx([4.0 * (logs[2] - logs[1])] * 3, rel=1e-12)
    assert all(map(math.isfinite, both(table.rate, 1.0)))


def test_a_hair_below_a_node_is_the_node() -> None:
    table = Table(betas=BETAS)
    for place, t in ((0, 0.25), (1, 0.5), (2, 0.75)):
        # The slope is that of the segment before, also where N·t has rounded upwards.
        for near in (t, t * (1.0 + 1e-15), t * (1.0 - 1e-15)):
            assert both(table.rate, near) == pytest.approx([4.0 * (LOGS[place + 1] - LOGS[place])] * 3, rel=1e-12)
            assert both(table.log_alpha, near) == pytest.approx([LOGS[place + 1]] * 3, rel=1e-12)
        for hair, segment in ((0.8e-9, place), (1.2e-9, place + 1)):  # a billionth of a segment
            slope = 4.0 * (LOGS[segment + 1] - LOGS[segment])
            assert both(table.rate, t + hair / 4) == pytest.approx([slope] * 3, rel=1e-12)
    whole = Table(betas=tuple(np.linspace(1e-4, 0.02, 1000).tolist()))
    exact = 0.5 * np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
    found = [whole.log_alpha((k + 1) / 1000) for k in range(1000)]
    tensors = whole.log_alpha(torch.arange(1, 1001, dtype=DOUBLE) / 1000).tolist()
    assert (
        found[:-1] == tensors[:-1] == exact[:-1].tolist()
    )  # the nodes themselves, bit for bit; the last ends a segment
    assert found[-1] == pytest.approx(exact[-1], rel=1e-14)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_usual_tables_have_the_usual_betas(steps: int) -> None:
    found = {kind: np.array(VP.table(kind, steps).schedule.betas) for kind in ("linear", "scaled-linear", "cosine")}  # type: ignore[attr-defined]
    np.testing.assert_allclose(found["linear"], np.linspace(1e-4, 0.02, steps), rtol=1e-14)
    roots = np.linspace(0.00085**0.5, 0.012**0.5, steps)
    np.testing.assert_allclose(found["scaled-linear"], roots**2, rtol=1e-14)
    bars = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(found["cosine"], np.minimum(1.0 - bars[1:] / bars[:-1], 0.999), rtol=1e-9)
    own = np.array(VP.table("scaled-linear", steps, 0.01, 0.04).schedule.betas)  # type: ignore[attr-defined]
    np.testing.assert_allclose(own, np.linspace(0.1, 0.2, steps) ** 2, rtol=1e-14)
    own = np.array(VP.table("linear", steps, 0.01, 0.04).schedule.betas)  # type: ignore[attr-defined]
    np.testing.assert_allclose(own, np.linspace(0.01, 0.04, steps), rtol=1e-14)


def test_the_cosine_table_is_that_of_diffusers_to_its_last_step() -> None:
    from diffusers import DDPMScheduler

    # Theirs is a product of float32 numbers; ᾱ of the last step is 2.4e-9, so only relative digits tell its cap, and
    # 1 − 0.999 has lost three of them there.
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double().numpy()
    ours = np.array([VP.table("cosine").alpha((k + 1) / 1000) ** 2 for k in range(1000)])
    np.testing.assert_allclose(ours[:-1], theirs[:-1], rtol=3e-6)
    np.testing.assert_allclose(ours[-1], theirs[-1], rtol=3e-5)
    assert VP.table("cosine").schedule.betas[-1] == 0.999  # type: ignore[attr-defined]


def test_ranges_of_betas_and_schedules_at_their_edges() -> None:
    for betas in ((0.5,), (1.0,), (0.3, 1.0), (1e-9, 1 - 1e-9)):
        Table(betas=betas)
    for betas in (
        (0.5, 0.0, 0.5),
        (0.5, 0.5, 1.5, 0.5),
        (0.0,),
        (0.5, 0.0),
        (0.0, 0.5),
        (1.0, 0.5),
        (-0.1, 0.5),
        (0.5, 1.0 + 1e-9),
    ):
        with pytest.raises(ConfigError, match="check"):
            Table(betas=betas)
    with pytest.raises(ConfigError, match=r"^betas must be a list \(a number each\), got \(0\.5, nan\)$"):
        Table(betas=(0.5, math.nan))
    for make in (Linear, ScaledLinear):
        for options in ({"beta_min": 0.0}, {"beta_min": 2.0, "beta_max": 2.0}, {"beta_max": math.inf}):
            with pytest.raises(ConfigError, match="0 < beta_min < beta_max"):
                make(**options)
    for options in ({"offset": 0.0}, {"t_range": (0.0, 1.0)}):
        with pytest.raises(ConfigError, match="offset > 0"):
            Cosine(**options)  # type: ignore[arg-type]
    for options in ({"sigma_min": 0.0}, {"sigma_min": 80.0}, {"sigma_max": math.inf}):
        with pytest.raises(ConfigError, match="0 < sigma_min < sigma_max"):
            VE(**options)
    for floor in (0.0, 1.0):
        with pytest.raises(ConfigError, match="floor of a Flow"):
            Flow(t_min=floor)
    assert VP.table(steps=1).t_range == (0.0, 1.0)
    assert VP(Cosine(t_range=(0.0, 0.9))).t_range == (0.0, 0.9)
    for path, message in ((VP(), "span [0, 1] of VP"), (VE(sigma_max=3.0), "span [0, 3] of VE")):
        with pytest.raises(GridError) as caught:
            path.check(4.0)
        assert message in str(caught.value)


# ------------------------------------------------------------------------------------- transitions, steps, conversions

X, CLEAN, WHITE = (Noise.of(4, range(3), dtype=DOUBLE).normal(key, (2, 5)) for key in ("x", "clean", "white"))
AFFINE = {"linear": LINEAR, "table": VP.from_betas(BETAS), "ve": VE(), "flow": Flow()}


@pytest.mark.parametrize("path", AFFINE.values(), ids=AFFINE.keys())
@pytest.mark.parametrize(("s", "t"), [(0.21, 0.47), (0.0, 0.3)])
def test_transition_and_bridge_in_closed_form(path: AffinePath, s: float, t: float) -> None:
    a_s, a_t, s_s, s_t = path.alpha(s), path.alpha(t), path.sigma(s), path.sigma(t)
    gain, spread = a_t / a_s, math.sqrt(s_t**2 - (a_t / a_s * s_s) ** 2)
    times = torch.tensor([s] * 3, dtype=DOUBLE), torch.tensor([t] * 3, dtype=DOUBLE)
    assert [path.gain(s, t), *path.gain(*times).tolist()] == pytest.approx([gain] * 4, rel=1e-12)
    assert [path.spread(s, t), *path.spread(*times).tolist()] == pytest.approx([spread] * 4, rel=1e-9)
    assert LocationPath.spread(path, s, t) == pytest.approx(spread, rel=1e-9)
    assert LocationPath.spread(path, *times).tolist() == pytest.approx([spread] * 3, rel=1e-9)
    assert path.bridge_std(t, s) == pytest.approx(s_s * spread / s_t, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(path.renoise(X, s, t, WHITE), gain * X + spread * WHITE, rtol=1e-9, atol=1e-9)
    assert path.renoise_needs_clean is False
    torch.testing.assert_close(path.diffuse(CLEAN, t, WHITE), a_t * CLEAN + s_t * WHITE, rtol=1e-12, atol=1e-12)
    weight = gain * s_s**2 / s_t**2
    found = path.posterior(X, Estimate(X, t, path, clean=CLEAN), t, s)
    wanted = a_s * CLEAN + weight * (X - a_t * CLEAN)
    torch.testing.assert_close(found.mean, wanted, rtol=1e-10, atol=1e-10)
    assert found.root == path.bridge_std(t, s)
    # At equal times nothing is added, in the general formula too, and rounding does not leave the real numbers.
    assert LocationPath.spread(path, t, t) == pytest.approx(0.0, abs=1e-7)
    assert LocationPath.spread(path, times[1], times[1]).tolist() == pytest.approx([0.0] * 3, abs=1e-7)


@pytest.mark.parametrize("path", AFFINE.values(), ids=AFFINE.keys())
def test_a_step_from_any_prediction_is_the_formula(path: AffinePath) -> None:
    t, s, keep = 0.47, 0.21, 0.37
    noise = (X - path.alpha(t) * CLEAN) / path.sigma(t)
    wanted = path.alpha(s) * CLEAN + keep * (X - path.alpha(t) * CLEAN)
    from_noise, derived = Estimate(X, t, path, noise=noise), Estimate(X, t, path, noise=noise)
    torch.testing.assert_close(derived.clean, CLEAN, rtol=1e-11, atol=1e-11)
    velocity = path.rates(t)[0] * CLEAN + path.rates(t)[1] * noise
    cases = [Estimate(X, t, path, clean=CLEAN), Estimate(X, t, path, velocity=velocity), from_noise, derived]
    for estimate in cases:
        torch.testing.assert_close(path.ddim_step(X, estimate, keep, s), wanted, rtol=1e-10, atol=1e-10)
    assert from_noise.held("clean") is None  # two passes: nothing else was made of it
    assert torch.equal(X, Noise.of(4, range(3), dtype=DOUBLE).normal("x", (2, 5)))  # and nothing was changed
    # Another state than that of the estimate: the clean sample stays the estimate's.
    for estimate in (*cases, Estimate(X, t, path, noise=noise)):
        other = path.ddim_step(WHITE, estimate, keep, s)
        wanted = path.alpha(s) * CLEAN + keep * (WHITE - path.alpha(t) * CLEAN)
        torch.testing.assert_close(other, wanted, rtol=1e-10, atol=1e-10)
    rows = torch.tensor([0.47, 0.3, 0.6], dtype=DOUBLE)
    batched = path.ddim_step(X, Estimate(X, rows, path, clean=CLEAN), keep, s)
    for i, u in enumerate(rows.tolist()):
        wanted = path.alpha(s) * CLEAN[i] + keep * (X[i] - path.alpha(u) * CLEAN[i])
        torch.testing.assert_close(batched[i], wanted, rtol=1e-10, atol=1e-10)


def test_a_step_from_pure_noise_uses_the_clean_sample() -> None:
    path = Flow()
    velocity = Estimate(X, 1.0, path, velocity=X - CLEAN)
    _ = velocity.noise  # both predictions are held now
    for estimate in (velocity, Estimate(X, 1.0, path, clean=CLEAN)):
        torch.testing.assert_close(path.ddim_step(X, estimate, 0.4, 0.3), 0.7 * CLEAN + 0.4 * X, rtol=1e-14, atol=1e-14)


def test_a_jump_to_the_clean_end_is_the_clean_sample_bit_for_bit() -> None:
    """Also where the noise is held beside it: x − σ·z would lose the digits of σ = 80."""
    x, clean = 80.0 * X.float(), CLEAN.float()
    estimate = Estimate(x, 80.0, VE(), clean=clean)
    _ = estimate.noise
    assert torch.equal(VE().ddim_step(x, estimate, 0.0, 0.0), clean)


def test_the_noise_alone_does_not_determine_the_clean_sample_at_pure_noise() -> None:
    """Then the numbers are not finite, on the host too, where a division by zero would be an exception."""
    estimate = Estimate(X, 1.0, Flow(), noise=WHITE)
    assert not Flow().ddim_step(X, estimate, 0.4, 0.3).isfinite().any()


@pytest.mark.parametrize("path", AFFINE.values(), ids=AFFINE.keys())
def test_solving_for_the_clean_sample(path: AffinePath) -> None:
    rows = torch.tensor([0.47, 0.3, 0.6], dtype=DOUBLE)
    for t in (0.47, rows):
        x = path.diffuse(CLEAN, t, WHITE)
        before = x.clone()
        torch.testing.assert_close(path.clean_from_noise(x, WHITE, t), CLEAN, rtol=1e-12, atol=1e-12)
        assert torch.equal(x, before)


@pytest.mark.parametrize("given", ["clean", "noise", "velocity"])
@pytest.mark.parametrize("name", ["flow", "ve", "linear"])
def test_conversions_of_any_numbers_at_any_time(name: str, given: str) -> None:
    """All three from the two that are drawn, away from every point where α² + σ² = 1 or α' = −σ' help."""
    path = AFFINE[name]
    t = torch.tensor([0.2, 0.4, 0.77], dtype=DOUBLE)
    a, s = (f(t).reshape(-1, 1, 1) for f in (path.alpha, path.sigma))
    d_a, d_s = (rate.reshape(-1, 1, 1) for rate in path.rates(t))
    z = (X - a * CLEAN) / s
    values = {"clean": CLEAN, "noise": z, "velocity": d_a * CLEAN + d_s * z}
    estimate = Estimate(X, t, path, **{given: values[given]})
    assert {key for key in values if estimate.held(key) is not None} == {given}  # type: ignore[arg-type]
    for key, wanted in values.items():
        torch.testing.assert_close(getattr(estimate, key), wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(estimate.score, -z / s, rtol=1e-11, atol=1e-11)
    assert all(estimate.held(key) is not None for key in values)  # type: ignore[arg-type]


def test_rates_at_the_clean_end_do_not_raise() -> None:
    path = VP()
    assert path.rates(0.0)[0] == pytest.approx(-0.05)
    assert path.rates(0.0)[1] == math.inf
    assert path.rates(torch.zeros(1, dtype=DOUBLE))[1].item() == math.inf


# -------------------------------------------------------------------------------------------------- ContextDiff's path


def scaled(clean: Tensor, cond: Any, t: Any) -> Tensor:
    return 0.8 * clean + cond["c"]


@pytest.mark.parametrize("bend", ["quadratic", "prior", "data"])
@pytest.mark.parametrize("base", [LINEAR, VE(), Flow()], ids=["vp", "ve", "flow"])
def test_every_bend_in_closed_form(bend: Any, base: AffinePath) -> None:
    cond = {"c": torch.tensor([[0.3], [-1.2], [2.0]], dtype=DOUBLE)[..., None]}
    given = dict(cond)
    path = ShiftedPath(base=base, shift=scaled, bend=bend).with_condition(given)
    given["c"] = torch.zeros(1)  # the caller's mapping is not ours
    assert path.renoise_needs_clean is True
    s, t = 0.21, 0.47
    strength = {"quadratic": lambda a: a * (1 - a), "prior": lambda a: 1 - a, "data": lambda a: -a}[bend]
    k_s, k_t = (strength(base.alpha(u)) for u in (s, t))
    shift = 0.8 * CLEAN + cond["c"]
    m_s, m_t = base.alpha(s) * CLEAN + k_s * shift, base.alpha(t) * CLEAN + k_t * shift
    rows = torch.full((3,), t, dtype=DOUBLE)
    assert both(path.strength, t) == pytest.approx([k_t] * 3, rel=1e-13, abs=1e-16)
    torch.testing.assert_close(path.mean(CLEAN, t), m_t, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(path.mean(CLEAN, rows), m_t, rtol=1e-12, atol=1e-12)
    gain, spread = base.gain(s, t), base.spread(s, t)
    climbed = path.renoise(X, s, t, WHITE, CLEAN)
    torch.testing.assert_close(climbed, m_t + gain * (X - m_s) + spread * WHITE, rtol=1e-12, atol=1e-12)
    own = Estimate(X, t, path, clean=CLEAN)
    torch.testing.assert_close(path.mean_of(own, s), m_s, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(path.ddim_step(X, own, 0.37, s), m_s + 0.37 * (X - m_t), rtol=1e-12, atol=1e-12)
    predicted = Estimate(X, t, path, clean=CLEAN, extras={"shift": WHITE})
    moved = base.alpha(s) * CLEAN + k_s * WHITE
    torch.testing.assert_close(path.mean_of(predicted, s), moved, rtol=1e-12, atol=1e-12)
    wanted = moved + 0.37 * (X - base.alpha(t) * CLEAN - k_t * WHITE)
    torch.testing.assert_close(path.ddim_step(X, predicted, 0.37, s), wanted, rtol=1e-12, atol=1e-12)
    values = (path.std(t), path.gain(s, t), path.spread(s, t), path.t_range, path.t_min, path.timestep_of(t))
    assert values == (base.std(t), gain, spread, base.t_range, base.t_min, base.timestep_of(t))
    noise = Noise.of(2, range(3), dtype=DOUBLE)
    high = base.t_range[1]
    for u in (None, 0.6 * high):
        drawn = path.prior(noise, (2, 5), u) - base.prior(noise, (2, 5), u)
        end = high if u is None else u
        bias = (1 - base.alpha(end)) * cond["c"] * torch.ones(3, 2, 5, dtype=DOUBLE) if bend == "prior" else 0.0 * X
        torch.testing.assert_close(drawn, bias, rtol=1e-10, atol=1e-10)


def test_a_climb_from_the_clean_end_is_refused_where_the_data_moved() -> None:
    from ornstein.errors import PathError

    path = ShiftedPath(shift=scaled, bend="data", cond={"c": torch.zeros(1)})
    with pytest.raises(PathError, match="cannot start at the clean end"):
        path.renoise(X, 0.0, 0.5, WHITE, CLEAN)
    path.renoise(X, 0.1, 0.5, WHITE, CLEAN)
    ShiftedPath(shift=scaled, cond={"c": torch.zeros(1)}).renoise(X, 0.0, 0.5, WHITE, CLEAN)


# -------------------------------------------------------------------------------------------------------- small print


class Shrinking(VE):
    """Claims less noise than its transition carries over, as rounding can."""

    def gain(self, s: Any, t: Any) -> Any:
        return 2.0 + 0.0 * t


def test_a_variance_below_zero_is_zero() -> None:
    path, rows = Shrinking(), torch.tensor([1.0, 3.0], dtype=DOUBLE)
    assert LocationPath.spread(path, 1.0, 1.0) == 0.0
    assert LocationPath.spread(path, torch.ones(2, dtype=DOUBLE), rows).tolist() == pytest.approx([0.0, 5.0**0.5])


@pytest.mark.parametrize("path", [VP(), VP.cosine(), VP.scaled_linear(), VP.from_betas(BETAS), VE(), Flow()])
def test_times_keep_their_dtype_and_need_no_graph(path: AffinePath) -> None:
    for dtype in (torch.float32, DOUBLE):
        t = torch.tensor([0.3, 0.6], dtype=dtype, requires_grad=True)
        levels = torch.tensor([0.5, -1.0], dtype=dtype, requires_grad=True)
        found = [
            path.alpha(t),
            path.sigma(t),
            path.log_snr(t),
            path.time_of(levels),
            path.timestep_of(t),
            *path.rates(t),
        ]
        assert {value.dtype for value in found} == {dtype}
        for value, wanted in zip(found[:3], (path.alpha, path.sigma, path.log_snr), strict=True):
            assert value.tolist() == pytest.approx([wanted(0.3), wanted(0.6)], rel=1e-5)


def test_priors_shapes_and_conditions_of_a_path_that_needs_none() -> None:
    noise = Noise.of(2, range(2), dtype=DOUBLE)
    z = noise.normal("prior", (3, 4))
    for path, t, size in (
        (VP(), None, 1.0),
        (VP(), 0.3, 1.0),
        (Flow(), None, 1.0),
        (Flow(), 0.3, 0.3),
        (VE(), 5.0, 5.0),
    ):
        assert torch.equal(path.prior(noise, (3, 4), t), size * z)
        for at in (None, 0.2):
            event = path.state_shape([3, 4], 0.5, at)
            assert (event, type(event)) == (torch.Size([3, 4]), torch.Size)
        assert path.with_condition({"label": z}) is path


def test_a_velocity_needs_rates_to_be_read() -> None:
    from ornstein.errors import PathError

    path = ShiftedPath(shift=scaled, cond={"c": torch.zeros(1)})
    for name in ("clean", "noise"):
        with pytest.raises(PathError, match=r"ShiftedPath has no rates\(t\): a velocity prediction"):
            getattr(Estimate(X, 0.5, path, velocity=X), name)
    with pytest.raises(PathError, match="ShiftedPath cannot turn a noise prediction"):
        path.clean_from_noise(X, X, 0.5)
    assert Estimate(X, 0.5, path, clean=CLEAN).noise.shape == X.shape

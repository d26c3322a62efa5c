"""Laws of every path with a mean and a std: moments, transition, posterior, times, rates, ends."""

import copy
import dataclasses
import importlib
import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch

from ornstein.errors import ConfigError, GridError, PathError
from ornstein.estimates import Estimate
from ornstein.paths import VE, VP, AffinePath, Flow, LocationPath, Path, PyramidPath, ShiftedPath
from ornstein.paths.vp import Cosine, Linear, ScaledLinear, Table
from ornstein.randomness import Noise

TABLES = {f"table-{kind}": VP.table(kind) for kind in ("linear", "scaled-linear", "cosine")}
PATHS: dict[str, AffinePath] = {
    "linear": VP(),
    "scaled-linear": VP.scaled_linear(),
    "cosine": VP.cosine(),
    **TABLES,
    "ve": VE(),
    "flow": Flow(),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def times(path: Path, count: int = 13) -> list[float]:
    """Times inside the span, off the nodes of a table, and its noisy end."""
    low, high = path.t_min, path.t_range[1]
    return [low + (high - low) * (i + 0.37) / count for i in range(count)] + [high]


def pairs(path: Path) -> list[tuple[float, float]]:
    """(s, t) with s < t, the clean end among the s."""
    inside = times(path, 5)
    return [(s, t) for s in (path.t_range[0], *inside) for t in inside if s < t]


@every_path
def test_diffuse_has_the_closed_form_moments(path: AffinePath) -> None:
    # diffuse is affine in (x_0, z): unit vectors read off its coefficients exactly.
    unit, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for t in (path.t_range[0], *times(path)):
        alpha, sigma = path.diffuse(unit, t, zero).item(), path.diffuse(zero, t, unit).item()
        assert path.diffuse(zero, t, zero).item() == 0.0
        assert alpha == pytest.approx(path.alpha(t), rel=1e-15)
        assert sigma == pytest.approx(path.sigma(t), rel=1e-15)
        if isinstance(path, VP):
            assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-15)


@every_path
def test_renoise_after_diffuse_is_diffuse_in_law(path: AffinePath) -> None:
    unit, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for s, t in pairs(path):
        gain, spread = path.renoise(unit, s, t, zero).item(), path.renoise(zero, s, t, unit).item()
        assert gain * path.alpha(s) == pytest.approx(path.alpha(t), rel=1e-12, abs=1e-300)
        variance = (gain * path.sigma(s)) ** 2 + spread**2
        assert variance == pytest.approx(path.sigma(t) ** 2, rel=1e-12)


@every_path
def test_the_transition_is_a_semigroup(path: AffinePath) -> None:
    r, s, t = times(path, 3)[:3]
    assert path.gain(r, t) == pytest.approx(path.gain(r, s) * path.gain(s, t), rel=1e-12)
    through = math.hypot(path.gain(s, t) * path.spread(r, s), path.spread(s, t))
    assert through == pytest.approx(path.spread(r, t), rel=1e-12)


def conditioned(path: AffinePath, clean: float, x: float, s: float, t: float) -> tuple[float, float]:
    """x_s given x_t by dense conditioning of the joint normal law of (x_s, x_t) built from independent noises."""
    gain, spread = path.gain(s, t), path.spread(s, t)
    # rows: x_s, x_t; columns: the noise of s, the noise of the transition.
    factor = np.array([[path.std(s), 0.0], [gain * path.std(s), spread]])
    cov = factor @ factor.T
    mean = np.array([path.alpha(s) * clean, path.alpha(t) * clean])
    slope = cov[0, 1] / cov[1, 1]
    return mean[0] + slope * (x - mean[1]), cov[0, 0] - slope * cov[0, 1]


@every_path
def test_posterior_is_dense_conditioning(path: AffinePath) -> None:
    clean = torch.tensor([[0.7], [-1.3]], dtype=torch.float64)
    for s, t in pairs(path):
        x = path.diffuse(clean, t, torch.tensor([[0.4], [-0.9]], dtype=torch.float64))
        found = path.posterior(x, Estimate(x, t, path, clean=clean), t, s)
        for row in range(2):
            mean, variance = conditioned(path, clean[row].item(), x[row].item(), s, t)
            assert found.mean[row].item() == pytest.approx(mean, rel=1e-10, abs=1e-10)
            assert isinstance(found.root, float)
            assert found.root**2 == pytest.approx(max(variance, 0.0), rel=1e-9, abs=1e-10)


@every_path
def test_float_and_tensor_times_agree(path: AffinePath) -> None:
    s, t = times(path)[:-1], times(path)[1:]
    s_, t_ = torch.tensor(s, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    functions = {
        "alpha": path.alpha,
        "sigma": path.sigma,
        "std": path.std,
        "sigma_bar": path.sigma_bar,
        "log_snr": path.log_snr,
        "clock": path.timestep_of,
        "d_alpha": lambda u: path.rates(u)[0],
        "d_sigma": lambda u: path.rates(u)[1],
    }
    for name, f in functions.items():
        tensors, floats = f(t_), [f(u) for u in t]
        assert tensors.dtype == torch.float64, name
        # Two libraries' exp, cos and log differ in the last bit, and where α is small its relative error is ε/α.
        rtol = 1e-13 / max(path.alpha(t[-1]), 1e-3)
        np.testing.assert_allclose(tensors.numpy(), floats, rtol=rtol, atol=1e-14, err_msg=name)
    np.testing.assert_allclose(path.gain(s_, t_).numpy(), [path.gain(a, b) for a, b in zip(s, t, strict=True)], 1e-14)
    spreads = [path.spread(a, b) for a, b in zip(s, t, strict=True)]
    np.testing.assert_allclose(path.spread(s_, t_).numpy(), spreads, rtol=1e-13, atol=1e-14)
    snr = torch.linspace(-8, 8, 9, dtype=torch.float64)
    np.testing.assert_allclose(path.time_of(snr).numpy(), [path.time_of(v) for v in snr.tolist()], 1e-14, 1e-15)
    clean, noise = torch.randn(2, len(t), 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [path.diffuse(clean[i : i + 1], u, noise[i : i + 1]) for i, u in enumerate(t)]
    torch.testing.assert_close(path.diffuse(clean, t_, noise), torch.cat(rows), rtol=1e-14, atol=1e-14)


@every_path
def test_rates_are_derivatives(path: AffinePath) -> None:
    for t in times(path)[1:-1]:
        h = 1e-6 * max(t, 1e-2)
        d_alpha, d_sigma = path.rates(t)
        assert d_alpha == pytest.approx((path.alpha(t + h) - path.alpha(t - h)) / (2 * h), rel=1e-6, abs=1e-8)
        assert d_sigma == pytest.approx((path.sigma(t + h) - path.sigma(t - h)) / (2 * h), rel=1e-6, abs=1e-8)


@every_path
def test_time_of_inverts_log_snr(path: AffinePath) -> None:
    for t in times(path):
        if path.alpha(t) > 0.0:
            assert path.time_of(path.log_snr(t)) == pytest.approx(t, rel=1e-10, abs=1e-10)
    values = [path.log_snr(t) for t in (path.t_range[0], *times(path))]
    assert values[0] == math.inf
    assert all(a > b for a, b in itertools.pairwise(values))


@every_path
def test_the_ends_are_finite_where_they_can_be_and_never_raise(path: AffinePath) -> None:
    low, high = path.t_range
    assert (path.alpha(low), path.sigma(low), path.log_snr(low)) == (1.0, 0.0, math.inf)
    for t in path.t_range:
        both = torch.tensor([t], dtype=torch.float64)
        for f in (path.alpha, path.sigma, path.sigma_bar, path.log_snr, lambda u: path.rates(u)[1]):
            # cos near its zero has a relative error of ε/α: 1e-12 at the noisy end of the cosine path.
            assert f(t) == pytest.approx(f(both).item(), rel=1e-11)
    assert path.spread(low, high) == pytest.approx(path.sigma(high), rel=1e-15)
    assert path.bridge_std(high, low) == 0.0
    for snr in (-math.inf, math.inf, 2000.0, -2000.0):
        assert path.time_of(snr) == pytest.approx(
            path.time_of(torch.tensor(snr, dtype=torch.float64)).item(), nan_ok=True
        )


@every_path
def test_span_and_check(path: AffinePath) -> None:
    low, high = path.t_range
    assert low == 0.0 < path.t_min < high
    for t in (low, path.t_min, high):
        path.check(t)
    for t in (-1e-9, high * (1 + 1e-9), math.inf, -math.inf, math.nan):
        with pytest.raises(GridError, match="outside the span"):
            path.check(t)


@every_path
@pytest.mark.parametrize("event", [(2,), (3, 4, 4), (3, 2, 4, 4)], ids=["points", "images", "video"])
@pytest.mark.parametrize(
    ("batch", "dtype"), [(0, torch.float32), (1, torch.bfloat16), (3, torch.float32), (2, torch.float64)]
)
def test_any_event_batch_and_dtype(path: AffinePath, event: tuple[int, ...], batch: int, dtype: torch.dtype) -> None:
    noise = Noise.of(0, range(batch), dtype=dtype)
    clean, z = noise.normal("clean", event), noise.normal("white", event)
    for t in (0.5, torch.full((batch,), 0.5, dtype=torch.float64)):
        x = path.diffuse(clean, t, z)
        estimate = Estimate(x, t, path, clean=clean)
        assert x.dtype == estimate.noise.dtype == estimate.velocity.dtype == dtype
        assert x.shape == estimate.score.shape == (batch, *event)
    x = path.diffuse(clean, 0.5, z)
    for out in (
        path.posterior(x, Estimate(x, 0.5, path, clean=clean), 0.5, 0.25).sample(z),
        path.renoise(x, 0.5, 0.75, z),
        path.prior(noise, event),
    ):
        assert out.dtype == dtype
        assert out.shape == (batch, *event)


@pytest.mark.parametrize("kind", ["linear", "scaled-linear", "cosine"])
def test_tables_are_cumulative_products(kind: str) -> None:
    path = VP.table(kind)  # type: ignore[arg-type]
    assert isinstance(path.schedule, Table)
    expected = np.cumprod(1.0 - np.asarray(path.schedule.betas, dtype=np.longdouble)).astype(np.float64)
    found = np.array([path.alpha((k + 1) / 1000) ** 2 for k in range(1000)])
    np.testing.assert_allclose(found, expected, rtol=2e-14)
    assert [path.timestep_of((k + 1) / 1000) for k in range(1000)] == list(range(1000))
    assert path.timestep_of(torch.arange(1, 1001, dtype=torch.float64) / 1000).tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("kind", "theirs"), [("linear", "linear"), ("scaled-linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_tables_are_those_of_diffusers(kind: str, theirs: str) -> None:
    diffusers = importlib.import_module("diffusers")
    ends = {"beta_start": 0.00085, "beta_end": 0.012} if kind == "scaled-linear" else {}
    scheduler = diffusers.DDPMScheduler(beta_schedule=theirs, **ends)
    found = np.array([VP.table(kind).alpha((k + 1) / 1000) ** 2 for k in range(1000)])  # type: ignore[arg-type]
    np.testing.assert_allclose(found, scheduler.alphas_cumprod.numpy(), rtol=2e-5, atol=1e-6)


def test_table_rate_is_the_segment_before_the_node() -> None:
    path = VP.from_betas([0.1, 0.2, 0.3])
    slopes = [1.5 * math.log(1 - beta) for beta in (0.1, 0.2, 0.3)]
    for t, slope in [(0.0, 0), (0.2, 0), (1 / 3, 0), (0.34, 1), (2 / 3, 1), (0.9, 2), (1.0, 2)]:
        assert path.schedule.rate(t) == pytest.approx(slopes[slope], rel=1e-14)
        assert path.schedule.rate(torch.tensor([t], dtype=torch.float64)).item() == pytest.approx(slopes[slope])
    table = VP.table().schedule
    assert all(table.rate((k + 1) / 1000) == table.rate((k + 0.5) / 1000) for k in range(1000))


def test_known_values() -> None:
    assert VP().alpha(1.0) == pytest.approx(math.exp(-0.25 * (20.0 - 0.1) - 0.5 * 0.1), rel=1e-15)
    for t in (0.1, 0.5, 0.9):
        theta = [(u + 0.008) / 1.008 * math.pi / 2 for u in (0.0, t)]
        assert VP.cosine().alpha(t) == pytest.approx(math.cos(theta[1]) / math.cos(theta[0]), rel=1e-14)
        grid = np.linspace(0.0, t, 200001)
        betas = (math.sqrt(0.85) + grid * (math.sqrt(12.0) - math.sqrt(0.85))) ** 2
        assert VP.scaled_linear().alpha(t) == pytest.approx(math.exp(-0.5 * np.trapezoid(betas, grid)), rel=1e-9)
    assert (Flow().alpha(0.25), Flow().sigma(0.25), Flow().rates(0.3)) == (0.75, 0.25, (-1.0, 1.0))
    assert (VE().alpha(3.0), VE().sigma(3.0), VE().timestep_of(math.e)) == (1.0, 3.0, 0.25)
    # The table approaches its continuous schedule.
    assert VP.table(steps=100_000, start=1e-6, end=2e-4).alpha(0.5) == pytest.approx(VP().alpha(0.5), rel=1e-4)


def test_small_times_keep_their_digits() -> None:
    # σ² = 1 − α² ≈ β_min·t; a naive 1 − α² would lose half of its digits here.
    assert VP().sigma(1e-12) == pytest.approx(math.sqrt(0.1e-12), rel=1e-10)
    assert VP().spread(0.5, 0.5 + 1e-12) == pytest.approx(math.sqrt(10.05e-12), rel=2e-4)
    assert VP().spread(0.5, 0.5 + 1e-12) > 0.0


def test_priors() -> None:
    noise = Noise.of(3, range(2))
    z = noise.normal("prior", (3, 4, 4))
    assert torch.equal(VP().prior(noise, (3, 4, 4)), z)
    assert torch.equal(VE().prior(noise, (3, 4, 4)), 80.0 * z)
    assert torch.equal(VE().prior(noise, (3, 4, 4), 5.0), 5.0 * z)
    assert torch.equal(Flow().prior(noise, (3, 4, 4)), z)


def test_the_kinds_are_nested() -> None:
    shifted, pyramid = ShiftedPath(shift=lambda clean, cond, t: clean), PyramidPath()
    for path in (*PATHS.values(), shifted, pyramid):
        assert isinstance(path, Path)
    assert isinstance(shifted, LocationPath)
    assert not isinstance(shifted, AffinePath)
    assert not isinstance(pyramid, LocationPath)


class Doubling(torch.nn.Module):
    def forward(self, clean: torch.Tensor, cond: object, t: object) -> torch.Tensor:
        return 2.0 * clean


@pytest.mark.parametrize(
    "path", [*PATHS.values(), PyramidPath(), ShiftedPath(shift=Doubling(), cond={"a": torch.ones(1)})]
)
def test_paths_are_values(path: Path) -> None:
    for twin in (pickle.loads(pickle.dumps(path)), copy.deepcopy(path), dataclasses.replace(path)):  # type: ignore[type-var]
        assert type(twin) is type(path)
        assert twin.t_range == path.t_range
        if not isinstance(path, ShiftedPath):
            assert twin == path
            assert hash(twin) == hash(path)
    if not isinstance(path, ShiftedPath):
        json.dumps(dataclasses.asdict(path))  # type: ignore[call-overload]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(path, dataclasses.fields(path)[0].name, 1)  # type: ignore[arg-type]
    assert path.with_condition({}).t_range == path.t_range


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(beta_min=0.0),
        lambda: Linear(beta_max=math.nan),
        lambda: ScaledLinear(beta_min=5.0, beta_max=1.0),
        lambda: Cosine(offset=0.0),
        lambda: Cosine(t_range=(0.0, 1.0)),
        lambda: VE(sigma_min=0.0),
        lambda: VE(sigma_max=math.inf),
        lambda: VE(sigma_min=math.nan),
        lambda: Flow(t_min=0.0),
        lambda: VP.from_betas([]),
        lambda: VP.from_betas([1.0, 0.5]),
        lambda: VP.from_betas([0.5, 1.1]),
        lambda: VP.from_betas([0.5, math.nan]),
        lambda: VP.table(steps=0),
        lambda: VP.table("sigmoid"),  # type: ignore[arg-type]
        lambda: ShiftedPath(shift=Doubling(), bend="cubic"),  # type: ignore[arg-type]
        lambda: PyramidPath(alphas=(0.5,)),
        lambda: PyramidPath(alphas=(0.5, 0.2, math.nan)),
        lambda: PyramidPath(sigmas=(0.1, 0.2, 0.0)),
        lambda: PyramidPath(factors=(2, 2, 0)),
        lambda: PyramidPath(rule="scalar"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


def test_what_a_location_path_lacks_is_named() -> None:
    path, x = ShiftedPath(shift=Doubling()), torch.ones(1, 2)
    with pytest.raises(PathError, match="predicts='clean'"):
        _ = Estimate(x, 0.5, path, noise=x).clean
    with pytest.raises(PathError, match="rates"):
        _ = Estimate(x, 0.5, path, clean=x).velocity

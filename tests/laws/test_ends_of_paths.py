"""Where a path has no signal or no noise left: what has a limit there has that value, and what has none is refused."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.errors import ConfigError
from ornstein.lab.targets import GaussianTarget
from ornstein.objectives.weights import weight
from ornstein.parameterizations import Anchored, NoisePrediction, parameterization
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.samplers import SAMPLERS
from ornstein.samplers.auto import auto

F64 = torch.float64


def rescaled(path: VP) -> VP:
    """The same table at a terminal signal-to-noise ratio of zero (Lin et al. 2024, algorithm 1)."""
    roots = torch.tensor([path.alpha((k + 1) / 1000) for k in range(1000)], dtype=F64)
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    before = torch.cat([torch.ones(1, dtype=F64), roots[:-1]])
    return VP.from_betas((1.0 - (roots / before) ** 2).tolist())


SILENT = {"flow": Flow(), "rescaled": rescaled(VP.table()), "latent": rescaled(VP.table("scaled-linear"))}
"""Paths that end in pure noise."""
AFFINE = {
    **SILENT,
    "linear": VP(),
    "cosine": VP.cosine(),
    "table": VP.table(),
    "cosines": VP.table("cosine"),
    "ve": VE(),
}


@pytest.mark.parametrize("path", SILENT.values(), ids=SILENT.keys())
def test_noise_is_no_prediction_where_no_signal_is_left(path: AffinePath) -> None:
    def net(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return x

    for reading in ("noise", NoisePrediction(), Anchored(inner=NoisePrediction())):
        with pytest.raises(ConfigError, match="'v', 'clean' or 'velocity'"):
            orn.Denoiser(net, path, reading)
    for name in ("v", "clean", "velocity", "edm", "consistency"):
        orn.Denoiser(net, path, name)


@pytest.mark.parametrize("name", ["v", "clean", "velocity", "edm"])
@pytest.mark.parametrize("path", SILENT.values(), ids=SILENT.keys())
def test_the_other_predictions_are_right_from_pure_noise_on(path: AffinePath, name: str) -> None:
    """A network that knows N(0, ¼): every sampler ends at its std, up to the error of 200 steps."""
    exact, reading = GaussianTarget([0.0], [0.25]).denoiser(path), parameterization(name)

    def net(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = (float(time[0]) + 1.0) / 1000.0 if isinstance(path, VP) else float(time[0]) / 1000.0
        t = min(max(t, path.t_min), 1.0)
        x = x / reading.precondition(path, torch.ones_like(x), t)
        found = exact(x, t)
        return reading.target(path, found.clean, found.noise, x, t)

    model = orn.Denoiser(net, path, reading, shape=(1,))
    for rule in ("ddim", "euler", "dpmpp-2m", "unipc", "heun", "ancestral"):
        found = orn.sample(model, 512, sampler=rule, grid=orn.grids.uniform(100), dtype=F64)
        assert found.isfinite().all(), rule
        assert float(found.std()) == pytest.approx(0.5, abs=0.04), rule


def test_rates_of_a_table_that_ends_in_noise() -> None:
    path = SILENT["latent"]
    slope, other = path.rates(1.0)
    assert (slope, other) == (pytest.approx(-0.44362, rel=1e-4), 0.0)
    for name in ("rescaled", "latent"):
        path = SILENT[name]
        for t in (0.9991, 0.9999, 1.0 - 1e-9, 1.0 - 1e-13, 1.0):
            for found in (path.rates(t), tuple(v.item() for v in path.rates(torch.tensor([t], dtype=F64)))):
                wanted = path.alpha(0.9995) / -0.0005
                assert found[0] == pytest.approx(wanted, rel=1e-9)
                assert found[1] == pytest.approx(-path.alpha(t) * wanted, rel=1e-6, abs=1e-15)
    x = torch.linspace(-2.0, 2.0, 5, dtype=F64)[None]
    for path in SILENT.values():
        clean = 0.3 * x + 0.1
        at_end, near = (
            orn.estimates.Estimate(path.alpha(t) * clean + path.sigma(t) * x, t, path, clean=clean).velocity
            for t in (1.0, 1.0 - 1e-9)
        )
        torch.testing.assert_close(at_end, near, rtol=1e-6, atol=1e-6)
        back = orn.estimates.Estimate(x, 1.0, path, velocity=at_end)
        torch.testing.assert_close(back.clean, clean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", AFFINE.values(), ids=AFFINE.keys())
def test_both_ends_are_limits(path: AffinePath) -> None:
    low, high = path.t_range
    clean, noise = torch.tensor([[0.3, -1.2]], dtype=F64), torch.tensor([[0.8, 0.4]], dtype=F64)
    for end, near in ((low, low + 1e-9 * high), (high, high * (1.0 - 1e-9))):
        assert path.gain(end, end) == 1.0
        assert path.spread(end, end) == 0.0
        assert not math.isnan(path.sigma_bar(end))
        assert math.copysign(1.0, path.sigma(end)) == 1.0
        assert min(path.rates(end)[1], 1e3) == pytest.approx(min(path.rates(near)[1], 1e3), rel=1e-3, abs=1e-6)
        assert path.rates(end)[0] == pytest.approx(path.rates(near)[0], rel=1e-3)
        for found, wanted in zip(
            path.from_velocity(clean, noise, end), path.from_velocity(clean, noise, near), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert path.spread(low, high) == path.sigma(high)
    assert path.bridge_std(high, low) == 0.0


@pytest.mark.parametrize("path", SILENT.values(), ids=SILENT.keys())
def test_weights_at_no_signal_and_at_no_noise(path: AffinePath) -> None:
    names = ("clean", "noise", "v", "velocity", "edm")
    for by, name in itertools.product(("min-snr", "edm"), names):
        t = torch.tensor([0.0, 1e-8, 1.0 - 1e-8, 1.0], dtype=F64)
        found = weight(by, parameterization(name), path, t, gamma=5.0, sigma_data=0.5)
        assert found is not None
        assert not found.isnan().any()
        low, above, below, high = found.clamp(max=1e6).tolist()
        assert low == pytest.approx(above, rel=1e-3, abs=1e-4), (by, name)
        assert high == pytest.approx(below, rel=1e-3, abs=1e-9), (by, name)
    t = torch.tensor([1.0], dtype=F64)
    assert weight("min-snr", NoisePrediction(), path, t, gamma=5.0, sigma_data=0.5).item() == 1.0  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", [VP.table("cosine"), VP.cosine(), VP()], ids=["cosines", "cosine", "linear"])
def test_narrow_states_are_finite_under_the_strongest_noise(path: VP, dtype: torch.dtype) -> None:
    """1/α is 20,291 at the first step of the cosine table: x̂_0 of a noise prediction leaves the range of float16."""
    exact = GaussianTarget([0.0], [1.0]).denoiser(path)

    def net(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = (float(time[0]) + 1.0) / 1000.0 if path.timestep_of(1.0) == 999.0 else float(time[0]) / 1000.0
        return exact(x.double(), min(max(t, path.t_min), path.t_range[1])).noise.to(x.dtype)

    model = orn.Denoiser(net, path, "noise", shape=(4,))
    for name in SAMPLERS:
        if name != "ancestral-learned":
            found = orn.sample(model, 16, sampler=name, steps=10, dtype=dtype)
            assert found.dtype == dtype, name
            assert found.isfinite().all(), name
    assert orn.sample(model, 16, sampler=auto(path, 10)[0], steps=10, dtype=dtype).isfinite().all()


def test_the_quotient_of_a_noise_prediction_in_float16() -> None:
    """A network that sees no noise at the first step, where x/α is beyond 65,504, and is exact after it."""
    path = VP.table("cosine")
    exact = GaussianTarget([0.0], [1.0]).denoiser(path)

    def net(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        if float(time[0]) > 990.0:
            return torch.zeros_like(x)
        return exact(x.double(), (float(time[0]) + 1.0) / 1000.0).noise.to(x.dtype)

    model = orn.Denoiser(net, path, "noise", shape=(64,))
    for name in ("ddim", "dpmpp-2m", "dpmpp-2m-sde", "ancestral", "heun", "unipc", "sa-solver"):
        found = orn.sample(model, 64, sampler=name, steps=20, dtype=torch.float16)
        assert found.isfinite().all(), name
        wide = orn.sample(model, 64, sampler=name, steps=20)
        torch.testing.assert_close(found.float(), wide, rtol=0.05, atol=0.05 * float(wide.std()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 3, 3)])
def test_strict_samples_are_the_same_in_every_batch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Sums of small narrow states round differently in the body and in the tail of a vector."""
    model = orn.Denoiser(lambda x, time: 0.3 * x, VP(), "noise", shape=shape)
    for name in ("dpmpp-2m", "unipc", "heun", "sa-solver", "angle-adams", "ddim-eta1"):
        whole = orn.sample(model, 7, sampler=name, steps=6, dtype=dtype, strict=True)
        for size in (1, 3):
            parts = orn.sample(model, 7, sampler=name, steps=6, dtype=dtype, strict=True, batch=size)
            assert torch.equal(whole, parts), name
        assert torch.equal(whole[2:5], orn.sample(model, 3, first=2, sampler=name, steps=6, dtype=dtype, strict=True))


EVERY = {
    "linear": VP(),
    "cosine": VP.cosine(),
    "scaled": VP.scaled_linear(),
    "table": VP.table(),
    "ve": VE(),
    "flow": Flow(),
}


@pytest.mark.parametrize("path", EVERY.values(), ids=EVERY)
def test_times_of_infinite_log_snrs(path: AffinePath) -> None:
    """No noise is the clean end; no signal is the noisy end or a time beyond it; NaN stays NaN."""
    for value in (math.inf, 1e308):
        assert path.time_of(value) == path.t_range[0] == float(path.time_of(torch.tensor(value, dtype=torch.float64)))
    for value in (-math.inf, -1e308):
        for time in (path.time_of(value), float(path.time_of(torch.tensor(value, dtype=torch.float64)))):
            assert time >= path.t_range[1]
    assert math.isnan(path.time_of(math.nan))
    assert torch.tensor(math.nan).isnan() == path.time_of(torch.tensor(math.nan)).isnan()

"""Round trips of every parameterization on every path, and what each of them is known for."""

import math

import pytest
import torch
from torch import Tensor

from ornstein.errors import ConfigError, PathError
from ornstein.parameterizations import (
    EDM,
    Clean,
    Consistency,
    NoisePrediction,
    V,
    Velocity,
    parameterization,
    timestep_tensor,
)
from ornstein.paths import VE, VP, AffinePath, Flow, PyramidPath, ShiftedPath
from ornstein.randomness import Noise

PATHS = {
    "linear": VP(),
    "scaled-linear": VP.scaled_linear(),
    "cosine": VP.cosine(),
    "table": VP.table(),
    "ve": VE(),
    "flow": Flow(),
}
NAMES = ["clean", "noise", "v", "velocity", "edm", "consistency"]
NOISE = Noise.of(7, range(5), dtype=torch.float64)
CLEAN, WHITE = NOISE.normal("clean", (2, 3, 3)), NOISE.normal("white", (2, 3, 3))


def fractions(path: AffinePath) -> list[float]:
    low, high = path.t_min, path.t_range[1]
    return [low, 0.1 * high, 0.37 * high, 0.6 * high, 0.9 * high]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batched", [False, True], ids=["float", "tensor"])
def test_reading_the_target_gives_the_clean_sample(name: str, path: AffinePath, batched: bool) -> None:
    what = parameterization(Consistency(sigma_min=1e-4) if name == "consistency" else name)
    for t in [torch.tensor(fractions(path), dtype=torch.float64)] if batched else fractions(path):
        x = path.diffuse(CLEAN, t, WHITE)
        estimate = what.to_estimate(path, x, t, what.target(path, CLEAN, WHITE, x, t))
        # A noise target leaves x_0 to be divided out: the digits lost are the condition number σ/α, no more.
        bars = torch.as_tensor(path.sigma_bar(t)).max().item()
        tight = 1e-12 * (max(1.0, bars) if name in ("noise", "velocity") else 1.0)
        assert (estimate.clean - CLEAN).abs().max().item() <= tight
        assert (estimate.noise - WHITE).abs().max().item() <= 2e-12 / torch.as_tensor(path.sigma(t)).min().item()
        assert what.precondition(path, x, t).shape == x.shape


@pytest.mark.parametrize("name", ["v", "velocity", "edm", "consistency", "clean"])
def test_pure_noise_is_regular(name: str) -> None:
    path, what = Flow(), parameterization(name)
    for t in (1.0, torch.ones(5, dtype=torch.float64)):
        fed, target = what.precondition(path, WHITE, t), what.target(path, CLEAN, WHITE, WHITE, t)
        clean = what.to_estimate(path, WHITE, t, target).clean
        assert fed.isfinite().all()
        torch.testing.assert_close(clean, CLEAN, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_edm_feeds_and_asks_for_unit_variance(path: AffinePath, s: float) -> None:
    what, one, zero = EDM(sigma_data=s), torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for t in fractions(path):
        alpha, sigma = path.alpha(t), path.sigma(t)
        feed = what.precondition(path, one, t).item()
        assert feed**2 * (alpha**2 * s**2 + sigma**2) == pytest.approx(1.0, rel=1e-12)
        # The target is linear in (x_0, z); its variance is one, and it does not correlate with the input.
        of_clean = what.target(path, one, zero, path.diffuse(one, t, zero), t).item()
        of_white = what.target(path, zero, one, path.diffuse(zero, t, one), t).item()
        assert of_clean**2 * s**2 + of_white**2 == pytest.approx(1.0, rel=1e-9)
        assert of_clean * s**2 * alpha + of_white * sigma == pytest.approx(0.0, abs=1e-9 * math.hypot(alpha * s, sigma))


@pytest.mark.parametrize("path", [VP(), VP.cosine(), VP.table()])
def test_edm_of_unit_data_is_minus_v(path: AffinePath) -> None:
    for t in fractions(path):
        x = path.diffuse(CLEAN, t, WHITE)
        edm, v = EDM(sigma_data=1.0), V()
        torch.testing.assert_close(edm.precondition(path, x, t), x, rtol=1e-12, atol=1e-12)
        raw = NOISE.normal(("raw", int(1000 * t)), (2, 3, 3))
        torch.testing.assert_close(
            edm.to_estimate(path, x, t, -raw).clean, v.to_estimate(path, x, t, raw).clean, rtol=1e-12, atol=1e-12
        )


def test_edm_is_the_published_table() -> None:
    path, s = VE(), 0.5
    for sigma in (0.002, 0.3, 5.0, 80.0):
        raw = NOISE.normal("raw", (2, 3, 3))
        x = path.diffuse(CLEAN, sigma, WHITE)
        skip, out = s**2 / (sigma**2 + s**2), sigma * s / math.sqrt(sigma**2 + s**2)
        found = EDM().to_estimate(path, x, sigma, raw).clean
        torch.testing.assert_close(found, skip * x + out * raw, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(
            EDM().precondition(path, x, sigma), x / math.sqrt(sigma**2 + s**2), rtol=1e-13, atol=1e-13
        )
        below = sigma - 0.002
        skip, out = s**2 / (below**2 + s**2), s * below / math.sqrt(sigma**2 + s**2)
        found = Consistency().to_estimate(path, x, sigma, raw).clean
        torch.testing.assert_close(found, skip * x + out * raw, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sigma_data", [0.5, 0.3, 1.7])
def test_consistency_is_the_identity_at_its_boundary_bit_for_bit(dtype: torch.dtype, sigma_data: float) -> None:
    what, x = Consistency(sigma_data=sigma_data), WHITE.to(dtype)
    for t in (0.002, torch.full((5,), 0.002, dtype=torch.float64)):
        assert torch.equal(what.to_estimate(VE(), x, t, 1e4 * torch.ones_like(x)).clean, x)


def test_flow_velocity_is_noise_minus_data() -> None:
    torch.testing.assert_close(Velocity().target(Flow(), CLEAN, WHITE, CLEAN, 0.3), WHITE - CLEAN)


@pytest.mark.parametrize("name", NAMES)
def test_learned_variance_goes_to_the_extras(name: str) -> None:
    what, path = parameterization(name), VP()
    raw = NOISE.normal("double", (4, 3, 3))
    estimate = what.to_estimate(path, WHITE, 0.5, raw)
    assert torch.equal(estimate.extras["variance"], raw[:, 2:])
    assert torch.equal(estimate.clean, what.to_estimate(path, WHITE, 0.5, raw[:, :2]).clean)
    assert not what.to_estimate(path, WHITE, 0.5, raw[:, :2]).extras
    assert estimate.replace(clean=WHITE).extras.keys() == {"variance"}


def test_names() -> None:
    kinds = [Clean, NoisePrediction, V, Velocity, EDM, Consistency]
    assert [type(parameterization(name)) for name in NAMES] == kinds
    own = EDM(sigma_data=0.3)
    assert parameterization(own) is own
    with pytest.raises(ConfigError, match=r"'epsilons'.*clean, noise, v, velocity, edm, consistency"):
        parameterization("epsilons")
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError):
            EDM(sigma_data=bad)
        with pytest.raises(ConfigError):
            Consistency(sigma_data=bad)
    with pytest.raises(ConfigError):
        Consistency(sigma_min=math.nan)


@pytest.mark.parametrize("path", [PyramidPath(), ShiftedPath(shift=lambda clean, cond, t: clean)])
@pytest.mark.parametrize("name", NAMES)
def test_paths_without_alpha_are_refused_by_name(path: object, name: str) -> None:
    what = parameterization(name)
    if name == "clean":
        assert torch.equal(what.to_estimate(path, WHITE, 1.0, CLEAN).clean, CLEAN)  # type: ignore[arg-type]
        return
    with pytest.raises(PathError, match=f"'{name}'.*{type(path).__name__}"):
        what.to_estimate(path, WHITE, 1.0, CLEAN)  # type: ignore[arg-type]


def test_timestep_tensor() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)

    def check(found: Tensor, values: list[float]) -> None:
        assert found.dtype == torch.float32
        assert found.tolist() == values

    check(timestep_tensor(999.0, x), [999.0] * 3)
    check(timestep_tensor(torch.tensor(5.0), x), [5.0] * 3)
    check(timestep_tensor(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), x), [1.0, 2.0, 3.0])
    check(timestep_tensor(1.0, x[:0]), [])

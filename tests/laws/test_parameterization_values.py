"""Inputs, estimates and targets of every parameterization in closed form, on paths where α² + σ² is not one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ornstein.errors import ConfigError, PathError, UsageError
from ornstein.estimates import Estimate
from ornstein.parameterizations import (
    EDM,
    Anchored,
    Clean,
    Consistency,
    LevelBelow,
    NoisePrediction,
    V,
    Velocity,
    parameterization,
    timestep_tensor,
)
from ornstein.paths import VE, VP, AffinePath, Flow, PyramidPath
from ornstein.randomness import Noise

DOUBLE = torch.float64
NOISE = Noise.of(9, range(3), dtype=DOUBLE)
X, CLEAN, WHITE, RAW = (NOISE.normal(key, (2, 4)) for key in ("x", "clean", "white", "raw"))
PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}
TIMES = (0.31, torch.tensor([0.31, 0.07, 0.8], dtype=DOUBLE))


def columns(path: AffinePath, t: Any) -> tuple[Any, Any]:
    return tuple(f(t) if isinstance(t, float) else f(t).reshape(-1, 1, 1) for f in (path.alpha, path.sigma))  # type: ignore[return-value]


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])
def test_clean_noise_v_and_velocity(path: AffinePath, t: Any) -> None:
    a, s = columns(path, t)
    d_a, d_s = (r if isinstance(r, float) else r.reshape(-1, 1, 1) for r in path.rates(t))
    det = a * d_s - s * d_a
    # parameterization: (the clean sample that RAW stands for, the target)
    table = {
        Clean(): (RAW, CLEAN),
        NoisePrediction(): ((X - s * RAW) / a, WHITE),
        V(): ((a * X - s * RAW) / (a**2 + s**2), a * WHITE - s * CLEAN),
        Velocity(): ((d_s * X - s * RAW) / det, d_a * CLEAN + d_s * WHITE),
    }
    for what, (clean, target) in table.items():
        assert what.precondition(path, X, t) is X
        estimate = what.to_estimate(path, X, t, RAW)
        assert (estimate.x is X, estimate.t is t, estimate.path is path) == (True, True, True)
        near(estimate.clean, clean)
        near(what.target(path, CLEAN, WHITE, X, t), target)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])
def test_edm_and_consistency(path: AffinePath, t: Any) -> None:
    """In the coordinates of the papers: u = x/α and the noise level σ/α."""
    a, s = columns(path, t)
    u, bar, data, least = X / a, s / a, 0.7, 0.03
    root = (bar**2 + data**2) ** 0.5
    edm = data**2 / root**2 * u + bar * data / root * RAW
    consistency = data**2 / ((bar - least) ** 2 + data**2) * u + data * (bar - least) / root * RAW
    for what, clean in ((EDM(sigma_data=data), edm), (Consistency(sigma_data=data, sigma_min=least), consistency)):
        near(what.precondition(path, X, t), u / root)
        near(what.to_estimate(path, X, t, RAW).clean, clean)
        target = what.target(path, CLEAN, WHITE, X, t)
        near(target, RAW + (CLEAN - clean) / (clean - what.to_estimate(path, X, t, RAW - 1.0).clean))
        assert torch.equal(target, what.target(path, CLEAN, 0.0 * WHITE, X, t))  # a function of x_0 and x_t


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("t", TIMES, ids=["float", "tensor"])
@pytest.mark.parametrize("inner", [NoisePrediction(), EDM(sigma_data=0.7), V()], ids=lambda v: type(v).__name__)
def test_an_anchor_blends_the_inner_estimate_with_the_state(path: AffinePath, t: Any, inner: Any) -> None:
    a, s = columns(path, t)
    what = Anchored(inner=inner, sigma_min=0.03, width=0.2)
    weight = 0.2**2 / ((s / a - 0.03) ** 2 + 0.2**2)
    assert torch.equal(what.precondition(path, X, t), inner.precondition(path, X, t))
    near(
        what.to_estimate(path, X, t, RAW).clean,
        weight * X / a + (1.0 - weight) * inner.to_estimate(path, X, t, RAW).clean,
    )
    near(what.to_estimate(path, X, t, what.target(path, CLEAN, WHITE, X, t)).clean, CLEAN)
    wanted = (CLEAN - weight * X / a) / (1.0 - weight)
    near(what.target(path, CLEAN, WHITE, X, t), inner.target(path, wanted, (X - a * wanted) / s, X, t))


def test_an_anchor_is_exact_at_its_boundary_and_keeps_the_extras() -> None:
    double = NOISE.normal("double", (4, 4))
    what = Anchored(inner=EDM(), sigma_min=0.03)
    at = what.to_estimate(VE(), X, 0.03, double)
    assert torch.equal(at.clean, X)
    assert torch.equal(at.extras["variance"], double[:, 2:])
    far = what.to_estimate(VE(), X, 40.0, double[:, :2]).clean
    inner = EDM().to_estimate(VE(), X, 40.0, double[:, :2]).clean  # (width/σ)² is 6e-8 there
    torch.testing.assert_close(far, inner, rtol=1e-6, atol=1e-6)
    # At pure noise of a flow the weight of the state is zero.
    assert torch.equal(Anchored(inner=Velocity()).to_estimate(Flow(), X, 1.0, RAW).clean, X - RAW)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: EDM(sigma_data=v), "sigma_data must be positive"),
        (lambda v: Consistency(sigma_data=v), "sigma_data > 0"),
        (lambda v: Anchored(inner=Clean(), width=v), "width > 0"),
        (lambda v: LevelBelow(sigma_data=v), "sigma_data must be positive"),
    ],
)
def test_scales_are_positive_and_finite(make: Any, message: str) -> None:
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match=message):
            make(bad)
    make(1e-9)
    for levels in (Consistency(sigma_min=0.0), Anchored(inner=Clean(), sigma_min=0.0)):
        assert levels.sigma_min == 0.0
    for bad in (-1e-9, math.inf, math.nan):
        with pytest.raises(ConfigError):
            Consistency(sigma_min=bad)
        with pytest.raises(ConfigError):
            Anchored(inner=Clean(), sigma_min=bad)


def test_names_and_paths() -> None:
    names = {"clean": Clean(), "noise": NoisePrediction(), "v": V(), "velocity": Velocity(), "edm": EDM()}
    for name, what in {**names, "consistency": Consistency(), "level-below": LevelBelow()}.items():
        assert parameterization(name) == what
    with pytest.raises(PathError, match="'level-below' needs a PyramidPath, got VP"):
        LevelBelow().precondition(VP(), X, 0.5)
    with pytest.raises(PathError, match="'anchored' needs an AffinePath"):
        Anchored(inner=Clean()).to_estimate(PyramidPath(), X, 1.0, RAW)


def test_a_variance_is_split_off_only_where_the_channels_double() -> None:
    for channels, split in ((2, False), (4, True)):
        raw = NOISE.normal("double", (channels, 4))
        estimate = Clean().to_estimate(VP(), X, 0.5, raw)
        assert ("variance" in estimate.extras) == split
        assert torch.equal(estimate.clean, raw[:, :2])
    for channels in (1, 3, 6):  # one channel would be broadcast over both
        with pytest.raises(UsageError, match=rf"returned \(3, {channels}, 4\) for a state of \(3, 2, 4\)"):
            Clean().to_estimate(VP(), X, 0.5, NOISE.normal("double", (channels, 4)))
    flat, wide = X[:, :, 0], NOISE.normal("wide", (4,))  # points of two numbers
    assert torch.equal(Clean().to_estimate(VP(), flat, 0.5, wide).clean, wide[:, :2])
    assert torch.equal(Clean().to_estimate(VP(), flat, 0.5, wide).extras["variance"], wide[:, 2:])
    points = torch.ones(3, dtype=DOUBLE)  # no channels at all
    assert torch.equal(Clean().to_estimate(VP(), points, 0.5, points).clean, points)


def test_the_networks_time_is_float32_and_one_a_row() -> None:
    # 0.1 and 1/3 in float32, whatever the state and the times are kept in.
    for value in (0.1, torch.tensor(0.1, dtype=DOUBLE), torch.tensor([0.1] * 3, dtype=DOUBLE)):
        found = timestep_tensor(value, X)
        assert (found.shape, found.dtype, found.device) == ((3,), torch.float32, X.device)
        assert torch.equal(found, torch.tensor([0.1] * 3))
    assert torch.equal(
        timestep_tensor(torch.tensor([1 / 3, 2.0, 5.0], dtype=DOUBLE), X), torch.tensor([1 / 3, 2.0, 5.0])
    )
    assert timestep_tensor(5, X).tolist() == [5.0] * 3
    assert timestep_tensor(5, X).dtype == torch.float32
    assert timestep_tensor(1.0, torch.empty(2, 5, device="meta")).device.type == "meta"
    assert timestep_tensor(torch.ones(2), torch.empty(2, 5, device="meta")).device.type == "meta"


# -------------------------------------------------------------------------------------------------- the level below

MIXED = PyramidPath(alphas=(0.9, 0.6, 0.8), sigmas=(0.3, 0.5, 0.4), factors=(2, 1, 3))
TENT = PyramidPath(alphas=(0.9, 0.6), sigmas=(0.3, 0.5), factors=(2, 2), kernel=(1.0, 3.0, 3.0, 1.0))


def nearest(x: Tensor, f: int) -> Tensor:
    return x.repeat_interleave(f, -1).repeat_interleave(f, -2)


@pytest.mark.parametrize("path", [MIXED, TENT], ids=["box", "tent"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("precondition", [False, True])
def test_the_level_below_in_closed_form(path: PyramidPath, scaled: bool, precondition: bool) -> None:
    what = LevelBelow(scaled=scaled, preconditioned=precondition, sigma_data=0.7)
    clean = NOISE.normal("image", (2, 12, 24))
    for level in range(1, path.levels + 1):
        f = path.factors[level - 1]
        # The gains of H^{l−1} and H^l on a constant image.
        below, here = (
            path.down(torch.ones(1, 1, 12, 24).double(), 0, k)[0, 0, 0, 0].item() for k in (level - 1, level)
        )
        image = path.gains[level] * here
        power = (image * 0.7) ** 2 + path.stds[level] ** 2
        x = path.diffuse(clean, level, NOISE.normal("white", path.state_shape((2, 12, 24), level)))
        skipped = image * 0.49 / power * nearest(x, f) * (below if not scaled else 1.0) if precondition else 0.0
        unit = below if scaled else 1.0
        big = NOISE.normal("big", (2, f * x.shape[-2], f * x.shape[-1]))
        for t in (float(level), torch.full((3,), float(level), dtype=DOUBLE)):
            near(what.precondition(path, x, t), x / math.sqrt(power) if precondition else x)
            near(what.to_estimate(path, x, t, big).clean, unit * (big + skipped))
            small = torch.nn.functional.pixel_unshuffle(big, f)
            extra = torch.cat([small, torch.full_like(small[:, :3], 9.0)], 1)  # a level with a larger factor needs them
            near(what.to_estimate(path, x, t, small).clean, unit * (big + skipped))
            near(what.to_estimate(path, x, t, extra).clean, unit * (big + skipped))
            near(what.target(path, clean, 0.0 * x, x, t), path.down(clean, 0, level - 1) / unit - skipped)
        estimate = what.to_estimate(path, x, float(level), big)
        assert isinstance(estimate, Estimate)
        assert (estimate.x is x, estimate.t, estimate.path) == (True, float(level), path)


def test_pixels_are_shuffled_as_torch_does() -> None:
    x = torch.zeros(1, 1, 1, 1, dtype=DOUBLE)
    path = PyramidPath(alphas=(1.0,), sigmas=(1.0,), factors=(2,))
    raw = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=DOUBLE).reshape(1, 5, 1, 1)
    for t in (1.0, torch.ones(1, dtype=DOUBLE)):
        assert LevelBelow().to_estimate(path, x, t, raw).clean.tolist() == [[[[1.0, 2.0], [3.0, 4.0]]]]


def test_outputs_of_other_shapes_are_refused_at_a_level() -> None:
    x = torch.zeros(1, 2, 4, 8, dtype=DOUBLE)
    path = PyramidPath(alphas=(1.0,), sigmas=(1.0,), factors=(2,))
    for shape in ((7, 4, 8), (2, 4, 8), (2, 8, 8), (2, 16, 8), (3, 8, 16), (8, 8, 16), (8, 4, 16)):
        with pytest.raises(PathError, match="8 channels or with 2 times the size"):
            LevelBelow().to_estimate(path, x, 1.0, torch.zeros(1, *shape, dtype=DOUBLE))
    three = PyramidPath(alphas=(1.0,), sigmas=(1.0,), factors=(3,))
    with pytest.raises(PathError, match="18 channels or with 3 times the size"):
        LevelBelow().to_estimate(three, x, 1.0, torch.zeros(1, 17, 4, 8, dtype=DOUBLE))

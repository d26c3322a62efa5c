"""Elementary functions of floats and of tensors: against `math`, on both sides of every branch, and at the ends."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import scalars

INF, NAN = math.inf, math.nan
FLOATS = [-2.7, -1.0, -0.3, 0.0, 1e-9, 0.3, 1.0, 2.7]

# function, the exact one, where it is tested, its values at special points as floats and as tensors
CASES = {
    "exp": (scalars.exp, math.exp, FLOATS, {INF: INF, -INF: 0.0, 800.0: INF, -800.0: 0.0, NAN: NAN}),
    "expm1": (scalars.expm1, math.expm1, FLOATS, {INF: INF, -INF: -1.0, 800.0: INF, NAN: NAN}),
    "log": (scalars.log, math.log, FLOATS[4:], {0.0: -INF, INF: INF, -1e-3: NAN, NAN: NAN}),
    "log1p": (scalars.log1p, math.log1p, FLOATS[2:], {-1.0: -INF, INF: INF, -1.5: NAN, NAN: NAN}),
    "sqrt": (scalars.sqrt, math.sqrt, FLOATS[3:], {0.0: 0.0, INF: INF, -1e-3: NAN, NAN: NAN}),
    "cbrt": (scalars.cbrt, math.cbrt, FLOATS[3:], {0.0: 0.0, 27.0: 3.0}),
    "sin": (scalars.sin, math.sin, FLOATS, {}),
    "cos": (scalars.cos, math.cos, FLOATS, {}),
    "tan": (scalars.tan, math.tan, FLOATS, {}),
    "acos": (scalars.acos, math.acos, FLOATS[1:-1], {}),
    "softplus": (
        scalars.softplus,
        lambda x: math.log1p(math.exp(x)),
        FLOATS,
        {30.0: 30.0 + math.exp(-30.0), -30.0: math.exp(-30.0), 800.0: 800.0, -800.0: 0.0, INF: INF},
    ),
    "sigmoid": (
        scalars.sigmoid,
        lambda x: 1.0 / (1.0 + math.exp(-x)),
        FLOATS,
        {30.0: 1.0 / (1.0 + math.exp(-30.0)), -30.0: math.exp(-30.0), 800.0: 1.0, -800.0: 0.0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_floats_and_tensors_have_the_exact_value(name: str) -> None:
    function, exact, points, special = CASES[name]
    for x, wanted in (*((x, exact(x)) for x in points), *special.items()):
        near = pytest.approx(wanted, rel=1e-12, abs=0.0, nan_ok=True)
        found = function(x)
        assert isinstance(found, float)
        assert found == near
        tensor = function(torch.tensor([x, x], dtype=torch.float64))
        assert tensor.dtype == torch.float64
        assert tensor.tolist() == [near, near]


def test_the_largest_exponents_that_are_finite() -> None:
    for function in (scalars.exp, scalars.expm1):
        assert function(708.9) == pytest.approx(math.exp(708.9), rel=1e-12)
        assert function(709.0) == INF  # the host's own would raise a little later
    assert scalars.expm1(1e-12) == pytest.approx(1e-12, rel=1e-9)
    assert scalars.log1p(1e-12) == pytest.approx(1e-12, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "wanted"),
    [
        *((3.0, 2.0, 1.5), (3.0, -4.0, -0.75), (3.0, 0.0, INF), (-3.0, 0.0, -INF), (3.0, -0.0, -INF), (0.0, 0.0, NAN)),
        *((-3.0, -0.0, INF), (0.0, 2.0, 0.0), (INF, 2.0, INF)),
    ],
)
def test_division_by_zero_is_that_of_a_tensor(x: float, y: float, wanted: float) -> None:
    one, two = torch.tensor([x], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)
    assert scalars.divide(x, y) == pytest.approx(wanted, nan_ok=True)
    for found in (scalars.divide(one, two), scalars.divide(one, y), scalars.divide(x, two)):  # type: ignore[type-var]
        assert isinstance(found, Tensor)
        assert found.item() == pytest.approx(wanted, nan_ok=True)


def test_interpolation_is_that_of_numpy() -> None:
    xs, ys = np.array([-1.0, 0.5, 0.75, 3.0]), np.array([2.0, -7.0, 11.0, 5.0])
    points = [-INF, -4.0, -1.0, -0.9, 0.1, 0.5, 0.6, 0.75, 1.7, 2.999, 3.0, 9.0, INF]
    wanted = np.interp(points, xs, ys)
    assert [scalars.interp(x, xs, ys) for x in points] == pytest.approx(wanted.tolist(), rel=1e-14)
    assert all(isinstance(scalars.interp(x, xs, ys), float) for x in points)
    for dtype in (torch.float64, torch.float32):
        found = scalars.interp(torch.tensor(points, dtype=dtype), xs, ys)
        assert found.dtype == dtype
        # In float32 the points themselves are rounded, and the slope is up to 72.
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-14 if dtype == torch.float64 else 1e-5)
    assert math.isnan(scalars.interp(NAN, xs, ys))
    assert math.isnan(scalars.interp(torch.tensor(NAN), xs, ys).item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_coefficient_is_one_number_a_row(dtype: torch.dtype) -> None:
    like = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4).to(dtype)
    rows = torch.tensor([2.0, -0.5], dtype=torch.float64)
    found = scalars.expand(rows, like)
    assert isinstance(found, Tensor)
    assert (found.shape, found.dtype, found.device) == ((2, 1, 1), dtype, like.device)
    assert torch.equal(found * like, torch.stack([2.0 * like[0], -0.5 * like[1]]))
    scalar = scalars.expand(rows[1], like)
    assert isinstance(scalar, Tensor)
    assert (scalar.ndim, scalar.dtype) == (0, dtype)
    assert torch.equal(scalar * like, -0.5 * like)
    assert scalars.expand(rows, like[:, 0, 0]).shape == (2,)  # type: ignore[union-attr]
    assert scalars.expand(0.3, like) == 0.3
    moved = scalars.to_device(rows, torch.device("meta"), dtype)
    assert (moved.device.type, moved.dtype) == ("meta", dtype)

"""Every list of times is read in one way, and every sampler is right on every grid that can be made of it.

The exact denoiser of a Gaussian is affine, so a sampler's output law is computed without drawing (`lab.meters`), and
compared with the law at the end of the grid, within the reach of its order on these steps: a near-equal neighbour, a
start beside a node, a repeated or noisier stretch must not make it worse.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reach import allowed, off

import ornstein as orn
from ornstein import grids
from ornstein.errors import GridError
from ornstein.lab.targets import GaussianTarget
from ornstein.paths import VE, VP, AffinePath, Flow, PyramidPath, ShiftedPath
from ornstein.samplers import SAMPLERS, Problem, plan, sampler
from ornstein.samplers.ancestral import Ancestral

PATHS = {"linear": VP(), "cosine": VP.cosine(), "table": VP.table(), "ve": VE(), "flow": Flow()}
FAMILIES: dict[str, Callable[[int], grids.Grid]] = {
    "uniform": grids.uniform,
    "power": grids.power,
    "karras": grids.karras,
    "log_snr": grids.log_snr,
}
NAMES = [name for name in SAMPLERS if name not in ("ddpm", "unipc-2", "ancestral-learned")]
TARGET = GaussianTarget([0.4], [0.25])
USUAL = settings(derandomize=True, deadline=None, max_examples=12)
WIDE = settings(derandomize=True, deadline=None, max_examples=1500)


def distance(name: str, path: AffinePath, times: Sequence[float]) -> float:
    """How far a sampler ends from the law at the last time where the data are N(0.4, ¼)."""
    return off(sampler(name), TARGET.denoiser(path), path, times, 0.4, 0.5)


def check(name: str, path: AffinePath, times: Sequence[float]) -> None:
    """It ends within reach of its order on this grid."""
    far, bound = distance(name, path, times), allowed(name, sampler(name), path, times, 0.4, 0.5)
    assert far <= bound, f"{far:.3g} from the exact law, where {bound:.3g} is in reach"


# --------------------------------------------------------------------------------------------------- one reading


def single(values: Sequence[float]) -> list[float]:
    return torch.tensor(values, dtype=torch.float32).tolist()


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("steps", [1, 2, 7, 1000, 10_000])
def test_lists_arrays_and_tensors_in_either_precision_are_the_same_grid(
    make: Any, path: AffinePath, steps: int
) -> None:
    times = make(steps)(path)
    assert len(times) == steps + 1
    assert all(a > b for a, b in itertools.pairwise(times))
    narrow = single(times)
    for times_given in (
        list(times),
        tuple(times),
        np.array(times),
        torch.tensor(times, dtype=torch.float64),
        iter(times),
    ):
        assert grids.times_of(times_given, path) == times  # type: ignore[arg-type]
    for times_given in (narrow, np.array(times, dtype=np.float32), torch.tensor(times, dtype=torch.float32)):
        found = Problem(Ancestral(), path, times_given).times  # type: ignore[arg-type]
        assert len(found) == steps + 1
        assert (found[0], found[-1]) == pytest.approx((times[0], times[-1]), rel=1e-7)
        assert path.t_range[0] <= found[-1] <= found[0] <= path.t_range[1]


def test_nodes_nearer_than_rounding_are_one() -> None:
    path = VP()
    below = math.nextafter(0.2, 0.0)
    for times in (
        [1.0, 0.2, below, 0.0],
        [1.0, below, 0.2, 0.0],
        [1.0, 1.0, 0.2, 0.2, 0.0, 0.0],
        [1.0, 0.2, 0.2 + 1e-9, 0.0],
    ):
        assert len(grids.times_of(times, path)) == 3
        assert Problem(Ancestral(), path, tuple(times)).times == grids.times_of(times, path)
    assert grids.times_of([1.0, 0.5, 1e-300, 0.0], path) == (1.0, 0.5, 0.0)
    assert grids.times_of([1.0 - 1e-12, 1.0, 0.5], path) == (1.0, 0.5)
    assert grids.times_of([1.0, 0.5, 0.50001, 0.0], path) == (1.0, 0.5, 0.50001, 0.0)  # a climb that is meant
    once = grids.times_of([0.5, 0.5 - 1e-7, 0.5 - 2e-7, 0.5 - 4e-7, 0.0], path)
    assert grids.times_of(once, path) == once
    assert grids.partial(grids.uniform(10), 0.2)(path) == pytest.approx((0.2, 0.1, 0.0))
    assert grids.restart(grids.uniform(10), low=0.2, high=0.6, steps=1)(path) == pytest.approx(
        (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.6, 0.2, 0.1, 0.0)
    )
    assert PyramidPath().t_range[1] == grids.times_of(np.array([3.0, 2.0, 1.0, 0.0]), PyramidPath())[0]


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ("karras", "karras"),
        (7, "must be a sequence of numbers, got 7"),
        ([1.0, "0.5", 0.0], "'0.5'"),
        ([1.0, None, 0.0], "None"),
        ([[1.0, 0.0]], r"\[1.0, 0.0\]"),
        ([1.0, math.nan, 0.0], "nan"),
        ([math.inf, 0.0], "inf"),
        ([1.0, -0.1], "-0.1"),
        ([1.0, 1.0], r"got \[1.0\]"),
        ([0.5, 0.5 + 1e-12], "at least two times"),
        ([], "at least two times"),
    ],
)
def test_a_refusal_names_the_value(times: Any, words: str) -> None:
    model = GaussianTarget([0.0], [1.0]).denoiser(VP())
    with pytest.raises(GridError, match=words):
        orn.sample(model, 1, grid=times, shape=(1,))
    if not isinstance(times, str):
        with pytest.raises(GridError):
            Problem(Ancestral(), VP(), grids.times_of(times, VP()))


@pytest.mark.parametrize("strength", [k / 100 for k in range(2, 100, 7)] + [0.2, 0.3, 0.6, 0.7])
def test_two_decimal_strengths(strength: float) -> None:
    """`partial` of equal steps, at a strength that hits a node but for rounding."""
    for path, steps in itertools.product((VP(), VP.table(), Flow()), (10, 20, 25)):
        times = grids.partial(grids.uniform(steps), strength)(path)
        assert all(a - b > 1e-6 for a, b in itertools.pairwise(times))
        assert times[0] == strength


# ---------------------------------------------------------------------------------------- every sampler on every grid


def near(values: Sequence[float], where: int, gap: float) -> tuple[float, ...]:
    """The list with another node beside one of its inner ones, ``gap`` away in relative terms (up where negative)."""
    i = 1 + where % max(len(values) - 2, 1)
    return (*values[: i + 1], values[i] * (1.0 - gap), *values[i + 1 :])


def check_near(name: str, kind: str, family: str, steps: int, where: int, gap: float) -> None:
    path = PATHS[kind]
    check(name, path, grids.times_of(near(FAMILIES[family](steps)(path), where, gap), path))


CASES = {
    "name": st.sampled_from(NAMES),
    "kind": st.sampled_from(sorted(PATHS)),
    "family": st.sampled_from(sorted(FAMILIES)),
    "steps": st.integers(4, 40),
}
"""Names of a sampler, a path and a grid, and a number of steps."""
GAPS = st.floats(-16.0, -3.3).map(lambda power: 10.0**power)


@USUAL
@given(**CASES, where=st.integers(0, 60), gap=GAPS)
def test_a_near_equal_neighbour_magnifies_nothing(
    name: str, kind: str, family: str, steps: int, where: int, gap: float
) -> None:
    check_near(name, kind, family, steps, where, gap)
    check_near(name, kind, family, steps, where, -min(gap, 1e-7))  # a climb by rounding


def changed(how: str, base: grids.Grid, path: AffinePath, a: float, b: float) -> grids.Grid:
    """A grid made of another one, by two numbers in (0, 1)."""
    low, high = path.t_range
    top = path.time_of(0.0) if isinstance(path, VE) else high
    if how == "partial":
        return grids.partial(base, low + (0.02 + 0.98 * a) * (top - low))
    if how == "partial at a node":
        times = base(path)
        node = times[1 + int(a * (len(times) - 2))]
        return grids.partial(base, min(max(node * (1.0 + (b - 0.5) * 4e-16), path.t_min), high))
    if how == "restart":
        times = base(path)
        last = times[-2]
        first, second = sorted((last + (0.1 + 0.8 * a) * (top - last), last + (0.1 + 0.8 * b) * (top - last)))
        return grids.restart(
            base, low=first, high=max(second, first * 1.01), rounds=1 + int(3 * a), steps=3 + int(5 * b)
        )
    if how == "recur":
        return grids.resample(base, 1 + int(3 * a))
    if how == "churn":
        return grids.churn(base, total=20.0 * a)
    if how == "skip":
        return grids.skip(base, int(3 * a))
    assert how == "multistep"
    return grids.multistep(*(math.exp(-2.0 * x) for x in (a, b)))


CHANGES = ("partial", "partial at a node", "restart", "recur", "churn", "skip", "multistep")


def check_changed(how: str, name: str, kind: str, family: str, steps: int, a: float, b: float) -> None:
    path = PATHS[kind]
    times = changed(how, FAMILIES[family](steps), path, a, b)(path)
    ratios = [abs(t - s) / max(t, s) for t, s in itertools.pairwise(times)]
    assert min(ratios) > 2.5e-7
    check(name, path, times)


@USUAL
@given(how=st.sampled_from(CHANGES), **CASES, a=st.floats(0.0, 1.0), b=st.floats(0.0, 1.0))
def test_grids_of_grids(how: str, name: str, kind: str, family: str, steps: int, a: float, b: float) -> None:
    check_changed(how, name, kind, family, steps, a, b)


@pytest.mark.slow
@WIDE
@given(**CASES, where=st.integers(0, 60), gap=GAPS)
def test_near_equal_neighbours_widely(name: str, kind: str, family: str, steps: int, where: int, gap: float) -> None:
    check_near(name, kind, family, steps, where, gap)


@pytest.mark.slow
@WIDE
@given(how=st.sampled_from(CHANGES), **CASES, a=st.floats(0.0, 1.0), b=st.floats(0.0, 1.0))
def test_grids_of_grids_widely(how: str, name: str, kind: str, family: str, steps: int, a: float, b: float) -> None:
    check_changed(how, name, kind, family, steps, a, b)


# --------------------------------------------------------------------------------------------------- climbs, restarts


def test_a_restart_of_a_climbing_grid_keeps_its_climbs() -> None:
    climbing = grids.resample([1.0, 0.2, 0.0], 2)
    found = grids.restart(climbing, low=0.5, high=0.8, steps=1)(Flow())
    assert found == (1.0, 0.5, 0.8, 0.5, 0.2, 1.0, 0.2, 0.0, 0.2, 0.0)
    with pytest.raises(GridError, match=r"low=0\.5, high=0\.5"):
        grids.restart([1.0, 0.0], low=0.5, high=0.5 + 1e-12)(Flow())


def test_every_step_is_repeated_the_last_one_too() -> None:
    """From the clean end the way up is the forward law: the samples' law at the end is that of the data."""
    for path in (VP(), VE(), Flow(), VP.table()):
        times = grids.resample(grids.log_snr(40), 3)(path)
        assert times.count(0.0) == 3
        assert len(plan(sampler("ddim"), path, times)) == 120
        assert distance("dpmpp-2m", path, times) < 0.05
    pyramid = PyramidPath()
    times = grids.resample(grids.pyramid_levels(), 2)(pyramid)
    assert times == (3.0, 2.0, 3.0, 2.0, 1.0, 2.0, 1.0, 0.0, 1.0, 0.0)
    assert len(plan(Ancestral(), pyramid, times)) == 6
    moved = ShiftedPath(shift=lambda clean, cond, t: 0.1 * clean, bend="data")
    assert grids.resample([1.0, 0.5, 0.0], 2)(moved) == (1.0, 0.5, 1.0, 0.5, 0.0)
    shifted = ShiftedPath(shift=lambda clean, cond, t: 0.1 * clean)
    assert grids.resample([1.0, 0.5, 0.0], 2)(shifted)[-3:] == (0.0, 0.5, 0.0)

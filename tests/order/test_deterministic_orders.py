"""Measured orders of the deterministic samplers: coupled trajectories on an exact mixture, on three paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.lab.targets import M1
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import DPMSolver, Sampler, UniPC, run, sampler, solve

PATHS = {"vp": VP(), "ve": VE(), "flow": Flow()}
COUNTS = (32, 64, 128)
MIDWAY = (-2.0, 4.0)  # log-SNR: the estimate moves at both ends, so that every starting procedure shows
FROM_NOISE = (-8.0, 6.0)


def fitted(counts: Sequence[int], errors: Sequence[float]) -> float:
    """Minus the slope of log error on log count."""
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def descend(method: Sampler, path: AffinePath, steps: int, ends: tuple[float, float]) -> Tensor:
    """41 points on the line, carried from one log-SNR to another."""
    top = path.time_of(ends[0])
    z = torch.linspace(-2.2, 2.2, 41, dtype=torch.float64)[:, None]
    x = z * math.hypot(path.alpha(top), path.sigma(top))
    times = grids.span_log_snr(steps, *ends)(path)
    return run(solve(method, path, x, times, Noise.of(0, range(41))), M1().denoiser(path))


@lru_cache
def reference(name: str, ends: tuple[float, float]) -> Tensor:
    return descend(UniPC(p=3), PATHS[name], 600, ends)


def order_of(method: Sampler, name: str, ends: tuple[float, float] = MIDWAY, counts: Sequence[int] = COUNTS) -> float:
    """From the median distances to the fine trajectory."""
    fine = reference(name, ends)
    return fitted(counts, [float((descend(method, PATHS[name], n, ends) - fine).abs().median()) for n in counts])


METHODS = (
    *("ddim", "euler", "heun", "dpmpp-1", "dpmpp-2m", "dpmpp-2s", "dpmpp-3m", "unipc-1", "unipc-2", "unipc-3"),
    *("accelerated-ode", "accelerated-ode-memory", "staggered-midpoint"),
    *("exponential-integrator", "deis-2", "deis-3", "collocation-3"),
)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_measured_order_is_the_declared_one(name: str, method: str) -> None:
    tested = sampler(method)
    assert order_of(tested, name) == pytest.approx(tested.order, abs=0.15)


VARIANTS = [
    DPMSolver(points=3, start="plain"),
    UniPC(p=3, start="plain"),
    UniPC(p=3, corrector=False),
    UniPC(p=2, corrector=False),
    UniPC(p=1, corrector=False),
    UniPC(p=2, variant="bh1"),
    UniPC(p=3, variant="bh1"),
    UniPC(p=2, lower_final=False),
]


@pytest.mark.parametrize("tested", VARIANTS, ids=repr)
def test_variants_reach_their_declared_order(tested: Sampler) -> None:
    # The plain start of p = 3 takes over slowly: its share of the error is small at first.
    counts = (64, 128, 256) if tested == UniPC(p=3, start="plain") else COUNTS
    assert order_of(tested, "vp", counts=counts) == pytest.approx(tested.order, abs=0.15)


def test_a_plain_start_is_harmless_from_pure_noise() -> None:
    # The estimate hardly moves there: the start's error lies below the rest, although it is of lower order.
    assert order_of(UniPC(p=3, start="plain"), "vp", FROM_NOISE) == pytest.approx(4.0, abs=0.15)


def test_first_order_everywhere_is_seen_as_such() -> None:
    """The meter itself: a sampler of order one must not pass for order two."""
    assert order_of(DPMSolver(points=1), "vp") < 1.2


@pytest.mark.parametrize("name", PATHS)
def test_a_first_step_from_the_end_of_the_span_and_a_last_one_to_clean(name: str) -> None:
    """h = ∞ at either end: finite for every sampler, and the finer grid is nearer to the fine one."""
    path = PATHS[name]
    x = torch.linspace(-2.2, 2.2, 11, dtype=torch.float64)[:, None] * path.sigma(path.span[1])
    model, noise = M1().denoiser(path), Noise.of(0, range(11))
    fine = run(solve(UniPC(), path, x, grids.log_snr(400)(path), noise), model)
    for method in METHODS:
        ends = [run(solve(sampler(method), path, x, grids.log_snr(n)(path), noise), model) for n in (20, 80)]
        assert all(bool(end.isfinite().all()) for end in ends), method
        gaps = [float((end - fine).abs().mean()) for end in ends]
        assert gaps[1] < 0.5 * gaps[0], (method, gaps)

"""Adams' rules in the angle: what is exact, what does not matter, and the order with its last step."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.errors import ConfigError
from ornstein.lab.targets import M1, GaussianTarget
from ornstein.lab.trajectories import flow
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import DDIM, TrigFlowAdams, run, solve

PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}
QUIET = Noise.of(0, range(41))
POINTS = torch.linspace(-2.2, 2.2, 41, dtype=torch.float64)[:, None]


def ended(method: TrigFlowAdams | DDIM, path: AffinePath, times: Any, target: Any, u: Tensor) -> Tensor:
    return run(solve(method, path, u * path.alpha(times[0]), times, QUIET), target.denoiser(path))


def spanned(path: AffinePath, count: int, top: float, clean: bool = False) -> tuple[float, ...]:
    """Levels equal in the angle of scale one, from σ̄ = top to 0, or to 1/top."""
    ends = math.atan(top), 0.0 if clean else math.atan(1.0 / top)
    bars = np.tan(np.linspace(*ends, count + 1)).tolist()
    return tuple(0.0 if bar == 0.0 else path.time_of(-2.0 * math.log(bar)) for bar in bars)


@functools.cache
def reference() -> Tensor:
    return flow(M1().denoiser(VE()), 4.0 * POINTS, 4.0, 1e-5, 600)


@pytest.mark.parametrize("name", PATHS)
def test_a_gaussian_of_its_own_scale_is_solved_in_one_step(name: str) -> None:
    path, times = PATHS[name], spanned(PATHS[name], 1, 5.0, clean=True)
    found = ended(TrigFlowAdams(scale=0.7), path, times, GaussianTarget([0.0], [0.49]), POINTS)
    torch.testing.assert_close(found, POINTS * 0.7 / math.hypot(0.7, 5.0), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("scale", [1e5, 1e-5])
def test_one_point_is_ddim_at_both_ends_of_the_scale(scale: float) -> None:
    """A large scale freezes the noise, a small one the clean estimate."""
    path, times = VP(), spanned(VP(), 6, 4.0)
    found = ended(TrigFlowAdams(points=1, corrector=False, scale=scale), path, times, M1(), POINTS)
    torch.testing.assert_close(found, ended(DDIM(), path, times, M1(), POINTS), rtol=0.0, atol=1e-4)


def test_the_path_does_not_matter() -> None:
    ends = [ended(TrigFlowAdams(), p, spanned(p, 9, 6.0, clean=True), M1(), 3.0 * POINTS) for p in PATHS.values()]
    torch.testing.assert_close(ends[1], ends[0], rtol=0.0, atol=1e-10)
    torch.testing.assert_close(ends[2], ends[0], rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_the_order_is_at_least_the_declared_one_down_to_the_clean_end(points: int, corrector: bool) -> None:
    """σ = 0 included: no other multistep rule here keeps its order on the last step."""
    path, method = VE(), TrigFlowAdams(points=points, corrector=corrector)
    counts = (64, 128, 256)
    errors = [
        float((ended(method, path, spanned(path, n, 4.0, clean=True), M1(), 4.0 * POINTS) - reference()).abs().median())
        for n in counts
    ]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] > method.order - 0.15


def test_pure_noise_is_a_start() -> None:
    path = Flow()
    times = grids.cauchy(12, first=20.0, last=0.01)(path)
    assert times[0] == 1.0
    found = run(solve(TrigFlowAdams(), path, POINTS, times, QUIET), M1().denoiser(path))
    top = path.time_of(-2.0 * math.log(1e4))
    exact = flow(M1().denoiser(path), POINTS + path.alpha(top) * 0.11, top, path.time_of(18.0), 600)
    assert float((found - exact).abs().median()) < 0.02


@pytest.mark.parametrize("bad", [{"points": 0}, {"points": 5}, {"scale": 0.0}, {"offset": -1.0}, {"scale": math.inf}])
def test_values_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrigFlowAdams(**bad)

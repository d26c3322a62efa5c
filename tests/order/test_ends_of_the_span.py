"""Steps from pure noise and to the clean end, where the log-SNR is infinite, by every registered sampler."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.estimates import Estimate
from ornstein.lab.meters import NoiseBasis
from ornstein.lab.targets import M1
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Noise
from ornstein.samplers import SAMPLERS, Sampler, UniPC, run, sampler, solve

PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}
NOISE = Noise.of(0, range(11), dtype=torch.float64)


class Headed:
    """The exact denoiser of M1, with a variance head for the sampler that reads one."""

    def __init__(self, path: AffinePath) -> None:
        self.path = path

    def __call__(self, x: Tensor, t: float) -> Estimate:
        clean = M1().denoiser(self.path)(x, t).clean
        return Estimate(x, t, self.path, clean=clean, extras={"variance": torch.zeros_like(x)})


def ended(rule: Sampler, path: AffinePath, steps: int) -> Tensor:
    x = torch.linspace(-2.2, 2.2, 11, dtype=torch.float64)[:, None] * path.sigma(path.t_range[1])
    return run(solve(rule, path, x, grids.log_snr(steps)(path), NOISE), Headed(path))  # type: ignore[arg-type]


@lru_cache
def fine(name: str) -> Tensor:
    return ended(UniPC(), PATHS[name], 400)


def stochastic(rule: Sampler) -> bool:
    """Whether it asks for normals on three steps between finite levels."""
    basis, path, times = NoiseBasis(), VP(), grids.span_log_snr(3, -2.0, 4.0)(VP())
    run(solve(rule, path, torch.ones(1, 1, dtype=torch.float64), times, basis), Headed(path))  # type: ignore[arg-type]
    return basis.stochastic


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("method", SAMPLERS)
def test_a_first_step_from_the_end_of_the_span_and_a_last_one_to_clean(method: str, name: str) -> None:
    """Finite numbers near the data, and of the deterministic ones the finer grid is nearer to the fine one."""
    rule, path = sampler(method), PATHS[name]
    ends = [ended(rule, path, steps) for steps in (20, 80)]
    assert all(bool(end.isfinite().all()) for end in ends)
    assert float(ends[1].abs().max()) < 4.0
    if not stochastic(rule):
        gaps = [float((end - fine(name)).abs().mean()) for end in ends]
        assert gaps[1] < 0.5 * gaps[0]


def test_a_plain_start_is_harmless_from_pure_noise() -> None:
    """The estimate hardly moves there: the start's error, of lower order, lies below the rest. Midway it shows."""
    path, rule = PATHS["vp"], UniPC(p=3, start="plain")
    times = {n: grids.span_log_snr(n, -8.0, 6.0)(path) for n in (64, 128, 600)}
    x = torch.linspace(-2.2, 2.2, 41, dtype=torch.float64)[:, None]

    def at(method: Sampler, steps: int) -> Tensor:
        return run(solve(method, path, x, times[steps], NOISE), M1().denoiser(path))

    exact = at(UniPC(p=3), 600)
    few, many = (float((at(rule, n) - exact).abs().median()) for n in (64, 128))
    assert math.log2(few / many) == pytest.approx(4.0, abs=0.15)

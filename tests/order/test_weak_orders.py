"""Weak errors on a mixture of the stochastic samplers that remember: their law is exact on Gaussians alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.lab.targets import M1
from ornstein.paths import VP
from ornstein.randomness import Key
from ornstein.samplers import DPMSolver, DPMSolver2S, Sampler, SASolver, run, solve

ENDS = (-2.0, 4.0)
PATH = VP()


def fitted(counts: Sequence[int], errors: Sequence[float]) -> float:
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


@dataclass(frozen=True)
class Composed:
    """Noise of ``steps`` steps made of the same fine noises, so that runs on different grids are coupled.

    ``halves``: the sampler draws each step in two parts, as 2S does. ``rate`` is τ² of the reverse SDE that it follows:
    beside σ the noise of a step decays by e^{−τ²·λ}.
    """

    fine: Tensor  # (n, B)
    h: float
    steps: int
    halves: bool = False
    rate: float = 1.0

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        width = len(self.fine) // self.steps
        index = key if isinstance(key, int) else int(key[1])  # type: ignore[index]
        low, high = index * width, (index + 1) * width
        if self.halves:
            low, high = (low + width // 2, high) if isinstance(key, int) else (low, low + width // 2)
        fade = torch.exp(-self.rate * self.h * torch.arange(high - low - 1, -1, -1, dtype=torch.float64))
        out = (fade[:, None] * self.fine[low:high]).sum(0)
        return (out / fade.square().sum().sqrt())[:, None]


WEAK: list[tuple[Sampler, float, float]] = [
    (DPMSolver(points=1, stochastic=True), 1.0, 1.0),
    (DPMSolver(points=2, stochastic=True), 2.0, 1.0),
    (DPMSolver2S(stochastic=True), 2.0, 1.0),
    (SASolver(predictor=2, corrector=0, tau=1.0), 2.0, 1.0),
    (SASolver(predictor=2, corrector=0, tau=0.6), 2.0, 0.36),
]
OBSERVED: list[Callable[[Tensor], Tensor]] = [torch.square, lambda x: x**4, lambda x: torch.cos(2.0 * x)]
FINEST = 128


@lru_cache
def drawn(count: int = 15_000) -> tuple[Tensor, Tensor]:
    """One draw of the start on M1 and of the fine noise for all."""
    gen = torch.Generator().manual_seed(0)
    law = M1().law(PATH, PATH.time_of(ENDS[0]))
    chosen = torch.multinomial(law.weights, count, True, generator=gen)
    noise = torch.randn(count, 1, generator=gen, dtype=torch.float64)
    start = law.means[chosen] + law.variances[chosen].sqrt() * noise
    return start, torch.randn(FINEST, count, generator=gen, dtype=torch.float64)


def end(method: Sampler, steps: int, rate: float) -> Tensor:
    start, fine = drawn()
    halves = isinstance(method, DPMSolver2S)
    noise = Composed(fine, 0.5 * (ENDS[1] - ENDS[0]) / FINEST, steps, halves, rate)
    times = grids.span_log_snr(steps, *ENDS)(PATH)
    return run(solve(method, PATH, start, times, noise), M1().denoiser(PATH))  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "order", "rate"), WEAK, ids=lambda value: repr(value)[:60])
def test_weak_order_on_a_mixture(method: Sampler, order: float, rate: float) -> None:
    """On a mixture the curvature of the estimate enters as well, which no Gaussian shows."""
    counts = (8, 16, 32)
    exact = end(method, FINEST, rate) if rate < 1.0 else end(DPMSolver2S(stochastic=True), FINEST // 2, 1.0)
    ends = [end(method, steps, rate) for steps in counts]
    gaps = [math.hypot(*(float((f(found) - f(exact)).mean()) for f in OBSERVED)) for found in ends]
    assert fitted(counts, gaps) == pytest.approx(order, abs=0.35)

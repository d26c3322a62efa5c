"""Measured orders in law: exact moments on eight Gaussian directions, and weak errors on a mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein import grids
from ornstein.lab.meters import gaussian_law, kl
from ornstein.lab.targets import G8, M1
from ornstein.paths import VE, VP, Flow
from ornstein.randomness import Key
from ornstein.samplers import DPMSolver, DPMSolver2S, Sampler, run, sampler, solve

PATHS = {"vp": VP(), "ve": VE(), "flow": Flow()}
COUNTS = (64, 128, 256)
ENDS = (-2.0, 4.0)
STOCHASTIC = (
    "ancestral",
    "ancestral-large",
    "ddim-eta1",
    "dpmpp-1-sde",
    "dpmpp-2m-sde",
    "dpmpp-2s-sde",
    "dpmpp-3m-sde",
)


def fitted(counts: Sequence[int], errors: Sequence[float]) -> float:
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def root_kl(method: Sampler, name: str, steps: int) -> float:
    path = PATHS[name]
    times = grids.span_log_snr(steps, *ENDS)(path)
    return math.sqrt(kl(gaussian_law(method, G8(), path, times), G8().law(path, times[-1])))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("method", STOCHASTIC)
def test_order_of_the_law_on_gaussians(name: str, method: str) -> None:
    tested = sampler(method)
    found = fitted(COUNTS, [root_kl(tested, name, n) for n in COUNTS])
    assert found == pytest.approx(tested.order, abs=0.15)


@pytest.mark.parametrize("method", ["ddim", "euler", "heun", "dpmpp-2m", "dpmpp-2s", "dpmpp-3m", "unipc", "unipc-3"])
def test_order_of_deterministic_samplers_on_gaussians(method: str) -> None:
    tested, counts = sampler(method), (32, 64, 128)
    found = fitted(counts, [root_kl(tested, "vp", n) for n in counts])
    assert found == pytest.approx(tested.order, abs=0.15)


@pytest.mark.parametrize("method", STOCHASTIC)
def test_the_mean_of_a_gaussian_stays_exact_up_to_the_same_order(method: str) -> None:
    path, times = VP(), grids.span_log_snr(64, *ENDS)(VP())
    law, found = G8().law(path, times[-1]), gaussian_law(sampler(method), G8(), path, times)
    assert float((found.mean - law.mean).abs().max()) < 1e-10
    assert float((found.variance / law.variance - 1.0).abs().max()) < 0.1


@dataclass(frozen=True)
class Composed:
    """Noise of ``steps`` steps made of the same fine noises, so that runs on different grids are coupled.

    ``halves``: the sampler draws each step in two parts, as 2S does.
    """

    fine: Tensor  # (n, B)
    h: float
    steps: int
    halves: bool = False

    def white(self, key: Key, event: Sequence[int]) -> Tensor:
        width = len(self.fine) // self.steps
        index = key if isinstance(key, int) else int(key[1])  # type: ignore[index]
        low, high = index * width, (index + 1) * width
        if self.halves:
            low, high = (low + width // 2, high) if isinstance(key, int) else (low, low + width // 2)
        fade = torch.exp(-self.h * torch.arange(high - low - 1, -1, -1, dtype=torch.float64))
        out = (fade[:, None] * self.fine[low:high]).sum(0)
        return (out / fade.square().sum().sqrt())[:, None]


WEAK: list[tuple[Sampler, float]] = [
    (DPMSolver(points=1, stochastic=True), 1.0),
    (DPMSolver(points=2, stochastic=True), 2.0),
    (DPMSolver2S(stochastic=True), 2.0),
]
OBSERVED: list[Callable[[Tensor], Tensor]] = [torch.square, lambda x: x**4, lambda x: torch.cos(2.0 * x)]


class Mixture:
    """Coupled runs on M1 from one draw of the start and of the fine noise."""

    def __init__(self, count: int = 15_000, finest: int = 128) -> None:
        self.path, self.finest = VP(), finest
        gen = torch.Generator().manual_seed(0)
        law = M1().law(self.path, self.path.time_of(ENDS[0]))
        chosen = torch.multinomial(law.weights, count, True, generator=gen)
        white = torch.randn(count, 1, generator=gen, dtype=torch.float64)
        self.start = law.means[chosen] + law.variances[chosen].sqrt() * white
        self.fine = torch.randn(finest, count, generator=gen, dtype=torch.float64)
        self.exact = self.end(DPMSolver2S(stochastic=True), finest // 2)

    def end(self, method: Sampler, steps: int) -> Tensor:
        halves = isinstance(method, DPMSolver2S)
        noise = Composed(self.fine, 0.5 * (ENDS[1] - ENDS[0]) / self.finest, steps, halves)
        times = grids.span_log_snr(steps, *ENDS)(self.path)
        return run(solve(method, self.path, self.start, times, noise), M1().denoiser(self.path))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture()


@pytest.mark.parametrize(("method", "order"), WEAK, ids=lambda value: type(value).__name__)
def test_weak_order_on_a_mixture(mixture: Mixture, method: Sampler, order: float) -> None:
    """On a mixture the curvature of the estimate enters as well, which no Gaussian shows."""
    counts, gaps = (8, 16, 32), []
    for steps in counts:
        end = mixture.end(method, steps)
        gaps.append(math.hypot(*(float((f(end) - f(mixture.exact)).mean()) for f in OBSERVED)))
    assert fitted(counts, gaps) == pytest.approx(order, abs=0.35)

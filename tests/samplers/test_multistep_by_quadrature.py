"""Every multistep rule is one sentence: a slope, interpolated in a variable, integrated over a measure.

The sentence is written here once, with Gauss–Legendre weights in σ̄, and every rule is compared with it to rounding: on
uneven levels, on three paths, with the noise of every step known and one point's values in two dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein.lab.targets import M2
from ornstein.paths import VE, VP, AffinePath, Flow
from ornstein.randomness import Key, Noise
from ornstein.samplers import DEIS, DPMSolver, Sampler, SASolver, TrigFlowAdams, UniPC, run, solve

PATHS: dict[str, AffinePath] = {"vp": VP(), "ve": VE(), "flow": Flow()}
BARS = (4.0, 2.96, 2.43, 1.75, 1.4, 1.02)  # steps over which three points are worth having
Points = list[tuple[float, Tensor]]  # (place, slope)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(60)


def time_of(path: AffinePath, bar: float) -> float:
    return path.time_of(-2.0 * math.log(bar)) if bar else 0.0


@dataclass(frozen=True)
class Known:
    """Noise that is the same number in every step: what it is multiplied by shows."""

    value: float = 0.7

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        return torch.full((1, *event), self.value, dtype=torch.float64)


@dataclass(frozen=True)
class Sentence:
    """state' = state + ∫ slope dμ, the slope interpolated in ``place``; ``rate`` is dμ/dσ̄ and ``size`` x/state."""

    size: Callable[[AffinePath, float], float]
    slope: Callable[[AffinePath, float, Tensor, Tensor], Tensor]  # of (path, σ̄, x, x̂_0)
    rate: Callable[[float], float]
    place: Callable[[AffinePath, float], float]
    kick: Callable[[float, float], float] = lambda bar, after: 0.0  # what noise adds to the state
    start: str = ""  # how the first step of three points is taken

    def weights(self, path: AffinePath, bar: float, after: float, places: Sequence[float], half: bool) -> list[float]:
        bars = bar + 0.5 * (NODES + 1.0) * (after - bar)
        parts = 0.5 * (after - bar) * WEIGHTS * [self.rate(b) for b in bars]
        if half and len(places) == 2:  # the simplified weight of two nodes
            node = (places[1] - places[0]) / (self.place(path, after) - places[0])
            return [float(parts.sum()) * (1.0 - 0.5 / node), float(parts.sum()) * 0.5 / node]
        here = np.array([self.place(path, b) for b in bars])
        out = []
        for j, own in enumerate(places):
            ratios = [(here - other) / (own - other) for i, other in enumerate(places) if i != j]
            out.append(float(parts @ np.prod([np.ones_like(here), *ratios], axis=0)))
        return out


def time_place(path: AffinePath, bar: float) -> float:
    return time_of(path, bar)


def noise_of(path: AffinePath, bar: float, x: Tensor, clean: Tensor) -> Tensor:
    return (x / path.alpha(time_of(path, bar)) - clean) / bar


def deis(place: Callable[[AffinePath, float], float]) -> Sentence:
    """u' = u + ∫ ẑ dσ̄."""
    return Sentence(lambda path, bar: path.alpha(time_of(path, bar)), noise_of, lambda b: 1.0, place, start="centre")


def data(tau: float, start: str = "") -> Sentence:
    """(x/σ)·e^{τ²λ} grows by (1 + τ²)·e^{(1+τ²)λ}·x̂_0 dλ, λ = −log σ̄."""
    square = tau**2
    return Sentence(
        lambda path, bar: path.sigma(time_of(path, bar)) * bar**square,
        lambda path, bar, x, clean: clean,
        lambda b: -(1.0 + square) * b ** (-2.0 - square),
        lambda path, bar: -math.log(bar),
        lambda bar, after: math.sqrt(1.0 - (after / bar) ** (2.0 * square)) * after**-square,
        start,
    )


def angle(scale: float, offset: float) -> Sentence:
    """y = x/√(s²α² + σ²) turns by −F dθ, θ = arctan(σ̄/s)."""

    def size(path: AffinePath, bar: float) -> float:
        t = time_of(path, bar)
        return math.sqrt((scale * path.alpha(t)) ** 2 + path.sigma(t) ** 2)

    def slope(path: AffinePath, bar: float, x: Tensor, clean: Tensor) -> Tensor:
        # y = (u/s)·cos θ, so dy/dθ = (du/dσ̄·(s/cos² θ)·cos θ − u·sin θ)/s with du/dσ̄ = ẑ.
        u, theta = x / path.alpha(time_of(path, bar)), math.atan(bar / scale)
        return (noise_of(path, bar, x, clean) * scale / math.cos(theta) - u * math.sin(theta)) / scale

    return Sentence(size, slope, lambda b: scale / (scale**2 + b**2), lambda path, bar: math.log(bar + offset))


def by_quadrature(
    say: Sentence, path: AffinePath, bars: Sequence[float], x: Tensor, points: int, corrector: int, half: bool
) -> Tensor:
    """The state at the last level: predictions through ``points`` slopes, corrections through ``corrector`` + 1."""
    model = M2().denoiser(path)

    def asked(state: Tensor, bar: float) -> Tensor:
        at = state * say.size(path, bar)
        return say.slope(path, bar, at, model(at, time_of(path, bar)).clean)

    def moved(state: Tensor, bar: float, after: float, nodes: Points, half: bool = half) -> Tensor:
        weights = say.weights(path, bar, after, [place for place, _ in nodes], half)
        return state + sum(w * g for w, (_, g) in zip(weights, nodes, strict=True)) + 0.7 * say.kick(bar, after)

    def started(state: Tensor, bar: float, after: float, new: tuple[float, Tensor]) -> Points:
        """What the first of three-point steps interpolates: a midpoint step, or UniPC's two more questions."""
        if say.start == "third":
            one, two = (bar ** (1.0 - part) * after**part for part in (1.0 / 3.0, 2.0 / 3.0))
            first = (say.place(path, one), asked(moved(state, bar, one, [new]), one))
            return [new, (say.place(path, two), asked(moved(state, bar, two, [new, first], half=False), two))]
        middle = 0.5 * (bar + after) if say.start == "centre" else math.sqrt(bar * after)
        return [(new[0], asked(moved(state, bar, middle, [new]), middle))]

    state = before = x / say.size(path, bars[0])
    past: Points = []
    used: Points = []
    for i, (bar, after) in enumerate(pairwise(bars)):
        new = (say.place(path, bar), asked(state, bar))
        if i and corrector:
            state = moved(before, bars[i - 1], bar, [*used[:corrector], new])
        past = [new, *past]
        begins = i == 0 and points == 3 and say.start != ""
        nodes = started(state, bar, after, new) if begins else past[:points]
        before, used = state, nodes if begins else past[: max(points, corrector)]
        state = moved(state, bar, after, nodes, half=half and not begins)
    return state * say.size(path, bars[-1])


def gain_place(path: AffinePath, bar: float) -> float:
    return 1.0 / (1.0 + bar * bar)


def log_place(path: AffinePath, bar: float) -> float:
    return math.log(bar)


RULES: list[tuple[Sampler, Sentence, int, int, bool]] = [
    (DEIS(points=1), deis(time_place), 1, 0, False),
    (DEIS(points=2), deis(time_place), 2, 0, False),
    (DEIS(), deis(time_place), 3, 0, False),
    (DEIS(variable="sigma"), deis(lambda _, bar: bar), 3, 0, False),
    (DEIS(variable="log-sigma"), deis(log_place), 3, 0, False),
    (DEIS(variable="gain"), deis(gain_place), 3, 0, False),
    (DEIS(points=2, variable="log-sigma"), deis(log_place), 2, 0, False),
    (DPMSolver(), data(0.0), 2, 0, True),
    (DPMSolver(stochastic=True), data(1.0), 2, 0, True),
    (DPMSolver(points=1, stochastic=True), data(1.0), 1, 0, True),
    (DPMSolver(points=3), data(0.0, "middle"), 3, 0, True),
    (DPMSolver(points=3, start="plain"), data(0.0), 3, 0, True),  # two points in the second step
    (DPMSolver(points=3, stochastic=True), data(1.0), 3, 0, True),
    (UniPC(p=1), data(0.0), 1, 1, True),
    (UniPC(), data(0.0), 2, 2, True),
    (UniPC(corrector=False), data(0.0), 2, 0, True),
    (UniPC(p=3), data(0.0, "third"), 3, 3, True),
    (UniPC(p=3, start="plain"), data(0.0), 3, 3, True),
    (SASolver(), data(0.3), 3, 3, False),
    (SASolver(predictor=1, corrector=4, tau=1.4), data(1.4), 1, 4, False),
    (SASolver(predictor=4, corrector=1, tau=0.8), data(0.8), 4, 1, False),
    (SASolver(predictor=2, corrector=0, tau=0.0), data(0.0), 2, 0, False),
    (TrigFlowAdams(), angle(1.0, 0.15), 3, 3, False),
    (TrigFlowAdams(scale=0.6, offset=0.4), angle(0.6, 0.4), 3, 3, False),
    (TrigFlowAdams(points=1, scale=2.5, offset=0.02), angle(2.5, 0.02), 1, 1, False),
    (TrigFlowAdams(points=4, scale=0.6, offset=0.4, corrector=False), angle(0.6, 0.4), 4, 0, False),
    (TrigFlowAdams(points=2, scale=1.7, corrector=False), angle(1.7, 0.15), 2, 0, False),
]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("rule", "say", "points", "corrector", "half"), RULES, ids=[repr(row[0]) for row in RULES])
def test_the_rule_is_the_sentence(
    rule: Sampler, say: Sentence, points: int, corrector: int, half: bool, path: AffinePath
) -> None:
    for bars in (BARS, (*BARS, 0.0)) if isinstance(rule, TrigFlowAdams) else (BARS,):
        times = tuple(time_of(path, bar) for bar in bars)
        x = M2().start(Noise.of(5, range(6), dtype=torch.float64), path, times[0])
        found = run(solve(rule, path, x, times, Known()), M2().denoiser(path))  # type: ignore[arg-type]
        expected = by_quadrature(say, path, bars, x, points, corrector, half)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)

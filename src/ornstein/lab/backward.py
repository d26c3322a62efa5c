"""Errors in law of stochastic samplers with memory on the line, from the local errors along simulated runs.

For a function f the exact reverse process has u(x, t) = E[f(X_end) | X_t = x] in closed form, and u is a martingale
along it. A sampler's states x_0, x_1, … from the exact start therefore satisfy, exactly,

    E f(x_N) − E f(X_end) = ∑ᵢ E[ (P u)(mᵢ, tᵢ₊₁) − u(xᵢ, tᵢ) ],   xᵢ₊₁ = mᵢ + sᵢ·zᵢ,   (P u)(m) = E_z u(m + sᵢ·z)

with zᵢ the fresh noise of step i. The terms are local errors: the fluctuation of f(x_N) itself, which hides the order
in plain Monte Carlo, is gone from them. For a rule of order 2 the noise left falls like 1/N and the error like 1/N².

f runs over the distribution function blurred by a normal of standard deviation b, f_y(x) = Φ((y − x)/b), so the answer
is the Wasserstein-1 distance ∫ |F_N − F| dy of the two laws, both blurred by b.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import UsageError
from ornstein.paths.base import Path
from ornstein.randomness import Key, Noise, NoiseSource, generator
from ornstein.samplers.base import Memory, Problem, Sampler, Step, run, stream

from .laws import scale_of
from .targets import MixtureTarget, gain_of

Array = npt.NDArray[np.float64]

BLUR = 0.1
_WINDOW = 8.0  # half the window in standard deviations
_CELLS = 1024
_LEVELS = 48  # values of y
_FOLDS = 8  # parts of the sample, for the noise
_POINTS = 6  # of the interpolation


@dataclass(frozen=True, slots=True, kw_only=True)
class LawError:
    """``w1``: ∫ |F_N − F| of the blurred laws. ``noise``: what sampling noise alone would show there on average."""

    w1: float
    noise: float
    evaluations: int


def blurred_w1(
    sampler: Sampler,
    target: MixtureTarget,
    path: Path,
    times: Sequence[float],
    *,
    samples: int = 20_000,
    seed: int = 0,
    blur: float = BLUR,
) -> LawError:
    """W1 between a stochastic sampler's law and the exact one on the line, from the exact start; see the module.

    Raises:
        UsageError: the target is not 1-D, or a step has noise before its last question (then `stochastic_tv` serves).
    """
    problem, denoiser = Problem(sampler, path, tuple(times)), target.denoiser(path)
    if any(s > t for t, s in pairwise(problem.times)):
        raise UsageError("a grid that climbs has no local errors of this kind")
    end = problem.times[-1]
    mean, std = scale_of(target, path, end)
    levels = mean + std * np.linspace(-3.5, 3.5, _LEVELS)
    noise = _Recorder(seed, samples)
    x = target.start(Noise.of(seed, range(samples)), path, problem.times[0])
    twin, memory, own = x[:1], {}, {}
    now = _Backward.at(target, path, problem.times[0], end, levels, blur)
    total, evaluations = np.zeros((_FOLDS, _LEVELS)), 0
    for step in problem.stretches():
        fresh, twin, own, asked = _twin(sampler, path, denoiser, twin, step, own)
        evaluations += asked
        before, x = x, run(sampler.step(path, x, step, noise, memory), denoiser)
        after = _Backward.at(target, path, step.s, end, levels, blur)
        total += after.mean(x - fresh * noise.last(), spread=fresh) - now.mean(before)
        now = after
    gap = float(levels[1] - levels[0])
    deviation = total.std(axis=0, ddof=1) / math.sqrt(_FOLDS)
    # E|N(0, s²)| = s·√(2/π).
    return LawError(
        w1=gap * float(np.abs(total.mean(axis=0)).sum()),
        noise=gap * float(deviation.sum()) * math.sqrt(2.0 / math.pi),
        evaluations=evaluations,
    )


@dataclass(frozen=True, slots=True)
class _Backward:
    """u(·, t) of all levels on a uniform grid, (cells, levels)."""

    low: float
    width: float
    values: Array

    @classmethod
    def at(cls, target: MixtureTarget, path: Path, t: float, end: float, levels: Array, blur: float) -> _Backward:
        mean, std = scale_of(target, path, t)
        x = mean + std * np.linspace(-_WINDOW, _WINDOW, _CELLS, endpoint=False)
        gain, rest = float(gain_of(path, t)), float(gain_of(path, end))
        final, here = target.law(path, end), target.law(path, t)
        ratio = gain / rest
        # Per component X_end | X_t = x is normal: regress X_end on X_t, cov(X_end, X_t) = ratio·var(X_end).
        pull = (ratio * final.variances / here.variances)[:, 0].numpy()
        centre = final.means[:, 0].numpy() + pull * (x[:, None] - here.means[:, 0].numpy())
        spread = final.variances[:, 0].numpy() * (1.0 - ratio * pull) + blur**2
        joint = here.weights.log().numpy() - 0.5 * (
            (x[:, None] - here.means[:, 0].numpy()) ** 2 / here.variances[:, 0].numpy()
            + here.variances[:, 0].log().numpy()
        )
        shares = np.exp(joint - joint.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        z = (levels - centre[:, :, None]) / np.sqrt(spread)[:, None]  # (cells, components, levels)
        values = np.einsum("gk,gkl->gl", shares, torch.special.ndtr(torch.from_numpy(z)).numpy())
        return cls(float(x[0]), float(x[1] - x[0]), values)

    def mean(self, x: Tensor, spread: float = 0.0) -> Array:
        """Mean of u(x + spread·z) over each fold of the sample, (folds, levels)."""
        weights = np.stack([_scattered(fold, self.low, self.width) for fold in np.array_split(x[:, 0].numpy(), _FOLDS)])
        if spread > 0.0:
            frequency = 2.0 * math.pi * np.fft.rfftfreq(_CELLS, self.width)
            weights = np.fft.irfft(np.fft.rfft(weights) * np.exp(-0.5 * (frequency * spread) ** 2), _CELLS)
        return weights @ self.values


def _scattered(x: Array, low: float, width: float) -> Array:
    """Weights w on the grid with w·u = mean of u over x, u interpolated by polynomials through six points."""
    place = np.clip((x - low) / width, _POINTS, _CELLS - _POINTS)
    base = np.floor(place).astype(np.int64) - (_POINTS // 2 - 1)
    part = place - base
    out = np.zeros(_CELLS)
    for j in range(_POINTS):
        others = [k for k in range(_POINTS) if k != j]
        weight = np.prod([(part - k) / (j - k) for k in others], axis=0)
        out += np.bincount(base + j, weights=weight, minlength=_CELLS)
    return out / len(x)


@dataclass(slots=True)
class _Recorder:
    """Fresh normals in float64; it remembers the last ones."""

    seed: int
    rows: int
    drawn: Tensor | None = None

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        numbers = generator("lab", "backward", self.seed, str(key)).standard_normal((self.rows, *event))
        self.drawn = torch.from_numpy(numbers)
        return self.drawn

    def last(self) -> Tensor:
        """The normals of this step, and nothing kept."""
        drawn, self.drawn = self.drawn, None
        return torch.zeros(1, 1, dtype=torch.float64) if drawn is None else drawn

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        # Over disjoint stretches, which is all a descent asks for, increments are independent.
        return math.copysign(math.sqrt(abs(t1 - t0)), t1 - t0) * self.normal((str(key), str((t0, t1))), event)

    def uniform(self, key: Key) -> float:
        del key
        raise UsageError("a sampler that draws its times is measured given them")

    def uniform_per_sample(self, key: Key) -> Tensor:
        del key
        raise UsageError("a sampler that draws its times is measured given them")

    def fork(self, name: str) -> NoiseSource:
        del name
        return self


@dataclass(slots=True)
class _Level(_Recorder):
    """The same with all normals equal to ``value``, counting the requests."""

    value: float = 0.0
    count: int = 0

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        del key
        self.count += 1
        return torch.full((self.rows, *event), self.value, dtype=torch.float64)


def _twin(
    sampler: Sampler, path: Path, denoiser: DenoiserLike, x: Tensor, step: Step, memory: Memory
) -> tuple[float, Tensor, Memory, int]:
    """(std of the fresh noise, state and memory after the step without noise, questions), of one quiet run."""
    ends: list[Tensor] = []
    questions: list[list[float]] = []
    kept: Memory = {}
    noise = _Level(0, 1)
    for value in (1.0, 0.0):
        kept = copy.deepcopy(memory)
        noise = _Level(0, 1, None, value)
        events = list(stream(sampler.step(path, x, step, noise, kept), denoiser))
        ends.append(events[-1].x)
        questions.append([float(event.x) for event in events[:-1]])
    if questions[0] != questions[1] or noise.count > 1:
        raise UsageError(f"{type(sampler).__name__} has noise before a question of the same step: use stochastic_tv")
    return float(ends[0] - ends[1]), ends[1], kept, len(questions[1])


__all__ = ["BLUR", "LawError", "blurred_w1"]

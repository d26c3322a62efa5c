"""Exact output laws on the line: deterministic samplers by the derivative of their map, stochastic ones on a grid.

Positions are counted in standard deviations of the law at each time, so that one window serves every path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import UsageError
from ornstein.paths.base import Path
from ornstein.randomness import Key, Noise, NoiseSource
from ornstein.samplers.base import Problem, Sampler, Steps, run, solve, stream

from .targets import MixtureTarget

Array = npt.NDArray[np.float64]

_WINDOW = 7.5  # half the window, in standard deviations
_NODES = 11  # Gauss–Hermite nodes for noise inside a step: 21 move no digit of a total variation above 1e-6


def scale_of(target: MixtureTarget, path: Path, t: float) -> tuple[float, float]:
    """(mean, standard deviation) of a 1-D law at t."""
    law = target.law(path, t)
    if law.dim != 1:
        raise UsageError(f"an exact law on the line needs a 1-D target, this one has d = {law.dim}")
    mean = float((law.weights * law.means[:, 0]).sum())
    return mean, math.sqrt(float((law.weights * (law.variances[:, 0] + (law.means[:, 0] - mean) ** 2)).sum()))


def _density(target: MixtureTarget, path: Path, t: float, x: Tensor) -> Array:
    return target.law(path, t).log_density(x[:, None]).exp().numpy()


def _area(gap: Array) -> float:
    """∑|gap| to third order: the trapezium rule, and Euler and Maclaurin's h²/12·f' at both sides of a sign change."""
    low, high = gap[:-1], gap[1:]
    size = np.abs(low) + np.abs(high)
    corner = (low * low + high * high) / np.where(size > 0.0, size, 1.0) + size / 3.0
    return 0.5 * float(np.where(low * high < 0.0, corner, size).sum())


def pushed(steps: Callable[[Tensor], Steps], denoiser: DenoiserLike, x: Tensor) -> tuple[Tensor, Tensor]:
    """(F(x), F'(x)) of a map on the line, x (B,), by a complex step through the sampler itself.

    Samplers and exact denoisers are analytic in the state, so F'(x) = Im F(x + iε)/ε without any cancellation.
    """
    tiny = 1e-30
    out = run(steps(torch.complex(x, torch.full_like(x, tiny))[:, None]), denoiser)[:, 0]
    return out.real, out.imag / tiny


def deterministic_tv(
    sampler: Sampler,
    target: MixtureTarget,
    path: Path,
    times: Sequence[float],
    *,
    points: int = 8001,
    seed: int = 0,
    denoiser: DenoiserLike | None = None,
) -> float:
    """TV(law of the sampler, p at times[-1]) of a deterministic sampler started from the exact law.

        ½∫| p_start(x) − p_end(F(x))·F'(x) | dx

    ``seed`` chooses the times of a sampler that draws its own: the law found is the law given them. ``denoiser``
    replaces the exact one; it must be analytic in the state. NaN where F folds (F' ≤ 0): the formula does not hold
    there, and the number would exceed what is true.
    """
    mean, std = scale_of(target, path, times[0])
    x = mean + std * torch.linspace(-_WINDOW, _WINDOW, points, dtype=torch.float64)
    noise = Noise.of(seed, range(points))
    model = target.denoiser(path) if denoiser is None else denoiser
    value, slope = pushed(lambda at: solve(sampler, path, at, times, noise), model, x)
    start = _density(target, path, times[0], x)
    if bool((slope[torch.from_numpy(start) * std > 1e-12] <= 0.0).any()):
        return math.nan
    gap = start - _density(target, path, times[-1], value) * slope.numpy()
    return 0.5 * _area(gap) * float(x[1] - x[0])


@dataclass(slots=True)
class _Probe:
    """A noise source whose normals are numbers that the lab chooses, in order of first request."""

    values: Mapping[int, float | Tensor]
    seen: list[Key]

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        if key not in self.seen:
            self.seen.append(key)
        value = self.values.get(self.seen.index(key), 0.0)
        if isinstance(value, Tensor):
            return value.reshape(-1, *(1,) * len(event)).expand(-1, *event)
        return torch.full((1, *event), value, dtype=torch.float64)

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """Within one step only disjoint stretches are asked for: each is a normal of its own."""
        return math.copysign(math.sqrt(abs(t1 - t0)), t1 - t0) * self.normal(
            ("increment", str(key), str((t0, t1))), event
        )

    def uniform(self, key: Key) -> float:
        del key
        raise UsageError("a sampler that draws its times has no exact law on a grid: use the Gaussian meters")

    def uniform_per_sample(self, key: Key) -> Tensor:
        del key
        raise UsageError("a sampler that draws its times has no exact law on a grid: use the Gaussian meters")

    def fork(self, name: str) -> NoiseSource:
        del name
        return self


@dataclass(frozen=True, slots=True)
class _Kernel:
    """One step as x → g(x, inner normals) + std·z."""

    problem: Problem
    denoiser: DenoiserLike
    inner: tuple[int, ...]
    std: float

    def moved(self, x: Tensor, count: int) -> Iterator[tuple[float, Tensor, Tensor]]:
        """(weight, g, g') at x for every node of the inner normals, all of them in one batch."""
        nodes = _nodes(self.inner, count)
        values = {
            j: torch.tensor([at[j] for _, at in nodes], dtype=torch.float64).repeat_interleave(len(x))
            for j in self.inner
        }
        out = pushed(lambda at: self.problem.steps(at, _Probe(values, [])), self.denoiser, x.repeat(len(nodes)))
        for (weight, _), value, slope in zip(nodes, *(part.split(len(x)) for part in out), strict=True):
            yield weight, value, slope


def _kernel(problem: Problem, denoiser: DenoiserLike, at: float) -> _Kernel:
    """Which normals of a step move a question (inner), and how far the others spread the answer (outer)."""
    x = torch.full((1, 1), at, dtype=torch.float64)

    def trace(values: dict[int, float]) -> tuple[list[float], float, int]:
        probe = _Probe(values, [])
        events = list(stream(problem.steps(x, probe), denoiser))
        return [float(e.x) for e in events[:-1]], float(events[-1].x), len(probe.seen)

    asked, end, count = trace({})
    inner, variance = [], 0.0
    for j in range(count):
        moved, answer, _ = trace({j: 1.0})
        if moved != asked:
            inner.append(j)
        else:
            variance += (answer - end) ** 2
    return _Kernel(problem, denoiser, tuple(inner), math.sqrt(variance))


def is_one_step(sampler: Sampler, target: MixtureTarget, path: Path, times: Sequence[float]) -> bool:
    """Whether the sampler forgets everything but its state: two steps in one go equal two runs of one step."""
    if len(times) < 3:
        return True
    denoiser, x = target.denoiser(path), torch.full((1, 1), 0.7, dtype=torch.float64)
    nodes = list(times[min(3 * len(times) // 4, len(times) - 3) :][:3])  # where the estimate moves with the state
    probe = _Probe({}, [])
    whole = run(Problem(sampler, path, tuple(nodes)).steps(x, probe), denoiser)
    for pair in (nodes[:2], nodes[1:]):
        x = run(Problem(sampler, path, tuple(pair)).steps(x, probe), denoiser)
    return bool((x - whole).abs().max() < 1e-12)


def stochastic_tv(
    sampler: Sampler,
    target: MixtureTarget,
    path: Path,
    times: Sequence[float],
    *,
    points: int = 2048,
    nodes: int = _NODES,
    denoiser: DenoiserLike | None = None,
) -> float:
    """TV(law of the sampler, p at times[-1]) of a stochastic sampler without memory, started from the exact law.

    Each step moves the density by its map (change of variables, cubic interpolation) and spreads it by its noise
    (exact, by FFT). Noise inside a step is integrated by ``nodes`` Gauss–Hermite nodes. NaN where a map folds, or
    where more than 1e-4 of the mass leaves the window. ``denoiser`` replaces the exact one; it must be analytic in the
    state.
    """
    model = target.denoiser(path) if denoiser is None else denoiser
    y = torch.linspace(-_WINDOW, _WINDOW, points + 1, dtype=torch.float64)[:-1]
    dy = 2.0 * _WINDOW / points
    frequency = 2.0 * math.pi * np.fft.rfftfreq(points, dy)
    mean, std = scale_of(target, path, times[0])
    density = _density(target, path, times[0], mean + std * y) * std
    for t, s in pairwise(times):
        kernel = _kernel(Problem(sampler, path, (t, s)), model, mean)
        x, (mean, std) = mean + std * y, scale_of(target, path, s)
        moved = np.zeros(points)
        stretch = float(x[1] - x[0]) / (dy * std)
        for weight, value, slope in kernel.moved(x, nodes):
            moved += weight * _moved(density, (value - mean) / std, slope * stretch, y)
        if not np.isfinite(moved).all():
            return math.nan
        damp = np.exp(-0.5 * (frequency * kernel.std / std) ** 2)
        density = np.fft.irfft(np.fft.rfft(moved) * damp, points)
    if abs(float(density.sum()) * dy - 1.0) > 1e-4:
        return math.nan
    return 0.5 * _area(density - _density(target, path, times[-1], mean + std * y) * std) * dy


def _moved(density: Array, value: Tensor, slope: Tensor, y: Tensor) -> Array:
    """The density of g(Y) on the grid y, from g and g' there; NaN where g folds under mass."""
    from scipy.interpolate import CubicSpline

    g, dg = value.numpy(), slope.numpy()
    if (dg[density > 1e-9] <= 0.0).any():
        return np.full_like(density, np.nan)
    good = np.maximum.accumulate(g) == g
    good &= np.concatenate(([True], np.diff(np.maximum.accumulate(g)) > 0.0)) & (dg > 0.0)
    spline = CubicSpline(g[good], density[good] / dg[good], extrapolate=False)
    return np.nan_to_num(spline(y.numpy()))


def _nodes(inner: tuple[int, ...], count: int) -> list[tuple[float, dict[int, float]]]:
    """Weights and values of the inner normals."""
    if len(inner) > 2:
        raise UsageError(f"a step with {len(inner)} normals inside is too dear for an exact law: at most 2")
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    return [
        (math.prod(float(weights[i]) for i in pick), {j: float(nodes[i]) for j, i in zip(inner, pick, strict=True)})
        for pick in product(range(count), repeat=len(inner))
    ]


__all__ = ["deterministic_tv", "is_one_step", "pushed", "scale_of", "stochastic_tv"]

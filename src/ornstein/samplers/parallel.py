"""The parallel form of the randomized midpoint method: all evaluations of a sweep in one batch (Li & Jiao 2025, app.
E).

A round is a descent over n cells whose n − 1 inner evaluations depend on each other. Picard's iteration breaks the
chain:

    Y_i^(0) = the state the round began with,   Y_i^(m) = Y_i( G_0, G(Y_1^(m−1)), …, G(Y_{i−1}^(m−1)) )

Every sweep m evaluates all points at once, so a round takes 1 + M calls one after another instead of n. After sweep m
the first m points are exact, so n sweeps give the sequential result; with short rounds a few come below its own error.
A device that evaluates a large batch as fast as a small one saves time; where the batch costs its size, nothing is
saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers import DenoiserLike, info_of, predict_times
from ..errors import ConfigError, GridError
from ..grids import Grid, affine, log_snr
from ..grids import rounds as rounds_of
from ..paths.base import AffinePath, Path
from ..randomness import NoiseSource
from .accelerated import is_jump
from .base import Memory, Problem, Step, run
from .midpoint import Clock, RandomizedMidpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Result of `picard`.

    ``x`` is the final state (B, *event). ``rounds`` counts the evaluations one after another, the depth; one
    batch may hold many states, and ``evaluations`` counts these. ``sweeps`` and ``deviations`` have one entry for
    each descent: how many sweeps it took, and how far the last one moved its end (root mean square over the batch, in
    units of √(α² + σ²); infinite after a single sweep, which has nothing to compare with). ``add`` says whether
    the denoiser evaluated each batch in one call (`ornstein.denoisers.DenoiserInfo.times_together`); otherwise the
    depth is what such a one would need. ``seconds`` is wall time.
    """

    x: Tensor
    rounds: int
    evaluations: int
    sweeps: tuple[int, ...]
    deviations: tuple[float, ...]
    together: bool
    seconds: float

    @property
    def deviation(self) -> float:
        """The largest of ``deviations``: while sweeps contract, more than what is left of the iteration's error."""
        return max(self.deviations, default=0.0)


def picard(
    rule: RandomizedMidpoint,
    denoiser: DenoiserLike,
    x: Tensor,
    times: Sequence[float],
    noise: NoiseSource,
    sweeps: int,
    *,
    tolerance: float = 0.0,
) -> Parallel:
    """The steps of ``rule`` over ``times`` from x (B, *event), each descent solved by at most ``sweeps`` Picard sweeps.

    The drawn times, the noise of the climbs and, with as many sweeps as cells, the result are those of
    ``run(solve(rule, …), denoiser)``. A descent stops early once a sweep moved its end by no more than ``tolerance``
    (which costs one read from the device a sweep). Points that are exact already are not evaluated again. One batch
    holds up to cells·B states: choose B for the device's memory. Runs under ``no_grad``. For a grid see `staged`.

    Raises:
        ConfigError: fewer than one sweep, or a negative tolerance.
    """
    if sweeps < 1:
        raise ConfigError(f"the parallel form needs at least one sweep, got {sweeps}")
    if not 0.0 <= tolerance < math.inf:
        raise ConfigError(f"the tolerance must be finite and not negative, got {tolerance}")
    begun = time.perf_counter()
    problem = Problem(rule, denoiser.path, tuple(times))
    path = affine(denoiser.path)
    memory: Memory = {}
    depth, evaluations, taken, moved = 0, 0, list[int](), list[Tensor]()
    with torch.no_grad():
        for group in _descents(path, list(problem.stretches())):
            head = group[0]
            if head.s > head.t:
                x = path.renoise(x, head.t, head.s, noise.normal(("up", head.index), x.shape[1:]))
                memory = {}
            elif is_jump(path, head.t, head.s):
                x = run(rule.step(path, x, head, noise, memory), denoiser)
                depth, evaluations = depth + 1, evaluations + 1
            else:
                first = "slope" not in memory
                if first:
                    clock = Clock(rule.form, path)
                    memory["slope"] = clock.slope(denoiser(x, head.t), clock.weight(head.t))
                    depth, evaluations = depth + 1, evaluations + 1
                descent = _Descent.of(rule, path, group, noise, first)
                x, count, evaluated, change = descent.solve(denoiser, x, memory, sweeps, tolerance)
                depth, evaluations = depth + count, evaluations + evaluated
                taken.append(count)
                moved.append(change)
    deviations: list[float] = torch.stack(moved).cpu().numpy().tolist() if moved else []
    return Parallel(
        x=x,
        rounds=depth,
        evaluations=evaluations,
        sweeps=tuple(taken),
        deviations=tuple(deviations),
        together=info_of(denoiser).times_together,
        seconds=time.perf_counter() - begun,
    )


def staged(cells: int, count: int) -> Grid:
    """The grid of ``count`` rounds for use with networks: equal steps of log-SNR to the floor, then the clean end.

    Every round goes down over cells/count cells and, but for the last, climbs back over half of them; ``cells``
    evaluations, and one for the jump to the clean end (and one less on a path that begins at pure noise).

    Raises:
        GridError: ``cells`` is no multiple of 2·count.

    >>> from ornstein.paths import VP
    >>> len(staged(32, 4)(VP()))
    37
    """
    if count < 1 or cells < 2 * count or cells % (2 * count):
        raise GridError(f"{count} rounds need a positive multiple of {2 * max(count, 1)} cells, got {cells}")
    half = cells // (2 * count)

    def rule(path: Path) -> tuple[float, ...]:
        down = log_snr((count + 1) * half + 1)(path)
        return (*rounds_of(down[:-1], count, climb=False)(path), down[-1])

    return Grid(f"staged({cells}, {count})", rule)


def _descents(path: AffinePath, steps: list[Step]) -> list[list[Step]]:
    """Runs of downward steps of finite length; climbs and jumps stand alone."""
    out: list[list[Step]] = []
    for step in steps:
        alone = step.s > step.t or is_jump(path, step.t, step.s)
        follows = bool(out) and out[-1][0].s < out[-1][0].t and not is_jump(path, out[-1][0].t, out[-1][0].s)
        if not alone and follows:
            out[-1].append(step)
        else:
            out.append([step])
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Descent:
    """One round: its ends, the times of its inner evaluations, and every scaled state as a combination of slopes.

    w_i − w_0 = ∑_k weights[i, k]·G_k, for the inner points i in turn and for the end; G_0 is known.
    """

    clock: Clock
    begin: float
    end: float
    inner: tuple[float, ...]
    weights: Tensor

    @classmethod
    def of(
        cls, rule: RandomizedMidpoint, path: AffinePath, steps: list[Step], noise: NoiseSource, first: bool
    ) -> _Descent:
        """``first``: the opening slope was evaluated at the start of the descent itself."""
        clock = Clock(rule.form, path)
        asks = [rule.asks_inside(path, step, first and i == 0) for i, step in enumerate(steps)]
        inner = tuple(rule.place(clock, step, noise) for step, inside in zip(steps, asks, strict=True) if inside)
        rows: list[list[float]] = []
        crossed = [0.0] * (len(inner) + 1)
        latest = 0
        for step, inside in zip(steps, asks, strict=True):
            if inside:
                reach = clock.at(inner[latest]) - clock.at(step.t)
                rows.append([c + reach * (k == latest) for k, c in enumerate(crossed)])
                latest += 1
            crossed[latest] += clock.at(step.s) - clock.at(step.t)
        weights = torch.tensor([*rows, crossed], dtype=torch.float64)
        return cls(clock=clock, begin=steps[0].t, end=steps[-1].s, inner=inner, weights=weights)

    def solve(
        self, denoiser: DenoiserLike, x: Tensor, memory: Memory, sweeps: int, tolerance: float
    ) -> tuple[Tensor, int, int, Tensor]:
        """(state at the end, sweeps taken, states evaluated, how far the last sweep moved the end)."""
        clock, weights = self.clock, self.weights.to(x.device, x.dtype)
        start = x / clock.scale(self.begin)
        slopes = torch.stack([memory["slope"]] * (len(self.inner) + 1))
        end, evaluated, sweep = self._at(start, weights[-1], slopes, self.end), 0, 0
        change = torch.zeros((), dtype=torch.float64, device=x.device)
        size = self._size(self.begin)
        states = [x * (self._size(t) / size) for t in self.inner]
        for sweep in range(1, min(sweeps, len(self.inner) + 1) + 1 if self.inner else 1):
            # After sweep m the states of the first m points are exact, and their slopes after the next one.
            skip = max(sweep - 2, 0)
            if sweep > 1:
                points = list(zip(weights[skip:-1], self.inner[skip:], strict=True))
                states = [self._at(start, row, slopes, t) for row, t in points]
            estimates = predict_times(denoiser, torch.stack(states), self.inner[skip:])
            evaluated += len(states)
            fresh = [clock.slope(e, clock.weight(t)) for e, t in zip(estimates, self.inner[skip:], strict=True)]
            slopes = torch.cat((slopes[: skip + 1], torch.stack(fresh)))
            last, end = end, self._at(start, weights[-1], slopes, self.end)
            change = (end - last).to(torch.float64).square().mean().sqrt() / self._size(self.end)
            if sweep == 1:
                change = torch.full_like(change, math.inf)
            elif tolerance and float(change) <= tolerance:
                break
        memory["slope"] = slopes[-1]
        return end, sweep, evaluated, change

    def _at(self, start: Tensor, row: Tensor, slopes: Tensor, t: float) -> Tensor:
        """The state at t: start + row·slopes, unscaled."""
        return self.clock.scale(t) * (start + (row @ slopes.flatten(1)).reshape(start.shape))

    def _size(self, t: float) -> float:
        return math.hypot(self.clock.path.alpha(t), self.clock.path.sigma(t))

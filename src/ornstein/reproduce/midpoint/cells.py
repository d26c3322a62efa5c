"""The jobs behind the reproduction of the randomized midpoint method: plain settings in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import grids
from ...estimates import Estimate
from ...lab.targets import G8, M2, M64, ExactDenoiser, MixtureTarget, gain_of
from ...paths import VE, AffinePath
from ...randomness import Noise, NoiseSource, generator
from ...samplers import Memory, Query, RandomizedMidpoint, Step, Steps, picard, run, solve
from . import rounds as closed

WIDE = VE(sigma_min=1e-9, sigma_max=1e9)
FIRST, LAST = 80.0, 0.02
POINTS = 2000  # of the exact law, on which densities are compared


def gaussian(rounds: int, evaluations: int, places: str, form: str, draws: int, seed: int) -> dict[str, float]:
    """G8, equal steps of log σ̄, exact start: √E KL and E TV over the draws of the times."""
    v, rng = G8().variance.numpy(), generator("reproduce", "midpoint", seed, evaluations, rounds)
    half = evaluations // (2 * rounds)
    bars = closed.even(rounds * half, FIRST, LAST, beyond=half)
    levels = closed.pinned(bars, rounds)
    parts = closed.parts_of(rng, levels, draws, places)  # pyright: ignore[reportArgumentType]
    tops = closed.climbs(levels, bars[rounds * half])
    law = closed.propagate(v, levels, tops, parts, form=form)  # pyright: ignore[reportArgumentType]
    noise = generator("reproduce", "midpoint", "white", seed).standard_normal((POINTS, len(v)))
    return {"root_kl": math.sqrt(law.kl(v).sum(1).mean()), "tv": float(law.tv(v, noise).mean())}


def over_draws(rounds: int, evaluations: int, form: str) -> dict[str, float]:
    """The same without draws: √E KL, and √KL of the law over all draws, by quadrature over the times."""
    from ...lab.over_times import over_times

    half = evaluations // (2 * rounds)
    bars = closed.even(rounds * half, FIRST, LAST, beyond=half)
    times = grids.rounds([WIDE.time_of(-2.0 * math.log(bar)) for bar in bars], rounds)(WIDE)
    found = over_times(RandomizedMidpoint(form), G8(), WIDE, times)  # pyright: ignore[reportArgumentType]
    return {"conditional": found.conditional_root_kl, "law": found.root_kl}


def schedules(dim: int, active: int, rounds: int, c1: float, steps: int, draws: int, seed: int) -> dict[str, float]:
    """The paper's own experiment: KL over ``draws`` schedules, drawn ends, N(0, I) start, variances drawn by seed.

    ``active`` directions have variances U[0, 10], the others none; ``flat`` is the part of these in the mean.
    """
    variances = generator("reproduce", "midpoint", "variances", seed, dim, active).uniform(0.0, 10.0, active)
    v = np.append(variances, 0.0)  # the directions of no variance are all alike
    rng = generator("reproduce", "midpoint", "schedules", seed, steps)
    bars = closed.bars_of(grids.li2025(steps, c0=2.0, c1=c1, beyond=steps // rounds), WIDE)
    levels = closed.drawn(bars, rounds, rng.random((rounds + 1, draws)), rng.random((rounds, draws)))
    top = closed.inside(bars, steps, rng.random(draws))
    parts = closed.parts_of(rng, levels, draws)
    law = closed.propagate(
        v, levels, closed.climbs(levels, top), parts, form="score", opening="single", white_start=True
    )
    kl = law.kl(v)
    flat = kl[:, -1] * (dim - active)
    total = kl[:, :-1].sum(1) + flat
    return {"mean": float(total.mean()), "median": float(np.median(total)), "flat": float(flat.mean())}


def plateau(error: float, evaluations: int, draws: int, seed: int) -> float:
    """Mean TV on G8 in eight rounds when every predicted noise is off by ``error`` in a direction drawn by seed."""
    v = G8().variance.numpy()
    rng = generator("reproduce", "midpoint", "plateau", seed, evaluations)
    off = generator("reproduce", "midpoint", "direction", seed).standard_normal(len(v))
    half = evaluations // 16
    bars = closed.even(8 * half, FIRST, LAST, beyond=half)
    levels = closed.pinned(bars, 8)
    tops, parts = closed.climbs(levels, bars[8 * half]), closed.parts_of(rng, levels, draws)
    wrong = error * off / np.linalg.norm(off)
    law = closed.propagate(v, levels, tops, parts, form="score", error=wrong)
    noise = generator("reproduce", "midpoint", "white", seed).standard_normal((POINTS, len(v)))
    return float(law.tv(v, noise).mean())


@dataclass(frozen=True, slots=True, eq=False)
class Together(ExactDenoiser):
    """An exact denoiser that answers at many times in one evaluation."""

    def predict_times(self, x: Tensor, times: Sequence[float]) -> list[Estimate]:
        """See `ornstein.denoisers.Denoiser.predict_times`."""
        rows = x.shape[1]
        gain, std = ([float(f(t)) for t in times] for f in (lambda t: gain_of(self.path, t), self.path.sigma))  # type: ignore[attr-defined]
        both = [torch.tensor(c, dtype=torch.float64).repeat_interleave(rows) for c in (gain, std)]
        clean = self.target.clean(x.flatten(0, 1), *both).unflatten(0, (len(times), rows))
        return [Estimate(part, t, self.path, clean=c) for part, t, c in zip(x, times, clean, strict=True)]


@dataclass(frozen=True, slots=True)
class Fine:
    """The probability-flow ODE by the classical Runge–Kutta rule in log σ̄, at most ``most`` a step: a reference."""

    most: float = 0.05
    order: float = 4
    needs: type[Any] = AffinePath

    def step(self, path: AffinePath, x: Tensor, step: Step, noise: NoiseSource, memory: Memory) -> Steps:
        """As many small steps as it takes."""
        del noise, memory
        begin, end = math.log(path.sigma_bar(step.t)), math.log(path.sigma_bar(step.s))
        count = math.ceil(abs(end - begin) / self.most)
        h, u = (end - begin) / count, x / path.alpha(step.t)
        for i in range(count):
            ks: list[Tensor] = []
            for part in (0.0, 0.5, 0.5, 1.0):
                at = path.time_of(-2.0 * (begin + (i + part) * h))
                state = path.alpha(at) * (u + part * h * ks[-1] if ks else u)
                ks.append((yield Query(state, at)).noise * path.sigma_bar(at))
            u = u + (h / 6.0) * (ks[0] + 2.0 * (ks[1] + ks[2]) + ks[3])
        return u * path.alpha(step.s)


def _gap(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm(dim=1).median())


def _coupled(target: MixtureTarget, times: Sequence[float], noise: Noise) -> tuple[Together, Tensor, Tensor]:
    """(denoiser, start, end of the reference driven by the same start and the same climbs)."""
    model = Together(target, WIDE)
    x = target.start(noise, WIDE, times[0])
    return model, x, run(solve(Fine(), WIDE, x, times, noise), model)


def trajectory(target: str, dim: int, rounds: int, evaluations: int, batch: int, seed: int) -> dict[str, float]:
    """Median distance at the end to the reference, from random points and from the middles, noise form, a mixture."""
    noise = Noise.of(seed, range(batch), dtype=torch.float64)
    law = M2() if target == "M2" else M64(dim)
    half = evaluations // (2 * rounds)
    bars = closed.even(rounds * half, FIRST, LAST, beyond=half)
    times = grids.rounds([WIDE.time_of(-2.0 * math.log(bar)) for bar in bars], rounds)(WIDE)
    model, x, end = _coupled(law, times, noise)
    out: dict[str, float] = {}
    for places in ("random", "middle"):
        rule = RandomizedMidpoint("noise", places)  # type: ignore[arg-type]
        out[places] = _gap(run(solve(rule, WIDE, x, times, noise), model), end)
    return out


def sweeps(steps: int, rounds: int, most: int, batch: int, seed: int, c1: float = 5.0) -> dict[str, Any]:
    """The parallel form on the paper's schedule, M2: median deviation from the sequential result after 1, 2, … sweeps.

    Stops at the first deviation below the discretisation error of the sequential run (``own``, against the reference
    with the same start, times and noise), but not before four sweeps, or after ``most``.
    """
    noise = Noise.of(seed, range(batch), dtype=torch.float64)
    times = grids.rounds(grids.li2025(steps, c0=2.0, c1=c1, beyond=steps // rounds), rounds, draw=noise)(WIDE)
    model, x, end = _coupled(M2(), times, noise)
    rule = RandomizedMidpoint("score", opening="single")
    sequential = run(solve(rule, WIDE, x, times, noise), model)
    own, found, depth = _gap(sequential, end), list[float](), 0
    for count in range(1, most + 1):
        result = picard(rule, model, x, times, noise, count)
        found.append(_gap(result.x, sequential))
        if found[-1] <= own and not depth:
            depth = result.rounds
        if depth and count >= 4:
            break
    return {"own": own, "deviations": found, "depth": depth}

"""Exact error meters for Gaussian targets: a sampler's output law without Monte Carlo and without a recursion by hand.

Every update rule here is linear in states and estimates, and the exact denoiser of a Gaussian is affine. So the
state is a linear combination of 1 and of independent unit normals, and a batch can carry the coefficients: row 0 is
the mean, every other row the coefficient of one normal. `NoiseBasis` answers a request for noise with fresh unit
rows, and the production sampler runs unchanged. Mean = row 0, variance = sum of squares of the other rows; exact for
multistep and stochastic rules alike, not for clipping or thresholding.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike, DenoiserWrapper
from ornstein.errors import UsageError
from ornstein.estimates import Estimate
from ornstein.paths.base import Cond, Path
from ornstein.randomness import Key, Noise, NoiseSource, mix
from ornstein.samplers.base import Sampler, run, solve
from ornstein.scalars import Time

from .targets import GaussianTarget

Slot = tuple[str, Key, tuple[int, ...]]


class _UnrecordedError(Exception):
    """Noise was asked for that no first run has recorded."""


@dataclass(slots=True)
class _Rows:
    """Which request for noise owns which rows. Filled by a first run, read by the second."""

    noise: dict[Slot, int] = field(default_factory=dict)
    times: dict[Slot, set[float]] = field(default_factory=dict)
    drawn: list[Key] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NoiseBasis:
    """A `NoiseSource` whose normals are unit vectors; see the module's text.

    ``dense`` gives every number of an event its own row; otherwise one row serves all directions, which is enough
    when they never mix (a Gaussian in its own eigenframe) and d times cheaper. Times drawn by `uniform` are true
    numbers of ``times``: the law found is the law given these times. ``total`` is 0 in the first, recording run.
    """

    rows: _Rows = field(default_factory=_Rows)
    first: int = 0
    total: int = 0
    dense: bool = False
    times: Noise = field(default_factory=lambda: Noise.of(0, range(1)))
    name: str = ""

    def recorded(self, first: int) -> NoiseBasis:
        """The source of the second run, with ``first`` rows before its own."""
        total, noise = first, {}
        for slot in self.rows.noise:
            noise[slot] = total
            total += self._width(slot)
        for slot, times in self.rows.times.items():
            noise[slot] = total
            total += self._width(slot) * max(len(times) - 1, 0)
        return NoiseBasis(_Rows(noise, self.rows.times), first, total, self.dense, self.times, self.name)

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """The unit rows of this key: the same for the same key."""
        slot = (self.name, key, tuple(event))
        if not self.total:
            self.rows.noise.setdefault(slot, 0)
            return torch.zeros(1, *event, dtype=torch.float64)
        if slot not in self.rows.noise:
            raise _UnrecordedError
        out = self._zeros(event)
        self._fill(out, self.rows.noise[slot], 1.0)
        return out

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """W(t1) − W(t0): a sum over the elementary intervals between all times ever asked for."""
        slot = (self.name, ("increment", key) if not isinstance(key, tuple) else ("increment", *key), tuple(event))
        if not self.total:
            self.rows.times.setdefault(slot, set()).update((t0, t1))
            return torch.zeros(1, *event, dtype=torch.float64)
        if slot not in self.rows.times:
            raise _UnrecordedError
        out, nodes = self._zeros(event), sorted(self.rows.times[slot])
        sign = 1.0 if t1 >= t0 else -1.0
        for i, (low, high) in enumerate(itertools.pairwise(nodes)):
            if min(t0, t1) <= low and high <= max(t0, t1):
                self._fill(out, self.rows.noise[slot] + i * self._width(slot), sign * math.sqrt(high - low))
        return out

    def uniform(self, key: Key) -> float:
        """A true number: times are given, not averaged over."""
        self.rows.drawn.append(key)
        return self.times.fork(self.name).uniform(key)

    def uniform_per_sample(self, key: Key) -> Tensor:
        """One true number for all rows, which are one sample together."""
        self.rows.drawn.append(key)
        return self.times.fork(self.name).uniform_per_sample(key).expand(max(self.total, 1))

    def fork(self, name: str) -> NoiseBasis:
        """Independent rows."""
        return NoiseBasis(self.rows, self.first, self.total, self.dense, self.times, f"{self.name}/{name}")

    @property
    def stochastic(self) -> bool:
        """Whether normals have been asked for."""
        return bool(self.rows.noise or self.rows.times)

    @property
    def draws_times(self) -> bool:
        """Whether uniform numbers have been asked for."""
        return bool(self.rows.drawn)

    def _width(self, slot: Slot) -> int:
        return math.prod(slot[2]) if self.dense else 1

    def _zeros(self, event: Sequence[int]) -> Tensor:
        return torch.zeros(self.total, *event, dtype=torch.float64)

    def _fill(self, out: Tensor, start: int, value: float) -> None:
        if not self.dense:
            out[start] = value
            return
        size = math.prod(out.shape[1:])
        out.view(self.total, size)[start : start + size].diagonal().fill_(value)


@dataclass(slots=True)
class Affine(DenoiserWrapper):
    """Any affine denoiser, made to act on rows of coefficients: row 0 sees D(x), the others D(x) − D(0).

    ``evaluations`` counts the questions.
    """

    inner: DenoiserLike
    evaluations: int = 0

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """One evaluation on all rows and on zero."""
        self.evaluations += 1
        clean = self.inner(torch.cat((x, torch.zeros_like(x[:1]))), t).clean
        return Estimate(x, t, self.path, clean=torch.cat((clean[:1], clean[1:-1] - clean[-1:])))

    def with_condition(self, cond: Cond) -> Affine:
        """Bound inside."""
        return Affine(self.inner.with_condition(cond))


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Exact output law N(mean, ·) of a sampler: ``variance`` by direction, ``covariance`` only from dense runs."""

    mean: Tensor
    variance: Tensor
    covariance: Tensor | None
    evaluations: int


def propagate(
    sampler: Sampler,
    denoiser: DenoiserLike,
    times: Sequence[float],
    mean: Tensor,
    root: Tensor,
    *,
    dense: bool = False,
    seed: int = 0,
    noise: NoiseBasis | None = None,
) -> Moments:
    """Output moments of ``sampler`` from a start N(mean, root·rootᵀ), mean of any event shape.

    ``root`` holds the rows of coefficients of the start, (rows, *event). ``noise`` may be passed by a denoiser that
    draws from the same basis; ``seed`` chooses the times of samplers that draw their own.
    """
    record = NoiseBasis(dense=dense, times=Noise.of(seed, range(1))) if noise is None else noise
    rows, affine = torch.cat((mean[None], root)), Affine(denoiser)

    def ran(basis: NoiseBasis) -> Tensor:
        x = torch.cat((rows, mean.new_zeros(basis.total - len(rows), *mean.shape)))
        affine.evaluations = 0
        return run(solve(sampler, denoiser.path, x, times, basis), affine)

    x: Tensor | None = None
    if noise is None:  # most samplers ask for no noise, and then one run is enough
        with contextlib.suppress(_UnrecordedError):
            x = ran(record.recorded(len(rows)))
    if x is None:
        run(solve(sampler, denoiser.path, mean[None], times, record), denoiser)
        x = ran(record.recorded(len(rows)))
    spread = x[1:].flatten(1)
    return Moments(x[0], x[1:].square().sum(0), spread.T @ spread if dense else None, affine.evaluations)


def gaussian_law(
    sampler: Sampler,
    target: GaussianTarget,
    path: Path,
    times: Sequence[float],
    *,
    seed: int = 0,
    start: GaussianTarget | None = None,
    denoiser: DenoiserLike | None = None,
) -> Moments:
    """Exact output law along the target's eigenvectors.

    ``start`` replaces the exact law at times[0], ``denoiser`` the exact one (both in the eigenframe): that is how
    initialisation and score errors are isolated.
    """
    own = aligned(target)
    begin = own.law(path, times[0]) if start is None else aligned(start)
    if begin.mean.shape != own.mean.shape:
        raise UsageError(f"the start has {begin.dim} directions, the target {own.dim}")
    exact = own.denoiser(path) if denoiser is None else denoiser
    return propagate(sampler, exact, times, begin.mean, begin.variance.sqrt()[None], seed=seed)


def aligned(target: GaussianTarget) -> GaussianTarget:
    """The target in its own eigenframe: samplers and white noise do not see the rotation."""
    if target.frames is None:
        return target
    return GaussianTarget(target.frames[0].T @ target.mean, target.variance)


def kl(found: Moments, law: GaussianTarget) -> float:
    """KL(found ‖ law) by direction: ½∑(δ − log1p δ + μ²/v), δ = v̂/v − 1."""
    delta = (found.variance - law.variance) / law.variance
    mu = found.mean - law.mean
    return float((0.5 * (delta - torch.log1p(delta)) + mu.square() / (2.0 * law.variance)).sum())


def w2(found: Moments, law: GaussianTarget) -> float:
    """Wasserstein-2 distance: √∑(μ² + (√v̂ − √v)²)."""
    gap = found.variance.sqrt() - law.variance.sqrt()
    return float(((found.mean - law.mean).square() + gap.square()).sum().sqrt())


def tv_normal(mean: float, variance: float, mean0: float, variance0: float) -> float:
    """Total variation of two normals on the line, from the points where their densities cross."""
    a = 0.5 * (1.0 / variance0 - 1.0 / variance)
    b = mean / variance - mean0 / variance0
    c = 0.5 * (mean0**2 / variance0 - mean**2 / variance + math.log(variance0 / variance))
    if a == 0.0:
        cuts = [] if b == 0.0 else [-c / b]
    else:
        # The stable pair of roots: no cancellation when the variances nearly agree.
        root = math.sqrt(max(b * b - 4.0 * a * c, 0.0))
        q = -0.5 * (b + math.copysign(root, b))
        cuts = sorted({q / a, c / q} if q else {0.0})

    def cdf(x: float, m: float, v: float) -> float:
        return 0.5 * math.erfc((m - x) / math.sqrt(2.0 * v))

    gaps = [0.0, *(cdf(x, mean, variance) - cdf(x, mean0, variance0) for x in cuts), 0.0]
    return 0.5 * sum(abs(q - p) for p, q in itertools.pairwise(gaps))


def conditional_root_kl(
    sampler: Sampler, target: GaussianTarget, path: Path, times: Sequence[float], draws: int = 200
) -> float:
    """√E_τ KL over ``draws`` of the times τ of a sampler that draws its own (its conditional error)."""
    law = aligned(target).law(path, times[-1])
    seeds = (mix("lab", "times", i) for i in range(draws))
    return math.sqrt(sum(kl(gaussian_law(sampler, target, path, times, seed=s), law) for s in seeds) / draws)


__all__ = [
    "Affine",
    "Moments",
    "NoiseBasis",
    "NoiseSource",
    "aligned",
    "conditional_root_kl",
    "gaussian_law",
    "kl",
    "propagate",
    "tv_normal",
    "w2",
]

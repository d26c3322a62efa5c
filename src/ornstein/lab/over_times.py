"""The exact law of a sampler that draws its times, over all draws, on a Gaussian target.

Given its times such a sampler is linear. One step maps the deviations y = (state, memory) of a direction by a matrix
M(q) that depends on the number q ~ U[0, 1) drawn in it, and on nothing drawn before. So with C = E[y yᵀ | times]

    C' = M(q) C M(q)ᵀ,   E[C'] = ∫ M E[C] Mᵀ dq,   E[C'⊗C'] = ∫ (M⊗M) E[C⊗C] (M⊗M)ᵀ dq

and one Gauss–Legendre rule a step carries the variance of the law over the draws (first line) and the spread of the
variance between draws (second), both exactly: no draw is made and no recursion is written by hand, M being read off
the sampler itself, one unit vector at a time. Averages over some hundred draws leave noise far above the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike, Guidance
from ornstein.errors import UsageError
from ornstein.paths.base import Path
from ornstein.randomness import Key, NoiseSource
from ornstein.samplers.base import Memory, Problem, Sampler, Step, run

from .meters import aligned
from .targets import GaussianTarget

_NODES = 8  # of the quadrature in a step; 12 move no printed digit


@dataclass(frozen=True, slots=True, eq=False)
class OverTimes:
    """Output law by direction, over all draws of the times, from the exact start.

    ``variance`` is E[V] of the variance V given the times, the variance of the law itself; ``square`` is E[V²];
    ``exact`` is the target's. All (d,). Samplers keep the mean exactly, so it plays no part.
    """

    variance: Tensor
    square: Tensor
    exact: Tensor

    @property
    def root_kl(self) -> float:
        """√KL of the Gaussian with the moments of the law over all draws."""
        delta = self.variance / self.exact - 1.0
        return math.sqrt(max(float((0.5 * (delta - torch.log1p(delta))).sum()), 0.0))

    @property
    def conditional_root_kl(self) -> float:
        """√E[KL given the times], to leading order: KL = ¼·∑ δ² + O(δ³) with δ = V/v − 1."""
        spread = self.square - 2.0 * self.variance * self.exact + self.exact.square()
        return 0.5 * math.sqrt(max(float((spread / self.exact.square()).sum()), 0.0))


def over_times(
    sampler: Sampler,
    target: GaussianTarget,
    path: Path,
    times: Sequence[float],
    *,
    nodes: int = _NODES,
    through: Guidance = lambda exact: exact,
) -> OverTimes:
    """The exact moments over the drawn times of ``sampler`` on ``target``; see the module's text.

    Climbs of the grid are allowed (fresh noise is added exactly), and the grid's own times are given.
    ``through`` changes the exact denoiser, to another linear one.

    Raises:
        UsageError: the sampler draws normals, or more than one number a step, or remembers more than tensors.
    """
    own = aligned(target)
    centred = GaussianTarget(torch.zeros_like(own.mean), own.variance)
    denoiser = through(centred.denoiser(path))
    problem = Problem(sampler, path, tuple(times))
    names: tuple[str, ...] = ()  # of what the sampler remembers
    first = own.law(path, problem.times[0]).variance[None]  # distinct entries of C, (pairs, d)
    second = first[None] * first  # E of their products, (pairs, pairs, d)
    for step in problem.stretches():
        if step.s > step.t:
            first, second, names = *_climb(path, step, first, second), ()
            continue
        fresh, mixed = 0.0, 0.0
        maps, names = _maps(sampler, path, denoiser, step, names, own.dim, nodes)
        for weight, matrix in maps:
            pairs = _on_pairs(matrix)
            fresh = fresh + weight * torch.einsum("pqd,qd->pd", pairs, first)
            mixed = mixed + weight * torch.einsum("pqd,qrd,srd->psd", pairs, second, pairs)
        first, second = torch.as_tensor(fresh), torch.as_tensor(mixed)
    return OverTimes(first[0], second[0, 0], own.law(path, problem.times[-1]).variance)


def _climb(path: Path, step: Step, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Fresh noise on the state alone; the memory is forgotten, as in the loop."""
    one = torch.ones(1, 1, dtype=torch.float64)
    gain = float(path.renoise(one, step.t, step.s, 0.0 * one, None)) ** 2
    added = float(path.renoise(0.0 * one, step.t, step.s, one, None)) ** 2
    variance, square = first[:1], second[:1, :1]
    return gain * variance + added, gain**2 * square + 2.0 * gain * added * variance[None] + added**2


def _maps(
    sampler: Sampler, path: Path, denoiser: DenoiserLike, step: Step, names: tuple[str, ...], dim: int, nodes: int
) -> tuple[list[tuple[float, Tensor]], tuple[str, ...]]:
    """(weight, M (after, before, d)) at every node, and what is remembered after the step."""
    units = torch.eye(1 + len(names), dtype=torch.float64)[:, :, None].expand(-1, -1, dim)

    def at(number: float) -> tuple[Tensor, tuple[str, ...], _Chosen]:
        noise = _Chosen(number)
        memory: Memory = {name: units[i + 1] for i, name in enumerate(names)}
        x = run(sampler.step(path, units[0], step, noise, memory), denoiser)
        after = tuple(sorted(memory))
        if not all(isinstance(memory[name], Tensor) for name in after):
            raise UsageError(f"{type(sampler).__name__} remembers more than tensors: average over draws instead")
        return torch.stack((x, *(memory[name] for name in after))), after, noise

    places, weights = np.polynomial.legendre.leggauss(nodes)
    matrix, after, noise = at(0.5 * (1.0 + float(places[0])))
    if not noise.asked:
        return [(1.0, matrix)], after
    if len(set(noise.asked)) > 1:
        raise UsageError(
            f"{type(sampler).__name__} draws {len(set(noise.asked))} numbers a step: at most one is served"
        )
    rest = [at(0.5 * (1.0 + float(place)))[0] for place in places[1:]]
    return [(0.5 * float(w), m) for w, m in zip(weights, [matrix, *rest], strict=True)], after


def _on_pairs(matrix: Tensor) -> Tensor:
    """M⊗M on the distinct entries of a symmetric matrix: (pairs after, pairs before, d)."""
    rows, columns = (np.triu_indices(size) for size in matrix.shape[:2])
    (a, b), (i, j) = (tuple(torch.from_numpy(part) for part in pair) for pair in (rows, columns))
    direct = matrix[a][:, i] * matrix[b][:, j]
    crossed = matrix[a][:, j] * matrix[b][:, i]
    return direct + (i != j)[None, :, None] * crossed


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A noise source whose uniform numbers are one number that the lab chooses."""

    number: float
    asked: list[Key] = field(default_factory=list)

    def uniform(self, key: Key) -> float:
        self.asked.append(key)
        return self.number

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        del key, event
        raise UsageError("a sampler that draws normals besides its times has no exact moments over them")

    def uniform_per_sample(self, key: Key) -> Tensor:
        del key
        raise UsageError("a sampler that draws a time for every sample has no exact moments over them")

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        del t0, t1
        return self.normal(key, event)

    def fork(self, name: str) -> NoiseSource:
        del name
        return self


__all__ = ["OverTimes", "over_times"]

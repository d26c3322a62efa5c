"""A certificate of a deterministic sampler's total-variation error, by the method of Li, Di & Gu 2025 (2410.14237).

Two flows dX = v dr and dY = w dr with laws p and q drift apart in total variation no faster than (their lemma 4.2)

    d/dr TV(p, q) = ∫_{p > q} p·[div(w − v) + (w − v)·∇log p]  ≤  E_p|div(w − v)| + E_p|(w − v)·∇log p|

A one-step sampler is such a flow (`ornstein.lab.extended`), beside the probability flow v = y + ∇log p in the time of
the Ornstein–Uhlenbeck process. `certify` adds the bound up over all steps; the tighter variant keeps the positive part
of the bracket. Nodes are carried along by the sampler, so no map is inverted: E_p f = ∫ p(F(y_0))·f·|F'(y_0)| dy_0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import UsageError
from ornstein.paths.base import AffinePath, Path
from ornstein.randomness import NoiseSource
from ornstein.samplers.base import Memory, Problem, Sampler, Step, run

from .extended import TINY, Carried, Still, affine_of, at_ou_time, extend, jacobian, norm_of, ou_time
from .targets import MixtureTarget

_GAUSS = ((0.5 - math.sqrt(0.15), 5.0 / 18.0), (0.5, 4.0 / 9.0), (0.5 + math.sqrt(0.15), 5.0 / 18.0))
_WINDOW = 7.5  # half of the line's window, in standard deviations


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Bounds on TV(law of the sampler, p at the last time) for an exact start, and the true one.

    ``bound`` = ``divergence`` + ``drift``, the two terms of the lemma with absolute values, ``tight`` the positive part
    of their sum; ``tv`` is the true distance. ``shares`` is what every step adds to ``bound``. ``error`` holds one
    standard error of (bound, tight, tv) for drawn nodes, zeros on the line. ``least`` is the smallest determinant of
    the whole map's Jacobian; where it is not positive the map folds, nothing here holds, and all is NaN.
    """

    bound: float
    tight: float
    tv: float
    divergence: float
    drift: float
    shares: tuple[float, ...]
    least: float
    error: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def holds(self) -> bool:
        """Whether the map is one to one over the nodes."""
        return self.least > 0.0


@dataclass(frozen=True, slots=True)
class Nodes:
    """Points y (B, d) with ∫ f(y) dy ≈ ∑ exp(log_weight)·f(y), and which of them count for folding."""

    y: Tensor
    log_weight: Tensor
    counted: Tensor
    drawn: bool

    @classmethod
    def line(cls, target: MixtureTarget, path: AffinePath, t: float, points: int) -> Nodes:
        """Equal steps over ±7.5 standard deviations of a 1-D law."""
        law, scale = target.law(path, t), norm_of(path, t)
        mean = float((law.weights * law.means[:, 0]).sum())
        std = math.sqrt(float((law.weights * (law.variances[:, 0] + (law.means[:, 0] - mean) ** 2)).sum()))
        x = (mean + std * torch.linspace(-_WINDOW, _WINDOW, points, dtype=torch.float64))[:, None]
        width = math.log(2.0 * _WINDOW * std * scale / (points - 1))
        return cls(scale * x, torch.full((points,), width, dtype=torch.float64), law.log_density(x).exp() * std > 1e-12,
                   False)  # fmt: skip

    @classmethod
    def drawn_from(cls, target: MixtureTarget, path: AffinePath, t: float, noise: NoiseSource) -> Nodes:
        """Draws from the law at t, weighted by 1/(B·p)."""
        scale, x = norm_of(path, t), target.start(noise, path, t)
        log_p = target.law(path, t).log_density(x) - x.shape[1] * math.log(scale)
        return cls(scale * x, -log_p - math.log(len(x)), torch.ones(len(x), dtype=torch.bool), True)


def certify(
    sampler: Sampler,
    target: MixtureTarget,
    path: Path,
    times: Sequence[float],
    *,
    denoiser: DenoiserLike | None = None,
    noise: NoiseSource | None = None,
    points: int = 2001,
) -> Certificate:
    """The certificate of a deterministic one-step sampler that starts from the exact law at times[0].

    On the line by quadrature over ``points`` nodes; in more dimensions over draws of ``noise``, one for each of its
    samples. ``denoiser`` replaces the exact one: then the errors of its score and of its divergence enter as well. It
    must be analytic in the state (accept complex numbers). Three Gauss–Legendre points a step.

    Raises:
        UsageError: a sampler that draws noise or remembers earlier steps, or d > 1 without ``noise``.

    >>> from ornstein import grids
    >>> from ornstein.lab import M1
    >>> from ornstein.paths import VP
    >>> from ornstein.samplers import DDIM
    >>> found = certify(DDIM(), M1(), VP(), grids.early_stopping(10)(VP()), points=501)
    >>> found.tv < found.tight < found.bound
    True
    """
    problem = Problem(sampler, path, tuple(times))
    base, exact = affine_of(path), target.denoiser(path)
    model = exact if denoiser is None else denoiser
    steps = list(problem.stretches())
    if any(step.s > step.t for step in steps):
        raise UsageError("a certificate follows one descent: leave the climbs out")
    if target.dim > 1 and noise is None:
        raise UsageError(f"a target of {target.dim} dimensions needs noise=, from which the nodes are drawn")
    nodes = (
        Nodes.line(target, base, times[0], points) if noise is None else Nodes.drawn_from(target, base, times[0], noise)
    )
    _refuse_memory(sampler, model, base, steps, nodes.y)
    y, log_weight = nodes.y, nodes.log_weight
    sums = torch.zeros(4, len(y), dtype=torch.float64)  # by node: bound, positive part, divergence, drift
    shares: list[float] = []
    least = math.inf
    for step in steps:
        flow, tau = extend(sampler, model, step, y), ou_time(base, step.t)
        added = torch.zeros_like(sums)
        for place, part in _GAUSS:
            r = place * flow.width
            added += part * flow.width * _brackets(flow.at(r), target, exact, base, tau - r, log_weight)
        sums += added
        shares.append(float(added[0].sum()))
        y, slope = flow.reach(flow.width)
        determinant = _determinant(slope)
        log_weight = log_weight + determinant.abs().log()
        grown = determinant.sign() * (log_weight - nodes.log_weight).exp()
        least = min(least, float(grown[nodes.counted].min()))
        if least <= 0.0:
            return Certificate(bound=math.nan, tight=math.nan, tv=math.nan, divergence=math.nan, drift=math.nan,
                               shares=tuple(shares), least=least)  # fmt: skip
    gap = (
        0.5
        * (
            (nodes.log_weight + _log_density(target, base, times[0], nodes.y)).exp()
            - (log_weight + _log_density(target, base, times[-1], y)).exp()
        ).abs()
    )
    bound, tight, divergence, drift = (float(row.sum()) for row in sums)
    count = len(y)
    errors = [float(row.std()) * math.sqrt(count) if nodes.drawn else 0.0 for row in (sums[0], sums[1], gap)]
    return Certificate(
        bound=bound,
        tight=tight,
        tv=float(gap.sum()),
        divergence=divergence,
        drift=drift,
        shares=tuple(shares),
        least=least,
        error=(errors[0], errors[1], errors[2]),
    )


def _brackets(
    carried: Carried, target: MixtureTarget, exact: DenoiserLike, path: AffinePath, tau: float, log_weight: Tensor
) -> Tensor:
    """What every node adds at τ: |div| + |drift|, the positive part of their sum, |div| and |drift|, times its mass."""
    t = at_ou_time(path, tau)
    std, scale, dim = math.sqrt(-math.expm1(-2.0 * tau)), norm_of(path, t), carried.y.shape[1]
    noise, slope = jacobian(lambda y: exact(y / scale, t).noise, carried.y)
    score, own = -noise / std, -slope.diagonal(dim1=1, dim2=2).sum(1) / std
    divergence = _relative_rate(carried) - dim - own
    drift = ((carried.rate - carried.y - score) * score).sum(1)
    log_det = _determinant(carried.jacobian).abs().log()
    mass = (log_weight + log_det + _log_density(target, path, t, carried.y)).exp()
    parts = torch.stack(
        (divergence.abs() + drift.abs(), (divergence + drift).clamp_min(0.0), divergence.abs(), drift.abs())
    )
    return torch.where(mass > 0.0, mass * parts, 0.0)


def _determinant(matrix: Tensor) -> Tensor:
    return matrix[:, 0, 0] if matrix.shape[1] == 1 else torch.linalg.det(matrix)


def _relative_rate(carried: Carried) -> Tensor:
    """div w = tr(∂_r J·J⁻¹)."""
    if carried.y.shape[1] == 1:
        return (carried.jacobian_rate / carried.jacobian)[:, 0, 0]
    return torch.linalg.solve(carried.jacobian, carried.jacobian_rate).diagonal(dim1=1, dim2=2).sum(1)


def _log_density(target: MixtureTarget, path: AffinePath, t: float, y: Tensor) -> Tensor:
    scale = norm_of(path, t)
    return target.law(path, t).log_density(y / scale) - y.shape[1] * math.log(scale)


def _refuse_memory(
    sampler: Sampler, denoiser: DenoiserLike, path: AffinePath, steps: Sequence[Step], y: Tensor
) -> None:
    """The second of two steps must not depend on what the first has left in the memory."""
    if len(steps) < 2:
        return
    one, two = steps[len(steps) // 2 - 1 :][:2]
    memory: Memory = {}
    x = run(sampler.step(path, y[::199] / norm_of(path, one.t), one, Still(), memory), denoiser)
    with_memory = run(sampler.step(path, x, two, Still(), memory), denoiser)
    without = run(sampler.step(path, x, two, Still(), {}), denoiser)
    if not torch.allclose(with_memory, without, rtol=1e-12, atol=1e-12):
        raise UsageError(f"{type(sampler).__name__} remembers earlier steps: a certificate needs a one-step sampler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Monotonicity:
    """How far the map of a deterministic sampler is from folding, over the points that it was asked for.

    ``determinants`` and ``singular`` hold, after every step, the least determinant and the least singular value of the
    Jacobian of the map from the start; ``folded`` the part of the points with a negative determinant at the end.
    """

    determinants: tuple[float, ...]
    singular: tuple[float, ...]
    folded: float

    @property
    def least(self) -> float:
        """The least determinant at the end of any step: not positive where formulas by change of variables are void."""
        return min(self.determinants)


def monotonicity(sampler: Sampler, denoiser: DenoiserLike, x: Tensor, times: Sequence[float]) -> Monotonicity:
    """Follow the Jacobian of any deterministic sampler, with memory or without, along trajectories from x (B, d)."""
    problem = Problem(sampler, denoiser.path, tuple(times))
    determinants: list[float] = []
    singular: list[float] = []
    memory: Memory = {}
    rows, dim = x.shape
    state = torch.complex(x, torch.zeros_like(x)).repeat(dim, 1, 1)
    state = (state + 1j * TINY * torch.eye(dim, dtype=x.dtype)[:, None, :]).reshape(dim * rows, dim)
    determinant = torch.ones(rows, dtype=x.dtype)
    for step in problem.stretches():
        if step.s > step.t:
            raise UsageError("monotonicity follows one descent: leave the climbs out")
        state = run(sampler.step(denoiser.path, state, step, Still(), memory), denoiser)
        slope = (state.imag / TINY).reshape(dim, rows, dim).permute(1, 2, 0)
        determinant = torch.linalg.det(slope)
        determinants.append(float(determinant.min()))
        singular.append(float(torch.linalg.svdvals(slope)[:, -1].min()))
    folded = float((determinant < 0.0).to(torch.float64).mean())
    return Monotonicity(determinants=tuple(determinants), singular=tuple(singular), folded=folded)


__all__ = ["Certificate", "Monotonicity", "Nodes", "certify", "monotonicity"]

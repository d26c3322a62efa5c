"""The randomized midpoint method on Gaussians in closed form, for many draws of its times together.

Given its times the method is affine along each direction of the target. With u = x/α and a direction of mean 0 and
variance v the exact noise is ẑ = σ̄·u/(v + σ̄²), so one round maps u to a·u + b, and the climb after it adds
N(0, σ̄'² − σ̄²). Arrays (S, d) hold S draws and d directions; nothing is sampled but the times.

It is the recursion of `ornstein.samplers.RandomizedMidpoint` on `ornstein.grids.rounds` written a second time, some
thousand times as fast for 60 draws; tests compare the two draw by draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...grids import Grid
from ...paths.base import AffinePath

Array = npt.NDArray[np.float64]
Places = Literal["random", "middle", "left"]
_CHUNK = 250  # draws whose densities are compared at once


def bars_of(grid: Grid, path: AffinePath) -> Array:
    """σ̄ at the times of a grid."""
    return np.array([path.sigma_bar(t) for t in grid(path)])


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianLaw:
    """Output given the times: mean and variance of u (S, d), at the level σ̄ = ``bar`` (S, 1)."""

    mean: Array
    variance: Array
    bar: Array

    def kl(self, v: Array) -> Array:
        """KL(found ‖ exact) of every direction, (S, d)."""
        exact = v + self.bar**2
        delta = self.variance / exact - 1.0
        return 0.5 * (delta - np.log1p(delta)) + self.mean**2 / (2.0 * exact)

    def tv(self, v: Array, noise: Array) -> Array:
        """TV(found, exact) for every draw, (S,): ½E|q/p − 1| over the exact law, drawn by ``noise`` (n, d)."""
        exact = v + self.bar**2
        ratio, shift = exact / self.variance, self.mean / np.sqrt(exact)
        out: list[Array] = []
        for i in range(0, len(ratio), _CHUNK):
            r, m = ratio[i : i + _CHUNK], shift[i : i + _CHUNK]
            # log q/p = ½∑( log r + z² − r·(z − m)² )
            log = 0.5 * ((1.0 - r) @ (noise**2).T) + (r * m) @ noise.T
            log += 0.5 * (np.log(r) - r * m**2).sum(1, keepdims=True)
            out.append(0.5 * np.abs(np.expm1(log)).mean(1))
        return np.concatenate(out)


def pinned(bars: Array, count: int) -> list[Array]:
    """The rounds that begin and end at edges: (2H + 1, 1) levels each, of a grid of (count + 1)·H cells."""
    half = (len(bars) - 1) // (count + 1)
    return [bars[k * half : (k + 2) * half + 1, None] for k in range(count)]


def drawn(bars: Array, count: int, starts: Array, ends: Array) -> list[Array]:
    """The rounds of the paper, which begin and end inside a cell at points uniform in ᾱ: (2H + 2, S) levels each.

    ``starts`` (count + 1, S) and ``ends`` (count, S) are the uniform numbers; the grid has (count + 1)·H + 1 cells.
    The last start is the level of the result, see `climbs`.
    """
    half = (len(bars) - 2) // (count + 1)
    out: list[Array] = []
    for k in range(count):
        low = k * half
        middle = np.repeat(bars[low + 1 : low + 2 * half + 1, None], starts.shape[1], axis=1)
        first, last = inside(bars, low, starts[k]), inside(bars, low + 2 * half, ends[k])
        out.append(np.vstack((first[None], middle, last[None])))
    return out


def inside(bars: Array, cell: int, part: Array) -> Array:
    """σ̄ at the point that has gone ``part`` of a cell in ᾱ = 1/(1 + σ̄²)."""
    one, two = 1.0 / (1.0 + bars[cell : cell + 2] ** 2)
    level = one + part * (two - one)
    return np.exp(-0.5 * (np.log(level) - np.log1p(-level)))


def climbs(rounds: Sequence[Array], last: Array) -> list[Array]:
    """The level after each round: where the next one begins, and at the end ``last``."""
    return [*(levels[0] for levels in rounds[1:]), np.atleast_1d(last)]


def propagate(
    v: Array,
    rounds: Sequence[Array],
    tops: Sequence[Array],
    parts: Sequence[Array],
    *,
    form: Literal["noise", "score"] = "noise",
    opening: Literal["pair", "single"] = "pair",
    white_start: bool = False,
    error: Array | None = None,
) -> GaussianLaw:
    """The law after all rounds, given the times.

    ``rounds[k]`` (n + 1, S or 1) are the levels of round k, ``tops[k]`` the level it climbs to, and ``parts[k]``
    (n, S) how far inside its cells it asks, in the clock of ``form``. ``white_start`` begins with N(0, I) in place of
    the exact law; ``error`` (d,) is added to every predicted noise.
    """
    wrong = 0.0 if error is None else error
    bar = np.atleast_1d(rounds[0][0])[:, None]
    shape = (parts[0].shape[1], len(v))
    variance = np.broadcast_to(1.0 + bar**2 if white_start else v + bar**2, shape).copy()
    mean = np.zeros(shape)

    def clock(bar: Array) -> Array:
        return bar**2 / (1.0 + bar**2) if form == "score" else bar

    def slope(bar: Array, u: Array) -> Array:
        """(G's linear part and its constant) of u = (a, b), (2, S, d)."""
        noise = bar / (v + bar**2) * u
        noise[1] += wrong
        return noise * (0.5 * (1.0 + bar**2) ** 2 / bar if form == "score" else 1.0)

    for levels, top, part in zip(rounds, tops, parts, strict=True):
        u = np.stack((np.ones(shape), np.zeros(shape)))
        g = slope(levels[0][:, None], u)
        for j in range(len(levels) - 1):
            begin, end = clock(levels[j])[:, None], clock(levels[j + 1])[:, None]
            if j < len(levels) - 2 and not (j == 0 and opening == "single"):
                r = begin + part[j][:, None] * (end - begin)
                at = np.sqrt(r / (1.0 - r)) if form == "score" else r
                g = slope(at, u + g * (r - begin))
            u = u + g * (end - begin)
        mean = u[0] * mean + u[1]
        variance = u[0] ** 2 * variance + top[:, None] ** 2 - levels[-1][:, None] ** 2
    return GaussianLaw(mean=mean, variance=variance, bar=np.atleast_1d(tops[-1])[:, None])


def parts_of(rng: np.random.Generator, rounds: Sequence[Array], draws: int, places: Places = "random") -> list[Array]:
    """Where to ask inside the cells: uniform numbers, the middles, or the noisier ends."""
    if places == "random":
        return [rng.random((len(levels) - 1, draws)) for levels in rounds]
    return [np.full((len(levels) - 1, 1), 0.5 if places == "middle" else 0.0) for levels in rounds]


def even(count: int, first: float, last: float, beyond: int = 0) -> Array:
    """σ̄ in equal steps of its logarithm, ``beyond`` of them past the last."""
    return first * (last / first) ** (np.arange(count + beyond + 1) / count)

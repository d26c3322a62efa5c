"""Images between images: the noise of a sample mixed with that of others, at all of its places or at one.

All noise of a sample is a function of its number in the stream, so a mixture e = cos θ·e_a + sin θ·e_b of two samples'
noise is white again, and what is drawn from it is a sample of the model like any other. It works with every path and
every sampler that are deterministic given their noise; on a pyramid the noise has one part for each level, and there
are few of them.

>>> import torch, ornstein as orn
>>> from ornstein.interpolation import Between
>>> model = orn.Denoiser(lambda x, time: torch.zeros_like(x), path=orn.Flow(), predicts="velocity", shape=(3, 8, 8))
>>> frames = orn.sample(model, 5, steps=2, sampler="euler", noise=Between(a=3, b=7, frames=5))
>>> bool((frames[-1] == orn.sample(model, 1, steps=2, sampler="euler", first=7)[0]).all())
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .checks import OneLine
from .errors import UsageError
from .paths.base import Path
from .paths.pyramid import PyramidPath
from .randomness import Key, Noise, NoiseSource
from .scalars import to_device


class Latents(Protocol):
    """Where the noise of a call of `ornstein.sample` comes from, instead of from (seed, number of the sample)."""

    def __call__(self, rows: range, device: torch.device, dtype: torch.dtype) -> NoiseSource:
        """The noise of these rows of the call."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed(OneLine):
    """A `NoiseSource`: cos θ·first + sin θ·second with an angle for every row, at one key or (None) at all of them.

    ``shares`` are the rows' (cos θ, sin θ): a share of exactly 0 and 1 leaves one of the two as it is, bit for bit.
    Numbers on the host, such as drawn times, are those of the first.
    """

    first: NoiseSource
    second: NoiseSource
    shares: tuple[tuple[float, float], ...]
    key: Key | None = None

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """Standard normal noise, shape (B, *event)."""
        return self._mixed(key, self.first.normal(key, event), lambda: self.second.normal(key, event))

    def uniform(self, key: Key) -> float:
        """The first's."""
        return self.first.uniform(key)

    def uniform_per_sample(self, key: Key) -> Tensor:
        """The first's."""
        return self.first.uniform_per_sample(key)

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """The increments of a Brownian path, mixed alike."""
        first = self.first.brownian_increment(key, t0, t1, event)
        return self._mixed(key, first, lambda: self.second.brownian_increment(key, t0, t1, event))

    def fork(self, name: str) -> Mixed:
        """Both forked."""
        return Mixed(first=self.first.fork(name), second=self.second.fork(name), shares=self.shares, key=self.key)

    def _mixed(self, key: Key, first: Tensor, second: Callable[[], Tensor]) -> Tensor:
        if self.key is not None and key != self.key:
            return first
        other = second()
        columns = to_device(torch.tensor(self.shares, dtype=torch.float64), first.device, first.dtype)
        cosine, sine = (column.reshape(-1, *(1,) * (first.ndim - 1)) for column in columns.unbind(1))
        return cosine * first + sine * other


def arc(steps: int) -> tuple[tuple[float, float], ...]:
    """(cos θ, sin θ) for θ from 0 to π/2 in equal steps, both ends exact; squares add up to one."""
    if steps < 2:
        raise UsageError(f"a path between two images needs at least 2 frames, got {steps}")
    angles = [0.5 * math.pi * i / (steps - 1) for i in range(1, steps - 1)]
    return ((1.0, 0.0), *((math.cos(angle), math.sin(angle)) for angle in angles), (0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Between(OneLine):
    """``frames`` images from sample ``a`` of the stream of ``seed`` to sample ``b``; the ends are those samples."""

    a: int
    b: int
    frames: int
    seed: int = 0

    def __post_init__(self) -> None:
        arc(self.frames)

    def __call__(self, rows: range, device: torch.device, dtype: torch.dtype) -> Mixed:
        """See `Latents`."""
        first, second = (_same(self.seed, number, rows, device, dtype) for number in (self.a, self.b))
        return Mixed(first=first, second=second, shares=arc(self.frames)[rows.start : rows.stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class Square(OneLine):
    """``side``² images, row by row, between four samples of the stream: the corners are those samples.

    e = cos η·(cos θ·e_a + sin θ·e_b) + sin η·(cos θ·e_c + sin θ·e_d), θ along the rows and η down the columns
    (UDPM, fig. of interpolations).
    """

    corners: tuple[int, int, int, int]
    side: int
    seed: int = 0

    def __post_init__(self) -> None:
        arc(self.side)

    def __call__(self, rows: range, device: torch.device, dtype: torch.dtype) -> Mixed:
        """See `Latents`."""
        ends, count = arc(self.side), self.side
        along, down = tuple(ends[row % count] for row in rows), tuple(ends[row // count] for row in rows)
        a, b, c, d = (_same(self.seed, number, rows, device, dtype) for number in self.corners)
        top, bottom = Mixed(first=a, second=b, shares=along), Mixed(first=c, second=d, shares=along)
        return Mixed(first=top, second=bottom, shares=down)


@dataclass(frozen=True, slots=True, kw_only=True)
class Varied(OneLine):
    """Sample ``image`` of the stream of ``seed``, then variations of it: the noise at one ``key`` is drawn anew.

    e' = keep·e + √(1 − keep²)·e_new, with an e_new for every row after the first. Of a pyramid, `level_key` says the
    key of a level.
    """

    image: int
    key: Key
    keep: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.keep <= 1.0:
            raise UsageError(f"keep must lie in [0, 1], got {self.keep}: 0 draws a level anew, 1 leaves it as it is")

    def __call__(self, rows: range, device: torch.device, dtype: torch.dtype) -> Mixed:
        """See `Latents`."""
        share = (self.keep, math.sqrt(1.0 - self.keep**2))
        return Mixed(
            first=_same(self.seed, self.image, rows, device, dtype),
            second=Noise.of(self.seed, rows, device, dtype).fork(f"vary {self.image}"),
            shares=tuple(share if row else (1.0, 0.0) for row in rows),
            key=self.key,
        )


def level_key(path: Path, level: int) -> Key:
    """The key of the noise e_l of a level 1 … L of a pyramid, sampled level by level.

    e_L, the smallest, decides what is seen; e_1 its details. Raises `UsageError` for a path or a level without one.
    """
    if not isinstance(path, PyramidPath):
        raise UsageError(f"{type(path).__name__} has no levels: variations of a level need a model of train udpm")
    if not 1 <= level <= path.levels:
        raise UsageError(f"level {level} has no noise: choose 1 (details) to {path.levels} (what is seen)")
    return "prior" if level == path.levels else path.levels - 1 - level


def _same(seed: int, number: int, rows: range, device: torch.device, dtype: torch.dtype) -> Noise:
    """The noise of one sample in every row."""
    return Noise.of(seed, [number] * len(rows), device, dtype)

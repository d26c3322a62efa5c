"""Boost-and-Skip: rarer samples by a louder start, without any gradient (Um, Kim & Ye 2025, arXiv 2502.06516).

Start from γ times the usual noise, and leave out the first steps of the grid, whose work would be to forget that.
With the exact denoiser of a Gaussian of variance v in some direction, a start at the level α, σ and the exact reverse
kernel, samples have the variance

    κ²·(γσ)² + v·σ²/(α²·v + σ²),      κ = α·v/(α²·v + σ²)

there: almost nothing changes for v ≤ 1, much in the directions of large variance, which in pictures are the low
frequencies. A stochastic sampler mends what is no picture; a deterministic one scales everything by about γ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checks import OneLine
from ..errors import ConfigError
from ..randomness import Key, NoiseSource
from ..typed import typed


@typed()
@dataclass(frozen=True, slots=True)
class Boosted(OneLine):
    """A source of noise whose start (the key "prior") is ``gamma`` γ times as large; all else is the inner source's."""

    source: NoiseSource
    gamma: float

    def __post_init__(self) -> None:
        if not 0.0 < self.gamma < float("inf"):
            raise ConfigError(f"prior_scale must be a positive number, got {self.gamma}: 1 is the usual start")

    def normal(self, key: Key, event: Sequence[int]) -> Tensor:
        """Noise (B, *event)."""
        noise = self.source.normal(key, event)
        return self.gamma * noise if key == "prior" else noise

    def uniform(self, key: Key) -> float:
        """As the inner source."""
        return self.source.uniform(key)

    def uniform_per_sample(self, key: Key) -> Tensor:
        """As the inner source."""
        return self.source.uniform_per_sample(key)

    def brownian_increment(self, key: Key, t0: float, t1: float, event: Sequence[int]) -> Tensor:
        """As the inner source."""
        return self.source.brownian_increment(key, t0, t1, event)

    def fork(self, name: str) -> NoiseSource:
        """A fork is not boosted: the start is drawn before."""
        return self.source.fork(name)


__all__ = ["Boosted"]

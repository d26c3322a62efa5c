"""A wrong score, as the convergence theories assume one: how far the error of the network reaches the samples.

    ŝ(x, t) = (1 + scale)·s(x, t) + (height/frequency)·sin(frequency·x)

The first term errs by a fixed part of the score, which a Gaussian target still measures exactly. The second is a small
error with a large derivative: at a high frequency its size height/frequency vanishes while its slope stays ``height``.
Stochastic samplers forget it, deterministic ones do not, which is why their theorems also bound the score's Jacobian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike, DenoiserWrapper
from ornstein.errors import ConfigError, PathError
from ornstein.estimates import Estimate
from ornstein.paths.base import Cond, LocationPath
from ornstein.scalars import Time, expand


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreError:
    """What is added to the score; callable, so that it maps a denoiser to a denoiser like any guidance."""

    scale: float = 0.0
    height: float = 0.0
    frequency: float = 1.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.scale, self.height))) or not 0.0 < self.frequency < math.inf:
            raise ConfigError(f"a score error needs finite numbers and a positive frequency, got {self!r}")

    @classmethod
    def parse(cls, text: str) -> ScoreError:
        """From "scale=0.01", "height=0.5,frequency=20", or all three.

        >>> ScoreError.parse("scale=0.01").scale
        0.01

        Raises:
            ConfigError: another word, no number, or nothing that differs from the exact score.
        """
        values: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.partition("=")
            try:
                values[{"scale": "scale", "height": "height", "frequency": "frequency"}[name.strip()]] = float(number)
            except (KeyError, ValueError):
                raise ConfigError(
                    f"a score error is written scale=0.01 or height=0.5,frequency=20, got {text!r}"
                ) from None
        found = cls(**values)
        if found.scale == 0.0 and found.height == 0.0:
            raise ConfigError(f"the score error {text!r} changes nothing: give a scale or a height")
        return found

    @property
    def linear(self) -> bool:
        """Whether a Gaussian target keeps an affine score."""
        return self.height == 0.0

    def __call__(self, denoiser: DenoiserLike) -> PerturbedDenoiser:
        """The denoiser with this error in its score."""
        return PerturbedDenoiser(denoiser, self)

    def __str__(self) -> str:
        parts = [f"{1.0 + self.scale:g}·s"] if self.scale else ["s"]
        if self.height:
            parts.append(f"{self.height / self.frequency:g}·sin({self.frequency:g}x)")
        return " + ".join(parts)


@dataclass(frozen=True, slots=True, eq=False)
class PerturbedDenoiser(DenoiserWrapper):
    """`DenoiserLike` whose score is wrong by ``error``; analytic in the state, so every meter takes it."""

    inner: DenoiserLike
    error: ScoreError

    @property
    def path(self) -> LocationPath:
        """The inner path."""
        path = self.inner.path
        if not isinstance(path, LocationPath):
            raise PathError(f"{type(path).__name__} has no std(t): its score has no noise to be read from")
        return path

    def __call__(self, x: Tensor, t: Time) -> Estimate:
        """One evaluation of the inner denoiser: ẑ = −σ·ŝ."""
        noise = (1.0 + self.error.scale) * self.inner(x, t).noise
        if self.error.height:
            size = self.error.height / self.error.frequency
            noise = noise - size * expand(self.path.std(t), noise) * torch.sin(self.error.frequency * x)
        return Estimate(x, t, self.path, noise=noise)

    def with_condition(self, cond: Cond) -> PerturbedDenoiser:
        """Bound inside."""
        return PerturbedDenoiser(self.inner.with_condition(cond), self.error)

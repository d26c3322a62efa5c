"""UDPM's path: every level blurs, subsamples and adds noise, so the state shrinks as the noise grows.

Abu-Hussein & Giryes, "UDPM: Upsampling Diffusion Probabilistic Models", NeurIPS 2024 (arXiv 2305.16269). With the
f × f box kernel of unit L2 norm, H x = f·avgpool_f(x) and Hᵀy = nearest_f(y)/f satisfy HHᵀ = I, so the posterior is
exact without an FFT or an inverse. Any other kernel makes coloured noise; it stays exact in Fourier space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..checks import OneLine
from ..errors import ConfigError, GridError, PathError
from ..estimates import Estimate, Gaussian
from ..options import check_fields
from ..randomness import NoiseSource
from ..scalars import T, Time
from ..typed import typed
from .base import Cond
from .blur import Blur, Circulant, Spectrum


def shrink(x: Tensor, factor: int) -> Tensor:
    """H: (B, C, R, R) → (B, C, R/f, R/f), f times the block mean.

    Raises:
        PathError: a side does not divide by f.
    """
    if factor == 1:
        return x
    if x.ndim < 3 or x.shape[-1] % factor or x.shape[-2] % factor:
        raise PathError(f"cannot shrink {tuple(x.shape)} by {factor}: needs images whose sides divide by it")
    return factor * functional.avg_pool2d(x, factor)


def grow(x: Tensor, factor: int) -> Tensor:
    """Hᵀ: (B, C, r, r) → (B, C, f·r, f·r), each value repeated over its block and divided by f."""
    return x if factor == 1 else functional.interpolate(x, scale_factor=float(factor), mode="nearest") / factor


@typed()
@dataclass(frozen=True, kw_only=True)
class PyramidPath(OneLine):
    """x_l = α_l·H_l x_{l−1} + σ_l·z for levels l = 1 … L; the times of this path are the whole numbers 0 … L.

    In closed form, with ᾱ_l = ∏α and σ̃_l² = α_l²·σ̃_{l−1}² + σ_l²:

        x_l | x_0 ~ N( ᾱ_l·H^l x_0,  σ̃_l² I )

    ``alphas`` and ``sigmas`` are the gain and the noise std of each level, ``factors`` its subsampling (1 keeps the
    resolution: with factors of one and α² + σ² = 1 this is DDPM). An estimate's ``clean`` may stand at any level from
    the target's down to the image: H^{l−1}x_0, which UDPM's network predicts, or x_0 itself.

    ``kernel`` are the taps w of another blur w ⊗ w (of unit norm after scaling), the same at all levels that shrink,
    and circular at the edges: (1, 3, 3, 1) for example. An overlapping kernel has HHᵀ ≠ I, so the noise of x_l given
    x_0 is coloured from level 2 on:

        Σ_l = α_l²·H_l Σ_{l−1} H_lᵀ + σ_l² I

    and ``stds`` are then those of a path with white noise, which is right for the box and other orthonormal kernels.

    ``rule="published"`` uses the authors' scalar posterior, exact on the range of Hᵀ only (1 % off at level 2); the
    public weights were sampled with it.
    """

    kind: ClassVar[str] = "pyramidpath"

    alphas: tuple[float, ...] = (0.5, 0.2, 1e-3)
    """Gain of each level."""
    sigmas: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Noise of each level."""
    factors: tuple[int, ...] = (2, 2, 2)
    """By how much each level shrinks the picture; 1 keeps its size."""
    rule: Literal["exact", "published"] = "exact"
    """The posterior between the levels; published is the authors' scalar one."""
    kernel: tuple[float, ...] = ()
    """Taps of the blur, in one direction, before the picture is subsampled; by default the mean of the block."""

    def __post_init__(self) -> None:
        if not len(self.alphas) == len(self.sigmas) == len(self.factors) > 0:
            raise ConfigError(
                "alphas, sigmas and factors need one value a level, "
                f"got {len(self.alphas)}, {len(self.sigmas)} and {len(self.factors)}"
            )
        if not all(0.0 < value < math.inf for value in (*self.alphas, *self.sigmas)):
            raise ConfigError(f"alphas and sigmas must be positive, got {self.alphas} and {self.sigmas}")
        if not all(factor >= 1 for factor in self.factors):
            raise ConfigError(f"factors must be whole numbers from 1 up, got {self.factors}")
        if self.rule not in ("exact", "published"):
            raise ConfigError(f"unknown rule {self.rule!r}: choose exact or published")
        if self.kernel and not (all(math.isfinite(tap) for tap in self.kernel) and abs(sum(self.kernel)) > 0.0):
            raise ConfigError(f"kernel must be finite taps that do not add up to zero, got {self.kernel}")
        if self.kernel and self.rule == "published":
            raise ConfigError("rule published is the box's alone: use exact with a kernel")
        check_fields(self)

    @property
    def levels(self) -> int:
        """L."""
        return len(self.alphas)

    @property
    def t_range(self) -> tuple[float, float]:
        """(0, L)."""
        return 0.0, float(self.levels)

    @property
    def t_min(self) -> float:
        """Level 1."""
        return 1.0

    @cached_property
    def gains(self) -> tuple[float, ...]:
        """ᾱ_0 … ᾱ_L."""
        return tuple(math.prod(self.alphas[:level]) for level in range(self.levels + 1))

    @cached_property
    def stds(self) -> tuple[float, ...]:
        """σ̃_0 … σ̃_L."""
        out = [0.0]
        for alpha, sigma in zip(self.alphas, self.sigmas, strict=True):
            out.append(math.hypot(alpha * out[-1], sigma))
        return tuple(out)

    def factor(self, s: float, t: float) -> int:
        """Subsampling between the levels s < t."""
        return math.prod(self.factors[self._level(s) : self._level(t)])

    @cached_property
    def blurs(self) -> tuple[Blur | None, ...]:
        """H of each level where it is no box: None there, and where the level keeps the resolution."""
        norm = math.hypot(*self.kernel)
        taps = tuple(tap / norm for tap in self.kernel)
        return tuple(Blur(factor, taps) if taps and factor > 1 else None for factor in self.factors)

    def scale(self, t: float) -> float:
        """What H^t makes of a constant image of ones: H^t x_0/scale(t) is an image in the range of x_0."""
        levels = zip(self.blurs, self.factors, strict=True)
        return math.prod(float(f) if blur is None else blur.gain for blur, f in list(levels)[: self._level(t)])

    def down(self, x: Tensor, s: float, t: float) -> Tensor:
        """H_t ⋯ H_{s+1} x: from the size of level s to that of level t; `PathError` for sides that do not fit."""
        if not self.kernel:
            return shrink(x, self.factor(s, t))
        self.state_shape(x.shape[1:], t, at=s)
        for blur in self.blurs[self._level(s) : self._level(t)]:
            x = x if blur is None else blur.down(x)
        return x

    def up(self, y: Tensor, s: float, t: float) -> Tensor:
        """The adjoint of `down`: from the size of level t to that of level s."""
        if not self.kernel:
            return grow(y, self.factor(s, t))
        for blur in reversed(self.blurs[self._level(s) : self._level(t)]):
            y = y if blur is None else blur.up(y)
        return y

    def check(self, t: float) -> None:
        """Raise `GridError` unless t is one of the levels."""
        if not (0 <= t <= self.levels and float(t).is_integer()):
            raise GridError(f"PyramidPath lives on the whole levels 0 … {self.levels}, got time {t}")

    def state_shape(self, shape: Sequence[int], t: float, at: float | None = None) -> torch.Size:
        """(C, H, W) at level t."""
        start = 0.0 if at is None else at
        if len(shape) < 2:
            raise PathError(f"a PyramidPath needs images (…, H, W), got the event {tuple(shape)}")
        *lead, height, width = shape
        if t < start:
            factor = self.factor(t, start)
            return torch.Size([*lead, height * factor, width * factor])
        factor = self.factor(start, t)
        if height % factor or width % factor:
            raise PathError(
                f"{height}×{width} cannot shrink from level {start:g} to {t:g}: sides must divide by {factor}"
            )
        return torch.Size([*lead, height // factor, width // factor])

    def with_condition(self, cond: Cond) -> PyramidPath:
        """The law does not depend on the condition."""
        del cond
        return self

    def timestep_of(self, t: T) -> T:
        """(t − ½)/L, the published networks' time."""
        return (t - 0.5) / self.levels

    def prior(self, noise: NoiseSource, shape: Sequence[int], t: float | None = None) -> Tensor:
        """σ̃_t·z at the level's resolution (std 0.3 at the published end: not 1)."""
        level = self.t_range[1] if t is None else t
        return self._coloured(noise.normal("prior", self.state_shape(shape, level)), self._level(level))

    def diffuse(self, clean: Tensor, t: Time, noise: Tensor) -> Tensor:
        """ᾱ_t·H^t x_0 + σ̃_t·z; one level for the whole batch, because shapes differ between levels."""
        level = self._level(t)
        return self.gains[level] * self.down(clean, 0, level) + self._coloured(noise, level)

    @property
    def renoise_needs_clean(self) -> bool:
        """The chain is Markov."""
        return False

    def renoise(self, x: Tensor, s: float, t: float, noise: Tensor, clean: Tensor | None = None) -> Tensor:
        """(ᾱ_t/ᾱ_s)·H x_s + √(σ̃_t² − (ᾱ_t/ᾱ_s)²σ̃_s²)·z."""
        del clean
        gain, spread = self._transition(s, t)
        if not self.kernel:
            return gain * shrink(x, self.factor(s, t)) + spread * noise
        _, carried, high = self._spectra(x, s, t)
        return gain * self.down(x, s, t) + Circulant(np.sqrt(np.maximum(high - carried, 0.0)))(noise)

    def posterior(self, x: Tensor, estimate: Estimate, t: float, s: float) -> Gaussian:
        """x_s given x_t and H^s x_0.

        With m = ᾱ_s·H^s x_0, gain a, ρ = σ̃_s²a²/σ̃_t² and the projector P = HᵀH:

            mean = m + (σ̃_s²a/σ̃_t²)·Hᵀ(x_t − a·H m),   root = σ̃_s·(I − (1 − √(1 − ρ))·P)

        and for any kernel, with A = a·HΣ_s^½ and the circulant ρ = AAᵀΣ_t⁻¹:

            mean = m + a·Σ_sHᵀΣ_t⁻¹(x_t − a·H m),   root = Σ_s^½·(I − Aᵀ(Σ_t·(1 + √(1 − ρ)))⁻¹A)
        """
        low, high = self.stds[self._level(s)], self.stds[self._level(t)]
        gain, spread = self._transition(s, t)
        factor = self.factor(s, t)
        known = self.gains[self._level(s)] * self._at_level(estimate.clean, x, t, s)
        if low == 0.0:
            return Gaussian(mean=known, root=0.0)
        if self.kernel:
            return self._coloured_posterior(x, known, t, s)
        if self.rule == "published":
            scale = (low * spread / high) ** 2
            mean = scale * (gain / spread**2 * grow(x, factor) + known / low**2)
            return Gaussian(mean=mean, root=math.sqrt(scale))
        mean = known + (low**2 * gain / high**2) * grow(x - gain * shrink(known, factor), factor)
        removed = 1.0 - spread / high  # √(1 − ρ) = spread/σ̃_t

        def root(noise: Tensor) -> Tensor:
            return low * (noise - removed * grow(shrink(noise, factor), factor))

        return Gaussian(mean=mean, root=root)

    def _coloured_posterior(self, x: Tensor, known: Tensor, t: float, s: float) -> Gaussian:
        gain, _ = self._transition(s, t)
        start, carried, high = self._spectra(known, s, t)
        before, half, whiten = Circulant(start), Circulant(np.sqrt(start)), Circulant(1.0 / high)
        kept = Circulant(1.0 / (high * (1.0 + np.sqrt(np.maximum(1.0 - carried / high, 0.0)))))
        surprise = whiten(x - gain * self.down(known, s, t))
        mean = known + gain * before(self.up(surprise, s, t))

        def root(noise: Tensor) -> Tensor:
            seen = kept(gain * self.down(half(noise), s, t))
            return half(noise - gain * half(self.up(seen, s, t)))

        return Gaussian(mean=mean, root=root)

    def _coloured(self, noise: Tensor, level: int) -> Tensor:
        """Σ_l^½·z, σ̃_l·z for orthonormal kernels."""
        if not self.kernel:
            return self.stds[level] * noise
        return Circulant(np.sqrt(self._spectrum(level, *noise.shape[-2:])))(noise)

    def _spectrum(self, level: int, height: int, width: int) -> Spectrum:
        """Σ_l of a state of this size."""
        factor = self.factor(0, level)
        return self._along(np.zeros((height * factor, width * factor)), 0, level, self.sigmas)

    def _along(self, spectrum: Spectrum, s: int, t: int, sigmas: tuple[float, ...]) -> Spectrum:
        """What the levels s + 1 … t make of a covariance, with noise of these stds added."""
        for level in range(s, t):
            blur = self.blurs[level]
            if blur is not None:
                spectrum = blur.carried(spectrum)
            spectrum = self.alphas[level] ** 2 * spectrum + sigmas[level] ** 2
        return spectrum

    def _spectra(self, x: Tensor, s: float, t: float) -> tuple[Spectrum, Spectrum, Spectrum]:
        """Σ_s, a²·HΣ_sHᵀ and Σ_t for a state x at level s."""
        low, high = self._level(s), self._level(t)
        start = self._spectrum(low, *x.shape[-2:])
        silent = (0.0,) * self.levels
        return start, self._along(start, low, high, silent), self._along(start, low, high, self.sigmas)

    def _transition(self, s: float, t: float) -> tuple[float, float]:
        low, high = self._level(s), self._level(t)
        gain = self.gains[high] / self.gains[low]
        return gain, math.sqrt(max(self.stds[high] ** 2 - (gain * self.stds[low]) ** 2, 0.0))

    def _at_level(self, clean: Tensor, x: Tensor, t: float, s: float) -> Tensor:
        """H^s x_0 from an estimate that stands at level s or nearer to the image."""
        target = self.state_shape(x.shape[1:], s, at=t)
        for level in range(self._level(s), -1, -1):
            if clean.shape[-2:] == self.state_shape(x.shape[1:], level, at=t)[-2:]:
                return self.down(clean, level, s)
        raise PathError(
            f"the estimate at level {t:g} is {tuple(clean.shape[-2:])}, too small for level {s:g} "
            f"({tuple(target[-2:])}) or no level's size: step through every level"
        )

    def _level(self, t: Time) -> int:
        level = float(t) if not isinstance(t, Tensor) or t.ndim == 0 else float(t.flatten()[0])
        if isinstance(t, Tensor) and t.ndim and not bool((t == t.flatten()[0]).all()):
            raise PathError("a PyramidPath needs one level for the whole batch: the levels' shapes differ")
        self.check(level)
        return int(level)

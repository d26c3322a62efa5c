"""Blur and subsample with any separable kernel, and the covariances that this makes of white noise.

H filters with w ⊗ w around the image's edges (circularly) and keeps every f-th pixel of both directions. Then HHᵀ, and
every covariance α²·H Σ Hᵀ + σ²·I that a chain of such steps makes, is a circulant of the small image: diagonal in
Fourier space, with real, even and positive numbers on it. `Circulant` is that diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

fft: Any = torch.fft
Spectrum = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Blur:
    """H for one factor: ``taps`` are those of w, of unit norm; its middle is on the middle of a block of f pixels."""

    factor: int
    taps: tuple[float, ...]

    @property
    def gain(self) -> float:
        """What H makes of a constant image of ones."""
        return sum(self.taps) ** 2

    def down(self, x: Tensor) -> Tensor:
        """(…, H, W) → (…, H/f, W/f)."""
        rows, columns = (_matrix(n, self.factor, self.taps).to(x) for n in x.shape[-2:])
        return rows @ x @ columns.T

    def up(self, y: Tensor) -> Tensor:
        """Hᵀ: (…, h, w) → (…, f·h, f·w)."""
        rows, columns = (_matrix(n * self.factor, self.factor, self.taps).to(y) for n in y.shape[-2:])
        return rows.T @ y @ columns

    def carried(self, spectrum: Spectrum) -> Spectrum:
        """The spectrum of H Σ Hᵀ on the small grid from that of Σ on the large one: |ŵ|²·Σ̂, its aliases averaged."""
        height, width = spectrum.shape
        f = self.factor
        passed = spectrum * np.outer(_power(height, self.taps), _power(width, self.taps))
        return passed.reshape(f, height // f, f, width // f).mean(axis=(0, 2))


@lru_cache(maxsize=64)
def _matrix(n: int, factor: int, taps: tuple[float, ...]) -> Tensor:
    """H in one dimension, (n/f, n), float64."""
    out = np.zeros((n // factor, n))
    first = (factor - len(taps)) // 2
    for row in range(n // factor):
        for i, tap in enumerate(taps):
            out[row, (row * factor + first + i) % n] += tap
    return torch.tensor(out)


def _power(n: int, taps: tuple[float, ...]) -> Spectrum:
    """|ŵ|² at the n frequencies of a circle of n pixels."""
    phases = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(len(taps))) / n)
    return np.abs(phases @ np.asarray(taps)) ** 2


@dataclass(frozen=True, slots=True)
class Circulant:
    """A symmetric circulant of images by its spectrum (H, W): ``C(x)`` is the circular convolution."""

    spectrum: Spectrum

    def __call__(self, x: Tensor) -> Tensor:
        """(…, H, W) in and out."""
        half = self.spectrum[:, : x.shape[-1] // 2 + 1]
        factors = torch.tensor(half).to(x)
        # torch.fft is untyped.
        return fft.irfft2(fft.rfft2(x) * factors, s=tuple(x.shape[-2:]))

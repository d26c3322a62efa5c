"""Weights of the denoising loss over noise levels, stated on the error of the clean sample.

A network is compared with its own target, so a weight w(t) on |x̂_0 − x_0|² becomes w(t)·g(t)² on |raw − target|², with
g = ∂x̂_0/∂raw. The slope g is read off the parameterization, so every weight works with every one of them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..errors import PathError
from ..estimates import Estimate
from ..parameterizations import Clean, Parameterization
from ..paths.base import AffinePath, Path

WeightName = Literal["auto", "none", "min-snr", "edm"]


def slope(reading: Parameterization, path: Path, t: Tensor) -> Tensor:
    """g(t) = ∂x̂_0/∂raw, shape (B,)."""
    return _of_one(reading, path, t).clean[:, 0]


def _of_one(reading: Parameterization, path: Path, t: Tensor) -> Estimate:
    """The estimate at x = 0 of a raw output of one: predictions are affine in the output, so these are their slopes."""
    one = torch.ones(t.shape[0], 1, dtype=torch.float64)
    return reading.to_estimate(path, torch.zeros_like(one), t, one)


def weight(
    name: WeightName, reading: Parameterization, path: Path, t: Tensor, *, gamma: float, sigma_data: float
) -> Tensor | None:
    """Weight (B,) of |raw − target|² at the times t (B,); None for one everywhere.

    * ``auto``: min-snr for a network that predicts x_0, none otherwise.
    * ``none``: the network's own output counts equally at all times.
    * ``min-snr``: w = min(SNR, γ) on the clean error (Hang et al. 2023, eq. 7).
    * ``edm``: w = (σ̄² + s²)/(σ̄·s)² on the clean error (Karras et al. 2022, table 1), s = sigma_data.

    Raises `PathError` for a path without a signal-to-noise ratio.
    """
    if name == "auto":
        name = "min-snr" if isinstance(reading, Clean) and isinstance(path, AffinePath) else "none"
    if name == "none":
        return None
    if not isinstance(path, AffinePath):
        raise PathError(f"weight {name!r} needs an AffinePath with a log-SNR, got {type(path).__name__}: use 'none'")
    gain, ratio = slope(reading, path, t), _noise_slope(reading, path, t)
    if name == "min-snr":
        # SNR·g² is the slope of ẑ squared, which has its limit where α → 0; min(SNR, γ)·g² where σ → 0 is γ·g².
        return torch.where(path.log_snr(t) > math.log(gamma), gamma * gain**2, ratio**2)
    return (gain / sigma_data) ** 2 + ratio**2


def _noise_slope(reading: Parameterization, path: AffinePath, t: Tensor) -> Tensor:
    """|∂ẑ/∂raw| = |g|/σ̄, shape (B,); at σ = 0, where that is 0/0, its value a hair above."""
    low, high = path.t_range
    found = _of_one(reading, path, t).noise[:, 0].abs()
    above = _of_one(reading, path, t.clamp_min(low + 1e-9 * (high - low))).noise[:, 0].abs()
    return torch.where(found.isnan(), above, found)

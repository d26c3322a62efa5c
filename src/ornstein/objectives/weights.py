"""Weights of the denoising loss over noise levels, stated on the error of the clean sample.

A network is compared with its own target, so a weight w(t) on |x̂_0 − x_0|² becomes w(t)·g(t)² on |raw − target|², with
g = ∂x̂_0/∂raw. The slope g is read off the parameterization, so every weight works with every one of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import PathError
from ..parameterizations import Clean, Parameterization
from ..paths.base import AffinePath, Path

WeightName = Literal["auto", "none", "min-snr", "edm"]


def slope(reading: Parameterization, path: Path, t: Tensor) -> Tensor:
    """g(t) = ∂x̂_0/∂raw, shape (B,): x̂_0 is affine in the raw output, so its value at x = 0, raw = 1."""
    one = torch.ones(t.shape[0], 1, dtype=torch.float64)
    return reading.to_estimate(path, torch.zeros_like(one), t, one).clean[:, 0]


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
    bar, gain = path.sigma_bar(t), slope(reading, path, t)
    if name == "min-snr":
        # g² joins before the division, so that a noise prediction at α → 0 keeps its limit of one.
        return torch.minimum((gain / bar) ** 2, gamma * gain**2)
    return (gain / sigma_data) ** 2 + (gain / bar) ** 2

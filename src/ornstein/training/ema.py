"""The power-function average of weights (Karras et al. 2024, EDM2, section 3.1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..errors import ConfigError


def exponent(sigma_rel: float) -> float:
    """γ of the profile w(s) ∝ s^γ whose standard deviation is ``sigma_rel`` of the training so far.

    σ_rel² = (γ + 1)/((γ + 2)²·(γ + 3)), eq. 123: the greatest real root of γ³ + 7γ² + (16 − σ⁻²)γ + 12 − σ⁻².

    >>> round(exponent(0.1), 2), round(exponent(0.05), 2)
    (6.94, 16.97)
    """
    if not 0.0 < sigma_rel < 0.28:
        raise ConfigError(f"sigma_rel must lie in (0, 0.28), got {sigma_rel}")
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def beta(step: int, gamma: float) -> float:
    """β = (1 − 1/step)^(γ+1), what is kept of the average at step 1, 2, …; the first step keeps nothing."""
    return (1.0 - 1.0 / step) ** (gamma + 1.0)


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, step: int, gamma: float) -> None:
    """average ← β·average + (1 − β)·model for all parameters at once; buffers do not change in training."""
    ours, theirs = list(average.parameters()), list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 1.0 - beta(step, gamma))  # pyright: ignore[reportCallIssue, reportArgumentType, reportPrivateImportUsage]

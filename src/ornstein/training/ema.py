"""The power-function average of weights (Karras et al. 2024, EDM2, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

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


def update(average: nn.Module, model: nn.Module, step: int, gamma: float) -> None:
    """average ← β·average + (1 − β)·model for all parameters at once; buffers do not change in training."""
    move(average, model, beta(step, gamma))


def decay(value: float) -> Callable[[int], float]:
    """What an average keeps of itself at step 1, 2, …: below 0.28 a power function of that width, above 0.5 an
    exponential average of that decay, which is a plain mean until it has seen 1/(1 − decay) steps.

    >>> [round(decay(0.75)(step), 3) for step in (1, 2, 3, 4, 100)]
    [0.0, 0.5, 0.667, 0.75, 0.75]

    Raises:
        ConfigError: another value.
    """
    if 0.0 < value < 0.28:
        gamma = exponent(value)
        return lambda step: beta(step, gamma)
    if 0.5 < value < 1.0:
        return lambda step: min(value, 1.0 - 1.0 / step)
    raise ConfigError(f"ema.also holds widths in (0, 0.28) and decays in (0.5, 1), got {value}")


@torch.no_grad()
def move(average: nn.Module, model: nn.Module, keep: float) -> None:
    """average ← keep·average + (1 − keep)·model for all parameters at once."""
    ours, theirs = list(average.parameters()), list(model.parameters())
    torch._foreach_lerp_(ours, theirs, 1.0 - keep)  # pyright: ignore[reportCallIssue, reportArgumentType, reportPrivateImportUsage]

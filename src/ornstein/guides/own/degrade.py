"""Pictures as guides meet them: the clean estimates of a denoiser are blurred, mixed with their like, pale or noisy.

Every function takes pictures (B, 3, H, W) in [−1, 1] and a numpy generator, and draws from nothing else.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ornstein.guides.own.towers import SIDE, resized

_GROUPS = 4  # of a batch, each with its own blur and its own size


def degraded(images: Tensor, rng: np.random.Generator, strength: float = 1.0) -> Tensor:
    """The pictures, a tenth of the groups nearly untouched, the others blurred, resized, mixed or noised.

    ``strength`` scales all of it; 0 changes nothing.
    """
    if strength == 0:
        return images
    return torch.cat([_group(chunk, rng, strength) for chunk in images.chunk(_GROUPS)])


def _group(x: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    kind = rng.random(4)
    side = int(rng.integers(24, 97))
    sigma = strength * float(rng.uniform(0.3, 4.0)) if kind[0] < 0.5 else 0.0
    least = 1 - 0.5 * strength * float(rng.random())
    if kind[1] < 0.3:
        weight = _each(rng.uniform(least, 1.0, len(x)))
        x = weight * x + (1 - weight) * x.roll(1, 0)
    x = blurred(x, sigma)
    if kind[2] < 0.5:
        x = resized(resized(x, side, side), SIDE, SIDE)
    # Contrast, brightness and noise; each row has its own.
    x = _each(rng.uniform(1 - 0.3 * strength, 1.0 + 0.1 * strength, len(x))) * x
    x = x + _each(rng.normal(0.0, 0.05 * strength, len(x)))
    if kind[3] < 0.5:
        level = _each(rng.uniform(0.0, 0.4 * strength, len(x)))
        x = x + level * torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32))
    return x


def _each(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Convolved with a Gaussian of ``sigma`` pixels, cut at three; the edge is repeated."""
    if sigma <= 0:
        return x
    reach = min(math.ceil(3 * sigma), SIDE // 2)
    at = torch.arange(-reach, reach + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = functional.pad(x, (reach, reach, reach, reach), mode="replicate")
    x = functional.conv2d(x, kernel[:, :, None], groups=x.shape[1])
    return functional.conv2d(x, kernel[:, :, :, None], groups=x.shape[1])

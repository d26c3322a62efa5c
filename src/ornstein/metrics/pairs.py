"""How far a reconstruction is from its image: named distances of pairs, (B, …) × (B, …) → (B,)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]

PLAIN = ("squared", "absolute")


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖², summed in float64."""
    return (a - b).to(torch.float64).square().flatten(1).sum(1)


def _absolute(a: Tensor, b: Tensor) -> Tensor:
    """∑ |a − b|, in float64."""
    return (a - b).to(torch.float64).abs().flatten(1).sum(1)


def distance(name: str | Path = "lite0", device: torch.device | str = "cpu") -> tuple[str, Distance]:
    """(what it is called, the distance).

    * "squared", "absolute": sums over the pixels; any shape.
    * "lite0", "vgg", "alex", "squeeze", or the path of LPIPS weights: `ornstein.metrics.perceptual.lpips`, for images
      in [−1, 1]. lite0 needs no download and is no LPIPS; "lpips" is "vgg", which the paper used.
    """
    if name == "squared":
        return "squared", _squared
    if name == "absolute":
        return "absolute", _absolute
    from . import perceptual

    found = perceptual.lpips("vgg" if name == "lpips" else name).to(device)
    return found.name, cast("Distance", found)

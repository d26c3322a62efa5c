"""How much of a picture survives a codec."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..latents.codec import Codec

if TYPE_CHECKING:
    from ..data.base import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """Means over ``count`` pictures, reconstructed from the means of their posteriors and rounded to bytes.

    ``psnr`` in dB (10·log₁₀(255²/mse) of each picture, on all channels), ``l1`` in units of [−1, 1], ``perceptual`` the
    distance named ``metric`` (NaN without one). ``latent_std`` is over all latents of the set.
    """

    count: int
    psnr: float
    l1: float
    perceptual: float
    metric: str
    latent_std: float


@torch.no_grad()
def reconstruction(
    codec: Codec,
    source: Source,
    *,
    count: int = 256,
    batch: int = 16,
    metric: Callable[[Tensor, Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Reconstruction:
    """Reconstruct ``count`` pictures of a source, evenly spread over it (all of them if it has fewer)."""
    from ..data.loader import read_example
    from ..data.pictures import to_uint8

    count = min(count, len(source))
    picked = [i * len(source) // count for i in range(count)]
    psnr, l1, far, power, latents = 0.0, 0.0, 0.0, 0.0, 0
    for start in range(0, count, batch):
        rows = torch.stack([read_example(source, i)[0].image for i in picked[start : start + batch]])
        image = rows.float().div_(127.5).sub_(1.0).to(device)
        latent = codec.encode(image)
        again = to_uint8(codec.decode(latent))
        mse = (again.double() - rows.double()).square().flatten(1).mean(1)
        psnr += sum(10.0 * math.log10(255.0**2 / max(value, 1e-10)) for value in mse.tolist())
        l1 += float((again.double() - rows.double()).abs().flatten(1).mean(1).sum()) / 127.5
        if metric is not None:
            far += float(metric(again.float().div(127.5).sub(1.0).to(device), image).double().sum())
        power, latents = power + float(latent.double().square().sum()), latents + latent.numel()
    return Reconstruction(
        count=count,
        psnr=psnr / count,
        l1=l1 / count,
        perceptual=math.nan if metric is None else far / count,
        metric="" if metric is None else str(getattr(metric, "name", type(metric).__name__)),
        latent_std=math.sqrt(power / latents),
    )

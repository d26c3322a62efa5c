"""Keeping the clean estimate in the range of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers import DenoiserLike
from ..errors import ConfigError
from ..estimates import Estimate
from ..scalars import Time, expand
from ..typed import typed
from .base import Rule


@typed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold(Rule):
    """Dynamic thresholding of the clean estimate (Saharia et al. 2022, appendix A.1).

        s = max(bound, q-quantile of |x̂_0| of the sample),   x̂_0 ← bound · clip(x̂_0, −s, s)/s

    Meant for pixels in [−bound, bound], after a strong guidance: ``compose(CFG(weight=8, …), Threshold())``.
    ``quantile=None`` clips at the bound and divides by nothing (static thresholding). A sample whose numbers all lie in
    the range is left as it is, bit for bit. Latents have no such range.

    >>> import torch, ornstein as orn
    >>> model = orn.Denoiser(lambda x, time: x, path=orn.VE(), predicts="clean")
    >>> Threshold(quantile=1.0)(model)(torch.tensor([[0.5, 4.0]]), 1.0).clean.tolist()
    [[0.125, 1.0]]
    """

    quantile: float | None = 0.995
    bound: float = 1.0

    def __post_init__(self) -> None:
        if self.quantile is not None and not 0.0 < self.quantile <= 1.0:
            raise ConfigError(f"quantile must lie in (0, 1], or be None for plain clipping, got {self.quantile}")
        if not self.bound > 0.0:
            raise ConfigError(f"bound must be positive, got {self.bound}")

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The inner estimate, clipped and scaled."""
        answer = inner(x, t)
        clean = answer.clean
        if self.quantile is None:
            return answer.replace(clean=clean.clamp(-self.bound, self.bound))
        sizes = clean.detach().abs().flatten(1).to(torch.promote_types(clean.dtype, torch.float32)).sort(dim=1).values
        at = self.quantile * (sizes.shape[1] - 1)  # by hand: torch.quantile refuses large tensors
        low, high = sizes[:, int(at)], sizes[:, min(int(at) + 1, sizes.shape[1] - 1)]
        s = torch.as_tensor(expand((low + (at - int(at)) * (high - low)).clamp_min(self.bound), clean))
        return answer.replace(clean=torch.minimum(torch.maximum(clean, -s), s) * (self.bound / s))


__all__ = ["Threshold"]

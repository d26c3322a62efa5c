"""Guidance by a classifier of noisy samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .. import scalars
from ..denoisers import DenoiserLike
from ..errors import UsageError
from ..estimates import Estimate
from ..scalars import Time, expand
from ..typed import typed
from .base import Rule, Strength, affine_path, finite_rows, leaf_of, strength_at

NoisyScores = Callable[[Tensor, Tensor], Tensor]


@typed()
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisyClassifier(Rule):
    """A classifier trained on noisy samples (Dhariwal & Nichol 2021, section 4; eq. 4 of universal guidance):

        score ← score + w·∇_x log p(y | x, log-SNR),   that is   x̂_0 ← x̂_0 + w·(σ²/α)·∇_x log p(y | x, log-SNR).

    ``classifier(state, log_snr)`` takes (B, *event) and (B,) and returns logits (B, K), of which ``label`` picks y:
    one class, or a tensor of one or B classes. With ``label=None`` it returns log p(y | x) (B,) itself. Its inputs are
    the noise level as log-SNR and, with ``feeds="unit"``, the state as x/√(α² + σ²), of unit variance on data of unit
    variance: so one classifier serves every path, parameterization and sampler. ``feeds="state"`` passes x itself.

    ``weight`` w is a number or a function of the log-SNR; 1 samples the exact conditional law if denoiser and
    classifier are exact, 0 is no guidance, bit for bit and without a call. There is no guidance at pure noise (α = 0),
    where a state says nothing about its class. No gradient goes through the denoiser.
    """

    classifier: NoisyScores = field(repr=False)
    label: int | Tensor | None = None
    weight: Strength = 1.0
    feeds: Literal["unit", "state"] = "unit"

    def estimate(self, inner: DenoiserLike, x: Tensor, t: Time) -> Estimate:
        """The inner estimate, moved along the classifier's gradient."""
        answer = inner(x, t)
        path = affine_path(inner.path, "NoisyClassifier")
        weight, alpha, sigma = strength_at(self.weight, path, t), path.alpha(t), path.sigma(t)
        if not isinstance(weight, Tensor) and weight == 0.0:
            return answer
        if not isinstance(alpha, Tensor) and (alpha == 0.0 or sigma == 0.0):
            return answer
        log_snr = torch.as_tensor(path.log_snr(t), dtype=x.dtype, device=x.device).expand(x.shape[0])
        with torch.inference_mode(False), torch.enable_grad():
            leaf = leaf_of(x.detach())
            unit = expand(1.0 / scalars.sqrt(alpha**2 + sigma**2), x) if self.feeds == "unit" else 1.0
            scores = self.classifier(leaf * unit, log_snr)
            (gradient,) = torch.autograd.grad(self._picked(scores, x.shape[0]).sum(), leaf)
        shift = expand(weight * sigma**2 / alpha, x) * finite_rows(gradient)
        return answer.replace(clean=answer.clean + shift)

    def _picked(self, scores: Tensor, rows: int) -> Tensor:
        if self.label is None:
            if scores.shape != (rows,):
                raise UsageError(
                    f"a classifier without label returns log p of shape ({rows},), got {tuple(scores.shape)}"
                )
            return scores
        label = torch.as_tensor(self.label, device=scores.device).reshape(-1)
        if scores.ndim != 2 or len(scores) != rows or len(label) not in (1, rows):
            raise UsageError(
                f"logits (B, K) and one label or B are needed for {rows} samples, got logits {tuple(scores.shape)} and "
                f"{len(label)} labels"
            )
        return torch.log_softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=1).gather(
            1, label.expand(rows)[:, None]
        )[:, 0]


__all__ = ["NoisyClassifier", "NoisyScores"]

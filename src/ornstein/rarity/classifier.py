"""A trained rarity classifier as something to ask: from its run's folder, for any path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError

if TYPE_CHECKING:
    from ..training.rarity import RaritySpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RarityClassifier:
    """log p(class of rarity | state, log-SNR), by a network that was trained on noisy images.

    ``rarities`` classes, the last the rarest. ``labels`` are the names of the labels it is told, empty if none.
    """

    net: nn.Module = field(repr=False)
    spec: RaritySpec = field(repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def rarities(self) -> int:
        """L."""
        return self.spec.rarities

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels it is told."""
        return self.spec.classes

    def __call__(self, state: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's answer (B, L) or (B, 2) at states of unit variance (B, 3, H, W) and log-SNR (B,)."""
        told = {"label": label} if self.labels and label is not None else {}
        return self.net(state.float(), log_snr.float(), **told)

    def log_likelihood(self, state: Tensor, log_snr: Tensor, target: int, label: Tensor | None = None) -> Tensor:
        """log p(``target`` | state), (B,): of a class from the logits, or from N(y; μ, s) at its middle quantile y."""
        raw = self(state, log_snr, label)
        if self.spec.head == "classes":
            return torch.log_softmax(raw.float(), dim=1)[:, target]
        mean, log_std = raw.float().unbind(1)
        goal = NormalDist().inv_cdf((target + 0.5) / self.rarities)
        return -0.5 * ((goal - mean) * torch.exp(-log_std)).square() - log_std

    def number(self, target: int) -> int:
        """The class 0 … L − 1; negative numbers count from the rarest. Raises `UsageError` for one that is none."""
        if not -self.rarities <= target < self.rarities:
            raise UsageError(f"rarity class {target} is none of 0 … {self.rarities - 1} (−1 is the rarest)")
        return target % self.rarities


def load(where: str | Path, *, ema: bool = True, device: str | torch.device = "cpu") -> RarityClassifier:
    """The classifier of a run of `ornstein train rarity-classifier`; `UsageError` for a run of another kind."""
    from ..runs import open_own
    from ..training.rarity import RaritySpec

    run = open_own(where, ema=ema, device=device)
    spec = getattr(run, "spec", None)
    if not isinstance(spec, RaritySpec):
        raise UsageError(
            f"{where} is no rarity classifier but a run that makes images: give one of ornstein train rarity-classifier"
        )
    return RarityClassifier(net=cast("Any", run).model.net, spec=spec, details=run.details)

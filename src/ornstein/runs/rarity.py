"""Load a trained rarity classifier from its run's folder, for any path."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from ..errors import UsageError
from ..models.rarity import RarityClassifier, RaritySpec
from .open import open_own


def load(where: str | Path, *, ema: bool = True, device: str | torch.device = "cpu") -> RarityClassifier:
    """The classifier of a run of `ornstein train rarity-classifier`; `UsageError` for a run of another kind."""

    run = open_own(where, ema=ema, device=device)
    spec = run.spec
    if not isinstance(spec, RaritySpec):
        raise UsageError(
            f"{where} is no rarity classifier but a run that makes images: give one of ornstein train rarity-classifier"
        )
    return RarityClassifier(net=cast("Any", run).model.net, spec=spec, details=run.details)
